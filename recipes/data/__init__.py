"""Real models and data sets for the recipes: pinned wheels, Hub data sets and local files behind one interface."""
