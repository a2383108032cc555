"""Models of timm inside transformers' wrapper: made of a raw one, and called where their own parameters differ.

Part of a twin folder's ``modeling_twin.py``.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .routed_layers import RoutedAny, RoutedLayer, replica, stored

PREFIX = "timm_model."
Experts = TypeVar("Experts")


def wrap_timm(model: nn.Module, model_args: Mapping[str, object] | None = None) -> PreTrainedModel:
    """A raw model of timm as transformers holds one, without its classifier.

    Args:
        model: made by `timm.create_model`; its parts are shared with the wrapper, itself it stays as it is.
        model_args: arguments of `timm.create_model` that it was made with, beside its name and `num_classes`: a saved
            folder makes the model anew.

    Returns:
        A TimmWrapperModel; the names of its parameters begin with `timm_model.`.

    Raises:
        ValueError: for a module that timm did not make, or another than its name and `model_args` make.
    """
    stock = importlib.import_module("transformers")
    name = type(model).__name__
    known = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    known = known if isinstance(known, Mapping) or known is None else known.to_dict()
    if not known or not known.get("architecture") or not hasattr(model, "forward_features"):
        raise ValueError(
            f"a {name} is neither a model of transformers nor one that timm.create_model made; give one of the two."
        )
    body = copy.copy(model)
    body.__dict__["_modules"], body.__dict__["_parameters"] = dict(model._modules), dict(model._parameters)
    if getattr(model, "num_classes", 0):
        head = copy.deepcopy(model)
        getattr(head, "reset_classifier", int)(0)
        kept = set(head.state_dict())
        body = head
        for key, value in (*model.named_parameters(), *model.named_buffers()):
            if key in kept:  # the classifier alone is new
                holder, _, leaf = key.rpartition(".")
                setattr(body.get_submodule(holder), leaf, value)
    config = stock.TimmWrapperConfig(
        architecture=known["architecture"],
        model_args=dict(model_args or {}) or None,
        pretrained_cfg={k: v for k, v in known.items() if isinstance(v, str | int | float | bool | list | tuple)},
    )
    try:
        with torch.device("meta"):
            made = stock.TimmWrapperModel(config)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):  # some read values while they are made
        made = stock.TimmWrapperModel(config)
    ours, theirs = ({k: v.shape for k, v in m.state_dict().items()} for m in (body, made.timm_model))
    if ours != theirs:
        odd = next(k for k in sorted(ours.keys() | theirs.keys()) if ours.get(k) != theirs.get(k))
        raise ValueError(
            f"timm.create_model({known['architecture']!r}) makes another model than this {name} ('{odd}' differs); "
            "give the arguments that it was made with as model_args of wrap_timm."
        )
    made.timm_model = body
    wrapped: PreTrainedModel = made.train(model.training)
    return wrapped


def as_stock(model: nn.Module, experts: Experts) -> tuple[PreTrainedModel, Experts]:
    """A model of transformers as it is; a raw one of timm wrapped, with the names of its experts' parameters.

    Args:
        model: of either library.
        experts: a list, or a mapping by task, of mappings by parameter.
    """
    if isinstance(model, PreTrainedModel) or not isinstance(model, nn.Module):
        return model, experts  # what is no model is refused where it is used
    wrapped = wrap_timm(model)
    names = set(wrapped.state_dict())

    def turned(expert: Mapping[str, object]) -> dict[str, object]:
        own = set(model.state_dict())
        return {PREFIX + k: v for k, v in expert.items() if k not in own or PREFIX + k in names}

    if isinstance(experts, Mapping):
        return wrapped, cast(Experts, {task: turned(expert) for task, expert in experts.items()})
    return wrapped, cast(Experts, [turned(expert) for expert in cast("Sequence[Mapping[str, object]]", experts)])


class CalledTimm(nn.Module):
    """A model of timm inside transformers' wrapper, whose features are computed by calling it.

    The wrapper calls its method `forward_features`; positions and class tokens, which the model holds itself, differ
    per input only where a module is called.
    """

    def forward(self, *args: object, **kwargs: object) -> object:
        """The features."""
        return super().forward_features(*args, **kwargs)  # type: ignore[misc]

    def forward_features(self, *args: object, **kwargs: object) -> object:
        """The same."""
        return self(*args, **kwargs)

    def forward_intermediates(self, *args: object, **kwargs: object) -> object:
        """The maps of every stage, under the shared expert only.

        Raises:
            ValueError: under a mixture of parameters that the model holds itself.
        """
        if isinstance(self, RoutedLayer) and self.mixture.weights is not None:
            raise ValueError(
                f"hidden states of a routed {type(self).__bases__[1].__name__} cannot be had, since its positions "
                "differ per input; leave output_hidden_states out."
            )
        return super().forward_intermediates(*args, **kwargs)  # type: ignore[misc]

    def __reduce__(self) -> tuple[object, ...]:  # the class is made at run time, so pickle must be told how
        return _blank_called, (type(self).__bases__[1],), self.__dict__


@cache
def _called_class(stock: type[nn.Module]) -> type[nn.Module]:
    return type(stock.__name__, (CalledTimm, stock), {"__module__": stock.__module__})


def _blank_called(stock: type[nn.Module]) -> nn.Module:
    made = _called_class(stock)  # type: ignore[arg-type]  # a class has a hash
    return made.__new__(made)


def call_timm(model: nn.Module, called: bool = True) -> None:
    """Have the wrapper of a model of timm call it, or (`called` false) not any more; any other model stays."""
    inner = getattr(model, "timm_model", None)
    if not isinstance(inner, nn.Module) or not hasattr(inner, "forward_features"):
        return
    if called and not isinstance(inner, CalledTimm):
        inner.__class__ = _called_class(type(inner))  # type: ignore[arg-type]
    elif not called and isinstance(inner, CalledTimm):
        inner.__class__ = type(inner).__bases__[1]


class RoutedPositions(RoutedAny):
    """A module that lays its own parameters, of first dimension 1, over its batch: positions and class tokens.

    Each input gets its own, in one forward for all; parameters of another shape are merged row by row.
    """

    def routed(self, *args: object, **kwargs: object) -> object:
        """Any call on one tensor whose first dimension are the inputs."""
        rows = self.mixture.row()
        names = [name.replace("/", ".") for part in (self.experts_dense, self.experts_ups) for name in part]
        laid = all(
            "." not in name and stored(self, name).dim() > 1 and stored(self, name).shape[0] == 1 for name in names
        )
        if rows.shape[0] == 1 or not laid or kwargs or len(args) != 1:
            return super().routed(*args, **kwargs)
        share = self.mixture.share(cast(Tensor, args[0]).shape[0])
        merged = {}
        for name, difference in self.all_differences(rows).items():
            stock = stored(self, name)
            each = stock + difference.reshape(rows.shape[0], *stock.shape[1:])
            merged[name] = each.repeat_interleave(share, 0) if share > 1 else each
        return replica(self, merged, cast("type[nn.Module]", type(self).__bases__[1])).forward(*args)
