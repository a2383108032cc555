"""The command `gapbridge play RUN --against OPPONENT`: a run's policies against a new opponent."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from recipes.csp.words import file_name, row_name
from recipes.errors import RecipeError, RunError

if TYPE_CHECKING:
    from torch import nn

    from recipes.csp.schema import Recipe
    from rl.envs.markov_game import BatchedGame

RANDOM = "random"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RecipeError(f"gapbridge play: {message}; see gapbridge play --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="gapbridge play",
        description="Play the policies of a csp run against an opponent that they were not trained for.",
        epilog="OPPONENT is random, a policy file (.safetensors), or the import path of a function "
        "act(observations, mask, generator) that gives actions, such as my_bots.charge.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="folder of a finished run, such as runs/csp-maze/1")
    add("--against", required=True, metavar="OPPONENT", help="who plays the target's seat")
    add("--policy", action="append", default=[], metavar="NAME", help="a policy of the run; all of them by default")
    add("--episodes", type=int, default=1000, help="of each policy, at least 2 (1000)")
    add("--seed", type=int, default=0, help="of everything random (0)")
    add("--gif", type=Path, metavar="FILE", help="write an episode of the first policy as a GIF")
    return parser


def main(words: Sequence[str]) -> int:
    """Play and print; return the exit code: 0 done, 1 failed, 2 a wrong command line.

    Args:
        words: Of the command line, after `play`.
    """
    try:
        options = _parser().parse_args(list(words))
        if options.episodes < 2:
            raise RecipeError(f"gapbridge play --episodes: expected at least 2, got {options.episodes}")
        print(report(options), flush=True)
    except (RecipeError, RunError) as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def report(options: argparse.Namespace) -> str:
    """Play every policy, and say what came out beside what the run said.

    Args:
        options: The parsed command line.

    Returns:
        Lines of text.

    Raises:
        RecipeError: If the run, a policy or the opponent cannot be used.
    """
    from recipes.csp.figures import film
    from recipes.running.files import write_bytes
    from rl.csp.worst_case import value_of

    game = _game(options.run)
    opponent = _opponent(options.against, game)
    policies = _policies(options.run, options.policy, game)
    promised = _promised(options.run)
    lines = [f"{'policy':24}{'our return':>12}{'95 % interval':>22}  certified in the run"]
    below = []
    for name, policy in policies.items():
        found = value_of(game, policy, opponent, options.episodes, options.seed)
        said = promised.get(name)
        told = "" if said is None else f"{said:.4f}"
        lines.append(f"{name:24}{found.value:12.4f}{f'[{found.low:.4f}, {found.high:.4f}]':>22}  {told}".rstrip())
        below += [name] if said is not None and found.high < said else []
    if below:
        lines.append(
            f"{', '.join(below)} gets less than what was certified: this opponent does not play as the recorded target "
            "did, so that nothing was promised against it"
        )
    if options.gif is not None:
        try:
            write_bytes(options.gif, film(game, next(iter(policies.values())), opponent, options.seed))
        except NotImplementedError as error:
            raise RecipeError(f"gapbridge play --gif: {error}") from error
        lines.append(f"an episode of {next(iter(policies))} is in {options.gif}")
    return "\n".join(lines)


def _game(run: Path) -> BatchedGame:
    """The game of a run, as its recipe names it."""
    from recipes.csp.games import CARDS, build
    from recipes.front import parse

    file = run / "recipe.yaml"
    if not file.is_file():
        raise RecipeError(f"{run} holds no run; give the folder of a finished csp run, such as runs/csp-maze/1")
    parsed = parse.parse(file)
    if parsed.name != "csp":
        raise RecipeError(f"{run} is a run of the recipe {parsed.name}; give one of csp")
    recipe = cast("Recipe", parsed.recipe)
    try:
        if recipe.game.name in CARDS:
            from rl.envs.spiel_game import SpielGame

            return SpielGame(recipe.game.name)
        return build(recipe.game.name, recipe.game.class_path, recipe.game.init_args).game
    except (ValueError, ImportError) as error:
        raise RecipeError(f"{file}: game: {error}") from error


def _policies(run: Path, wanted: Sequence[str], game: BatchedGame) -> dict[str, nn.Module]:
    """The policies of a run by name, those that are wanted or all."""
    from rl.csp.contract import check_fixed
    from rl.csp.policy_file import load_policy

    files = {path.stem: path for path in sorted((run / "policies").glob("*.safetensors"))}
    if not files:
        raise RecipeError(f"{run} has no policies/*.safetensors; finish the run first, with --resume")
    if missing := [name for name in wanted if name not in files]:
        raise RecipeError(f"gapbridge play --policy: {run} has no policy {missing[0]!r}; it has {', '.join(files)}")
    found: dict[str, nn.Module] = {}
    for name in wanted or files:
        try:
            found[name] = load_policy(files[name])
            check_fixed(found[name], game, game.seats[0])
        except ValueError as error:
            raise RecipeError(str(error)) from error
    return found


def _promised(run: Path) -> dict[str, float]:
    """Certified values of the run's policies, by the name of their file."""
    file = run / "result.json"
    try:
        result = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise RecipeError(f"{file} is damaged ({error}); --resume writes it again") from error
    found = {"certified-plan": result.get("certified plan")}
    for row in result.get("rows", []):
        found[file_name(row_name(row))] = row.get("certified 95 %", row.get("certified"))
    return {name: float(value) for name, value in found.items() if value is not None}


def _opponent(text: str, game: BatchedGame) -> nn.Module:
    """Who plays the target's seat."""
    from torch import nn

    from rl.csp.contract import check_fixed
    from rl.csp.opponents import random_policy
    from rl.csp.policies import ScriptedPolicy
    from rl.csp.policy_file import load_policy
    from rl.loading import find

    seat = game.seats[1]
    policy: Any
    try:
        if text == RANDOM:
            return random_policy(game, seat)
        if text.endswith(".safetensors"):
            policy = load_policy(text)
        else:
            sys.path[:] = [*sys.path, *({str(Path.cwd())} - set(sys.path))]  # the user's own files, after all others
            found = find("opponent", text)
            if isinstance(found, type) or not callable(found):
                raise RecipeError(
                    f"gapbridge play --against: {text} is a {type(found).__name__}; give a function "
                    "act(observations, mask, generator) or a policy file"
                )
            policy = found if isinstance(found, nn.Module) else ScriptedPolicy(found)
        check_fixed(policy, game, seat)
    except (OSError, ValueError) as error:
        raise RecipeError(f"gapbridge play --against: {error}") from error
    return cast("nn.Module", policy)
