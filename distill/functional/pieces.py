"""Any loss of logits over tokens x vocabulary, in pieces whose logits are made again for the gradient, never kept."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from distill.functional.chunked import LanguageHead


def in_pieces(
    hidden: Tensor, head: LanguageHead, compare: Callable[[Tensor, slice], Tensor], *, chunk: int = 256
) -> Tensor:
    """Mean over tokens of a loss that `compare` makes of some tokens' logits.

    The closed form of :func:`~distill.functional.chunked.chunked_kd` is faster where it has the loss; this is for any
    other. Logits of a piece are computed twice, and those of one piece are held at a time.

    Args:
        hidden: Shape (tokens, width); gets a gradient, and so do the head's weight and bias.
        head: What makes logits of it.
        compare: From logits (tokens of the piece, vocabulary) and the piece to the mean of the loss over the piece.
        chunk: Tokens of a piece, at least 1.

    Returns:
        A scalar; 0, with a graph, without tokens.

    Raises:
        ValueError: If the chunk is below 1.
    """
    if chunk < 1:
        raise ValueError(f"the chunk is {chunk} tokens; it needs at least 1, as in 256")
    if not len(hidden):
        return hidden.sum() + 0.0 * head.weight.sum()
    total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
    for start in range(0, len(hidden), chunk):
        piece = slice(start, min(start + chunk, len(hidden)))

        def part(states: Tensor, piece: slice = piece) -> Tensor:
            summed: Tensor = compare(head.logits(states), piece) * (piece.stop - piece.start)
            return summed

        made: Tensor = checkpoint(part, hidden[piece], use_reentrant=False, preserve_rng_state=False)
        total = total + made
    return total / len(hidden)
