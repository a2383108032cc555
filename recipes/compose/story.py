"""The one page of a composition: who lost what, where and why, with the inputs on which the models differ."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.compose.pictures import STAGES, draw_contributions, draw_stages
from recipes.compose.schema import MODELS, Recipe
from recipes.compose.stages import TABLE, Stage
from recipes.front.parse import parse
from recipes.running.intervals import half_interval

if TYPE_CHECKING:
    import pandas as pd

    from recipes.merge.evaluation import Scores
    from recipes.running.folder import RunFolder

Row = dict[str, Any]
Stages = tuple[Stage, list[Stage], Stage, list[Stage]]
ROUNDED = 1e-6  # what single precision makes of a share
LONGEST = 240  # characters of an input that are shown


@dataclass(frozen=True)
class Part:
    """What one task contributes to the mean loss that one model has above another's.

    Attributes:
        task: Its name.
        value: In units of the loss; those of all tasks sum to the difference of the two means.
        half: Half the width of its 95 % interval over inputs.
    """

    task: str
    value: float
    half: float


def parts(table: pd.DataFrame, pair: tuple[str, str], loss: str) -> list[Part]:
    """What every task contributes to what the second model of a pair loses more than the first.

    >>> import pandas as pd
    >>> table = pd.DataFrame({"task": ["a", "a", "b"], "x_log": [0.0, 1.0, 0.0], "y_log": [1.0, 1.0, 0.0]})
    >>> [(part.task, round(part.value, 4)) for part in parts(table, ("x", "y"), "log")]
    [('a', 0.3333), ('b', 0.0)]
    """
    more = table[f"{pair[1]}_{loss}"] - table[f"{pair[0]}_{loss}"]
    found = []
    for task in dict.fromkeys(table["task"]):
        inside = (more * (table["task"] == task)).to_numpy(float)
        found.append(Part(task, float(inside.mean()), half_interval(list(inside)) or 0.0))
    return found


def finish(recipe: Recipe, folder: RunFolder, stages: Stages, reused: Sequence[str]) -> None:
    """Write figures, tables, report.html and result.json, and copy the students.

    Args:
        recipe: The recipe.
        folder: Run folder of the composition.
        stages: Of `plan`, all finished.
        reused: Names of those that were in the cache or were taken.
    """
    import pandas as pd

    merge, students, answers, why = stages
    table = pd.read_parquet(answers.folder / TABLE)
    scores = _scores(merge, students)
    split = {pair: parts(table, pair, recipe.explain.loss) for pair in recipe.pairs()}
    outcome = _outcome(recipe, stages, scores, split)
    outcome["answers_equal_scores"] = apart = _apart(recipe, merge, table, scores)
    outcome |= {
        "stages": {s.name: str(s.folder) for s in (merge, *students, answers, *why)},
        "reused_stages": [*reused],
    }
    for stage in students:
        shutil.copytree(student_of(stage), folder.path / "students" / stage.name, dirs_exist_ok=True)
    draw_stages(folder, scores, recipe.students)
    draw_contributions(folder, split, recipe.explain.loss)
    for pair, stage in zip(split, why, strict=True):
        for drawn in sorted((stage.folder / "figures").glob("*.png"), key=lambda path: path.stat().st_mtime_ns):
            folder.adopt(drawn, f"{stage.name}-{drawn.stem}", _step(pair))
    shares = [row for pair, stage in zip(split, why, strict=True) for row in _shares(pair, stage)]
    tables = {
        "Who lost what, and where": [{"model": name, **_flat(row)} for name, row in scores.items()],
        "From step to step": _steps(split),
        "What the differences depend on": shares,
        "What the statuses mean": _meanings(shares),
        "Inputs on which they differ": _examples(recipe, table),
        "Stages": [_stage_row(stage, stage.name in reused) for stage in (merge, *students, answers, *why)],
    }
    told = _summary(recipe, scores, split)
    if apart > ROUNDED:
        told += (
            f" Shares of right answers here and in the stages' own reports differ by up to {apart:.4f}: those were "
            "scored in another number format, or on another machine."
        )
    folder.finish(outcome, {title: rows for title, rows in tables.items() if rows}, summary=told, first=[STAGES])
    folder.say(told)


def student_of(stage: Stage) -> Path:
    """Folder of the one student of a finished distillation."""
    return next(path for path in sorted((stage.folder / "students").iterdir()) if path.is_dir())


def _scores(merge: Stage, students: Sequence[Stage]) -> dict[str, Row]:
    """Mean, score by task, share of the experts' and of the twin's, bytes and time of every model that is compared."""
    found = merge.result
    rows, best = found["rows"], found["best_static"]
    named = {"experts": "experts", "pretrained": "pretrained", f"best static ({best})": best, "twin": "routed"}
    kept = ("mean", "normalised", "bytes", "ms_per_input", "tasks")
    table: dict[str, Row] = {name: {key: rows[row][key] for key in kept} for name, row in named.items()}
    expert, twin = (_as_scored(found, rows[name]) for name in ("experts", "routed"))
    for stage in students:
        one = stage.result
        scored = one["rows"][student_of(stage).name]
        made = _as_scored(found, scored)
        table[stage.name] = {
            "mean": made.mean,
            "normalised": made.normalised(expert),
            "over_twin": _over(made, twin),
            "bytes": scored["bytes"],
            "ms_per_input": scored["ms_per_input"],
            "tasks": made.tasks,
        }
    return table


def _as_scored(merge: Row, row: Row) -> Scores:
    """A row as the merge reads it: of language models some tasks are perplexities, which are better when lower."""
    from recipes.merge.causal.table import LanguageScores
    from recipes.merge.evaluation import Scores

    if "metrics" not in merge:
        return Scores(row["tasks"], row["ms_per_input"])
    lower = frozenset(task for task in row["tasks"] if merge["metrics"][task] == "perplexity")
    return LanguageScores(row["tasks"], row["ms_per_input"], lower)


def _over(made: Scores, twin: Scores) -> float:
    """A score as a share of the twin's: of the means, or by task where a mean would leave perplexities out."""
    if getattr(made, "lower", None) or not twin.mean:
        return made.normalised(twin)
    return made.mean / twin.mean


