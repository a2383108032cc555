"""One network with a head for every task of a merge: the twin as a teacher, and the dense student that it teaches."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

import twinmerge
from distill.errors import DistillError
from distill.networks import TextNetwork
from recipes.data.models import resolve_model
from recipes.distill.networks import unloadable
from recipes.distill.shorter import KEYS, kept_layers, shorter
from twinmerge.artefact import save
from twinmerge.errors import CheckpointError
from twinmerge.heads import random_inputs
from twinmerge.states import states_of
from twinmerge.towers import load_body
from twinmerge.twin_parts import Head, pool

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from distill.batches import Batch
    from recipes.distill.schema import Network
    from twinmerge.twin_mixin import TwinMixin
    from twinmerge.twin_parts import TwinOutput

__all__ = ["ManyHeads", "save_student", "student", "teacher"]


class ManyHeads(TextNetwork):
    """A twin, or one dense model with several heads, behind the common call.

    Logits are (rows, most classes of a task), minus infinity beyond those of a row's own task, which losses read as
    classes that are masked.

    Args:
        model: With the heads.
        tasks: Their names; a batch says by `task`, whole numbers (rows,), whose head answers each row.
    """

    def __init__(self, model: TwinMixin, tasks: Sequence[str]) -> None:
        super().__init__(model)
        self.tasks = tuple(tasks)
        self.classes = max(cast("Head", head).out_proj.out_features for head in model.heads.values())
        self.told = dict(vars(model.config))
        model.config.num_labels = self.classes  # unnamed: a class is another in every task

    def asked(self, inputs: dict[str, Tensor], tasks: Sequence[str]) -> Tensor:
        """Logits (rows, most classes of a task) of inputs, each by the head of the task that is named for its row."""
        return self._asked(inputs, tasks, hidden=False).logits

    def _answer(self, batch: Batch, **options: object) -> object:
        names = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")
        inputs = {name: batch[name] for name in names if name in batch}
        inputs |= {"pixel_values": batch["images"]} if "images" in batch else {}
        rows = len(next(iter(inputs.values())))
        numbers = batch.get("task", torch.zeros(rows)).long().tolist()
        return self._asked(inputs, [self.tasks[i] for i in numbers], hidden=bool(options.get("output_hidden_states")))

    def _asked(self, inputs: dict[str, Tensor], tasks: Sequence[str], *, hidden: bool) -> TwinOutput:
        twin = cast("TwinMixin", self.model)
        weights = twin.route(**inputs)  # apart, as hidden states are asked of the answer alone
        if hidden:
            return twin.classify(**inputs, head=tasks, router_weights=weights, output_hidden_states=True)
        return twin.classify(**inputs, head=tasks, router_weights=weights)


def teacher(where: Path, labels: Mapping[str, Sequence[str]]) -> ManyHeads:
    """The routed twin of a folder.

    Args:
        where: A twin folder.
        labels: Names of the classes by task, in the order of the data's labels.

    Raises:
        DistillError: When it is damaged, or has other heads than these tasks need.
    """
    try:
        twin = twinmerge.load(where, dtype=torch.float32)
    except CheckpointError as error:
        raise DistillError(f"the twin {where} cannot teach: {error}") from error
    for task, names in labels.items():
        known = cast("Head", twin.heads[task]).label_names if task in twin.heads else None
        if known is None or list(known) != list(names):
            told = "no such head" if task not in twin.heads else f"the classes {', '.join(known or ['without names'])}"
            raise DistillError(
                f"task {task!r} has the classes {', '.join(names)}, and the twin {where} has {told}; give the twin of "
                "this merge"
            )
    return ManyHeads(twin, list(labels))


def student(config: Network, taught_by: ManyHeads, twin: Path) -> ManyHeads:
    """One dense model with a head for every task.

    Its body is the model that is named, or the shared expert of the twin, with all of its layers or some of them. A
    head starts as the twin's own where it reads as many features, and anew where it reads others.

    Args:
        config: Its model and options.
        taught_by: The twin.
        twin: The folder of the twin.

    Raises:
        DistillError: When it cannot be made.
    """
    options = {key: value for key, value in config.options.items() if key not in KEYS}
    try:
        if config.model:
            body = load_body(resolve_model(config.model), **options)
        else:
            body = twinmerge.load(twin, "shared", check=False, dtype=torch.float32, **options)
    except (CheckpointError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise unloadable(config, twin, error) from error
    kept = kept_layers(getattr(body.config, "num_hidden_layers", None), config.options)
    body = body if kept is None else shorter(body, kept)
    inputs = random_inputs(body)
    with torch.no_grad():
        states = states_of(body, body(**inputs))
    heads = {}
    for task in taught_by.tasks:
        head = cast("Head", cast("TwinMixin", taught_by.model).heads[task])
        width = pool(head.pooling, states, inputs.get("attention_mask")).shape[-1]
        heads[task] = _head(head, int(width))
    vars(body.config).pop("auto_map", None)  # of the twin's folder, whose code it does not run
    made = twinmerge.attach(body, list(taught_by.tasks), [{} for _ in taught_by.tasks])
    made.heads.update(heads)
    return ManyHeads(made, taught_by.tasks)


def _head(given: Head, width: int) -> Head:
    """A copy of a head where it reads as many features; a new one of its form otherwise."""
    reads = given.out_proj.in_features if given.dense is None else given.dense.in_features
    if reads == width:
        return copy.deepcopy(given).float().requires_grad_(True)
    made = Head(
        width,
        given.out_proj.out_features,
        given.pooling,
        given.layer_norm,
        given.dense is not None,
        given.activation,
        None if given.norm is None else given.norm.eps,
        given.dense.out_features if given.dense is not None and given.unit else 0,
        given.unit,
    )
    made.label_names, made.problem = given.label_names, given.problem
    return made


def save_student(made: ManyHeads, folder: Path, twin: Path, card: Mapping[str, object]) -> Path:
    """Write a student as a folder that transformers reads, its heads beside it, in the form of a twin without experts.

    Args:
        made: The student; moved to the CPU.
        folder: Its folder; what stands there is replaced.
        twin: The folder of its teacher, whose tokenizer or image processor is copied.
        card: Facts for its description.
    """
    model = cast("PreTrainedModel", made.model.to("cpu").eval())
    vars(model.config).clear()
    vars(model.config).update(made.told)  # without the number of classes, which a body has not
    return save(model, folder, tokenizer=twin, card=card, overwrite=True)
