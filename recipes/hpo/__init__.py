"""Hybrid Policy Optimization on a simulator."""
