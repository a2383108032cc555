"""A twin as the classifier of stock code: its heads' labels side by side, or those of the one question that is asked.

Part of a twin folder's ``modeling_twin.py``.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from transformers.modeling_outputs import ImageClassifierOutput, SequenceClassifierOutput, TokenClassifierOutput

from .attaching import register_states
from .twin_mixin import TwinMixin, _twin_class
from .twin_parts import Head, head_loss


def as_classifier(twin: TwinMixin, head: str | None = None, tokens: bool = False) -> TwinMixin:
    """A twin whose forward returns the logits of its heads, in place; ``config.id2label`` names them.

    Args:
        twin: with at least one head of the kind.
        head: the question that every input is asked; None lets the router choose the head of each, and the labels of
            all heads stand side by side, those of the heads that did not answer at minus infinity.
        tokens: whether the heads that answer every token are meant, and not those of one answer for each input.

    Raises:
        ValueError: for a head that the twin does not have.
    """
    heads = {task: cast(Head, head) for task, head in twin.heads.items()}
    known = [task for task in twin.tasks if task in heads and (heads[task].pooling == "tokens") == tokens]
    if not known or (head is not None and head not in known):
        kind = "every token" if tokens else "a whole input"
        raise ValueError(f"no head named {head!r} for {kind}; this twin has {', '.join(known) or 'no such heads'}.")
    asked = known if head is None else [head]
    names: list[str] = []
    for task in asked:
        count = heads[task].out_proj.out_features
        own = heads[task].label_names or ([task] if count == 1 else [f"LABEL_{i}" for i in range(count)])
        names += [f"{task}: {name}" if len(asked) > 1 else str(name) for name in own]
    twin.config.id2label, twin.config.label2id = dict(enumerate(names)), {n: i for i, n in enumerate(names)}
    problems = {heads[task].problem for task in asked}
    twin.config.problem_type = problems.pop() if len(problems) == 1 else None  # type: ignore[assignment]  # a plain text to us
    twin.answering = asked
    twin.__class__ = _classifier_class(type(twin), tokens)  # type: ignore[arg-type]  # a class has a hash
    return twin


@cache
def _classifier_class(twin: type[TwinMixin], tokens: bool) -> type[TwinMixin]:
    images = twin.main_input_name == "pixel_values"
    made: Any = TokenClassifierOutput if tokens else ImageClassifierOutput if images else SequenceClassifierOutput

    def forward(
        self: Any,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> object:
        if self.mixture.weights is not None:
            return super(type(self), self).forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        as_dict = kwargs.pop("return_dict", None)
        sizes = [self.heads[task].out_proj.out_features for task in self.answering]
        head = kwargs.pop("head", None) or _asked(self, sizes, labels)
        out = self.classify(input_ids, attention_mask, head, **kwargs)
        logits = out.logits.new_full((*out.logits.shape[:-1], sum(sizes)), float("-inf"))
        for index, (task, size) in enumerate(zip(self.answering, sizes, strict=True)):
            mine, start = out.task == self.tasks.index(task), sum(sizes[:index])
            logits[mine, ..., start : start + size] = out.logits[mine, ..., :size]
        loss = None if labels is None else head_loss(self.heads[self.answering[0]], logits, labels)
        answer = made(loss=loss, logits=logits, hidden_states=out.hidden_states, attentions=out.attentions)
        plain = as_dict is False or (as_dict is None and not getattr(self.config, "return_dict", True))
        return answer.to_tuple() if plain else answer

    if images:  # transformers' Trainer gives a model the inputs that its signature names, and no others
        told = inspect.signature(forward)
        own = [p for p in told.parameters.values() if p.name != "attention_mask"]
        named = [p.replace(name="pixel_values") if p.name == "input_ids" else p for p in own]
        forward.__signature__ = told.replace(parameters=named)  # type: ignore[attr-defined]  # as functools sets it
    name = f"{twin.__name__}For{'Token' if tokens else 'Image' if images else 'Sequence'}Classification"
    stock = twin.__bases__[1]
    methods = {"forward": forward, "__reduce__": lambda self: (_blank_classifier, (stock, tokens), self.__dict__)}
    # The loss here is a mean, which the Trainer of transformers divides by its accumulation steps itself.
    kind = type(name, (twin,), {**methods, "accepts_loss_kwargs": False})
    register_states(kind)
    return kind


def _blank_classifier(stock: Any, tokens: bool) -> Any:
    """An empty classifier for pickle, as the class is made at run time."""
    twin: Any = _twin_class(stock)
    made = _classifier_class(twin, tokens)
    return made.__new__(made)


def _asked(twin: TwinMixin, sizes: list[int], labels: Tensor | None) -> str | list[str] | None:
    """The head that answers: the one there is; by a training label, which belongs to one head; else the router's."""
    heads = [cast(Head, twin.heads[task]) for task in twin.answering]
    if len(heads) == 1:
        return twin.answering[0]
    if labels is None:
        if set(twin.answering) != set(twin.tasks):
            raise ValueError(
                f"the router may choose a task without such a head; name one of {', '.join(twin.answering)} as head."
            )
        return None
    if labels.dim() != 1 or labels.is_floating_point() or any(h.problem not in (None, _ONE) for h in heads):
        raise ValueError(
            f"labels of {len(heads)} heads side by side must be one class an input; name one head to train others."
        )
    ends = torch.tensor(sizes).cumsum(0)
    return [twin.answering[int(i)] for i in torch.bucketize(labels.cpu(), ends, right=True)]


_ONE = "single_label_classification"
