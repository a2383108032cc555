"""Constrained Self-Play from recorded games."""
