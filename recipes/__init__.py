"""Recipes: a YAML file in, a run folder out (`python -m recipes.run FILE.yaml`)."""
