"""Explain a performance gap: why a model does worse there than here, or worse than another model, with intervals.

``python -m recipes.run explain.yaml`` reads a table, cuts it into a source and a target domain, trains the model to be
explained on held-out source rows (or takes predictions or losses that the table already has), and decomposes the gap.
The run folder gets ``gap.json`` (a `GapReport`), the waterfall of the aggregate terms, bars with intervals for every
variable, overlap diagnostics and ``report.html``. The modes: ``domain`` (one model, two domains), ``models`` (two
models, one domain), ``gap-of-gaps`` (two models, two domains) and ``curve`` (one model, many domains against one
reference, such as the months after it; ``curve.json`` is a `GapCurve`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.errors import RecipeError, RunError
from recipes.explain.domains import check_data, cut, load_domains, need_columns
from recipes.explain.models import check_model_options, fit, predicted
from recipes.explain.schema import Recipe
from recipes.front.preflight import check_all

if TYPE_CHECKING:
    import pandas as pd

    from explain.curve_report import GapCurve
    from explain.report import GapReport
    from recipes.running.folder import RunFolder

__all__ = ["Recipe", "check", "run"]


def check(recipe: Recipe) -> Iterator[str]:
    """Say where the rows and the models come from; write nothing."""
    named = zip(("model", "second"), recipe.models, strict=False)
    yield from check_all(
        [
            partial(check_data, recipe.data, recipe.columns),
            *(partial(check_model_options, model, where) for where, model in named),
            partial(_check_explainer, recipe),
        ]
    )
    players = len(recipe.groups)
    how = f"{2**players} subsets" if players <= 10 else "sampled subsets"
    yield f"plan: mode {recipe.mode}, {recipe.loss} loss, {players} groups ({how}), {recipe.estimation.folds} folds"


def inputs(recipe: Recipe) -> list[Path]:
    """The user's own files and folders that a run reads."""
    data = recipe.data
    merged = ["", "merged"] if data.kind == "merge" else [""]
    return [
        *(Path(data.path) / part for part in merged if data.path),
        *([Path(data.target_path)] if data.target_path else []),
        *(Path(given) / part for given in data.students.values() for part in ("", "model")),
    ]


def _check_explainer(recipe: Recipe) -> str:
    from explain.errors import ExplainError

    try:
        made = _explainer(recipe, [model.columns or ["(model)"] for model in recipe.models])
        if hasattr(made, "check"):
            made.check()
    except ExplainError as error:
        raise RecipeError(f"estimation: {error}") from error
    return f"estimation: {recipe.estimation.learners} learners"


def run(recipe: Recipe, folder: RunFolder) -> None:
    """Read, train, explain, report."""
    from explain.errors import ExplainError
    from explain.outcomes import read_classes
    from recipes.explain.report import finish, finish_curve

    tables = [table for table in load_domains(recipe.data, folder.say) if table is not None]
    for table in tables:
        need_columns(table, recipe.columns, "the recipe names columns")
    try:
        if any(model.fitted for model in recipe.models):
            read_classes((tables[0], tables[-1]), recipe.label, recipe.loss)  # before models are trained on them
        tables, losses, trained_on = _predict(recipe, tables, folder)
        folder.say(f"explaining {' and '.join(f'{len(table):,}' for table in tables)} rows")
        counts = dict(zip(("source_rows", "target_rows"), map(len, tables), strict=False))
        extra = {**counts, "training_rows": trained_on}
        if recipe.mode == "curve" or recipe.by:
            finish_curve(folder, _curve(recipe, tables, losses), extra)
        else:
            finish(folder, _explain(recipe, tables, losses), extra)
    except ExplainError as error:
        raise RunError(str(error)) from error


def _predict(
    recipe: Recipe, tables: list[pd.DataFrame], folder: RunFolder
) -> tuple[list[pd.DataFrame], list[list[str]], int]:
    """Rows to analyse with every model's predictions or losses in columns, their names, and how many rows trained."""
    drawn = [table.sample(frac=1.0, random_state=recipe.seed) for table in tables]
    held_out, kept = _held_out(recipe, drawn)
    limits = (recipe.data.max_source, recipe.data.max_target)
    kept = [table.iloc[: limit or None].copy() for table, limit in zip(kept, limits, strict=False)]
    names: list[list[str]] = []
    for number, model in enumerate(recipe.models):
        if not model.fitted:
            names.append(model.columns)
            continue
        with folder.phase(f"training: {model.kind}", 1) as progress:
            fitted = fit(model, held_out, recipe.features, recipe.label, recipe.seed)
            progress.advance()
        found = [predicted(fitted, table, recipe.features) for table in kept]
        names.append([f"(model {number}, class {column})" for column in range(found[0].shape[1])])
        kept = [
            table.assign(**dict(zip(names[-1], chances.T, strict=True)))
            for table, chances in zip(kept, found, strict=True)
        ]
    return kept, names, len(held_out)


