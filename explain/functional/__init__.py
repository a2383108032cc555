"""Explaining as pure functions: arrays in, arrays out."""
