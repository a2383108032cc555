"""Explanation of a performance gap."""
