"""Measured figures: one script each, against peers and bounds, with the results kept as JSON."""
