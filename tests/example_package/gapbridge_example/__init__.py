"""What a package outside gapbridge can add: a recipe, a merge method, a loss, a policy and a game."""
