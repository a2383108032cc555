"""Merge experts: a static shared expert in the base's place, exclusive experts attached over it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import UnionType
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from gapbridge.arguments import Finite, check_arguments
from twinmerge.attaching import statistics
from twinmerge.exclusive import Exclusive, LoraTerms, RankPolicy, exclusive_experts, exclusive_lora, rank_policy
from twinmerge.layouts import trace
from twinmerge.methods import find, options_for
from twinmerge.modeling_twin import attach
from twinmerge.proving import probe_of
from twinmerge.timm_models import as_stock
from twinmerge.twin_mixin import TwinMixin

State = Mapping[str, Tensor]
Method = str | Callable[..., dict[str, Tensor]]

Model = TypeVar("Model", bound=nn.Module)


def shared_expert(
    model: nn.Module, experts: Mapping[str, State], method: Method, **options: object
) -> dict[str, Tensor]:
    """Parameters of the shared expert by a static method.

    Args:
        model: the pretrained base; left as it is.
        experts: task -> parameters, same names and shapes as the base's, and running statistics of batch norms where
            the base has any (`state_dict()` holds both); these are averaged whatever the method.
        method: a name that `twinmerge.methods.methods` lists, or a function of one's own, called with the base's
            parameters by name, a list of the experts' and the options.
        options: the method's own, such as `scale`; what it takes one of for each expert may be by the experts' names.

    Raises:
        ValueError: for an unknown method or option, mismatched experts, NaN weights, missing statistics, or fewer than
            two experts.
    """
    check_arguments(shared_expert, {"model": model, "experts": experts, "method": method})
    _check_base(model, len(experts))
    combine = find(method)
    given = options_for(combine, options, list(experts))
    pretrained = {name: value.detach() for name, value in model.named_parameters()}
    states = [_mergeable(model, task, state) for task, state in experts.items()]
    running = statistics(model)
    parameters = [{name: value for name, value in state.items() if name not in running} for state in states]
    means = {
        name: torch.stack([s[name].to(value) for s in states]).mean(0) for name, value in running.items() if states
    }
    merged = combine(pretrained, parameters, **given)
    _check_merged(combine, merged, pretrained)
    return {**merged, **means}


def _check_base(model: nn.Module, count: int) -> None:
    """Refuse fewer than two experts, and what has experts already."""
    if count < 2:
        raise ValueError(f"merging needs at least two experts and got {count}; add a task.")
    if isinstance(model, TwinMixin):
        raise ValueError(
            f"the base is a {type(model).__name__}, which has experts already, as merging makes a twin of it in place; "
            "load the base anew."
        )


def _check_merged(method: Callable[..., object], merged: object, pretrained: State) -> None:
    """Refuse what a method returns and a model cannot have."""
    name = getattr(method, "__name__", type(method).__name__)
    if not isinstance(merged, Mapping) or not all(isinstance(value, Tensor) for value in merged.values()):
        raise ValueError(
            f"the merge method {name} gives a {type(merged).__name__}; it must give tensors by the base's names."
        )
    for key, base in pretrained.items():
        if key not in merged:
            raise ValueError(f"the merge method {name} gives no '{key}'; it must give every parameter of the base.")
        if merged[key].shape != base.shape:
            raise ValueError(
                f"the merge method {name} gives '{key}' in shape {tuple(merged[key].shape)}; it must be "
                f"{tuple(base.shape)}, as in the base."
            )
        if not bool(merged[key].isfinite().all()):
            raise ValueError(
                f"the merge method {name} gives NaN or infinite values for '{key}'; give smaller options, or a wider "
                "number format."
            )


def _mergeable(model: nn.Module, task: str, state: State) -> dict[str, Tensor]:
    """An expert without the buffers that it has in common with the base.

    Raises:
        ValueError: for a buffer that the expert changed and that cannot be merged, or missing statistics.
    """
    buffers, running, kept = dict(model.named_buffers()), statistics(model), {}
    aliases = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    aliases -= {name for name, _ in model.named_parameters()}
    for name, value in state.items():
        if name in running or (name not in buffers and name not in aliases):
            kept[name] = value
        elif name in buffers and not name.endswith("num_batches_tracked") and not torch.equal(value, buffers[name]):
            raise ValueError(
                f"expert '{task}' changed '{name}', which is no parameter and cannot be merged; undo that."
            )
    if missing := sorted(running.keys() - kept.keys()):
        raise ValueError(
            f"expert '{task}' lacks '{missing[0]}', and a batch norm without its statistics is another model; give its "
            "state_dict() instead of its parameters."
        )
    return kept


def set_parameters(model: Model, state: State) -> Model:
    """Copy parameters into a model, in place; tied ones follow."""
    names = {name for name, _ in model.named_parameters()} | statistics(model).keys()
    if odd := sorted(names ^ state.keys()):
        place = "the state lacks" if odd[0] in names else "has no place for"
        raise ValueError(f"{type(model).__name__}: {place} '{odd[0]}'; give all parameters of this model.")
    model.load_state_dict(dict(state), strict=False)
    return model


def merge(
    model: PreTrainedModel | nn.Module,
    experts: Mapping[str, State],
    method: Method = "task_arithmetic",
    *,
    rank: RankPolicy,
    dense: str | None = None,
    **options: object,
) -> tuple[TwinMixin, Exclusive]:
    """Twin-Merging of full fine-tunes, without its router.

    Args:
        model: the pretrained base, of transformers or made by `timm.create_model`; becomes the twin, in place (a raw
            model of timm is wrapped, see `wrap_timm`).
        experts: task -> parameters, and running statistics of batch norms.
        method: of the shared expert.
        rank: the rank of every exclusive expert, such as 8; or exactly one rank policy of `exclusive_experts`, such as
            {"density": 0.1}, and its `tolerance` and `seed`.
        dense: which vectors the exclusive experts keep: `all`, `norms` (with their biases), `biases` (of other layers)
            or `none`, which leaves them to the shared expert, with the positions that all inputs share, and makes
            expert folders that PEFT can mix in one batch and vLLM can serve. None: `none` for causal language models,
            `all` for others.
        options: of the method.

    Returns:
        The twin, with `router` None, and its exclusive experts with their certificates.

    Raises:
        ValueError: as `shared_expert`, and for a rank policy or `dense` that is none.
    """
    policy = rank_policy(rank)
    model, experts = as_stock(model, experts)
    shared = shared_expert(model, experts, method, **options)
    transposed, kernels = _weights_of(model, Conv1D), _weights_of(model, nn.Conv1d | nn.ConvTranspose1d)
    states = {task: _mergeable(model, task, state) for task, state in experts.items()}
    dropped = _dropped(model, dense)
    exclusive = exclusive_experts(shared, states, transposed=transposed, kernels=kernels, dropped=dropped, **policy)
    set_parameters(model, shared)
    twin = attach(model, list(experts), [exclusive.experts[t] for t in experts])
    twin.left_out = exclusive.left_out
    return twin, exclusive


def _dropped(model: PreTrainedModel, dense: str | None) -> frozenset[str]:
    """Vectors that the exclusive experts do not keep."""
    if dense is None:
        dense = "none" if type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() else "all"
    if dense not in ("all", "norms", "biases", "none"):
        raise ValueError(f"dense '{dense}' is unknown; choose all, norms, biases or none.")
    vectors = {name for name, p in model.named_parameters() if p.dim() < 2}
    biases = {name for name in vectors if name.endswith("bias") and not _is_norm(model, name)}
    kept = {"all": vectors, "norms": vectors - biases, "biases": biases, "none": set()}[dense]
    return frozenset(vectors - kept) | (_of_all_inputs(model) if dense == "none" else frozenset())


def _of_all_inputs(model: PreTrainedModel) -> frozenset[str]:
    """Weights of layers that are used once for all inputs of a batch, such as an encoder's positions.

    PEFT deals the rows that a layer takes out to the adapters of a mixed batch, and these have no row for every input.
    """
    kinds = (nn.Embedding, nn.Linear, Conv1D)
    named = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    probe = probe_of(model)
    found = {} if probe is None else trace(model, probe.run, probe.inputs, named)
    alone = {n for n, at in found.items() if not isinstance(at, str) and set(at.inputs.values()) == {None}}
    return frozenset(f"{name}.weight" for name in alone)


def _is_norm(model: nn.Module, name: str) -> bool:
    weight = getattr(model.get_submodule(name.rpartition(".")[0]), "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 1


def merge_lora(
    model: PreTrainedModel, experts: Mapping[str, LoraTerms], scale: Finite, rank: int, *, dense: str | None = None
) -> tuple[TwinMixin, Exclusive]:
    """Twin-Merging of LoRA fine-tunes in the exact product form, shared expert by task arithmetic.

    Args:
        model: the pretrained base; becomes the twin, in place.
        experts: task -> parameter name -> (scale, B, A), of the weight as the layer multiplies it.
        scale: coefficient of the sum of all adapters; 1 / len(experts) is the average.
        rank: kept per exclusive expert.
        dense: as of `merge`; adapters change no vectors, so that only `none` differs: it leaves adapters of layers that
            all inputs share to the shared expert.

    Returns:
        The twin, with `router` None, and its exclusive experts with their certificates.

    Raises:
        ValueError: for fewer than two experts, a scale that is not finite, a rank below 1, or an adapter of a parameter
            that the model does not have, or of only one use of a tied one.
    """
    check_arguments(merge_lora, {"scale": scale, "rank": rank})
    _check_base(model, len(experts))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in {name for terms in experts.values() for name in terms}:
        if name not in parameters:
            raise ValueError(f"an adapter changes '{name}', which {type(model).__name__} does not have.")
        if uses := [n for n, p in parameters.items() if p is parameters[name] and n != name]:
            raise ValueError(
                f"an adapter changes '{name}' but not '{uses[0]}', which is tied to it; untie the base or drop it."
            )
    dropped = _dropped(model, dense)
    exclusive = exclusive_lora(experts, scale, rank)
    if any(name in dropped for terms in experts.values() for name in terms):
        _leave_out(exclusive, dropped)
    transposed = _weights_of(model, Conv1D)
    for terms in experts.values():
        for name, (factor, B, A) in terms.items():
            delta = (scale * factor) * (B.double() @ A.double())
            weight = parameters[name]
            weight.data += (delta.t() if name in transposed else delta).reshape(weight.shape).to(weight.dtype)
    twin = attach(model, list(experts), [exclusive.experts[t] for t in experts])
    twin.left_out = exclusive.left_out
    return twin, exclusive


def _leave_out(exclusive: Exclusive, dropped: frozenset[str]) -> None:
    """Leave factors to the shared expert, and note the share of each expert's squared difference that they were."""
    for task, kept in exclusive.experts.items():
        residuals = exclusive.residuals[task]
        squares = {
            name: float(torch.trace((up.t() @ up).double() @ (down @ down.t()).double()))
            / max(1 - residuals[name] ** 2, 1e-12)
            for name, (up, down) in ((name, cast("tuple[Tensor, Tensor]", kept[name])) for name in kept)
        }
        total, left = sum(squares.values()), sum(squares[name] for name in squares.keys() & dropped)
        exclusive.left_out[task] = left / total if total else 0.0
        for name in squares.keys() & dropped:
            for known in (kept, exclusive.ranks[task], residuals):
                known.pop(name, None)


def _weights_of(model: nn.Module, kind: type[nn.Module] | UnionType) -> frozenset[str]:
    return frozenset(f"{name}.weight" for name, module in model.named_modules() if isinstance(module, kind))