def _apart(recipe: Recipe, merge: Stage, table: pd.DataFrame, scores: Mapping[str, Row]) -> float:
    """Largest difference of a share of right answers between this table and the reports of the stages."""
    merged = recipe.merge or parse(merge.folder / "recipe.yaml").recipe
    shares = [
        task.name
        for task in merged.tasks
        if task.name not in merged.unseen and (task.language or task).metric in ("accuracy", "choice")
    ]
    right = 1 - table.groupby("task")[[f"{model}_zero_one" for model in (*MODELS, *recipe.students)]].mean()
    named = {"expert": "experts"}
    return max(
        (
            abs(float(right.loc[task, f"{model}_zero_one"]) - scores[named.get(model, model)]["tasks"][task])
            for task in shares
            for model in (*MODELS, *recipe.students)
        ),
        default=0.0,
    )


def _flat(row: Row) -> Row:
    size = None if row["bytes"] is None else row["bytes"] / 1e6
    return {
        "mean": row["mean"],
        "share of the experts": row["normalised"],
        "MB": size,
        "ms per input": row["ms_per_input"],
        **row["tasks"],
    }


def _outcome(
    recipe: Recipe, stages: Stages, scores: Mapping[str, Row], split: Mapping[tuple[str, str], list[Part]]
) -> Row:
    """The numbers of result.json."""
    why = stages[3]
    explained: Row = {}
    apart = 0.0
    for stage, (pair, found) in zip(why, split.items(), strict=True):
        told = stage.result
        gap = float(told["totals"]["gap"])
        apart = max(apart, abs(sum(part.value for part in found) - gap))
        by_task = {part.task: {"value": part.value, "half_interval": part.half} for part in found}
        explained[stage.name] = {"models": list(pair), "gap": gap, "by_task": by_task, "shares": told["outcome"]}
    shown = ("experts", "twin", *recipe.students)  # at the top of the result, where the table of a sweep has them
    return {
        **{f"{name}_mean": scores[name]["mean"] for name in shown},
        "rows": dict(scores),
        "student_over_twin": {name: scores[name]["over_twin"] for name in recipe.students},
        "explained": explained,
        "explained_equals_measured": apart,
    }


