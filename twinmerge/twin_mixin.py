"""The routed model: one batched forward in which every input has its own mixture of the exclusive experts.

Source of the method: Lu et al., "Twin-Merging: Dynamic Integration of Modular Expertise in Model Merging", NeurIPS
2024, arXiv 2406.15479: theta(x) = theta_shared + sum_t w_t(x) SVD_r(theta_t - theta_shared). Part of a twin folder's
``modeling_twin.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NoReturn, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .attaching import attach_experts, register_states
from .mixture import Difference, Mixture, cached_length, caches_in, remember
from .proving import body_forward, probe_of, prove, whole_forward
from .routed_layers import ADDED, RoutedLayer, RoutedLinear
from .shrinking import find_siblings
from .states import body_of, states_of, token_states
from .timm_models import as_stock, call_timm
from .twin_checks import EACH, TwinChecks, asked_for
from .twin_parts import Head, Router, TwinOutput, generated_state, masked_mean

Function = Callable[..., object]


class TwinMixin(TwinChecks):
    """Adds routing to any transformers model.

    Threads may share one twin: the mixture in flight belongs to the thread (to its context), not to the model.

    Attributes:
        tasks: names of the exclusive experts, in the order of the router's outputs.
        router: the trained `Router`, or None: then `router_weights` must be given.
        heads: one `Head` per task that has its own, under the task's name.
        mixture: the weights in use; `with twin.mixture.use(w)` holds them over any calls.
        router_reads: `last`, the paper's features from the last hidden state; `all`, of every layer (a deviation, no
            further forward); or `generated`, for causal models, see `generated_state`.
        answering: of a classifier, the heads that it answers with.
        labels: label names by head.
        left_out: task -> share of its expert's squared difference to the shared expert that was left out, see `merge`.
    """

    mixture: Mixture
    router_reads: str = "last"
    tasks: list[str]
    router: Router | None
    heads: nn.ModuleDict
    answering: list[str]
    labels: dict[str, list[str]]
    left_out: dict[str, float]
    tokenizer_of_union: PreTrainedTokenizerBase | None

    def __reduce__(self) -> tuple[object, ...]:  # the class is made at run time, so pickle must be told how
        return _blank_twin, (type(self).__bases__[1],), self.__dict__

    @property
    def unrouted(self) -> bool:
        """Whether no exclusive expert changes anything: one model with several heads, in which nothing is mixed."""
        return not any(isinstance(module, RoutedLayer) for module in self.modules())

    def route(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs: object) -> Tensor:
        """The mixture of each input, from the input alone: shape (batch, tasks), rows summing to 1.

        Of an `unrouted` twin without a router it is one row of zeros: there is nothing to mix.
        """
        if self.router is None and self.unrouted:
            return torch.zeros(1, len(self.tasks), device=self.device)
        if self.router is None:
            raise ValueError("this twin has no router; pass router_weights of shape (batch, tasks), or train a router.")
        return self.router.weights(self.features(input_ids, attention_mask, **kwargs))

    def features(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs: object
    ) -> Tensor:
        """Router features: masked mean of the shared expert's last hidden state, shape (batch, width), float32.

        Of a convolutional body that is the mean over the places of an image, channel by channel.

        Args:
            input_ids: the model's main input (`pixel_values` of an image model), also by its own name.
            attention_mask: shape (batch, tokens).
            kwargs: passed on to the model's body.
        """
        with self.mixture.use(None):
            if self.router_reads == "generated":
                return generated_state(self, type(self).__bases__[1], cast(Tensor, input_ids), attention_mask)
            if self.router_reads == "last":
                return masked_mean(self._hidden(input_ids, attention_mask, **kwargs), attention_mask)
            found = self._states(input_ids, attention_mask, output_hidden_states=True, **kwargs).hidden_states
        return torch.cat([masked_mean(token_states(state), attention_mask) for state in found], dim=-1)

    def _hidden(self, inputs: Tensor | None, attention_mask: Tensor | None, **kwargs: object) -> Tensor:
        """Last hidden state of the model's body (of the encoder, where there is one) under the mixture in use."""
        return states_of(self, self._states(inputs, attention_mask, **kwargs)).tokens

    def _states(self, inputs: Tensor | None, attention_mask: Tensor | None, **kwargs: object) -> Any:
        """What the model's body returns."""
        model = self
        if inputs is not None:
            kwargs[model.main_input_name] = inputs
        if kwargs.get(model.main_input_name) is None:
            raise ValueError(
                f"routing reads {model.main_input_name}; pass it, or router_weights of shape (batch, tasks)."
            )
        if attention_mask is not None:
            kwargs["attention_mask"] = attention_mask
        if not getattr(model.config, "return_dict", True):
            kwargs["return_dict"] = True
        decoder = "past_key_values" in self._accepted and getattr(model.config, "is_decoder", True)
        if decoder:
            kwargs.setdefault("use_cache", False)
            if (
                attention_mask is not None and "position_ids" in self._accepted
            ):  # as generate has it: left padding is free
                positions = (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 0)
                kwargs.setdefault("position_ids", positions)
        body = body_of(model)
        return (super().forward if body is self else body)(**kwargs)

    def routed_forward(self, *args: object, router_weights: Tensor | None = None, **kwargs: Any) -> Any:
        """The stock forward under this batch's mixture; inside `generate` the prompt's mixture is held.

        Raises:
            ValueError: when a cached sequence is continued without its mixture, or the weights have another shape.
        """
        if (held := self.mixture.weights) is not None:
            return remember(super().forward(*args, **kwargs), kwargs, held)
        if args:
            kwargs |= dict(zip(inspect.signature(super().forward).parameters, args, strict=False))
        if router_weights is None:
            if cached_length(kwargs):
                raise ValueError("a continued sequence keeps the mixture of its prompt; pass it as router_weights.")
            main = self.main_input_name
            router_weights = self.route(kwargs.get(main), kwargs.get("attention_mask"), **self._side(kwargs))
        weights = self._continued(self._weights(router_weights), kwargs)
        self._check_layouts(weights, kwargs, whole_forward)
        with self.mixture.use(weights):
            return remember(super().forward(**kwargs), kwargs, weights)

    def stock_forward(self, **kwargs: object) -> Any:
        """The stock forward under whatever mixture is in use, no router asked."""
        return super().forward(**kwargs)

    def generate(self, inputs: Tensor | None = None, router_weights: Tensor | None = None, **kwargs: Any) -> Any:
        """`generate` of transformers with the mixture computed once from the prompt and held while decoding.

        A second turn with the kept cache holds the mixture of the first; without the cache it starts anew. An
        `assistant_model` only drafts, so that any may; one that is a twin of the same tasks drafts under the same
        mixture.

        Raises:
            ValueError: for a kept cache whose mixture is unknown or another than `router_weights`, weights that are
                NaN or infinite, or an assistant that is a twin of other tasks.
        """
        model = self
        if router_weights is None and cached_length(kwargs):
            router_weights = next((c.twin_weights for c in caches_in(kwargs) if hasattr(c, "twin_weights")), None)
            if router_weights is None:
                raise ValueError(
                    "the kept cache does not say its mixture; pass it as router_weights, or start anew without it."
                )
        if router_weights is None:
            prompt = inputs if inputs is not None else kwargs.get(model.main_input_name)
            mask, settings = kwargs.get("attention_mask"), kwargs.get("generation_config") or model.generation_config
            pad, eos = (kwargs.get(f"{k}_token_id", getattr(settings, f"{k}_token_id")) for k in ("pad", "eos"))
            if mask is None and prompt is not None and pad is not None:  # the mask that generate infers too
                ends = eos if isinstance(eos, list) else [eos]
                mask = torch.ones_like(prompt) if pad in ends else prompt.ne(pad).long()
            with torch.no_grad():
                router_weights = self.route(prompt, mask, **self._side(kwargs))
        weights = self._continued(self._weights(router_weights), kwargs)
        if not weights.isfinite().all():  # tokens would not show it
            raise ValueError(f"router_weights hold NaN or infinite values ({weights.tolist()}); give finite numbers.")
        given = {**kwargs, **({} if inputs is None else {model.main_input_name: inputs})}
        if isinstance(given.get(model.main_input_name), Tensor):
            self._check_layouts(weights, {k: v for k, v in given.items() if isinstance(v, Tensor)}, whole_forward)
        with self.mixture.use(weights), self._drafting(kwargs.get("assistant_model"), weights):
            return super().generate(inputs, **kwargs)  # type: ignore[misc]

    def generate_batch(self, *args: object, **kwargs: object) -> NoReturn:
        """Refused: continuous batching packs the tokens of several prompts into one row, which has one mixture.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "a twin cannot generate by continuous batching, which packs several prompts into one row; use generate "
            "on a padded batch, or serve the folder's experts with a server of LoRA adapters."
        )

    init_continuous_batching = continuous_batching_context_manager = generate_batch

    def classify(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        head: str | Sequence[str] | None = None,
        router_weights: Tensor | None = None,
        **kwargs: object,
    ) -> TwinOutput:
        """Routed encoder, then a task head.

        Args:
            input_ids: shape (batch, tokens), or the model's other main input by its name.
            attention_mask: shape (batch, tokens).
            head: the question asked, one name or one per row: it picks the head and nothing else. None lets the
                router's largest weight pick the head too.
            router_weights: shape (batch, tasks), overrides the router (an oracle, or a fixed mixture).
            kwargs: passed on to the encoder.

        Raises:
            ValueError: for a head that this twin does not have, or none where there is no router to choose it.
        """
        if router_weights is None:
            if head is None and self.router is None and self.unrouted:
                known = ", ".join(self.heads) or "no heads"
                raise ValueError(f"this twin has no router to choose the head; name one as head, of {known}.")
            router_weights = self.route(input_ids, attention_mask, **kwargs)
        router_weights = self._weights(router_weights)
        named = {"attention_mask": attention_mask, self.main_input_name: input_ids, **kwargs}
        self._check_layouts(router_weights, {k: v for k, v in named.items() if v is not None}, body_forward)
        with self.mixture.use(router_weights):
            found = self._states(input_ids, attention_mask, **kwargs)
        states = states_of(self, found)
        hidden = states.tokens
        task = self._answering(head, router_weights, hidden)
        answering = [self.tasks.index(head)] if isinstance(head, str) else sorted(set(task.tolist()))
        heads = {index: cast(Head, self.heads[self.tasks[index]]) for index in answering}
        labels = max(cast(Head, h).out_proj.out_features for h in self.heads.values())
        each = {h.pooling == "tokens" for h in heads.values()} == {True}
        logits = hidden.new_full((*hidden.shape[: 1 + each], labels), float("-inf"))
        for index, one in heads.items():
            if (one.pooling == "tokens") != each:
                raise ValueError(
                    f"the head {self.tasks[index]!r} answers {'a whole input' if each else 'every token'} and others "
                    "of this batch do not; ask the two kinds in calls of their own."
                )
            mine = slice(None) if len(answering) == 1 else task == index
            part = one(states.of(mine), None if attention_mask is None else attention_mask[mine])
            logits[mine, ..., : part.shape[-1]] = part.to(logits.dtype)
        kept = (getattr(found, name, None) for name in ("hidden_states", "attentions"))
        return TwinOutput(logits, router_weights, task, *kept)

    def _answering(self, head: str | Sequence[str] | None, router_weights: Tensor, hidden: Tensor) -> Tensor:
        """The index of the task whose head answers each row."""
        rows = hidden.shape[0]
        names = self.tasks if head is None else [head] * rows if isinstance(head, str) else list(head)
        if unknown := sorted(set(names) - set(self.heads)):
            known = ", ".join(self.heads) or "no heads"
            raise ValueError(f"no head named {unknown[0]!r}; this twin has {known}.")
        if head is not None and len(names) != rows:
            raise ValueError(f"{len(names)} heads are named for {rows} inputs; name one, or one per input.")
        if head is None:
            return router_weights.argmax(-1).expand(rows)
        return torch.tensor([self.tasks.index(n) for n in names], device=hidden.device)

    def train_only(self, *parts: str) -> Self:
        """Freeze everything but the named parts, any of `router`, `shared`, `experts`, `heads`; returns the model.

        Raises:
            ValueError: for any other part.
        """
        if unknown := sorted(set(parts) - {"router", "shared", "experts", "heads"}):
            raise ValueError(f"part {unknown[0]!r} is unknown; choose among router, shared, experts, heads.")
        for name, parameter in self.named_parameters():
            first = name.split(".")[0]
            added = not ADDED.isdisjoint(name.split("."))
            part = first if first in ("router", "heads") else "experts" if added else "shared"
            parameter.requires_grad_(part in parts)
        return self

    def save_pretrained(self, *args: object, **kwargs: object) -> None:
        """Refused: the stock method would write the experts into a folder that nothing reads.

        Raises:
            ValueError: always.
        """
        raise ValueError("a twin is not saved by save_pretrained; use twinmerge.save(twin, folder).")

    def _set_gradient_checkpointing(  # type: ignore[override]
        self, enable: bool = True, gradient_checkpointing_func: Function = checkpoint, **kwargs: int
    ) -> None:
        # Layers are computed again in the backward pass, when the mixture of the forward is no longer in use.
        if getattr(gradient_checkpointing_func, "keywords", {}).get("use_reentrant"):
            raise ValueError("a twin needs gradient checkpointing with use_reentrant=False, the default.")
        held = partial(_recomputed, self.mixture, gradient_checkpointing_func)
        super()._set_gradient_checkpointing(enable, held, **kwargs)


def _recomputed(mixture: Mixture, stock: Function, function: Function, *args: object, **kwargs: object) -> object:
    weights = mixture.weights

    def again(*inner: object, **named: object) -> object:
        with mixture.use(weights):
            return function(*inner, **named)

    return stock(again, *args, **kwargs)


def attach(
    model: PreTrainedModel | nn.Module,
    tasks: Sequence[str],
    experts: Sequence[Mapping[str, Difference]],
    router: Router | None = None,
) -> TwinMixin:
    """Put routing over a stock transformers model that holds the shared expert, in place.

    Args:
        model: the stock model, of transformers or made by `timm.create_model`; its parameters stay, by name and value.
        tasks: names of the experts.
        experts: per task, parameter name -> (up (m, r), down (r, n)) of the weight as the layer multiplies it
            (out x in; embeddings: rows x width; convolutions: out x in*kernel; fused experts: with a leading
            dimension), or a difference of the parameter's shape. A tied weight goes by any of its names. Nothing of
            any task makes one dense model with several heads.
        router: None leaves the twin without one.

    Returns:
        The same object, now of class Twin<stock class>; of a raw model of timm, a TimmWrapperModel around it, see
        `wrap_timm`.

    Raises:
        ValueError: for tasks, experts and router that do not fit each other, and for a parameter that the model does
            not have, that has another shape, or that cannot differ per input.
    """
    model, experts = as_stock(model, experts)
    if isinstance(model, TwinMixin):
        raise ValueError("the model is a twin already; attach all experts at once, to the stock model.")
    if hasattr(model, "get_text_features") and hasattr(model, "get_image_features"):  # CLIP and its kin
        raise ValueError(
            f"a {type(model).__name__} compares every image of a batch with every text, and each has a mixture of its "
            "own; attach its vision_model, with a zero_shot_head for the texts."
        )
    if not tasks or len(set(tasks)) != len(tasks) or len(tasks) != len(experts):
        raise ValueError(f"{len(experts)} experts cannot be named {list(tasks)}; give one distinct name per expert.")
    if router is not None and router.tasks != len(tasks):
        raise ValueError(f"the router has {router.tasks} outputs for {len(tasks)} experts; train it on these tasks.")
    mixture, stock = Mixture(), type(model)
    call_timm(model)
    body, probe = body_of(model), probe_of(model)
    attach_experts(model, mixture, experts, probe)
    model.__class__ = _twin_class(stock)  # type: ignore[arg-type]  # a class has a hash
    twin = cast(TwinMixin, model)
    register_states(type(twin))
    twin.mixture, twin.tasks, twin.router, twin.heads = mixture, list(tasks), router, nn.ModuleDict()
    twin._accepted = frozenset(inspect.signature((stock if body is model else type(body)).forward).parameters)
    twin._checked, twin.left_out = [], {}
    if probe is not None:
        find_siblings(twin, RoutedLinear, probe.run, probe.inputs)
        prove(twin, probe.inputs)
        twin._checked.append(asked_for(probe.inputs) | {EACH})
    return twin


@cache
def _twin_class(stock: type[PreTrainedModel]) -> type[TwinMixin]:
    def forward(self: TwinMixin, *args: object, **kwargs: Any) -> object:
        return TwinMixin.routed_forward(self, *args, **kwargs)

    # transformers asks the signature of forward which arguments a model takes (generate, Trainer, left padding).
    signature = inspect.signature(stock.forward)
    parameters = list(signature.parameters.values())
    extra = inspect.Parameter("router_weights", inspect.Parameter.KEYWORD_ONLY, default=None)
    at = len(parameters) - (parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
    signature = signature.replace(parameters=[*parameters[:at], extra, *parameters[at:]])
    forward.__signature__ = signature  # type: ignore[attr-defined]
    return type(f"Twin{stock.__name__}", (TwinMixin, stock), {"forward": forward})


def _blank_twin(stock: type[PreTrainedModel]) -> TwinMixin:
    made = _twin_class(stock)  # type: ignore[arg-type]  # a class has a hash
    return made.__new__(made)
