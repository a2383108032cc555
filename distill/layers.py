"""What any module inside a network gives, by its name: for hints between networks of any library."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from distill.errors import DistillError

_ASK = "layer:"  # how a term asks a network for a module's output


def asked(names: Iterable[str]) -> frozenset[str]:
    """What a term needs that compares the outputs of modules."""
    return frozenset(_ASK + name for name in names)


def plain(needs: frozenset[str]) -> frozenset[str]:
    """What is needed besides outputs of modules."""
    return frozenset(need for need in needs if need != "layers" and not need.startswith(_ASK))


@contextmanager
def captured(model: nn.Module, needs: frozenset[str]) -> Iterator[dict[str, Tensor]]:
    """Catch the outputs of modules while a model runs.

    Args:
        model: Any module.
        needs: Of `asked`; names that this model does not have are another's.

    Yields:
        Outputs by name, filled while the model runs; of a module that runs several times the last.
    """
    wanted = {need.removeprefix(_ASK) for need in needs if need.startswith(_ASK)}
    found: dict[str, Tensor] = {}

    def keep(name: str, layer: nn.Module, inputs: object, output: object) -> None:
        found[name] = tensor_of(name, output)

    modules = dict(model.named_modules()) if wanted else {}
    hooks = [modules[name].register_forward_hook(partial(keep, name)) for name in wanted if name in modules]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def tensor_of(name: str, output: object) -> Tensor:
    """The tensor among what a module gives: itself, the first of a tuple, or the first of a mapping.

    Raises:
        DistillError: If there is none of shape (batch, width), (batch, places, width) or (batch, channels, y, x).
    """
    found = output
    while not isinstance(found, Tensor):
        if isinstance(found, Mapping) and found:
            found = next(iter(found.values()))
        elif isinstance(found, tuple | list) and found:
            found = found[0]
        else:
            break
    if not isinstance(found, Tensor) or not 2 <= found.ndim <= 4:
        shape = f" of shape {tuple(found.shape)}" if isinstance(found, Tensor) else ""
        raise DistillError(
            f"the module {name!r} gives a {type(output).__name__}{shape}, but a hint compares tensors of 2 to 4 "
            "dimensions; name another module"
        )
    return found


def width_of(name: str, model: nn.Module, run: Callable[[], object]) -> int:
    """Channels of what a module gives, found by one run without gradients that changes nothing.

    Args:
        name: As `model.named_modules()` has it.
        model: The model.
        run: Runs it on any input.

    Raises:
        DistillError: If there is no such module, or it does not run or gives no tensor.
    """
    names = [known for known, _ in model.named_modules() if known]
    if name not in names:
        close = difflib.get_close_matches(name, names, n=3) or names[-3:]
        raise DistillError(
            f"{type(model).__name__} has no module {name!r}; close are {', '.join(close)} (named_modules() lists all)"
        )
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), captured(model, asked([name])) as found:
            run()
    finally:
        for module, mode in modes:
            module.training = mode
    if name not in found:
        raise DistillError(f"the module {name!r} did not run in {type(model).__name__}; name one that does")
    return int(found[name].shape[1 if found[name].ndim == 4 else -1])
