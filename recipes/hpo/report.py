"""What an hpo run reports: learning curves, gaps with intervals over seeds, pictures of policies."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from recipes.running.files import write_text
from recipes.running.intervals import half_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recipes.hpo.schema import Recipe
    from recipes.running.folder import RunFolder
    from rl.envs.hybrid import HybridSimulator
    from rl.envs.inventory import Inventory
    from rl.hpo.policies import HybridPolicy

Row = dict[str, Any]


def report(recipe: Recipe, rows: Sequence[Row], folder: RunFolder) -> None:
    """Write curves, figures and tables, and finish the run.

    Args:
        recipe: The recipe.
        rows: One for each cell, as `recipes.hpo.recipe.train_cell` returns them.
        folder: The run folder.
    """
    import matplotlib

    matplotlib.use("agg")
    table = summary(recipe, rows)
    curves = [{"method": row["method"], "seed": row["seed"], **point} for row in rows for point in row["curve"]]
    text = io.StringIO()
    columns = list(dict.fromkeys(key for point in curves for key in point))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(curves)
    write_text(folder.path / "curves.csv", text.getvalue())
    if curves:
        for x in ("simulator_steps", "seconds"):
            draw_curves(recipe, rows, x, folder)
    draw_policies(recipe, rows, folder)
    first = table[0]
    found = f"{first['method']}: test cost {first['cost']:.4g}" + (
        ""
        if first["gap"] is None
        else f", {first['gap']:+.2%} from {first['reference']} at {first['reference_cost']:.4g}"
    )
    result = {"cost": first["cost"], "gap": first["gap"]}
    result |= {f"{name}s": {row["method"]: row[name] for row in table} for name in ("cost", "gap")}
    tables: dict[str, Sequence[Row]] = {"Test cost and gap of the last policy": table}
    if rows[0]["others"]:
        tables["Known policies and bounds"] = [rows[0]["others"]]
    folder.finish({**result, "rows": table}, tables, summary=f"{found}.")


def summary(recipe: Recipe, rows: Sequence[Row]) -> list[Row]:
    """One row for each method: means over seeds, and half a 95 % interval of the gap.

    Args:
        recipe: Names the methods, in order.
        rows: One for each cell.
    """
    table = []
    for method in recipe.methods:
        group = [row for row in rows if row["method"] == method]
        gaps = [row["gap"] for row in group if row["gap"] is not None]
        table.append(
            {
                "method": method,
                "seeds": len(group),
                "cost": statistics.fmean(row["cost"] for row in group),
                "gap": statistics.fmean(gaps) if gaps else None,
                "gap_half_interval": half_interval(gaps),
                "reference": group[0]["reference"],
                "reference_cost": group[0]["reference_cost"],
                "simulator_steps": group[0]["simulator_steps"],
                "seconds": statistics.fmean(row["seconds"] for row in group),
            }
        )
    return table


def draw_curves(recipe: Recipe, rows: Sequence[Row], x: str, folder: RunFolder) -> None:
    """The gap (or the cost, where no reference is known) of every training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4))
    axes = figure.add_subplot()
    y = "gap" if all("gap" in point for row in rows for point in row["curve"]) else "cost"
    points = []
    for number, method in enumerate(recipe.methods):
        for row in rows:
            if row["method"] == method:
                places = [(point[x], point[y]) for point in row["curve"]]
                label = method if row["seed"] == recipe.seed else None
                axes.plot(*zip(*places, strict=True), color=f"C{number}", label=label, linewidth=1)
                points += [[method, row["seed"], *place] for place in places]
    axes.set(xlabel=x.replace("_", " "), ylabel=f"validation {y}")
    if y == "gap":
        axes.set_yscale("symlog", linthresh=0.01)
        axes.axhline(0, color="black", linewidth=0.5)
    axes.legend(fontsize=8)
    told = "A line a training; lower is better" + (", and 0 is as good as the reference." if y == "gap" else ".")
    title = f"Validation {y} over {x.replace('_', ' ')}"
    folder.figure(f"curves_{x}", figure, points, ("method", "seed", x, y), title=title, told=told)


