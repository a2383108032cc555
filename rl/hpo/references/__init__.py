"""Optima, bounds and heuristics that a learned policy is measured against; they share no code with the simulators."""