def _held_out(recipe: Recipe, tables: list[pd.DataFrame]) -> tuple[pd.DataFrame, list[pd.DataFrame]]:
    """The source rows that train models, and what is left of all tables.

    Where rows come in clusters, whole clusters train, and none of their rows is analysed in either domain: a model
    knows what is like its training rows.
    """
    source = tables[0]
    share = recipe.train_share if any(model.fitted for model in recipe.models) else 0
    if not recipe.cluster or not share:
        training = round(share * len(source))
        return source.iloc[:training], [source.iloc[training:], *tables[1:]]
    names = source[recipe.cluster].drop_duplicates()
    names = names.sample(n=max(1, round(share * len(names))), random_state=recipe.seed)
    seen = [table[recipe.cluster].isin(names) for table in tables]
    return source[seen[0]], [table[~rows] for table, rows in zip(tables, seen, strict=True)]


def _options(recipe: Recipe) -> dict[str, Any]:
    """Arguments of the explainer."""
    from explain import ModelGapExplainer

    options: dict[str, Any] = recipe.estimation.arguments() | {
        "groups": recipe.groups,
        "label": recipe.label,
        "cluster": recipe.cluster or None,
        "weight": recipe.weight or None,
        "categorical": recipe.categorical,
        "ordinal": recipe.ordinal,
        "seed": recipe.seed,
        "loss": "given" if recipe.model.kind == "losses" else recipe.loss,
    }
    if recipe.mode == "models":
        known = inspect.signature(ModelGapExplainer).parameters  # one domain has no shift to share out
        return {name: value for name, value in options.items() if name in known}
    if recipe.mode == "gap-of-gaps":
        del options["outcome"]  # always "loss": the schema refuses the other
    return options | {"baseline": recipe.baseline}


def _explainer(recipe: Recipe, names: list[list[str]]) -> Any:
    """What explains, with nothing read yet; of two models in two domains the one that takes their losses."""
    from explain import GapExplainer, ModelGapExplainer

    options, columns = _options(recipe), _columns(names)
    if recipe.mode == "models":
        return ModelGapExplainer(models=(columns[0], columns[1]), **options)
    given = recipe.mode == "gap-of-gaps" or options["loss"] == "given"
    chosen = {"loss_column": columns[0]} if given else {"prediction": columns[0]}
    if recipe.mode == "gap-of-gaps":
        options["outcome"] = "loss"  # as gap_of_gaps has it
    return GapExplainer(**chosen, **(options | ({"loss": "given"} if given else {})))


def _columns(names: list[list[str]]) -> list[Any]:
    return [one[0] if len(one) == 1 else one for one in names]


def _curve(recipe: Recipe, tables: list[pd.DataFrame], names: list[list[str]]) -> GapCurve:
    from explain import gap_by_group, gap_curve

    options = _explainer(recipe, names).get_params(deep=False)
    baseline, groups = options.pop("baseline"), options.pop("groups")
    if recipe.by:
        curve = gap_by_group(tables[0], tables[1], recipe.by, baseline, groups, **options)
    else:
        parts = cut(tables[1], recipe.data)
        curve = gap_curve(tables[0], {name: parts[name] for name in parts}, baseline, groups, **options)
    return replace(curve, loss=recipe.loss) if options["loss"] == "given" else curve


def _explain(recipe: Recipe, tables: list[pd.DataFrame], names: list[list[str]]) -> GapReport:
    from explain import gap_of_gaps

    if recipe.mode == "gap-of-gaps":
        columns = _columns(names)
        report = gap_of_gaps(*tables, models=(columns[0], columns[1]), **_options(recipe))
    else:
        report = _explainer(recipe, names).fit(*tables).report_
    return replace(report, loss=recipe.loss) if report.loss == "given" else report
