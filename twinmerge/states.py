"""What a model's body ends in: token states and one pooled vector, whatever form images left them in.

Part of a twin folder's ``modeling_twin.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class States:
    """What heads and routers read of a body.

    Attributes:
        tokens: last hidden state, shape (batch, tokens, width); the places of an image for a convolutional body.
        pooled: what the body itself pools them to, shape (batch, its width); None where it pools nothing.
    """

    tokens: Tensor
    pooled: Tensor | None = None

    def of(self, rows: Any) -> States:
        """Those of some rows of the batch."""
        return States(self.tokens[rows], None if self.pooled is None else self.pooled[rows])


def token_states(state: Tensor, channels_last: bool = False) -> Tensor:
    """A hidden state as token states, shape (batch, tokens, width).

    Args:
        state: tokens (batch, tokens, width), a map (batch, width, height, width of the image), or one vector an input.
        channels_last: maps have their channels behind height and width.

    Raises:
        ValueError: for any other shape.

    >>> import torch
    >>> token_states(torch.zeros(2, 16, 7, 7)).shape
    torch.Size([2, 49, 16])
    """
    if state.dim() == 4:
        return state.flatten(1, 2) if channels_last else state.flatten(2).mT
    if state.dim() not in (2, 3):
        raise ValueError(
            f"the body of the model ends in a state of shape {tuple(state.shape)}, in which tokens and width cannot be "
            "told apart; give router_weights of shape (batch, tasks)."
        )
    return state if state.dim() == 3 else state[:, None]


def states_of(model: nn.Module, output: Any) -> States:
    """The states of a body's output.

    Args:
        model: it, or the model around it: timm's say where their channels are.
        output: of transformers, or a tuple that begins with the last hidden state.
    """
    last = getattr(getattr(model, "timm_model", None), "output_fmt", None) == "NHWC"
    pooled = getattr(output, "pooler_output", None)
    return States(token_states(output[0], last), None if pooled is None else pooled.flatten(1))


def body_of(model: PreTrainedModel) -> PreTrainedModel:
    """The part that ends in hidden states: the encoder of an encoder-decoder, the model without its head otherwise.

    Raises:
        ValueError: for a classifier whose body is inside another library's model.
    """
    if model.config.is_encoder_decoder:
        return cast(PreTrainedModel, model.get_encoder())
    inner = getattr(model, "timm_model", None)
    if isinstance(inner, nn.Module):  # a model of timm is no body of transformers
        if getattr(inner, "num_classes", 0):
            raise ValueError(
                "a TimmWrapperForImageClassification has its head inside the model of timm; load the folder by "
                "AutoModel, and give its classifier as a Head."
            )
        return model
    body = cast(PreTrainedModel, model.base_model)
    tower = getattr(model, "vision_model", None)
    # CLIP and its kin name a body that their classifiers do not have.
    whole = body is model and isinstance(tower, nn.Module) and type(model).__name__.endswith("Classification")
    return cast(PreTrainedModel, tower) if whole else body
