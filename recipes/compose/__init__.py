"""From experts to dense students in one run."""