def draw_policies(recipe: Recipe, rows: Sequence[Row], folder: RunFolder) -> None:
    """A picture of each method's first policy, for simulators whose state is a plane."""
    import torch

    from recipes.hpo.schema import SB3, make_simulator
    from rl.envs.inventory import Inventory
    from rl.hpo.module import HPOModule

    simulator = make_simulator(recipe)
    for row in rows:
        if row["seed"] != recipe.seed or row["method"] == SB3 or simulator.observation_dim != 2 or simulator.heads:
            continue
        name = f"{row['method']}-{row['seed']}"
        module = HPOModule.load_from_checkpoint(folder.path / "policies" / f"{name}.ckpt", trust=True).cpu().eval()
        with torch.no_grad():
            if isinstance(simulator, Inventory) and simulator.action_dim == 1 and simulator.lead_time == 2:
                told = "Where and how much the policy orders, beside the optimal levels."
                folder.figure(f"policy_{name}", *_inventory_picture(simulator, module.policy), title=name, told=told)
            else:
                told = "The mode that the policy takes in every state of the plane."
                folder.figure(f"policy_{name}", *_mode_map(simulator, module.policy), title=name, told=told)


def _inventory_picture(simulator: Inventory, policy: HybridPolicy) -> tuple[Figure, list[list[float]], tuple[str, ...]]:
    """Probability of ordering and the level ordered up to, against stock and order under way, beside s* and S*."""
    import torch
    from matplotlib.figure import Figure

    from rl.hpo.references.inventory import optimal_ss
    from rl.hpo.references.policies import items_of

    best = optimal_ss(items_of(simulator)[0])
    stock, under_way = torch.arange(-10.0, 71.0, 2), torch.arange(0.0, 61.0, 2)
    state = {
        "stock": stock.repeat_interleave(len(under_way))[:, None],
        "under_way": under_way.repeat(len(stock))[:, None, None],
    }
    observation = simulator.observe(state, 0)
    probability = policy.log_probs(observation).exp()[:, 1]
    position = state["stock"][:, 0] + state["under_way"][:, 0, 0]
    level = position + simulator.action_map(policy.raw_actions(observation), state)[:, 1, 0]
    figure = Figure(figsize=(9, 3.4))
    for index, (values, title) in enumerate(((probability, "probability of ordering"), (level, "order up to"))):
        axes = figure.add_subplot(1, 2, index + 1)
        image = axes.pcolormesh(
            stock.numpy(), under_way.numpy(), values.reshape(len(stock), -1).T.numpy(), shading="nearest"
        )
        figure.colorbar(image, ax=axes)
        axes.plot(
            stock.numpy(),
            (best.reorder - stock).numpy(),
            color="red",
            linewidth=1,
            label=f"position s* = {best.reorder}",
        )
        axes.set(xlabel="stock", ylabel="under way", title=title, ylim=(0, 60))
        axes.legend(fontsize=7, loc="upper right")
    figure.suptitle(f"optimum: at {best.reorder} or below order up to {best.up_to}", fontsize=9)
    columns = (state["stock"][:, 0], state["under_way"][:, 0, 0], probability, level)
    return figure, torch.stack(columns, 1).tolist(), ("stock", "under_way", "order_probability", "order_up_to")


def _mode_map(simulator: HybridSimulator, policy: HybridPolicy) -> tuple[Figure, list[list[float]], tuple[str, ...]]:
    """The likeliest mode over the plane of observations, beside that of the best known policy where there is one."""
    import torch
    from matplotlib.figure import Figure

    from rl.envs.switched_lqr import SwitchedLQR
    from rl.hpo.references.switched_lqr import decide_stages, solve_exact

    reach = simulator.initial if isinstance(simulator, SwitchedLQR) else 2.0
    axis = torch.linspace(-reach, reach, 61)
    plane = torch.cartesian_prod(axis, axis)
    maps = {"learned": policy.log_probs(plane).argmax(1)}
    if isinstance(simulator, SwitchedLQR):
        maps["optimum, first stage"] = decide_stages(simulator, solve_exact(simulator))({"x": plane}, 0)[0]
    figure = Figure(figsize=(4 * len(maps), 3.4))
    for index, (title, modes) in enumerate(maps.items()):
        axes = figure.add_subplot(1, len(maps), index + 1)
        axes.pcolormesh(axis.numpy(), axis.numpy(), modes.reshape(61, 61).T.numpy(), shading="nearest")
        axes.set(xlabel="first coordinate", ylabel="second coordinate", title=title)
    points = torch.cat([plane, torch.stack(list(maps.values()), 1).to(plane)], 1)
    return figure, points.tolist(), ("first", "second", *maps)
