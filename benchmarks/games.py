"""Stock games of OpenSpiel and PettingZoo at our doors: how many are played, how many refused in a sentence.

A game is *played* if it is made as a batched game and passes ``check_game``: random episodes, replayed from the same
seed. It is *refused* if making it raises a ValueError of one sentence. Anything else is *crashed*. Games whose trees or
kinds are known not to fit are in the list too, so that their refusals are seen. PettingZoo's games are split into our
agents and the target's by name. Takes about three minutes; games whose packages are missing are refused.
"""

from __future__ import annotations

import os
from typing import Any

from benchmarks.common import write_results
from rl.envs.check_batched import check_game
from rl.envs.parallel import ParallelGame
from rl.envs.spiel_game import SpielGame

SPIEL = (
    "kuhn_poker",
    "leduc_poker",
    "liars_dice(numdice=1,dice_sides=2)",
    "dark_hex(board_size=2)",
    "nim(pile_sizes=1;2;3)",
    "hex(board_size=2)",
    "mnk(m=3,n=2,k=2)",
    "clobber(rows=2,columns=3)",
    "breakthrough(rows=3,columns=2)",
    "connect_four(rows=3,columns=3,x_in_row=3)",
    "dots_and_boxes(num_rows=1,num_cols=2)",
    "turn_based_simultaneous_game(game=matrix_rps())",
    "turn_based_simultaneous_game(game=blotto(coins=5,fields=2))",
    "turn_based_simultaneous_game(game=goofspiel(num_cards=3,imp_info=True,points_order=descending))",
    "turn_based_simultaneous_game(game=zerosum(game=matrix_pd()))",
    "zerosum(game=trade_comm(num_items=2))",
    "matrix_rps",
    "bargaining",
    "tiny_hanabi",
    "chess",
    "coordinated_mp",
    "liars_dice_ir",
    "efg_game",
    "nfg_game",
    "hearts",
)
# Module, maker, names of our agents or how many of the first, steps.
PETTING_ZOO: tuple[tuple[str, str, int | tuple[str, ...], int], ...] = (
    ("pettingzoo.classic.rps_v2", "env", 1, 20),
    ("pettingzoo.classic.tictactoe_v3", "env", 1, 9),
    ("pettingzoo.classic.connect_four_v3", "env", 1, 42),
    ("pettingzoo.classic.leduc_holdem_v4", "env", 1, 20),
    ("pettingzoo.classic.chess_v6", "env", 1, 20),
    ("mpe2.simple_tag_v3", "parallel_env", 3, 25),
    ("mpe2.simple_adversary_v3", "parallel_env", 1, 25),
    ("mpe2.simple_push_v3", "parallel_env", 1, 25),
    ("mpe2.simple_spread_v3", "parallel_env", 1, 25),
    ("mpe2.simple_reference_v3", "parallel_env", 1, 25),
    ("mpe2.simple_speaker_listener_v4", "parallel_env", 1, 25),
    ("mpe2.simple_crypto_v3", "parallel_env", 1, 25),
    ("mpe2.simple_world_comm_v3", "parallel_env", 4, 25),
    ("pettingzoo.butterfly.knights_archers_zombies_v11", "parallel_env", 2, 30),
    ("pettingzoo.butterfly.pistonball_v6", "parallel_env", 10, 10),
)


def tried(name: str, make: Any) -> dict[str, str]:
    """A row: played, refused or crashed, and what was said."""
    try:
        game = make()
        said = f"at most {game.horizon} steps; {check_game(game)[0]}"
        outcome = "played"
    except ValueError as error:
        said, outcome = str(error), "refused"
        if "\n" in said or ". " in said.replace("...", ""):
            outcome = "crashed"
    except Exception as error:  # a crash is what is counted here
        said, outcome = f"{type(error).__name__}: {error}", "crashed"
    print(outcome, name, said[:120], sep="  ", flush=True)
    return {"game": name, "outcome": outcome, "said": said}


def petting_zoo(module: str, maker: str, ours: int | tuple[str, ...], horizon: int) -> ParallelGame:
    """A game of PettingZoo, with the first agents as ours."""
    from rl.envs.petting_zoo import imported

    agents = list(imported(f"{module}.{maker}")().possible_agents)
    mine = agents[:ours] if isinstance(ours, int) else list(ours)
    return ParallelGame(f"{module}.{maker}", mine, [name for name in agents if name not in mine], horizon)


def main() -> None:
    """Try all, print, and write the figures."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    rows = [tried(name, lambda name=name: SpielGame(name)) for name in SPIEL]
    rows += [tried(row[0], lambda row=row: petting_zoo(*row)) for row in PETTING_ZOO]
    figures = {"games": len(rows)} | {
        outcome: sum(row["outcome"] == outcome for row in rows) for outcome in ("played", "refused", "crashed")
    }
    print(figures, write_results("games", figures, {"games": rows}, 1))


if __name__ == "__main__":
    main()
