"""Static merges by name: ours, and those that installed packages register; read without importing torch."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from gapbridge.arguments import check_arguments
from gapbridge.installed import entry_points

if TYPE_CHECKING:
    from torch import Tensor

GROUP = "gapbridge.merge_methods"  # entry points of installed packages: the method's name and module:function
# Called as method(pretrained, experts, **options); the keyword-only parameters are the options.
OURS = {
    "average": "twinmerge.functional.average:average",
    "task_arithmetic": "twinmerge.functional.task_arithmetic:task_arithmetic",
    "ties": "twinmerge.functional.ties:ties",
    "dare": "twinmerge.functional.dare:dare",
    "dare_ties": "twinmerge.functional.dare:dare_ties",
    "tsv_m": "twinmerge.functional.tsv_m:tsv_m",
}
# Of the same kind; a recipe compares those that it names.
FURTHER = {
    "linear": "twinmerge.functional.average:linear",
    "della": "twinmerge.functional.della:della",
    "breadcrumbs": "twinmerge.functional.breadcrumbs:breadcrumbs",
    "slerp": "twinmerge.functional.slerp:slerp",
    "multi_slerp": "twinmerge.functional.multi_slerp:multi_slerp",
    "karcher": "twinmerge.functional.karcher:karcher",
    "model_stock": "twinmerge.functional.model_stock:model_stock",
    "sce": "twinmerge.functional.sce:sce",
    "iso_c": "twinmerge.functional.isotropic:iso_c",
    "iso_cts": "twinmerge.functional.isotropic:iso_cts",
    "knots": "twinmerge.functional.knots:knots",
    "consensus": "twinmerge.functional.consensus:consensus",
    "pcb": "twinmerge.functional.pcb:pcb",
    "wudi": "twinmerge.functional.wudi:wudi",
}


class WithData(NamedTuple):
    """A static merge that takes statistics of every expert's data.

    Attributes:
        function: Where it is.
        option: The option that holds them, in the order of the experts.
    """

    function: str
    option: str


WITH_DATA = {
    "fisher": WithData("twinmerge.functional.fisher:fisher", "information"),
    "regmean": WithData("twinmerge.functional.regmean:regmean", "inputs"),
}


def methods() -> dict[str, str]:
    """Return `module:function` of every static merge by name: ours, then the entry points `gapbridge.merge_methods`.

    Raises:
        ValueError: When an installed package registers a name that is taken.
    """
    found = {**OURS, **FURTHER}
    for point in entry_points(GROUP):
        if point.name in found:
            raise ValueError(f"the merge method {point.name} is registered as {point.value} and {found[point.name]}.")
        found[point.name] = point.value
    return found


def compared() -> list[str]:
    """Names of the static merges that a recipe compares unasked: the classic ones, and those of installed packages."""
    return [name for name in methods() if name not in FURTHER]


def find(method: str | Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
    """Return a static merge by its name; a function of one's own is taken as it is.

    Raises:
        ValueError: For an unknown name.
    """
    if callable(method):
        return method
    known = {**methods(), **{name: found.function for name, found in WITH_DATA.items()}}
    if method not in known:
        raise ValueError(f"method '{method}' is unknown; choose one of {', '.join(known)}, or give a function.")
    module, _, name = known[method].partition(":")
    function: Callable[..., dict[str, Tensor]] = getattr(importlib.import_module(module), name)
    return function


def options_of(method: Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    """The options of a static merge by name: its parameters but for the base's and the experts'."""
    return dict(list(inspect.signature(method).parameters.items())[2:])


def options_for(
    method: Callable[..., object], options: Mapping[str, object], tasks: Sequence[str]
) -> dict[str, object]:
    """The options of a static merge as its arguments: what is given by the experts' names is brought into their order.

    Args:
        method: The function.
        options: By name.
        tasks: Names of the experts in order.

    Raises:
        ValueError: For names that are not those of all experts, and as `check_options`.

    >>> options_for(find("linear"), {"weights": {"code": 0.2, "math": 0.8}}, ["math", "code"])
    {'weights': [0.8, 0.2]}
    """
    given = {name: _ordered(name, value, tasks) for name, value in options.items()}
    check_options(method, given)
    return given


def _ordered(name: str, value: object, tasks: Sequence[str]) -> object:
    """A value for each expert, in order, where it is given by their names."""
    if not isinstance(value, Mapping) or not value.keys() & set(tasks):
        return value
    if odd := sorted(map(str, value.keys() ^ set(tasks))):
        raise ValueError(
            f"option '{name}' is given by expert, but '{odd[0]}' is missing or no expert's name; give one value for "
            f"each of {', '.join(tasks)}."
        )
    return [value[task] for task in tasks]


def check_options(method: Callable[..., object], options: Mapping[str, object]) -> None:
    """Refuse options that a static merge does not have or that its annotations do not accept.

    Args:
        method: The function.
        options: By name.

    Raises:
        ValueError: For the first, in one sentence.

    >>> check_options(find("ties"), {"dropp": 0.5})
    Traceback (most recent call last):
    ValueError: the merge method ties has no option 'dropp'; its options are scale, density, weights, trim, normalize.
    """
    name, known = getattr(method, "__name__", type(method).__name__), options_of(method)
    open_ended = any(option.kind is option.VAR_KEYWORD for option in known.values())
    for key in options:
        if key not in known and not open_ended:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"its options are {', '.join(known) or 'none'}."
            raise ValueError(f"the merge method {name} has no option {key!r}; {hint}")
    try:
        inspect.signature(method).bind({}, [], **options)
    except TypeError as error:
        raise ValueError(
            f"the merge method {name} cannot be called with the base's parameters and the experts' ({error}); define "
            "it as method(pretrained, experts, *, option=...)."
        ) from error
    try:
        check_arguments(method, options)
    except (NameError, TypeError, AttributeError):  # a function of one's own whose annotations cannot be read
        return
