"""What a csp recipe says: the game, the target's data, the training, its baselines and the attack."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from recipes.csp.games import CARDS
from recipes.fields import FieldError, check_name, check_positive, check_range, check_seed, check_unique
from recipes.front.signature import FedBlock, takes
from recipes.running.trainer import TrainerConfig

Baseline = Literal["bc_first", "bc_ensemble", "self_play", "imitation", "rnr", "dbr", "oracle"]


@dataclass
class Game:
    """What is played; our seat is the first, the target's the second.

    Attributes:
        name: vault_maze, predator_prey, sumo, half_sumo, leduc_poker and kuhn_poker ship with a target; own is a game
            of yours.
        class_path: For own, a subclass of rl.envs.markov_game.BatchedGame, such as rl.envs.parallel.ParallelGame, which
            takes any environment of PettingZoo, rl.envs.spiel_game.SpielGame, which takes a game of OpenSpiel, or
            rl.envs.FileGame, which reads a matrix or tabular game from a YAML or npz file.
        init_args: Arguments of the game's class.
        target: Name of the target's seat, checked against the game when given.
    """

    name: Literal["vault_maze", "predator_prey", "sumo", "half_sumo", "leduc_poker", "kuhn_poker", "own"] = "vault_maze"
    class_path: str = ""
    init_args: dict[str, Any] = field(default_factory=dict)
    target: str = ""

    def __post_init__(self) -> None:
        """Refuse a class where none is taken, and its absence."""
        if (self.name == "own") != bool(self.class_path):
            raise FieldError("class_path", f"expected a path exactly for the game own, got {self.class_path!r}")


@dataclass
class Data:
    """What is known of the target.

    Attributes:
        path: An .npz, .parquet or .csv file with the columns observation, action, episode and t, and perhaps player,
            last, action_mask, active and seat; empty records the shipped target.
        episodes: How many are recorded.
        behaviour: Of card games, how our seat plays meanwhile: uniform, or narrow (it nearly always calls).
    """

    path: str = ""
    episodes: int = 500
    behaviour: Literal["uniform", "narrow"] = "uniform"

    def __post_init__(self) -> None:
        """Refuse no data."""
        check_positive(self.episodes, "episodes")


@takes(
    "rl.csp.module:CSPModule",
    leave_out={
        "game": "the block game says what is played",
        "data": "the block data says what is known of the target",
        "game_args": "the block game has them as init_args",
        "policy": "a function is no plain value",
        "optimizer": "a function is no plain value",
        "model": "a policy is no plain value; the baseline oracle takes the true target",
        "seed": "the key seed of the recipe seeds everything",
    },
)
@dataclass
class Adaptation(FedBlock):
    """How policies are trained: every argument of rl.csp.CSPModule, and how long.

    Attributes:
        iterations: Iterations of a training; each is proxy_updates updates of the proxy and one of the agent.
        episodes: Episodes that are played for each update.
    """

    iterations: int = 200
    episodes: int = 256
    if TYPE_CHECKING:  # what the recipe itself reads of the module's arguments
        coefficient: float = field(init=False)

    def __post_init__(self) -> None:
        """Refuse no training."""
        for key in ("iterations", "episodes"):
            check_positive(getattr(self, key), key)


@dataclass
class Sweep:
    """Further trainings for the frontier of exploitation and worst case.

    Attributes:
        coefficients: Values of C for CSP.
        shares: Of RNR: how often the target plays the model.
        limits: Of DBR: how sure it gets of the model.
    """

    coefficients: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name, high in (("coefficients", float("inf")), ("shares", 1.0), ("limits", 1.0)):
            for index, value in enumerate(getattr(self, name)):
                check_range(value, f"{name}.{index}", low=0, high=high)


@dataclass
class Attack:
    """The search for the worst consistent target of a finished policy.

    Attributes:
        adversaries: Trained afresh against each policy, at least 4.
        iterations: Updates of each.
        episodes: Of each update.
        test_episodes: For every value.
        coefficient: C at the start, and its floor.
        slack: Excess in nats a dimension on held-out data that still counts as consistent.
        baselines: Attack the baselines too.
    """

    adversaries: int = 4
    iterations: int = 100
    episodes: int = 256
    test_episodes: int = 4096
    coefficient: float = 30.0
    slack: float = 0.05
    baselines: bool = True

    def __post_init__(self) -> None:
        """Refuse a search that would find nothing."""
        check_range(self.adversaries, "adversaries", low=4)
        for key in ("iterations", "episodes", "slack"):
            check_positive(getattr(self, key), key)
        check_range(self.test_episodes, "test_episodes", low=2)
        check_range(self.coefficient, "coefficient", low=0)


@dataclass
class Recipe:
    """Adapt a policy conservatively to a target known through data.

    Attributes:
        recipe: Always csp.
        name: Name of the run.
        seed: Seed of everything random.
        game: What is played.
        data: What is known of the target.
        adaptation: How policies are trained.
        baselines: What is trained beside CSP; null takes bc_first, self_play and, where our own seat was recorded too,
            imitation.
        sweep: Further trainings for the frontier.
        attack: The search for the worst consistent target.
        trainer: Arguments of lightning.Trainer.
    """

    recipe: Literal["csp"] = "csp"
    name: str = "adapted"
    seed: int = 0
    game: Game = field(default_factory=Game)
    data: Data = field(default_factory=Data)
    adaptation: Adaptation = field(default_factory=Adaptation)
    baselines: list[Baseline] | None = None
    sweep: Sweep = field(default_factory=Sweep)
    attack: Attack = field(default_factory=Attack)
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(max_epochs=1, accelerator="cpu", devices=1))

    def __post_init__(self) -> None:
        """Refuse what does not belong together."""
        check_name(self.name, "name")
        check_seed(self.seed)
        if self.baselines is None:  # a data file has the target's steps alone, and nothing of our seat to imitate
            self.baselines = ["bc_first", "self_play"] if self.data.path else ["bc_first", "self_play", "imitation"]
        check_unique(list(self.baselines), "baselines")
        if self.game.name not in CARDS:
            self._check_length()
        if self.game.name == "own" and not self.data.path:
            raise FieldError("data.path", "expected a data file for a game of your own, got nothing")
        if self.data.path and self.game.name in CARDS:
            raise FieldError("data.path", f"expected nothing for {self.game.name}, whose target ships with it")
        if self.data.path and (known := {"oracle", "imitation"} & set(self.baselines)):
            raise FieldError(
                "baselines", f"expected none that needs more than a data file of the target, got {min(known)!r}"
            )

    def _check_length(self) -> None:
        """Refuse a trainer that would train for another number of iterations, or cannot train two sides in turn."""
        epochs, iterations = self.trainer.max_epochs, self.adaptation.iterations
        if epochs is None or epochs < 1 or iterations % epochs:
            raise FieldError(
                "trainer.max_epochs",
                f"expected a number that divides adaptation.iterations, {iterations}, into epochs, got {epochs}",
            )
        if self.trainer.gradient_clip_val:
            raise FieldError("trainer.gradient_clip_val", "expected none: adaptation.max_norm limits the gradients")
        if self.trainer.accumulate_grad_batches != 1:
            raise FieldError(
                "trainer.accumulate_grad_batches", "expected 1: adaptation.episodes says what an update is"
            )
