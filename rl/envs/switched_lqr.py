"""The switched linear-quadratic regulator: in every mode other dynamics, and in each a linear plant."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rl.envs.hybrid import HybridSimulator, Noise, State, chosen_action


class SwitchedLQR(HybridSimulator):
    r"""Linear dynamics by mode and a quadratic cost.

    .. math:: s' = A_x s + B_x b, \qquad c = s^T Q s + b^T R b

    Only the first state is random, uniform in a box, and there is no cost of the last state.

    Args:
        A: (modes, n, n), or (n, n) for all modes.
        B: (modes, n, m).
        Q: (n, n).
        R: (m, m).
        initial: Half-width of the box of first states.
        horizon: Stages of an episode.
        limit: Bound on every coordinate of the state, so that an unstable policy cannot overflow.
        bound: Smooth bound on what a network may do: its raw output r acts as :math:`c \tanh(r / c)`. None, and any
            number is an action.
        dtype: Floating type of the simulation.

    Raises:
        ValueError: If shapes do not fit together.

    Example:
        >>> simulator = textbook_switched_lqr()
        >>> state, cost = simulator.step(
        ...     {"x": torch.tensor([[1.0, 1.0]])}, torch.tensor([1]), torch.tensor([[-1.0]]), {}, 0
        ... )
        >>> state["x"].tolist(), cost.item()
        ([[2.0, -1.5]], 3.0)
    """

    discount = 0.99
    report = "total"

    def __init__(
        self,
        A: np.ndarray | Tensor,
        B: np.ndarray | Tensor,
        Q: np.ndarray | Tensor,
        R: np.ndarray | Tensor,
        *,
        initial: float,
        horizon: int = 20,
        limit: float = 100.0,
        bound: float | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dtype = dtype
        if bound is not None and not bound > 0:
            raise ValueError(f"bound is {bound}, but it must be above 0, or None for actions without one")
        self.bound = bound
        self.B, self.Q, self.R = (torch.as_tensor(matrix).to(dtype) for matrix in (B, Q, R))
        self.n_modes, n, m = self.B.shape
        A = torch.as_tensor(A).to(dtype)
        if A.shape not in ((n, n), (self.n_modes, n, n)) or self.Q.shape != (n, n) or self.R.shape != (m, m):
            raise ValueError(
                f"A is {tuple(A.shape)}, B {tuple(self.B.shape)}, Q {tuple(self.Q.shape)} and R {tuple(self.R.shape)}, "
                "but they must be (modes, n, n) or (n, n), (modes, n, m), (n, n) and (m, m)"
            )
        self.A = A.expand(self.n_modes, n, n).clone()
        # The plants of all modes beside each other: one product makes every mode's next state.
        self.plant = torch.cat([self.A, self.B], dim=2).flatten(0, 1).T.contiguous()
        self.initial, self.horizon, self.limit = initial, horizon, limit
        self.observation_dim, self.action_dim = n, m

    def sample_noise(self, batch: int, generator: torch.Generator) -> Noise:
        """The first state (batch, n)."""
        uniform = torch.rand(
            batch, self.observation_dim, generator=generator, dtype=self.dtype, device=generator.device
        )
        return {"initial": ((2 * uniform - 1) * self.initial).to(self.device)}

    def reset(self, noise: Noise) -> State:
        """``x`` (batch, n)."""
        return {"x": noise["initial"]}

    def observe(self, state: State, t: int) -> Tensor:
        """The state itself."""
        return state["x"]

    def action_map(self, raw: Tensor, state: State) -> Tensor:
        """The raw outputs, within the bound if there is one."""
        return raw if self.bound is None else self.bound * torch.tanh(raw / self.bound)

    def step(self, state: State, mode: Tensor, action: Tensor, noise: Noise, t: int) -> tuple[State, Tensor]:
        """One stage of the plant that the mode selects."""
        x = state["x"]
        cost = ((x @ self.Q) * x).sum(dim=1) + ((action @ self.R) * action).sum(dim=1)
        following = (torch.cat([x, action], dim=1) @ self.plant).reshape(len(x), self.n_modes, -1)
        return {"x": chosen_action(following, mode).clamp(-self.limit, self.limit)}, cost


def switched_lqr(
    dimension: int, modes: int, seed: int = 0, bound: float | None = None, dtype: torch.dtype = torch.float32
) -> SwitchedLQR:
    r"""The switched-LQR family of Hybrid Policy Optimization.

    :math:`A = 1.1 I + 0.05 N`, N a symmetric normal matrix scaled to a largest entry of 1. The modes split the
    coordinates into blocks: :math:`B_j` is diagonal, 1 on the block of mode j and 0.15 elsewhere. Q = I, R = 0.1 I, 20
    stages, and :math:`s_0` uniform in :math:`[-10 / \sqrt n, 10 / \sqrt n]^n`, so that :math:`E |s_0|^2 = 100 / 3`.

    Args:
        dimension: n, at least ``modes``.
        modes: J, at least 1.
        seed: Of N.
        bound: As in :class:`SwitchedLQR`.
        dtype: Floating type of the simulation.

    Returns:
        The simulator.

    Raises:
        ValueError: If there are more modes than coordinates.

    Reference:
        Alvo, Russo and Kanoria (2026), arXiv 2605.14297.
    """
    if not 1 <= modes <= dimension:
        raise ValueError(f"there are {modes} modes for {dimension} coordinates, but each mode needs a block of its own")
    coupling = np.random.default_rng(seed).standard_normal((dimension, dimension))
    coupling = (coupling + coupling.T) / 2
    gains = np.full((modes, dimension), 0.15)
    for mode, block in enumerate(np.array_split(np.arange(dimension), modes)):
        gains[mode, block] = 1.0
    identity = np.eye(dimension)
    return SwitchedLQR(
        1.1 * identity + 0.05 * coupling / np.abs(coupling).max(),
        gains[:, :, None] * identity,
        identity,
        0.1 * identity,
        initial=10 / dimension**0.5,
        bound=bound,
        dtype=dtype,
    )


def textbook_switched_lqr(horizon: int = 20, dtype: torch.dtype = torch.float32) -> SwitchedLQR:
    """Two states, two modes and one input, the example of Zhang, Hu and Abate (2009)."""
    A: Sequence[object] = [[[2, 1], [0, 1]], [[2, 1], [0, 0.5]]]
    return SwitchedLQR(
        np.array(A), np.array([[[1], [1]], [[1], [2]]]), np.eye(2), np.eye(1), initial=1.0, horizon=horizon, dtype=dtype
    )
