"""HPO as a LightningModule: simulate, one step along the mixed gradient, clipped reuse for modes and value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import lightning
import torch
from torch import Tensor, distributed

from gapbridge.arguments import Count, Finite, NotNegative, Positive, PositiveShare, Share, Whole, check_arguments
from rl.envs.hybrid import HybridSimulator, Noise, reported_cost
from rl.hpo.data import Seeds
from rl.hpo.diagnostics import gradient_report
from rl.hpo.policies import HybridPolicy
from rl.hpo.rollout import Draws, Rollout, rollout
from rl.hpo.simulators import active_parts, load_simulator, place
from rl.hpo.surrogate import (
    Surrogate,
    advantages_of,
    branched_advantages,
    clipped_surrogate,
    entropy,
    mixed_surrogate,
    mode_log_probs,
    window_tails,
)


class HPOModule(lightning.LightningModule):  # type: ignore[misc]
    r"""Train a hybrid policy in a differentiable simulator; costs are minimised.

    A training step simulates a batch of episodes from seeds and takes one step along the mixed gradient of
    :func:`rl.hpo.surrogate.mixed_surrogate`; then, with ``reuse`` above 0, clipped minibatch steps of the modes and the
    value on the same episodes. The whole surrogate is divided by the advantages' standard deviation, so the pathwise
    and the cross part keep their exact weights against each other.

    The other estimators are the baselines, under the same contract:

    - ``mixed``: HPO; ``cross`` off is the decentralised variant, ``window`` above 0 the SHAC-style one.
    - ``score``: everything by score functions with Gaussian continuous parts, no gradient of the simulator: hybrid PPO
      (HPPO), or plain REINFORCE with a baseline when ``reuse`` is 0.
    - ``pathwise``: the pathwise part alone; the modes' law never learns.
    - ``straight_through``: modes one-hot forward and Gumbel-softmax backward, through a mixture of all modes' steps.

    On several processes the result is that of one process on the same global batch.

    Logged, besides `train/cost` (as the simulator reports it): `entropy`, `kl`, `clip_fraction`, `explained_variance`,
    `advantage_scale`; every ``diagnose_every`` updates the norm and variance of the `pathwise`, `score` and `cross`
    gradients, `cosine` of pathwise and cross, `cross_snr`; `validation/cost` and `test/cost` with the likeliest modes,
    `/sampled_cost`, and `/gap` over ``reference``.

    Args:
        simulator: A simulator, or the import path of a subclass of `HybridSimulator`; only a path is kept in
            checkpoints, so with an object pass it to `load_from_checkpoint` again.
        simulator_args: Arguments of the class at that path.
        estimator: How the gradient is estimated: mixed (HPO), score (hybrid PPO), pathwise or straight_through.
        cross: Whether the score part's gradient reaches the continuous policy: full, off, or auto, which measures its
            signal-to-noise ratio every ``diagnose_every`` updates and drops it below 1 until the next measurement.
        branch: Advantages of all modes from one simulated step of each, in place of the sampled mode's.
        stochastic: Draw continuous actions from reparametrised Gaussians in training (``score`` always does).
        window: Detach states after this many steps and add the critic's value there; 0 for whole episodes.
        hidden: Widths of the hidden layers of each network, one number a layer.
        learning_rate: Adam's learning rate for the continuous policy.
        discrete_rate: Adam's learning rate for the policy over modes.
        critic_rate: Adam's learning rate for the value.
        final_rate: Fraction of all learning rates that is left at the end; they fall linearly.
        entropy_start: Weight of the entropy bonus at the start, in units of the standardised advantage. Modes that
            sharpen before they are a best response stop learning, and actions are then moved to suit them.
        entropy_end: Weight of the entropy bonus at the end.
        discount: Discount of the advantages, above 0 and at most 1; none given takes the simulator's.
        trace: Lambda of the generalised advantage estimates, from 0 to 1. Below 1 it trades noise of
            the cross term for the critic's bias in it, and the bias can be the worse of the two.
        reuse: Passes over the same episodes after the first step; 0 makes no further one.
        minibatches: Parts that a pass cuts the episodes into; each is one step.
        clip: PPO's epsilon: how far a pass may move the probability of a mode.
        kl_limit: Above this estimated divergence the modes stand still for the rest of the passes; the value goes on.
        max_norm: Gradients of each of the three networks are clipped to this norm.
        temperature: Temperature of the Gumbel-softmax of ``straight_through``.
        log_std: Logarithm of the standard deviation that Gaussian actions start with.
        reference: Optimal cost as the simulator reports it, or the best one known; for `gap`. The attribute
            ``references`` may hold one for the very episodes of each stage, which is the sharper comparison.
        diagnose_every: Updates between two gradient reports; 0 for none.
        compile_step: Compile the simulator's step with `torch.compile`.
        seed: Seed of the initial weights.
    """

    def __init__(
        self,
        simulator: str | HybridSimulator,
        simulator_args: dict[str, Any] | None = None,
        *,
        estimator: Literal["mixed", "score", "pathwise", "straight_through"] = "mixed",
        cross: Literal["full", "off", "auto"] = "full",
        branch: bool = False,
        stochastic: bool = False,
        window: Whole = 0,
        hidden: Sequence[Count] = (64, 64),
        learning_rate: Positive = 3e-3,
        discrete_rate: Positive = 5e-3,
        critic_rate: Positive = 3e-3,
        final_rate: Share = 0.0,
        entropy_start: NotNegative = 0.5,
        entropy_end: NotNegative = 0.0,
        discount: PositiveShare | None = None,
        trace: Share = 0.98,
        reuse: Whole = 1,
        minibatches: Count = 4,
        clip: Positive = 0.15,
        kl_limit: Positive = 0.015,
        max_norm: Positive = 5.0,
        temperature: Positive = 1.0,
        log_std: Finite = -0.5,
        reference: Finite | None = None,
        diagnose_every: Whole = 50,
        compile_step: bool = False,
        seed: int = 0,
    ) -> None:
        check_arguments(type(self).__init__, locals())
        super().__init__()
        hidden = list(hidden)
        self.save_hyperparameters(ignore=[] if isinstance(simulator, str) else ["simulator"])
        self.simulator = load_simulator(simulator, simulator_args) if isinstance(simulator, str) else simulator
        if cross == "auto" and not diagnose_every:
            raise ValueError("cross is auto, but diagnose_every is 0: nothing would be measured; give 50 or so.")
        if estimator == "score" and branch:
            raise ValueError("branch is on, but estimator score has no value of a mode without its action; give false.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.policy = HybridPolicy(
                self.simulator.observation_dim, self.simulator.n_modes, self.simulator.action_dim, hidden, log_std
            )
        self.value_shift: Tensor
        self.value_scale: Tensor
        self.cross_is_on: Tensor
        self.updates: Tensor
        self.register_buffer("value_shift", torch.zeros(()))
        self.register_buffer("value_scale", torch.zeros(()))
        self.register_buffer("cross_is_on", torch.tensor(cross != "off"))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.register_buffer("active", active_parts(self.simulator), persistent=False)
        self.references = {} if reference is None else {"validation": reference, "test": reference}
        self.automatic_optimization = reuse == 0
        self._step = torch.compile(self._simulator_step) if compile_step else self._simulator_step

    # ------------------------------------------------------------------ the algorithm

    def training_step(self, batch: Seeds, batch_index: int) -> Tensor | None:
        """Simulate and update."""
        hp = self.hparams
        last = self.decisions
        if hp["reuse"] and self.trainer.world_size > 1 and batch.episodes % hp["minibatches"]:
            raise ValueError(
                f"groups have {batch.episodes} episodes and a pass has {hp['minibatches']} minibatches; on several "
                "processes the group size must be a multiple of the minibatches, to train as one process does."
            )
        diagnose = self._diagnoses()
        roll = self._rollout(batch, cross=bool(self.cross_is_on) or diagnose)
        with torch.no_grad():
            values = self._bootstrapped(roll.observations.detach())
            advantages = advantages_of(roll.costs, values, discount=self.discount, trace=hp["trace"])
            targets = advantages + values[:, :-1]
            if hp["branch"]:
                following = self._bootstrapped(cast(Tensor, roll.branch_observations))
                advantages = branched_advantages(
                    roll.log_probs, cast(Tensor, roll.branch_costs), following, discount=self.discount
                )
                scale = self._moments(advantages[:, :last])[1]
            else:
                mean, scale = self._moments(advantages[:, :last])
                advantages = advantages - mean
        surrogate = self._surrogate(roll, advantages, scale)
        loss = surrogate.pathwise.mean() + surrogate.score.mean()
        if hp["estimator"] == "pathwise":
            loss = surrogate.pathwise.mean()
        if diagnose:
            self._report(surrogate)
        data: dict[str, Any] = {
            "observations": roll.observations[:, :last].detach(),
            "modes": roll.modes[:, :last],
            "raw": roll.raw[:, :last].detach(),
            "masks": None if roll.masks is None else roll.masks[:, :last],
            "advantages": advantages[:, :last] / scale,
        }
        with torch.no_grad():
            data["old"] = self._taken(roll.log_probs[:, :last].detach(), data)
        data["targets"] = self._standardise(targets[:, :last])
        if hp["reuse"] == 0 or hp["estimator"] == "score":
            law = self.policy.log_probs(data["observations"], data["masks"])
            if hp["estimator"] == "score":
                loss = loss + self._score_loss(law, self._taken(law, data), data)
            if hp["reuse"] == 0:
                loss = loss + self._critic_loss(data) - self._entropy_weight * entropy(law).mean()
        self._log_training(roll, values, targets, scale)
        self.updates += 1
        if self.automatic_optimization:
            return self._touch(loss)
        optimizer = cast(Any, self.optimizers())
        optimizer.zero_grad()
        self.manual_backward(self._touch(loss))
        self.clip_gradients_by_group()
        optimizer.step()
        self._reuse(data, optimizer)
        return None

    def _surrogate(self, roll: Rollout, advantages: Tensor, scale: Tensor) -> Surrogate:
        """The mixed surrogate in standardised units, averaged over decisions."""
        hp = self.hparams
        if hp["estimator"] == "score":  # all of it is in the clipped term
            nothing = torch.zeros_like(roll.costs[:, 0])
            return Surrogate(nothing, nothing)
        tails = None
        if hp["window"]:
            frozen = {name: p.detach() for name, p in self.policy.critic.named_parameters()}
            value = torch.func.functional_call(self.policy.critic, frozen, (roll.tails,))
            tails = window_tails(self.value_shift + self.value_scale * value.squeeze(-1), roll.tail_steps)
        parts = mixed_surrogate(
            roll.costs,
            roll.log_probs,
            roll.modes,
            advantages,
            tails=tails,
            decisions=self.decisions,
            counted_from=self.simulator.report_from,
        )
        weight = 1 / (scale * self.decisions)
        return Surrogate(parts.pathwise * weight, parts.score * weight)

    def _reuse(self, data: dict[str, Any], optimizer: Any) -> None:
        """Steps of the value and clipped ones of the modes, on detached states; mixed continuous parts stand still."""
        hp = self.hparams
        batch, steps = data["modes"].shape
        # A stratified share that is the same on any number of processes: every m-th period of every episode.
        places = torch.arange(steps, device=self.device) + torch.arange(batch, device=self.device)[:, None]
        policy = self.policy
        continuous = [*policy.continuous.parameters(), policy.log_std]
        kls: list[Tensor] = []
        clipped: list[Tensor] = []
        flat = {name: None if value is None else value.flatten(0, 1) for name, value in data.items()}
        for number in range(hp["reuse"] * hp["minibatches"]):
            chosen = (places % hp["minibatches"] == number % hp["minibatches"]).flatten().nonzero().squeeze(1)
            share = {name: None if value is None else value[chosen] for name, value in flat.items()}
            loss, frozen = self._critic_loss(share), [*continuous, *policy.discrete.parameters()]
            if not kls or kls[-1] <= hp["kl_limit"]:
                law = policy.log_probs(cast(Tensor, share["observations"]), share["masks"])
                new = self._taken(law, share)
                with torch.no_grad():
                    log_ratio = new - cast(Tensor, share["old"])
                    kls.append(self._mean((log_ratio.exp() - 1 - log_ratio).sum(-1)))
                    clipped.append(((log_ratio.exp() - 1).abs() > hp["clip"]).float().mean())
                if kls[-1] <= hp["kl_limit"]:
                    frozen = [] if hp["estimator"] == "score" else continuous
                    loss = loss - self._entropy_weight * entropy(law).mean()
                    if hp["estimator"] not in ("pathwise", "straight_through"):
                        loss = loss + self._score_loss(law, new, share)
            optimizer.zero_grad()
            self.manual_backward(self._touch(loss))
            for parameter in frozen:
                parameter.grad = None
            self.clip_gradients_by_group()
            optimizer.step()
        self.log("train/kl", torch.stack(kls).max(), sync_dist=True)
        self.log("train/clip_fraction", torch.stack(clipped).mean(), sync_dist=True)

    def _taken(self, law: Tensor, data: dict[str, Any]) -> Tensor:
        """Log-probability of the modes, and under the score estimator of the continuous part: (..., 1 or 2)."""
        found = [mode_log_probs(law, data["modes"])]
        if self.hparams["estimator"] == "score":
            index = data["modes"][..., None, None].expand(*data["modes"].shape, 1, data["raw"].shape[-1])
            mean = self.policy.raw_actions(data["observations"]).gather(-2, index).squeeze(-2)
            raw = data["raw"].gather(-2, index).squeeze(-2)
            spread = self.policy.log_std
            density = -0.5 * ((raw - mean) / spread.exp()).square() - spread - 0.5 * math.log(2 * math.pi)
            found.append((density * cast(Tensor, self.active)[data["modes"]]).sum(-1))
        return torch.stack(found, -1)

    def _score_loss(self, law: Tensor, taken: Tensor, data: dict[str, Any]) -> Tensor:
        """The score part on detached states: clipped for sampled modes, the expectation itself for branched ones."""
        advantages: Tensor = data["advantages"]
        if self.hparams["branch"]:
            return (law.exp() * advantages).sum(-1).mean()
        terms = clipped_surrogate(taken, data["old"], advantages[..., None], self.hparams["clip"])
        return terms.sum(-1).mean()

    def _critic_loss(self, data: dict[str, Any]) -> Tensor:
        targets: Tensor = data["targets"]
        return (self.policy.value(data["observations"]) - targets).square().mean()

    # ------------------------------------------------------------------ simulation

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

    def _simulator_step(self, *arguments: Any) -> Any:
        return self.simulator.step(*arguments)

    def _rollout(self, batch: Seeds, *, cross: bool, greedy: bool = False) -> Rollout:
        hp = self.hparams
        self.simulator = place(self.simulator, self.device, self.policy.log_std.dtype)
        live = self.training and hp["estimator"] != "score"
        noisy = self.training and (hp["estimator"] == "score" or hp["stochastic"])
        noise, draws = self.draw(batch, greedy=greedy, noisy=noisy)
        with torch.set_grad_enabled(live):
            return rollout(
                self.simulator,
                self.policy,
                noise,
                draws,
                cross_term=cross,
                window=hp["window"] if live else 0,
                last_live=self.decisions if live else None,
                branch=hp["branch"] and live,
                relaxed=hp["temperature"] if hp["estimator"] == "straight_through" and live else None,
                step=self._step,
            )

    def draw(self, batch: Seeds, *, greedy: bool, noisy: bool) -> tuple[Noise, Draws]:
        """All randomness of a batch, group by group, so that it does not depend on the number of processes.

        Args:
            batch: Seeds of the groups.
            greedy: Draw nothing for the modes.
            noisy: Draw for the continuous parts.
        """
        simulator, noises, gumbels, normals = self.simulator, [], [], []
        shape = (batch.episodes, simulator.horizon, simulator.n_modes)
        for seed in batch.seeds.tolist():
            generator = torch.Generator().manual_seed(seed)
            noises.append(simulator.sample_noise(batch.episodes, generator))
            if not greedy:
                gumbels.append(-torch.empty(shape).exponential_(generator=generator).log())
            if noisy:
                normals.append(torch.randn(*shape, simulator.action_dim, generator=generator))
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
        mean, scale = self._moments(targets)
        weight = 1.0 if self.value_scale == 0 else 0.05
        # Not in place: the tails of windows hold the old ones in their graph.
        self.value_shift = self.value_shift.lerp(mean.to(self.value_shift), weight)
        self.value_scale = self.value_scale.lerp(scale.to(self.value_scale), weight)
        return (targets - self.value_shift) / self.value_scale

    # ------------------------------------------------------------------ several processes

    def _mean(self, value: Tensor) -> Tensor:
        """Mean over all elements and processes; every process holds as many."""
        return self._over_processes(value.detach().mean())

    def _over_processes(self, value: Tensor) -> Tensor:
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(value)
            value = value / distributed.get_world_size()
        return value

    def _moments(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation over all processes; the latter at least 1e-8."""
        mean = self._mean(values)
        return mean, self._mean((values - mean).square()).sqrt().clamp(min=1e-8)

    def _touch(self, loss: Tensor) -> Tensor:
        """Give every parameter a gradient, if only 0: data-parallel training waits for all of them."""
        return loss + 0.0 * sum(p.sum() for p in self.policy.parameters())

    # ------------------------------------------------------------------ optimisation

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam with one group of parameters for each network."""
        hp, policy = self.hparams, self.policy
        groups = [
            {"params": [*policy.continuous.parameters(), policy.log_std], "lr": hp["learning_rate"]},
            {"params": list(policy.discrete.parameters()), "lr": hp["discrete_rate"]},
            {"params": list(policy.critic.parameters()), "lr": hp["critic_rate"]},
        ]
        return torch.optim.Adam([{**group, "initial": group["lr"]} for group in groups], eps=1e-5)

    @property
    def progress(self) -> float:
        """Share of the training that is done, in [0, 1]; 0 where the trainer has no number of epochs."""
        trainer = self.trainer
        if trainer.max_epochs is None or trainer.max_epochs < 1:
            return 0.0
        return min(1.0, int(self.updates) / float(trainer.max_epochs * trainer.num_training_batches))

    @property
    def _entropy_weight(self) -> float:
        hp = self.hparams
        return float(hp["entropy_start"] + (hp["entropy_end"] - hp["entropy_start"]) * self.progress)

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        """Set the rates of this update."""
        factor = 1 + (self.hparams["final_rate"] - 1) * self.progress
        for group in cast(Any, self.optimizers(use_pl_optimizer=False)).param_groups:
            group["lr"] = group["initial"] * factor

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip by network, whatever the trainer's own setting."""
        self.clip_gradients_by_group()

    def clip_gradients_by_group(self) -> None:
        """Clip the gradient of each network on its own: one that explodes does not silence the others."""
        policy = self.policy
        for group in (
            [*policy.continuous.parameters(), policy.log_std],
            policy.discrete.parameters(),
            policy.critic.parameters(),
        ):
            torch.nn.utils.clip_grad_norm_(group, self.hparams["max_norm"])

    # ------------------------------------------------------------------ diagnostics and evaluation

    def _diagnoses(self) -> bool:
        every = self.hparams["diagnose_every"]
        return bool(every) and int(self.updates) % every == 0 and self.hparams["estimator"] == "mixed"

    def _report(self, surrogate: Surrogate) -> None:
        policy = self.policy
        report = gradient_report(
            *surrogate,
            list(policy.continuous.parameters()),
            list(policy.discrete.parameters()),
            reduce=self._over_processes,
        )
        report["cross_snr"] = (report["cross_signal"].clamp(min=0) / report["cross_variance"].clamp(min=1e-30)).sqrt()
        if self.hparams["cross"] == "auto":
            self.cross_is_on.fill_(bool(report["cross_snr"] >= 1))
        self.log_dict({f"train/{name}": value for name, value in report.items() if not name.endswith("signal")})

    def _log_training(self, roll: Rollout, values: Tensor, targets: Tensor, scale: Tensor) -> None:
        last = self.decisions
        with torch.no_grad():
            residual = self._moments((targets - values[:, :-1])[:, :last])[1]
            explained = 1 - (residual / self._moments(targets[:, :last])[1]).square()
            cost = self._mean(reported_cost(self.simulator, roll.costs.detach()))
            spread = self._mean(entropy(roll.log_probs.detach()))
        self.log("train/cost", cost, prog_bar=True)
        self.log_dict({"train/entropy": spread, "train/explained_variance": explained, "train/advantage_scale": scale})

    def validation_step(self, batch: Seeds, batch_index: int) -> None:
        """Cost on the fixed validation episodes."""
        self._evaluate("validation", batch)

    def test_step(self, batch: Seeds, batch_index: int) -> None:
        """Cost on the test episodes."""
        self._evaluate("test", batch)

    def _evaluate(self, stage: str, batch: Seeds) -> None:
        with torch.no_grad():
            costs = {
                name: self._mean(reported_cost(self.simulator, self._rollout(batch, cross=False, greedy=greedy).costs))
                for name, greedy in (("cost", True), ("sampled_cost", False))
            }
        if stage in self.references:
            costs["gap"] = costs["cost"] / self.references[stage] - 1
        self.log_dict({f"{stage}/{name}": value for name, value in costs.items()}, prog_bar=True, batch_size=1)
