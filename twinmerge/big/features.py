"""Router features of a model in files: forwards over many texts, with the weights of one module in memory at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from twinmerge.big.reading import Files, Place, places_of
from twinmerge.checkpoints import align
from twinmerge.errors import CheckpointError
from twinmerge.headers import inspect_checkpoint
from twinmerge.twin_parts import Router, masked_mean
from twinmerge.unlabelled import router_from_features

RouterKind = Literal["knn", "linear", "mlp"]
_ROWS = 32  # texts of a forward, each of which reads the whole model


def texts_of(given: Mapping[str, Sequence[str] | str | Path], tasks: Sequence[str]) -> dict[str, list[str]]:
    """The texts of every task; a path is a file with one a line.

    Raises:
        ValueError: When a task has fewer than two, or there are texts of none.
        CheckpointError: When a file cannot be read.
    """
    if odd := sorted(set(given) ^ set(tasks)):
        raise ValueError(f"texts are given by task, but '{odd[0]}' has none or is no task; give some of every expert.")
    found: dict[str, list[str]] = {}
    for task in tasks:
        texts = given[task]
        if isinstance(texts, str | Path):
            try:
                lines = Path(texts).expanduser().read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise CheckpointError(f"the texts of '{task}', {texts}, cannot be read ({error}).") from error
            texts = [line for line in lines if line.strip()]
        found[task] = list(texts)
        if len(found[task]) < 2 or not all(isinstance(text, str) and text for text in found[task]):
            raise ValueError(f"'{task}' has {len(found[task])} texts; a router needs at least two, none of them empty.")
    return found


def router_of_folder(
    folder: Path, kind: RouterKind, texts: Mapping[str, list[str]], seed: int, device: str = "cpu"
) -> Router:
    """A router that reads the shared expert's features of texts, as `TwinMixin.features` gives them.

    Args:
        folder: With the shared expert and its tokenizer.
        kind: `knn` needs no training.
        texts: By task, in the order of the experts.
        seed: Of the training.
        device: Where the model's modules are run, one by one.

    Raises:
        CheckpointError: Without a tokenizer, or for a model that is not run module by module.
    """
    tokenizer = tokenizer_of(folder)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    flat = [text for task in texts for text in texts[task]]
    found = features_of(folder, flat, tokenizer, device)
    parts = torch.split(found, [len(texts[task]) for task in texts])
    return router_from_features(kind, dict(zip(texts, parts, strict=True)), seed)


def tokenizer_of(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's folder.

    Raises:
        CheckpointError: When it has none.
    """
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError("the base has no tokenizer, which a router made from texts needs; add it.") from error
    return found


def features_of(folder: Path, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, device: str = "cpu") -> Tensor:
    """Masked mean of the last hidden states of texts, shape (texts, width), float32."""
    model, order = empty_model(folder), sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found: dict[int, Tensor] = {}
    with Files() as files, streamed(model, folder, files, device), torch.no_grad():
        for start in range(0, len(order), _ROWS):
            rows = order[start : start + _ROWS]
            inputs = tokenizer([texts[i] for i in rows], return_tensors="pt", truncation=True, padding=True)
            ids, mask = inputs["input_ids"].to(device), inputs["attention_mask"].to(device)
            hidden = model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
            found.update(zip(rows, masked_mean(hidden, mask).cpu(), strict=True))
    return torch.stack([found[i] for i in range(len(texts))])


def empty_model(folder: Path) -> PreTrainedModel:
    """The body of a folder's model without weights: parameters are on the meta device, buffers have their values."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(self, name, None if param is None else nn.Parameter(param.detach().to("meta"), requires_grad=False))

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        model = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
    return cast(PreTrainedModel, model.eval())


@contextlib.contextmanager
def streamed(model: PreTrainedModel, folder: Path, files: Files, device: str) -> Iterator[None]:
    """Every module has its own weights, in float32, while it runs, and none before and after.

    Raises:
        CheckpointError: When the folder lacks weights of the model.
    """
    places = places_of(inspect_checkpoint(folder))
    names = align([name for name, _ in model.named_parameters()], places)
    if missing := [name for name, _ in model.named_parameters() if name not in names]:
        raise CheckpointError(f"{folder} lacks the tensor '{missing[0]}' of its own model; merge it again.")
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)
    hooks = []
    for prefix, module in model.named_modules():
        own = {n: places[names[f"{prefix}.{n}" if prefix else n]] for n, _ in module.named_parameters(recurse=False)}
        if own:
            hooks.append(module.register_forward_pre_hook(partial(_load, own, files, device)))
            hooks.append(module.register_forward_hook(partial(_drop, own)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _load(own: Mapping[str, Place], files: Files, device: str, module: nn.Module, _: object) -> None:
    for name, place in own.items():
        value = files.read(place, 0, module.get_parameter(name).numel()).view(place.shape).to(device, torch.float32)
        module._parameters[name] = nn.Parameter(value, requires_grad=False)


def _drop(own: Mapping[str, Place], module: nn.Module, _: object, output: Any) -> None:
    for name in own:
        module._parameters[name] = nn.Parameter(module.get_parameter(name).to("meta"), requires_grad=False)
    for value in output if isinstance(output, tuple) else (output,):
        if isinstance(value, Tensor) and value.device.type == "meta":
            raise CheckpointError(
                f"a {type(module).__name__} uses weights of other modules; train the router in memory."
            )
