"""Doing a recipe: the run folder, the Trainer, resume."""
