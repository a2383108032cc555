"""How each method of mergekit is one of ours: its name, its options, and what a user should know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

from twinmerge.big.mergekit_reader import Reader

_DRAWN = "draws masks of its own, so that single values differ from those of a run of mergekit"
_EQUAL = "keeps the first of the entries that are equal at its threshold, where mergekit keeps any of them"
Said = tuple[str, dict[str, object], list[str]]  # our method, its options with the models, and remarks


def _all_models(reader: Reader) -> list[str]:
    inside = reader.base is None or reader.base in reader.inputs
    return reader.inputs if inside else [*reader.inputs, cast(str, reader.base)]


def _linear(reader: Reader) -> Said:
    models = _all_models(reader)
    options = {"weights": reader.each("weight", models), "normalize": bool(reader.plain("normalize", True))}
    return "linear", {"models": models, **options}, []


def _shared(reader: Reader) -> dict[str, object]:
    """What the methods on task vectors have in common."""
    if reader.base is None:
        reader.problems.append("base_model is missing")
    if not reader.experts:
        reader.problems.append("there is no model beside the base")
    return {
        "models": reader.experts,
        "weights": reader.each("weight", reader.experts),
        "scale": reader.of("lambda", default=1.0),
    }


def _only(reader: Reader, name: str, default: bool, models: Sequence[str] = ()) -> None:
    """Note a switch that only has the method's own setting here."""
    if bool(reader.plain(name, default, models)) != default:
        reader.problems.append(f"'{name}: {not default}' is not supported with this method")


def _task_arithmetic(reader: Reader) -> Said:
    options = _shared(reader)
    for name in ("normalize", "rescale"):
        _only(reader, name, default=False)
    reader.used.add("density")  # mergekit takes it and has no use for it
    return "task_arithmetic", options, []


def _ties(reader: Reader) -> Said:
    options = _shared(reader)
    _only(reader, "rescale", default=False)
    density = reader.each("density", reader.experts, 1.0)
    normalize = bool(reader.plain("normalize", True))
    return "ties", {**options, "density": density, "trim": "tensor", "normalize": normalize}, [_EQUAL]


def _breadcrumbs(elect: bool) -> Callable[[Reader], Said]:
    def said(reader: Reader) -> Said:
        options = _shared(reader)
        _only(reader, "rescale", default=False)
        normalize = bool(reader.plain("normalize", False))
        if normalize and not elect:
            reader.problems.append("'normalize: true' is not supported with breadcrumbs")
        options |= {
            "density": reader.each("density", reader.experts, 1.0),
            "gamma": reader.plain("gamma", 0.01, reader.experts),
            "elect": elect,
        }
        return "breadcrumbs", options | ({"normalize": normalize} if elect else {}), [_EQUAL]

    return said


def _dare(elect: bool) -> Callable[[Reader], Said]:
    def said(reader: Reader) -> Said:
        options = _shared(reader)
        _only(reader, "rescale", default=True)
        _only(reader, "normalize", default=False)
        density = reader.plain("density", 1.0, reader.experts)
        remarks = [_DRAWN, "divides what stays by its share, where mergekit matches the sum of magnitudes"]
        if elect:
            remarks.append("averages the entries that agree, where mergekit adds them")
            return "dare_ties", {**options, "drop": 1 - density, "density": 1.0}, remarks
        return "dare", {**options, "drop": 1 - density}, remarks

    return said


def _della(elect: bool) -> Callable[[Reader], Said]:
    def said(reader: Reader) -> Said:
        options = _shared(reader)
        _only(reader, "rescale", default=True)
        _only(reader, "normalize", default=elect)
        density = reader.plain("density", 1.0, reader.experts)
        spread = 0.0 if density >= 1 else 2 * reader.plain("epsilon", 0.15, reader.experts)
        remarks = [_DRAWN, "divides each entry by its own probability to stay, as in the paper"]
        return "della", {**options, "drop": 1 - density, "spread": spread, "elect": elect}, remarks

    return said


def _slerp(reader: Reader) -> Said:
    if reader.base is None or len(reader.experts) != 1:
        reader.problems.append("slerp takes base_model and one other model")
    models = [reader.base or "", *reader.experts]
    place = reader.of("t")
    if place is None:
        reader.problems.append("parameter 't' is missing")
    return "slerp", {"models": models, "t": place}, []


def _multislerp(reader: Reader) -> Said:
    options = {
        "models": reader.experts,
        "weights": reader.each("weight", reader.experts),
        "normalize": bool(reader.plain("normalize_weights", True)),
        "around": "base" if reader.base else "origin",
    }
    reader.used.add("eps")
    return "multi_slerp", options, []


def _karcher(reader: Reader) -> Said:
    options = {"iterations": int(reader.plain("max_iter", 10)), "tolerance": reader.plain("tol", 1e-5)}
    return "karcher", {"models": _all_models(reader), **options}, []


def _model_stock(reader: Reader) -> Said:
    if reader.base is None:
        reader.problems.append("base_model is missing")
    return "model_stock", {"models": reader.experts, "rows": bool(reader.plain("filter_wise", False))}, []


def _sce(reader: Reader) -> Said:
    if reader.base is None:
        reader.problems.append("base_model is missing")
    return "sce", {"models": reader.experts, "select": reader.plain("select_topk", 1.0), "floor": 1e-6}, [_EQUAL]


METHODS: Mapping[str, Callable[[Reader], Said]] = {
    "linear": _linear,
    "task_arithmetic": _task_arithmetic,
    "ties": _ties,
    "dare_linear": _dare(elect=False),
    "dare_ties": _dare(elect=True),
    "della": _della(elect=True),
    "della_linear": _della(elect=False),
    "breadcrumbs": _breadcrumbs(elect=False),
    "breadcrumbs_ties": _breadcrumbs(elect=True),
    "slerp": _slerp,
    "multislerp": _multislerp,
    "karcher": _karcher,
    "model_stock": _model_stock,
    "sce": _sce,
}
