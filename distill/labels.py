"""Classes by name: a network that knows the same classes in another order is read in the order of the data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from distill.errors import DistillError

if TYPE_CHECKING:
    from distill.networks import TextNetwork

_PLACEHOLDER = re.compile(r"LABEL_\d+")


def given_names(id2label: Mapping[int, object] | Mapping[str, object] | None) -> list[str] | None:
    """Class names in the order of a network's outputs.

    Args:
        id2label: Of a transformers configuration, whose keys are numbers or their digits.

    Returns:
        The names, or None where there are none or only transformers' own LABEL_0, LABEL_1 and so on.

    Example:
        >>> given_names({"1": "food", "0": "sport"})
        ['sport', 'food']
    """
    names = [str(name) for _, name in sorted((id2label or {}).items(), key=lambda pair: int(pair[0]))]
    return None if not names or all(_PLACEHOLDER.fullmatch(name) for name in names) else names


def class_order(found: Sequence[str] | None, wanted: Sequence[str], who: str) -> list[int] | None:
    """Which output of a network is which class of the data.

    Args:
        found: Names in the order of the network's outputs; None where it names none.
        wanted: Names in the order of the data's labels. Plain numbers 0, 1, 2 name nothing: they are the outputs' own.
        who: Of whom the sentence of an error speaks.

    Returns:
        For every class of the data the position among the network's outputs; None where nothing has to move.

    Raises:
        DistillError: If the two name different classes.

    Example:
        >>> class_order(["sport", "Food"], ["food", "sport"], "the teacher")
        [1, 0]
    """
    if found is None or list(found) == list(wanted) or list(wanted) == [str(i) for i in range(len(wanted))]:
        return None
    for same in (str, lambda name: name.strip().casefold()):
        places = {same(name): place for place, name in enumerate(found)}
        asked = [same(name) for name in wanted]
        if len(places) == len(found) and set(places) == set(asked) and len(set(asked)) == len(asked) == len(found):
            return [places[name] for name in asked]
    raise DistillError(
        f"{who} knows the classes {', '.join(found)}, but the data has {', '.join(wanted)}; give one that was trained "
        "on these classes, or bring its id2label to their names"
    )


def follow(network: TextNetwork, labels: Sequence[str], who: str, *, learns: bool) -> None:
    """Read a text network's outputs in the order of the data's labels.

    Args:
        network: A `distill.networks.TextNetwork`; changed in place.
        labels: Names of the data's classes.
        who: Of whom an error speaks.
        learns: Whether it is trained on these labels: names that it has not, or has otherwise, are then replaced.

    Raises:
        DistillError: If it does not learn, and names other classes.
    """
    config = getattr(network.model, "config", None)
    other = config is None or getattr(config, "num_labels", len(labels)) != len(labels)
    if other and (learns or config is None):  # other numbers of classes are refused where logits are compared
        return
    found = given_names(getattr(config, "id2label", None))
    try:
        order = class_order(found, labels, who)
    except DistillError:
        if not learns:
            raise
        order, found = None, None
    network.read_in(order)
    if found is None and learns and config is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {name: i for i, name in enumerate(labels)}
