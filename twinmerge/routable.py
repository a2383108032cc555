"""Try the routing of an architecture before anything is trained: a small copy, random experts, a tiny batch."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch.utils._pytree import tree_leaves
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from twinmerge.attaching import statistics
from twinmerge.dense import check_routing
from twinmerge.layouts import probe_inputs
from twinmerge.towers import PAIRS, encoder_class
from twinmerge.twin_mixin import attach

_DEPTHS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers")


def small_config(config: PretrainedConfig) -> PretrainedConfig:
    """A copy of a configuration with at most two layers, as routing is a matter of kinds of layers and not of depth.

    One of stages, each with a width and a depth of its own, keeps them all: what comes after them fits the last.
    """
    small = copy.deepcopy(config)
    staged = isinstance(getattr(small, "depths", None), list | tuple)
    for name in () if staged else _DEPTHS:
        depth = getattr(small, name, None)
        if isinstance(depth, int) and depth > 2:
            try:
                setattr(small, name, 2)
            except NotImplementedError:  # Funnel counts its layers by blocks
                return copy.deepcopy(config)
    kinds = getattr(small, "layer_types", None)
    if isinstance(kinds, list):
        small.layer_types = kinds[:2]
    return small


def check_routable(config: PretrainedConfig, frozen: tuple[str, ...] = ()) -> tuple[str, float]:
    """Route a two-layer copy of a model with random weights and experts, against dense merges; no weights are read.

    Args:
        config: of the base.
        frozen: as in `preflight`.

    Returns:
        The name of the class, and the largest relative difference.

    Raises:
        ValueError: as `preflight`.
    """
    model = small_model(config)
    return type(model).__name__, preflight(model, frozen)


def small_model(config: PretrainedConfig) -> PreTrainedModel:
    """A two-layer model of a configuration with random weights, in float32; of CLIP and its kin, the tower that sees.

    Args:
        config: of the base.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = config.vision_config if config.model_type in PAIRS else config
        if (encoder := encoder_class(config)) is not None:
            return cast("PreTrainedModel", encoder(small_config(config)).float())
        made: PreTrainedModel = AutoModel.from_config(
            small_config(config), dtype=torch.float32, trust_remote_code=False
        )
    return made


def preflight(model: PreTrainedModel, frozen: tuple[str, ...] = ()) -> float:
    """Whether experts of this model can be routed, found out with random ones.

    Args:
        model: a stock model, such as one made from `small_config`; left as it is.
        frozen: parameters whose name contains one of these are not trained and so not tried.

    Returns:
        The largest relative difference between the routed forward and a dense merge per input.

    Raises:
        ValueError: when the model cannot be routed, with the reason and the way out, or when no batch could be made.
    """
    model = copy.deepcopy(model).eval().requires_grad_(True)
    inputs = probe_inputs(model, rows=3)
    if inputs is None:
        raise ValueError(
            f"no batch could be made for a {type(model).__name__}; try check_routing with one of your own."
        )
    with torch.enable_grad():  # whatever the caller is in the middle of
        first = next(t for t in tree_leaves(model(**inputs)) if isinstance(t, torch.Tensor) and t.requires_grad)
        torch.autograd.backward(first.float().square().sum())
    trained = {n: p for n, p in model.named_parameters() if p.grad is not None and not any(f in n for f in frozen)}
    generator = torch.Generator().manual_seed(0)
    experts = [
        {name: 0.05 * torch.randn(p.shape, generator=generator) for name, p in trained.items()}
        | {name: 0.1 * torch.rand(b.shape, generator=generator) for name, b in statistics(model).items()}
        for _ in range(2)
    ]
    model.requires_grad_(False)
    return check_routing(attach(model, ["a", "b"], experts).eval(), **cast("dict[str, Any]", inputs))