def _steps(split: Mapping[tuple[str, str], list[Part]]) -> list[Row]:
    rows: list[Row] = []
    for pair, found in split.items():
        gap = sum(part.value for part in found)
        for part in found:
            ends = {"low": part.value - part.half, "high": part.value + part.half}
            share = part.value / gap if gap else None
            rows.append({"step": _step(pair), "task": part.task, "loss added": part.value, **ends, "share": share})
        rows.append({"step": _step(pair), "task": "all", "loss added": gap})
    return rows


def _shares(pair: tuple[str, str], stage: Stage) -> list[Row]:
    told = stage.result
    return [
        {
            "step": _step(pair),
            "group": name,
            "share": term["value"],
            **{key: term[key] for key in ("low", "high", "status")},
        }
        for name, term in told["outcome"].items()
    ]


def _step(pair: tuple[str, str]) -> str:
    return " to ".join(pair)


def _meanings(shares: Sequence[Row]) -> list[Row]:
    from explain.report import STATUS_MEANING

    met = {row["status"] for row in shares}
    return [{"status": name, "meaning": meaning} for name, meaning in STATUS_MEANING.items() if name in met]


def _examples(recipe: Recipe, table: pd.DataFrame) -> list[Row]:
    """Inputs that the twin answers rightly and a student does not, the surest of them first, and likewise before it."""
    if not recipe.explain.examples:
        return []
    each = max(1, recipe.explain.examples // len(recipe.pairs()))
    rows: list[Row] = []
    for pair in recipe.pairs():
        first, second = pair
        lost = table[(table[f"{first}_zero_one"] == 0) & (table[f"{second}_zero_one"] == 1)]
        order = (lost[f"{second}_log"] - lost[f"{first}_log"]).sort_values(ascending=False, kind="stable").index[:each]
        for at in order:
            row = table.loc[at]
            text = str(row.get("text", ""))
            rows.append(
                {
                    "step": _step(pair),
                    "task": row["task"],
                    "input": text if len(text) <= LONGEST else f"{text[:LONGEST]}…",
                    "right": row[f"{first}_answer"],
                    "answer of the second": row[f"{second}_answer"],
                    "largest weight of the mixture": row.get("router_confidence"),
                }
            )
    return rows


def _stage_row(stage: Stage, there: bool) -> Row:
    page = {"text": "its report", "href": f"stages/{stage.name}/report.html"}
    known = (stage.folder / "report.html").is_file()
    made = "taken" if stage.taken else "from the cache" if there else "made now"
    return {"stage": stage.name, "made": made, "folder": str(stage.folder), "report": page if known else None}


def _summary(recipe: Recipe, scores: Mapping[str, Row], split: Mapping[tuple[str, str], list[Part]]) -> str:
    best = next(name for name in scores if name.startswith("best static"))
    twin, static = scores["twin"], scores[best]
    told = [
        f"The twin has {_percent(twin['normalised'])} of the experts' score, "
        f"the {best} {_percent(static['normalised'])}."
    ]
    for name in recipe.students:
        found = split["twin", name]
        worst, gap = max(found, key=lambda part: part.value), sum(part.value for part in found)
        one = scores[name]
        lost = f"of the {gap:.4f} {recipe.explain.loss} loss that it adds, {worst.value:+.4f} is on {worst.task}"
        if gap <= 0:
            lost = f"its {recipe.explain.loss} loss is {-gap:.4f} below the twin's" if gap else "it adds no loss"
        told.append(
            f"Student {name} has {_percent(one['normalised'])}, and {_percent(one['over_twin'])} of the twin's score; "
            f"{lost}."
        )
    return " ".join(told)


def _percent(share: float | None) -> str:
    """A share for a reader; a run's result has none where every task's expert scores nothing."""
    return "an unknown share" if share is None or math.isnan(share) else f"{share:.1%}"
