"""The half of `HPOModule` that simulates: the episodes of a batch, what the critic makes of them, and evaluation."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from rl.checkpoints import GuardedModule
from rl.envs.check_smoothness import moved_mask, moving_mask
from rl.envs.hybrid import HybridSimulator, Noise, relative_gap, reported_cost
from rl.errors import SimulatorError
from rl.hpo.acting import Action
from rl.hpo.data import Seeds
from rl.hpo.estimators import Estimator
from rl.hpo.policies import HybridPolicy
from rl.hpo.rollout import Draws, Rollout, rollout
from rl.hpo.simulators import place
from rl.hpo.surrogate import advantages_of, branched_advantages
from rl.processes import mean_of, moments, over_processes

# How far the raw actions are moved to see whether mode masks move with them: networks give numbers around 1.
MASK_NUDGE = 0.5


class Simulation(GuardedModule):
    """Simulates batches of episodes; a subclass makes the parts that are declared here.

    Attributes:
        simulator: The simulator.
        policy: The policy.
        estimator: Which gradient is taken.
        value_shift: Mean of the value targets, ().
        value_scale: Their deviation, ().
        updates: Updates done, int64 ().
        references: Costs that `gap` compares with, by stage.
    """

    simulator: HybridSimulator
    policy: HybridPolicy
    estimator: Estimator
    value_shift: Tensor
    value_scale: Tensor
    updates: Tensor
    references: dict[str, float]

    @property
    def discount(self) -> float:
        """Discount of the advantages."""
        given = self.hparams["discount"]
        return float(self.simulator.discount if given is None else given)

    @property
    def decisions(self) -> int:
        """How many decisions are trained: all but the simulator's buffer at the end.

        Those of the warm-up are among them, though its costs do not count: decisions that are never trained can lead
        where no trained one has been, and from there nothing leads back.
        """
        return int(self.simulator.horizon - self.simulator.buffer)

    @property
    def continuing(self) -> bool:
        """Whether an episode is a cut of an endless one, whose end has a value of its own."""
        return self.simulator.endless

    def _rollout(self, batch: Seeds, *, cross: bool, greedy: bool = False) -> Rollout:
        hp = self.hparams
        self.simulator = place(self.simulator, self.device, self.policy.log_std.dtype)
        live = self.training and self.estimator.follows
        noisy = self.training and (self.estimator.gaussian or hp["stochastic"])
        noise, draws = self.draw(batch, greedy=greedy, noisy=noisy)
        with torch.set_grad_enabled(live):
            roll = rollout(
                self.simulator,
                self.policy,
                noise,
                draws,
                cross_term=cross,
                window=hp["window"] if live else 0,
                last_live=self.decisions if live else None,
                branch=hp["branch"] and live,
                relaxed=hp["temperature"] if self.estimator.relaxed and live else None,
            )
        due = int(self.updates) == 0 or (hp["diagnose_every"] and int(self.updates) % hp["diagnose_every"] == 0)
        if live and roll.masks is not None and due:
            self._refuse_moving_masks(roll, noise)
        return roll

    @torch.no_grad()
    def _refuse_moving_masks(self, roll: Rollout, noise: Noise) -> None:
        """Stop where other continuous actions, with the same modes and noise, lead to other mode masks."""
        raws = roll.raw.detach().transpose(0, 1)
        nudge = MASK_NUDGE * torch.randn(raws.shape, generator=torch.Generator().manual_seed(0)).to(raws)
        found = moved_mask(self.simulator, noise, roll.modes.transpose(0, 1), raws, raws + nudge)
        # All processes stop together, or the others would wait.
        if bool(over_processes(raws.new_tensor(float(found is not None))) > 0):
            step = "a step" if found is None else f"step {found[0]}"
            raise SimulatorError(moving_mask(step, str(self.hparams["estimator"])))

    def draw(self, batch: Seeds, *, greedy: bool, noisy: bool) -> tuple[Noise, Draws]:
        """All randomness of a batch, group by group, so that it does not depend on the number of processes.

        Args:
            batch: Seeds of the groups.
            greedy: Draw nothing for the modes.
            noisy: Draw for the continuous parts.
        """
        simulator, noises, gumbels, normals = self.simulator, [], [], []
        steps = (batch.episodes, simulator.horizon)
        for seed in batch.seeds.tolist():
            generator = torch.Generator().manual_seed(seed)
            noises.append(simulator.sample_noise(batch.episodes, generator))
            if not greedy:
                gumbels.append(-torch.empty(*steps, *simulator.law_shape).exponential_(generator=generator).log())
            if noisy:
                parts = (simulator.alternatives, simulator.action_dim)
                normals.append(torch.randn(*steps, *parts, generator=generator))
        noise = {name: torch.cat([part[name] for part in noises]) for name in noises[0]}
        gumbel = torch.cat(gumbels).to(simulator.device, simulator.dtype) if gumbels else None
        normal = torch.cat(normals).to(simulator.device, simulator.dtype) if normals else None
        return noise, Draws(gumbel, None if normal is None else normal * self.policy.log_std.exp())

    def _bootstrapped(self, observations: Tensor) -> Tensor:
        """Values (batch, steps, ...); 0 where the episode truly ends."""
        values = self.value_shift + self.value_scale * self.policy.value(observations)
        if not self.continuing:
            values[:, -1] = 0
        return values

    def _standardise(self, targets: Tensor) -> Tensor:
        """Follow the targets' mean and scale slowly, and return them in these units."""
        mean, scale = moments(targets)
        weight = 1.0 if self.value_scale == 0 else 0.05
        # Not in place: the tails of windows hold the old ones in their graph.
        self.value_shift = self.value_shift.lerp(mean.to(self.value_shift), weight)
        self.value_scale = self.value_scale.lerp(scale.to(self.value_scale), weight)
        return (targets - self.value_shift) / self.value_scale

    @torch.no_grad()
    def _advantages(self, roll: Rollout) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Values, advantages, targets of the value, and the scale of the advantages."""
        hp, last = self.hparams, self.decisions
        values = self._bootstrapped(roll.observations.detach())
        advantages = advantages_of(roll.costs, values, discount=self.discount, trace=hp["trace"])
        targets = advantages + values[:, :-1]
        if hp["branch"]:
            following = self._bootstrapped(cast(Tensor, roll.branch_observations))
            branch_costs = cast(Tensor, roll.branch_costs)
            advantages = branched_advantages(roll.log_probs, branch_costs, following, discount=self.discount)
            return values, advantages, targets, moments(advantages[:, :last])[1]
        mean, scale = moments(advantages[:, :last])
        return values, advantages - mean, targets, scale

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other networks, as another simulator has them."""
        held, own = checkpoint["state_dict"], self.state_dict()
        for name in sorted(own.keys() | held.keys()):
            shapes = [tuple(part[name].shape) if name in part else "absent" for part in (held, own)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"the checkpoint is of another simulator or of other networks: its {name} has shape {shapes[0]}, "
                    f"and here it is {shapes[1]}; give those that it was trained with."
                )

    # ------------------------------------------------------------------ evaluation

    def validation_step(self, batch: Seeds, batch_index: int) -> None:
        """Cost on the fixed validation episodes."""
        self._evaluate("validation", batch)

    def test_step(self, batch: Seeds, batch_index: int) -> None:
        """Cost on the test episodes."""
        self._evaluate("test", batch)

    def predict_step(self, batch: object, batch_index: int) -> Action:
        """Decide for a batch of observations (batch, observation_dim): a tensor, or a loader's list of one."""
        return self.policy.act(batch[0] if isinstance(batch, list | tuple) else batch)

    def _evaluate(self, stage: str, batch: Seeds) -> None:
        with torch.no_grad():
            costs = {
                name: mean_of(reported_cost(self.simulator, self._rollout(batch, cross=False, greedy=greedy).costs))
                for name, greedy in (("cost", True), ("sampled_cost", False))
            }
        if stage in self.references:
            costs["gap"] = relative_gap(costs["cost"], self.references[stage])
        self.log_dict({f"{stage}/{name}": value for name, value in costs.items()}, prog_bar=True, batch_size=1)
