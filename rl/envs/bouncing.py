"""A point that a wall throws back: contact, a jump of the dynamics, is made a mode whose region the action keeps to."""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rl.envs.hybrid import HybridSimulator, Noise, State


class BouncingPoint(HybridSimulator):
    r"""A point on the half line :math:`p \ge 0` with speed ``v``, a wall at 0, and a target to hold.

    Impulse ``b`` leads to :math:`z = p + v + b`, where the point would be after one period if there were no wall. It is
    an affine plant in either region of z, with a jump of the speed between them:

    ========  =============  ==================  =========================
    mode      region         next position       next speed
    ========  =============  ==================  =========================
    0 fly     :math:`z > 0`  :math:`z`           :math:`v + b`
    1 bounce  :math:`z < 0`  :math:`-e z`        :math:`-e (v + b)`
    ========  =============  ==================  =========================

    with restitution e. The network's raw output sets :math:`z = \pm softplus(r)`, so that the impulse
    :math:`b = z - p - v` has a boundary that depends on the live state, and the declared mode is always the true one.
    The cost of a period is :math:`(p' - target)^2 + effort \cdot b^2`. For every word of modes the best impulses solve
    a bounded least-squares problem: ``rl.hpo.references.bouncing`` has the optimum.

    Args:
        target: Where the point should be, above 0.
        effort: Weight of the impulse, above 0.
        restitution: e in (0, 1].
        horizon: Periods of an episode.
        dtype: Floating type of the simulation.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> simulator = BouncingPoint(target=1.0)
        >>> state = {"position": torch.tensor([0.5]), "speed": torch.tensor([-2.0])}
        >>> state, cost = simulator.step(state, torch.tensor([1]), torch.tensor([[0.0]]), {}, 0)
        >>> round(state["position"].item(), 3), round(state["speed"].item(), 3), round(cost.item(), 4)
        (1.2, 1.6, 0.04)
    """

    n_modes = 2
    action_dim = 1
    observation_dim = 2
    report = "total"

    def __init__(
        self,
        target: float = 1.0,
        effort: float = 0.5,
        restitution: float = 0.8,
        horizon: int = 3,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if target <= 0 or effort <= 0 or not 0 < restitution <= 1:
            raise ValueError(
                f"target is {target}, effort {effort} and restitution {restitution}, but they must be above 0, and the "
                "last at most 1"
            )
        self.target, self.effort, self.restitution, self.horizon = target, effort, restitution, horizon
        self.dtype = dtype

    def sample_noise(self, batch: int, generator: torch.Generator) -> Noise:
        """First position (batch,), uniform on [0, 2], and speed (batch,), uniform on [-3, 1]."""
        uniform = torch.rand(batch, 2, generator=generator, dtype=self.dtype, device=generator.device).to(self.device)
        return {"position": 2 * uniform[:, 0], "speed": 4 * uniform[:, 1] - 3}

    def reset(self, noise: Noise) -> State:
        """``position`` and ``speed``, (batch,) each."""
        return {"position": noise["position"], "speed": noise["speed"]}

    def observe(self, state: State, t: int) -> Tensor:
        """Position and speed."""
        return torch.stack([state["position"], state["speed"]], dim=1)

    def seen_state(self, observation: Tensor) -> State:
        """All of the state."""
        return {"position": observation[:, 0], "speed": observation[:, 1]}

    def action_map(self, raw: Tensor, state: State) -> Tensor:
        """Impulses that end in the region of their mode."""
        touch = softplus(raw) * torch.tensor([[1.0], [-1.0]], dtype=raw.dtype, device=raw.device)
        return touch - (state["position"] + state["speed"])[:, None, None]

    def step(self, state: State, mode: Tensor, action: Tensor, noise: Noise, t: int) -> tuple[State, Tensor]:
        """Fly or bounce for a period."""
        impulse = action[:, 0]
        speed = state["speed"] + impulse
        factor = speed.new_tensor([1.0, -self.restitution])[mode]
        position = factor * (state["position"] + speed)
        cost = (position - self.target).square() + self.effort * impulse.square()
        return {"position": position, "speed": factor * speed}, cost
