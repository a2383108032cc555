"""Running statistics of batch norms taken anew from a few images, as a static merge of trained ones needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from twinmerge.routed_layers import with_statistics
from twinmerge.twin_checks import TwinChecks

Model = TypeVar("Model", bound=nn.Module)


def recalibrate(model: Model, batches: Iterable[Mapping[str, Tensor]]) -> Model:
    """Replace the running means and variances of a model's batch norms by those of some unlabelled batches, in place.

    Those of timm's EvoNorms, which keep variances alone, are replaced likewise. The activations of a merged network lie
    elsewhere than those of any of its sources, so that the average of their statistics is nobody's (Jordan et al. 2023,
    "REPAIR", arXiv 2211.08403). Leave it out for fine-tunes that were made with frozen statistics: they and their
    merges rely on those of the base.

    Args:
        model: a stock model, such as one with `shared_expert` in it; its mode is kept.
        batches: inputs of its forward; every batch counts alike.

    Returns:
        The same model; unchanged where it has no batch norm, and in those that no forward reaches.

    Raises:
        ValueError: for a twin, whose statistics are mixed input by input, a module with statistics of another kind,
            without any batch, or for one of so few values that they have no variance; the model is then as it was.
    """
    if isinstance(model, TwinChecks):
        raise ValueError("a twin mixes its experts' statistics input by input; recalibrate the stock model before.")
    norms = _norms(model)
    given = list(batches)
    if not given:
        raise ValueError("no batch is given to take the statistics from; give a few batches of unlabelled images.")
    modes, momenta = {m: m.training for m in model.modules()}, [vars(norm)["momentum"] for norm in norms]
    calls = dict.fromkeys(norms, 0)

    def count(norm: Any, _: object) -> None:
        calls[norm] += 1
        norm.momentum = 1 / calls[norm]  # the mean over all batches

    hooks = [norm.register_forward_pre_hook(count) for norm in norms]
    before = [{name: value.clone() for name, value in norm.named_buffers(recurse=False)} for norm in norms]
    model.eval()
    done = False
    try:
        for norm in norms:
            norm.train()
        with torch.no_grad():
            for batch in given if norms else []:
                model(**batch)
        done = True
    except (ValueError, ZeroDivisionError) as error:
        if isinstance(error, ValueError) and "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            "a batch of one image leaves a batch norm one value for each channel, which has no variance; give batches "
            "of at least two images, or larger ones."
        ) from error
    finally:
        for norm, momentum, old, hook in zip(norms, momenta, before, hooks, strict=True):
            hook.remove()
            vars(norm)["momentum"] = momentum
            if not done or not calls[norm]:  # no forward has reached it
                norm.load_state_dict({**norm.state_dict(), **old})
        for module, mode in modes.items():
            module.training = mode
    return model


def _norms(model: nn.Module) -> list[nn.Module]:
    """The modules whose statistics are taken anew: batch norms, and timm's EvoNorms, which keep variances alone.

    Raises:
        ValueError: for a module with statistics whose rule is not known.
    """
    from timm.layers import EvoNorm2dB0, EvoNorm2dB1, EvoNorm2dB2

    norms, known = with_statistics(model), (nn.modules.batchnorm._BatchNorm, EvoNorm2dB0, EvoNorm2dB1, EvoNorm2dB2)
    if odd := [(name, m) for name, m in model.named_modules() if m in norms and not isinstance(m, known)]:
        name, module = odd[0]
        raise ValueError(
            f"'{name}', a {type(module).__name__}, keeps running statistics in a way of its own, which cannot be taken "
            "anew; merge fine-tunes whose statistics were frozen."
        )
    return norms
