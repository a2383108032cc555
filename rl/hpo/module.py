"""HPO as a LightningModule: simulate, one step along the mixed gradient, clipped reuse for modes and value."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from gapbridge.arguments import (
    Count,
    Finite,
    Limit,
    NotNegative,
    Positive,
    PositiveShare,
    Seed,
    Share,
    Whole,
    check_arguments,
)
from rl.envs.hybrid import HybridSimulator, reported_cost
from rl.hpo.data import Seeds
from rl.hpo.diagnostics import gradient_report
from rl.hpo.estimators import ESTIMATORS, Decisions, check_minibatches, check_options, critic_loss, score_loss, taken
from rl.hpo.policies import HybridPolicy
from rl.hpo.rollout import Rollout
from rl.hpo.simulation import Simulation
from rl.hpo.simulators import active_parts, load_simulator
from rl.hpo.surrogate import Surrogate, entropy, mixed_surrogate, window_tails
from rl.processes import mean_of, moments, over_processes, processes
from rl.progress import Group, follow_trainer, group_of, logs_now, set_rates, share_done
from rl.trial import MakeOptimizer, check_optimizer

Sides = tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]


class HPOModule(Simulation):
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

    All but ``score`` are refused for a simulator without gradients, and stop with an error when the continuous actions
    are seen to move its mode masks, which biases them; that is looked for in the first update and every
    ``diagnose_every``.

    On several processes the result is that of one process on the same global batch.

    ``policy.act(observation)`` decides, in the simulator's terms; see `rl.hpo.policies.HybridPolicy`. `Trainer.predict`
    does so for every batch of observations that a loader gives.

    Logged, besides `train/cost` (as the simulator reports it): `entropy`, `kl`, `clip_fraction`, `explained_variance`,
    `advantage_scale`; every ``diagnose_every`` updates the norm and variance of the `pathwise`, `score` and `cross`
    gradients, `cosine` of pathwise and cross, `cross_snr`; `validation/cost` and `test/cost` with the likeliest modes,
    `/sampled_cost`, and `/gap` over ``reference``.

    Args:
        simulator: A simulator, or the import path of a subclass of `HybridSimulator`; only a path is kept in
            checkpoints, so with an object pass it to `load_from_checkpoint` again, and with a path pass ``trust=True``.
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
        seed: Seed of the initial weights.
        networks: Networks of your own in place of those of ``hidden``: a module with the children ``discrete``,
            ``continuous`` and ``critic``, as `rl.hpo.policies.HybridPolicy` describes them. Not kept in checkpoints:
            pass it to `load_from_checkpoint` again.
        optimizer: Makes the optimizer from the three groups of parameters (continuous, modes, value), each with its
            ``lr``; None is Adam. Likewise not kept.
        normalise: Show the networks observations less their mean over their standard deviation, both followed over the
            training. Checkpoints and policy files hold them.

    Raises:
        ValueError: If an argument is out of range, contradicts another, or the networks break their contract.
    """

    cross_is_on: Tensor

    def __init__(
        self,
        simulator: str | HybridSimulator,
        simulator_args: dict[str, object] | None = None,
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
        kl_limit: Limit = 0.015,
        max_norm: Limit = 5.0,
        temperature: Positive = 1.0,
        log_std: Finite = -0.5,
        reference: Finite | None = None,
        diagnose_every: Whole = 50,
        seed: Seed = 0,
        networks: nn.Module | None = None,
        optimizer: MakeOptimizer | None = None,
        normalise: bool = False,
    ) -> None:
        given = dict(locals())
        check_arguments(HPOModule.__init__, given)
        super().__init__()
        self.simulator = load_simulator(simulator, simulator_args) if isinstance(simulator, str) else simulator
        check_options(given, self.simulator)
        hidden = list(hidden)
        ignored = ["networks", "optimizer", *([] if isinstance(simulator, str) else ["simulator"])]
        self.save_hyperparameters(ignore=ignored)
        self.estimator, self._make_optimizer = ESTIMATORS[estimator], optimizer
        sizes = self.simulator.observation_dim, self.simulator.alternatives, self.simulator.action_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.policy = HybridPolicy(*sizes, hidden, log_std, networks, self.simulator.heads or None, normalise)
        self.policy.bind(self.simulator)
        self.register_buffer("value_shift", torch.zeros(()))
        self.register_buffer("value_scale", torch.zeros(()))
        self.register_buffer("cross_is_on", torch.tensor(cross != "off"))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.register_buffer("active", active_parts(self.simulator), persistent=False)
        check_optimizer(optimizer, self._groups())
        self.references = {} if reference is None else {"validation": reference, "test": reference}
        self.automatic_optimization = reuse == 0

    # ------------------------------------------------------------------ the algorithm

    def training_step(self, batch: Seeds, batch_index: int) -> Tensor | None:
        """Simulate and update."""
        hp = self.hparams
        last = self.decisions
        check_minibatches(hp, batch.seeds.numel(), batch.episodes, last, processes())
        diagnose = self._diagnoses()
        roll = self._rollout(batch, cross=bool(self.cross_is_on) or diagnose)
        values, advantages, targets, scale = self._advantages(roll)
        surrogate = self._surrogate(roll, advantages, scale)
        loss = surrogate.pathwise.mean()
        if self.estimator.scores:
            loss = loss + surrogate.score.mean()
        if diagnose:
            self._report(surrogate)
        data = Decisions(
            observations=roll.observations[:, :last],
            modes=roll.modes[:, :last],
            raw=roll.raw[:, :last] if self.estimator.gaussian else None,
            masks=None if roll.masks is None else roll.masks[:, :last],
            advantages=advantages[:, :last] / scale,
            targets=self._standardise(targets[:, :last]),
        )
        with torch.no_grad():
            data = replace(data, old=self._taken(roll.log_probs[:, :last].detach(), data))
        if hp["reuse"] == 0 or self.estimator.gaussian:
            law = self.policy.log_probs(data.observations, data.masks)
            if self.estimator.gaussian:
                loss = loss + score_loss(law, self._taken(law, data), data, hp["clip"])
            if hp["reuse"] == 0:
                loss = (
                    loss + critic_loss(self.policy, data) - self._entropy_weight * entropy(law, heads=data.heads).mean()
                )
        if logs_now(self._trainer):
            self._log_training(roll, values, targets, scale)
        self.updates += 1
        if hp["normalise"] and self.automatic_optimization:
            self.policy.follow(roll.observations)
        if self.automatic_optimization:
            return self._touch(loss)
        optimizer = cast(LightningOptimizer, self.optimizers())
        optimizer.zero_grad()
        sides = self._sides
        self._backward(loss, sides)
        optimizer.step()
        self._reuse(data.in_one_row(), optimizer, sides, roll.costs[:, :last].shape)
        if hp["normalise"]:  # after the reuse, whose ratios are of one and the same policy
            self.policy.follow(roll.observations)
        return None

    def _surrogate(self, roll: Rollout, advantages: Tensor, scale: Tensor) -> Surrogate:
        """The mixed surrogate in standardised units, averaged over decisions."""
        hp = self.hparams
        if self.estimator.gaussian:  # all of it is in the clipped term
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

    def _reuse(self, data: Decisions, optimizer: LightningOptimizer, sides: Sides, shape: torch.Size) -> None:
        """Steps of the value and clipped ones of the modes, on detached states; mixed continuous parts stand still."""
        hp, policy = self.hparams, self.policy
        shares = self._shares(data, shape)
        continuous, discrete, _ = sides
        kls: list[Tensor] = []
        clipped: list[Tensor] = []
        for number in range(hp["reuse"] * hp["minibatches"]):
            share = shares[number % hp["minibatches"]]
            loss, frozen = critic_loss(policy, share), [*continuous, *discrete]
            if not kls or kls[-1] <= hp["kl_limit"]:
                law = policy.log_probs(share.observations, share.masks)
                new = self._taken(law, share)
                with torch.no_grad():
                    log_ratio = new - cast(Tensor, share.old)
                    kls.append(mean_of((log_ratio.exp() - 1 - log_ratio).sum(-1)))
                    clipped.append(((log_ratio.exp() - 1).abs() > hp["clip"]).float().mean())
                if kls[-1] <= hp["kl_limit"]:
                    frozen = [] if self.estimator.gaussian else continuous
                    loss = loss - self._entropy_weight * entropy(law, heads=share.heads).mean()
                    if self.estimator.reuses:
                        loss = loss + score_loss(law, new, share, hp["clip"])
            optimizer.zero_grad()
            self._backward(loss, sides, frozen)
            optimizer.step()
        if logs_now(self._trainer):
            self.log("train/kl", torch.stack(kls).max(), sync_dist=True)
            self.log("train/clip_fraction", torch.stack(clipped).mean(), sync_dist=True)

    def _shares(self, data: Decisions, shape: torch.Size) -> list[Decisions]:
        """The minibatches of a pass, stratified, and the same on any number of processes.

        Each is every m-th period of every episode.
        """
        places = torch.arange(shape[1], device=self.device) + torch.arange(shape[0], device=self.device)[:, None]
        share = (places % self.hparams["minibatches"]).flatten()
        sizes = share.bincount(minlength=self.hparams["minibatches"]).tolist()
        return data.share(share.argsort(stable=True)).split(sizes)  # sorted once: what a pass takes are views

    def _taken(self, law: Tensor, data: Decisions) -> Tensor:
        return taken(self.policy, self.estimator, law, data, cast(Tensor, self.active))

    def _touch(self, loss: Tensor) -> Tensor:
        """Reach every parameter, if only with 0: data-parallel training waits for the gradients of all of them."""
        return loss + 0.0 * sum(p.sum() for p in self.policy.parameters()) if processes() > 1 else loss

    def _backward(self, loss: Tensor, sides: Sides, frozen: Sequence[nn.Parameter] = ()) -> None:
        """Fill the gradients: with 0 where the loss does not reach, and with none where a step is to change nothing."""
        self.manual_backward(self._touch(loss))
        for parameter in itertools.chain(*sides):
            if parameter.grad is None and parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        for parameter in frozen:
            parameter.grad = None
        self._clip(sides)

    # ------------------------------------------------------------------ optimisation

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, or an optimizer of one's own, with one group of parameters for each network."""
        groups = self._groups()
        return torch.optim.Adam(groups, eps=1e-5) if self._make_optimizer is None else self._make_optimizer(groups)

    def _groups(self) -> list[Group]:
        rates = (self.hparams[name] for name in ("learning_rate", "discrete_rate", "critic_rate"))
        return [group_of(rate, side) for rate, side in zip(rates, self._sides, strict=True)]

    @property
    def progress(self) -> float:
        """Share of this training that is done, in [0, 1], see :func:`rl.progress.share_done`."""
        return share_done(self.trainer)

    @property
    def _entropy_weight(self) -> float:
        hp = self.hparams
        return float(hp["entropy_start"] + (hp["entropy_end"] - hp["entropy_start"]) * self.progress)

    def on_train_start(self) -> None:
        """Let the seeds start where the trainer stands."""
        follow_trainer(self.trainer)

    def on_train_batch_start(self, batch: object, batch_index: int) -> None:
        """Set the rates of this update."""
        optimizer = cast(torch.optim.Optimizer, self.optimizers(use_pl_optimizer=False))
        set_rates([optimizer], self.hparams["final_rate"], self.progress)

    def configure_gradient_clipping(self, optimizer: object, *_: object, **__: object) -> None:
        """Clip by network, whatever the trainer's own setting."""
        self._clip(self._sides)

    @property
    def _sides(self) -> Sides:
        """Parameters of the continuous policy, of the modes' and of the value."""
        policy = self.policy
        continuous = [*policy.continuous.parameters(), policy.log_std]
        return continuous, list(policy.discrete.parameters()), list(policy.critic.parameters())

    def _clip(self, sides: Sides) -> None:
        """Clip the gradient of each network on its own: one that explodes does not silence the others."""
        for side in sides:
            torch.nn.utils.clip_grad_norm_(side, self.hparams["max_norm"])

    # ------------------------------------------------------------------ diagnostics

    def _diagnoses(self) -> bool:
        every = self.hparams["diagnose_every"]
        return bool(every) and int(self.updates) % every == 0 and self.estimator.scores

    def _report(self, surrogate: Surrogate) -> None:
        policy = self.policy
        report = gradient_report(
            *surrogate,
            list(policy.continuous.parameters()),
            list(policy.discrete.parameters()),
            reduce=over_processes,
        )
        report["cross_snr"] = (report["cross_signal"].clamp(min=0) / report["cross_variance"].clamp(min=1e-30)).sqrt()
        if self.hparams["cross"] == "auto":
            self.cross_is_on.fill_(bool(report["cross_snr"] >= 1))
        self.log_dict({f"train/{name}": value for name, value in report.items() if not name.endswith("signal")})

    def _log_training(self, roll: Rollout, values: Tensor, targets: Tensor, scale: Tensor) -> None:
        last = self.decisions
        with torch.no_grad():
            residual = moments((targets - values[:, :-1])[:, :last])[1]
            explained = 1 - (residual / moments(targets[:, :last])[1]).square()
            cost = mean_of(reported_cost(self.simulator, roll.costs.detach()))
            spread = mean_of(entropy(roll.log_probs.detach(), heads=bool(self.simulator.heads)))
        self.log("train/cost", cost, prog_bar=True)
        self.log_dict({"train/entropy": spread, "train/explained_variance": explained, "train/advantage_scale": scale})
