"""Constrained Self-Play as a LightningModule: the proxy learns first and faster, held to the data; then the agent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from gapbridge.arguments import (
    Count,
    Finite,
    NotNegative,
    Positive,
    PositiveShare,
    ProperShare,
    Seed,
    Share,
    Whole,
    check_arguments,
)
from rl.csp.acting import Seat
from rl.csp.cloning import clone, likelihood
from rl.csp.contract import check_fixed, check_options, check_policy, made_for
from rl.csp.data import Iteration
from rl.csp.dataset import TargetData
from rl.csp.deciding import DecidingModule
from rl.csp.loading import game_of, pairs_of
from rl.csp.opponents import deal
from rl.csp.pairs import Coverage, Pairs, PairSampler
from rl.csp.policies import Critic, GatedPolicy, SeatPolicy
from rl.csp.rollout import join, play
from rl.csp.update import Divergence, Law, Settings, data_term, next_coefficient, update_side
from rl.envs.markov_game import BatchedGame
from rl.processes import over_processes, processes
from rl.progress import Group, follow_trainer, group_of, set_rates, share_done
from rl.trial import MakeOptimizer, check_optimizer


class CSPModule(DecidingModule):
    r"""Adapt a policy to a target known only through data, for the worst target that agrees with the data.

    An iteration is ``proxy_updates`` updates of the proxy, each on new episodes against the present agent with minus
    our reward and the data term, then one of the agent; see :mod:`rl.csp.update`. The constraint is

    - ``penalty``: C times the data term, with C fixed;
    - ``lagrangian``: C follows the excess of the data term over that of the fitted model, above a floor;
    - ``gate``: the proxy plays the fitted model with probability :math:`\kappa(o) = limit \cdot n / (n + count)` and a
      free policy otherwise, so that it agrees with the data by construction.

    The same module is every baseline, see :mod:`rl.csp.baselines`: with C = 0 it is self-play, with ``model_share`` 1
    the best response to a model fitted to the data (BC-First), in between a restricted Nash response, and so on.

    Logged, by update: `train/return`, ours in the agent's episodes; `train/return_proxy`, in the proxy's;
    `train/excess`, by how much the data are less likely under the proxy than under the model, in nats a dimension, to
    be watched over the whole run; `train/kl_data`, the KL(model, proxy) on the data; `train/coefficient`, C; and for
    either side `entropy`, `clip_fraction`, `kl`, `policy_loss` and `value_loss`. By validation: `return_proxy`,
    `return_model`, `return_pool` and `excess`, on held-out data. `act` and `Trainer.predict` give the agent's actions.

    Args:
        game: A game, or the import path of a subclass of `BatchedGame`; only a path is kept in checkpoints, so with an
            object pass it to `load_from_checkpoint` again, and with a path pass ``trust=True``.
        data: The target's data: `TargetData`, `Pairs` or the path of a data file; checkpoints keep only a path too.
        game_args: Arguments of the class at that path.
        model: A fixed policy in place of the one fitted to the data: with the true target, the oracle.
        hidden: Widths of the hidden layers of every network, one number a layer.
        memory: Width of a GRU in both policies; 0 makes policies without memory.
        chunk: Length of the sequences that recurrent policies are trained on.
        normalise: Put a layer normalisation in front of the observations.
        log_std: Logarithm of the standard deviation that real-valued actions start with.
        agent_rate: Adam's learning rate for the agent and its critic.
        proxy_rate: Adam's learning rate for the proxy and its critic.
        final_rate: Fraction of both learning rates that is left at the end; they fall linearly.
        constraint: How the proxy is held to the data: penalty (C is fixed), lagrangian (C follows the slack) or gate
            (the proxy agrees with the data by construction).
        coefficient: C, the weight of the data term, at least 0; with ``lagrangian`` this is where it starts.
        divergence: What the data term measures: nll (likelihood of the data), or the forward or reverse KL divergence
            from the fitted model; see :func:`rl.csp.update.data_term`.
        slack: Excess in nats that ``lagrangian`` aims at, and that a proxy of the pool may have.
        dual_rate: How fast ``lagrangian`` moves C.
        floor: Lowest C that ``lagrangian`` may reach.
        ceiling: Highest C that ``lagrangian`` may reach.
        gate_count: Number of visits to a state that make ``gate`` half sure of the fitted model.
        gate_limit: How sure of the fitted model ``gate`` can get, from 0 to 1.
        count_power: States weigh :math:`n(s)^{power}` in the data term: 0 all alike, 1 by visits.
        radius: Observations this near to each other, in standard deviations, count as the same state; see `Coverage`.
        data_batch: Pairs of observation and action that each step draws from the data.
        warm_start: Begin the proxy at the fitted model.
        proxy_updates: Updates of the proxy before each of the agent's.
        model_share: Share of the agent's episodes that are played against the fitted model.
        models: Models fitted from different seeds; episodes against the model are dealt out to them.
        pool: Number of snapshots of the proxy that are kept and played against; 0 keeps none.
        pool_share: Share of the agent's other episodes that are played against them.
        pool_every: Iterations between two snapshots.
        entropy_start: Weight of the entropy bonus at the start.
        entropy_end: Weight of the entropy bonus from ``entropy_until`` on.
        entropy_until: Share of the training after which the bonus stays.
        discount: Discount of the advantages, above 0 and at most 1; none given takes the game's.
        trace: Lambda of the generalised advantage estimates, from 0 to 1.
        clip: PPO's epsilon: how far an update may move the probability of an action.
        value: Weight of the value loss.
        epochs: Passes over the episodes of an update.
        minibatches: Parts that a pass cuts the episodes into; each is one step.
        max_norm: Gradients of a side are clipped to this norm.
        held_out: Share of the data's episodes that are held out.
        seed: Seed of the initial weights, the split of the data and the fit of the model.
        policy: Makes a policy of your own for a seat, given its name, in place of those of ``hidden`` and ``memory``;
            each call makes new weights. :func:`rl.csp.contract.check_policy` says what is asked of it. Not kept in
            checkpoints: pass it to `load_from_checkpoint` again.
        optimizer: Makes the optimizer of a side from its groups of parameters, each with its ``lr``; None is Adam.
            Likewise not kept.

    Raises:
        ValueError: If an argument is out of range, contradicts another, or a policy breaks its contract.
    """

    coefficient: Tensor
    pooled: Tensor
    warm: Tensor

    def __init__(
        self,
        game: str | BatchedGame,
        data: str | Pairs | TargetData,
        game_args: dict[str, Any] | None = None,
        *,
        model: nn.Module | None = None,
        hidden: Sequence[Count] = (64, 64),
        memory: Whole = 0,
        chunk: Count = 10,
        normalise: bool = False,
        log_std: Finite = -0.5,
        agent_rate: Positive = 3e-3,
        proxy_rate: Positive = 3e-3,
        final_rate: Share = 1.0,
        constraint: Literal["penalty", "lagrangian", "gate"] = "penalty",
        coefficient: NotNegative = 30.0,
        divergence: Divergence = "nll",
        slack: Positive = 0.02,
        dual_rate: Positive = 0.5,
        floor: NotNegative = 10.0,
        ceiling: Positive = 1e3,
        gate_count: Positive = 1.0,
        gate_limit: Share = 1.0,
        count_power: Share = 0.0,
        radius: NotNegative = 0.0,
        data_batch: Count = 512,
        warm_start: bool = True,
        proxy_updates: Count = 2,
        model_share: Share = 0.0,
        models: Count = 1,
        pool: Whole = 0,
        pool_share: Share = 0.5,
        pool_every: Count = 10,
        entropy_start: NotNegative = 0.1,
        entropy_end: NotNegative = 0.002,
        entropy_until: Share = 0.8,
        discount: PositiveShare | None = None,
        trace: Share = 0.95,
        clip: Positive = 0.2,
        value: NotNegative = 0.5,
        epochs: Count = 4,
        minibatches: Count = 1,
        max_norm: Positive = 10.0,
        held_out: ProperShare = 0.2,
        seed: Seed = 0,
        policy: Callable[[str], nn.Module] | None = None,
        optimizer: MakeOptimizer | None = None,
    ) -> None:
        check_arguments(CSPModule.__init__, locals())
        super().__init__()
        hidden = list(hidden)
        kept = [name for name, x in (("game", game), ("data", data)) if not isinstance(x, str)]
        self.save_hyperparameters(ignore=[*kept, "model", "policy", "optimizer"])
        check_options(pool, constraint, floor, ceiling)
        self.game = game_of(game, game_args)
        self.seat = Seat.of(self.game)
        self.pairs = pairs_of(data, self.game)
        self.train_pairs, self.held_out_pairs = self.pairs.split(held_out, seed)
        self.counts = Coverage(self.train_pairs.observations, radius)
        plain = partial(SeatPolicy.of, self.game, hidden=hidden, memory=memory, normalise=normalise, log_std=log_std)
        self._make_policy: Callable[[str], nn.Module] = plain if policy is None else partial(made_for, policy)
        self._make_optimizer = optimizer or partial(torch.optim.Adam, eps=1e-5)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._build(model, is_own=policy is not None)
        check_optimizer(optimizer, *self._groups())
        self.sampler = PairSampler(
            self.train_pairs, power=count_power, radius=radius, batch=data_batch, sequences=self.recurrent
        )
        self.register_buffer("coefficient", torch.tensor(float(coefficient)))
        self.register_buffer("pooled", torch.zeros((), dtype=torch.long))
        self.register_buffer("warm", torch.tensor(False))
        self.automatic_optimization = False

    def new_policy(self, seat: str) -> nn.Module:
        """A policy of a seat with new weights."""
        return self._make_policy(seat)

    def new_critic(self) -> Critic:
        """A critic with new weights."""
        inputs = sum(self.game.players[seat] * self.game.observation_dim[seat] for seat in self.game.seats)
        return Critic(inputs, self.hparams["hidden"], normalise=self.hparams["normalise"])

    def _build(self, model: nn.Module | None, *, is_own: bool) -> None:
        hp = self.hparams
        ours, theirs = self.game.seats
        self.agent, self.free = self.new_policy(ours), self.new_policy(theirs)
        if is_own:
            check_policy(self.agent, self.new_policy(ours), self.game, ours)
            check_policy(self.free, self.new_policy(theirs), self.game, theirs)
        if model is not None:
            check_fixed(model, self.game, theirs)
        self.agent_critic, self.proxy_critic = self.new_critic(), self.new_critic()
        # Fitted in the run itself, so they belong into its checkpoints, unlike a teacher that comes from elsewhere.
        models = [self.new_policy(theirs) for _ in range(hp["models"])] if model is None else [model]
        self.models = nn.ModuleList(models).requires_grad_(False)
        self.given = model is not None
        self.pool = nn.ModuleList(self.new_policy(theirs) for _ in range(hp["pool"])).requires_grad_(False)
        self.proxy: nn.Module = self.free
        if hp["constraint"] == "gate":
            self.proxy = GatedPolicy(self.models[0], self.free, self._confidence)

    def setup(self, stage: str) -> None:
        """Fit the model and begin the proxy at it, unless that is done or a checkpoint is about to bring both."""
        if stage == "fit" and not self.warm and self.trainer.ckpt_path is None:
            self.warm_up()

    def warm_up(self) -> None:
        """Fit the models to the data, and begin the proxy at the first."""
        hp = self.hparams
        if not self.given:
            how = {"power": hp["count_power"], "radius": hp["radius"]}
            for number, model in enumerate(self.models):
                generator = torch.Generator().manual_seed(hp["seed"] + number)
                clone(model.requires_grad_(True), self.train_pairs, self.held_out_pairs, generator, **how)
                model.requires_grad_(False)
            if hp["warm_start"] and hp["constraint"] != "gate":
                self.free.load_state_dict(self.models[0].state_dict())
        self.warm.fill_(True)

    def training_step(self, batch: Iteration, batch_index: int) -> None:
        """One iteration: the proxy a few times, then the agent."""
        hp, generator = self.hparams, batch.generator()
        ours, theirs = self.game.seats
        agent_steps, proxy_steps = cast(Any, self.optimizers())
        for _ in range(hp["proxy_updates"] if self.learns_proxy else 0):
            episodes = play(self.game, (self.agent, self.proxy), batch.episodes, generator)
            report = update_side(
                self.proxy,
                self.proxy_critic,
                episodes.experience(theirs, sign=-1.0),
                self.settings(float(self.coefficient) if self.held_to_data else 0.0, self.progress),
                lambda loss: self._descend(loss, proxy_steps),
                generator,
                draw_data=lambda: self.sampler.draw(generator),
                reduce=over_processes,
            )
            agreement = self._follow_constraint(generator)
        if self.learns_proxy:
            self._note("proxy", report)
            self.log_dict({"train/return_proxy": over_processes(episodes.returns.mean()), **agreement})
        others = deal(batch.episodes, self.proxy, self.models, self.opponents(), generator, hp)
        episodes = join([play(self.game, (self.agent, other), count, generator) for other, count in others])
        report = update_side(
            self.agent,
            self.agent_critic,
            episodes.experience(ours, sign=1.0),
            self.settings(progress=self.progress),
            lambda loss: self._descend(loss, agent_steps),
            generator,
            reduce=over_processes,
        )
        self._note("agent", report)
        self.log("train/return", over_processes(episodes.returns.mean()), prog_bar=True)
        if hp["pool"] and batch.number % hp["pool_every"] == 0 and self.excess() <= hp["slack"]:
            self.pool[int(self.pooled) % hp["pool"]].load_state_dict(self.free.state_dict())
            self.pooled += 1

    @property
    def recurrent(self) -> bool:
        """Whether a policy that learns has a memory, so that it is trained on sequences."""
        return bool(self.agent.memory or self.free.memory)

    @property
    def learns_proxy(self) -> bool:
        """Whether there is a proxy at all: not where every episode is played against the model."""
        return bool(self.hparams["model_share"] < 1)

    @property
    def held_to_data(self) -> bool:
        """Whether the proxy has a data term: not with a gate, nor with C = 0."""
        return bool(self.hparams["constraint"] != "gate" and self.hparams["coefficient"] > 0)

    def opponents(self) -> list[nn.Module]:
        """The policies of the pool that were filled."""
        return list(self.pool)[: int(self.pooled)]

    def settings(self, coefficient: float = 0.0, progress: float = 1.0) -> Settings:
        """Coefficients of an update.

        Args:
            coefficient: C.
            progress: Share of the training that is done; it decides the entropy bonus.
        """
        hp = self.hparams
        annealed = min(1.0, progress / hp["entropy_until"]) if hp["entropy_until"] > 0 else 1.0
        return Settings(
            discount=self.game.discount if hp["discount"] is None else hp["discount"],
            trace=hp["trace"],
            clip=hp["clip"],
            entropy=hp["entropy_start"] + (hp["entropy_end"] - hp["entropy_start"]) * annealed,
            value=hp["value"],
            coefficient=coefficient,
            divergence=hp["divergence"],
            epochs=hp["epochs"],
            minibatches=hp["minibatches"],
            chunk=hp["chunk"] if self.recurrent else 1,
        )

    def _descend(self, loss: Tensor, optimizer: Any) -> None:
        optimizer.zero_grad()
        if processes() > 1:  # data-parallel training waits for the gradient of every parameter
            loss = loss + 0.0 * sum(p.sum() for p in self.parameters() if p.requires_grad)
        self.manual_backward(loss)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(parameters, self.hparams["max_norm"])
        optimizer.step()

    @torch.no_grad()
    def _follow_constraint(self, generator: torch.Generator) -> dict[str, Tensor]:
        """How well the proxy agrees with the data, after C has followed where it is to."""
        hp, data = self.hparams, self.sampler.draw(generator)
        proxy, model = self.proxy(data.observations, data.masks, None)[0], cast(Law, data.model)
        excess = float(over_processes(data_term(proxy, data) - data_term(model, data)))
        if hp["constraint"] == "lagrangian":
            bounds = {"rate": hp["dual_rate"], "floor": hp["floor"], "ceiling": hp["ceiling"]}
            self.coefficient.fill_(next_coefficient(float(self.coefficient), excess, hp["slack"], **bounds))
        agreement = {"train/excess": torch.tensor(excess), "train/coefficient": self.coefficient}
        if hp["constraint"] != "gate":
            agreement["train/kl_data"] = data_term(proxy, data, "forward")
        return agreement

    def _confidence(self, observations: Tensor) -> Tensor:
        counts = self.counts(observations)
        return cast(Tensor, self.hparams["gate_limit"] * counts / (counts + self.hparams["gate_count"]))

    def excess(self, *, held_out: bool = False) -> float:
        """By how much the data are less likely under the proxy than under the model, in nats a dimension."""
        pairs = self.held_out_pairs if held_out else self.train_pairs
        return likelihood(self.proxy, pairs) - likelihood(self.models[0], pairs)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam, or an optimizer of one's own, for the agent with its critic, and for the proxy with its own."""
        return [self._make_optimizer(groups) for groups in self._groups()]

    def _groups(self) -> list[list[Group]]:
        hp = self.hparams
        sides = ((hp["agent_rate"], self.agent, self.agent_critic), (hp["proxy_rate"], self.free, self.proxy_critic))
        return [[group_of(rate, [*one.parameters(), *other.parameters()])] for rate, one, other in sides]

    @property
    def progress(self) -> float:
        """Share of this training that is done, in [0, 1], see :func:`rl.progress.share_done`."""
        return share_done(self.trainer)

    def on_train_start(self) -> None:
        """Bring the data to the device, with what the fitted model says of them, and start where the trainer stands."""
        follow_trainer(self.trainer)
        self.sampler.to(self.device)
        if self.learns_proxy:
            self.sampler.evaluate(self.models[0])

    def on_train_batch_start(self, batch: Iteration, batch_index: int) -> None:
        """Set the rates of this iteration."""
        set_rates(cast(Any, self.optimizers(use_pl_optimizer=False)), self.hparams["final_rate"], self.progress)

    def _note(self, side: str, report: dict[str, Tensor]) -> None:
        self.log_dict({f"train/{side}_{name}": x for name, x in report.items() if name != "data"})

    def validation_step(self, batch: Iteration, batch_index: int) -> None:
        """Returns against everyone there is, on the fixed validation chance."""
        self._evaluate("validation", batch)

    def test_step(self, batch: Iteration, batch_index: int) -> None:
        """Returns against everyone there is, on the fixed chance of the test."""
        self._evaluate("test", batch)

    def _evaluate(self, stage: str, batch: Iteration) -> None:
        others = [("proxy", self.proxy), ("model", self.models[0]), *(("pool", one) for one in self.opponents()[-1:])]
        returns = {}
        for name, other in others:
            episodes = play(self.game, (self.agent, other), batch.episodes, batch.generator())
            returns[f"{stage}/return_{name}"] = over_processes(episodes.returns.mean())
        if self.learns_proxy:
            returns[f"{stage}/excess"] = torch.tensor(self.excess(held_out=True))
        self.log_dict(returns, prog_bar=True, batch_size=1, sync_dist=True)
