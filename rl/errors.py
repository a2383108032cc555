"""The error of a simulator that cannot be trained in, or of an action space that cannot be split."""


class SimulatorError(ValueError):
    """A simulator or an environment breaks the protocol; one sentence names the step and the tensor, and what to do."""
