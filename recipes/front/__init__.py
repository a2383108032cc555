"""The recipe front: strict YAML, typed schemas and errors that name the line (imports neither torch nor lightning)."""
