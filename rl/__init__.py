"""The gap to the optimum in reinforcement learning: hybrid policy optimisation and constrained self-play."""
