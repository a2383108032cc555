"""Several teachers as one: the mixture of what they say, by weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from distill.arguments import check_given
from distill.batches import Batch
from distill.errors import DistillError
from distill.terms import Outputs
from gapbridge.arguments import Positive


class Ensemble(nn.Module):
    r"""Networks that teach together: :math:`\log \sum_k w_k \, softmax(z_k)`, the weights brought to a sum of 1.

    It is the arithmetic mean of probabilities at temperature 1, whose logarithm stands for the logits and is softened
    by the losses' temperature like any other teacher's.

    Args:
        networks: Behind the common call (`ImageNetwork`, `TextNetwork`, `LanguageNetwork`), of the same classes or
            vocabulary.
        weights: Of each; None is the plain average.

    Raises:
        DistillError: If there is no network, or another number of weights.

    Reference:
        Hinton et al. (2015), "Distilling the knowledge in a neural network", arXiv 1503.02531, section 1: an ensemble
        as the teacher.
    """

    def __init__(self, networks: Sequence[nn.Module], weights: Sequence[Positive] | None = None) -> None:
        check_given(Ensemble.__init__, locals())
        super().__init__()
        if not networks or (weights is not None and len(weights) != len(networks)):
            given = "no weights" if weights is None else f"{len(weights)} weights"
            raise DistillError(
                f"an ensemble has {len(networks)} networks and {given}; give one network at least, and as many"
            )
        self.networks = nn.ModuleList(networks)
        shares = torch.tensor([1.0] * len(networks) if weights is None else list(weights), dtype=torch.float64)
        self.shares: list[float] = (shares / shares.sum()).log().tolist()

    def forward(self, batch: Batch, needs: frozenset[str] = frozenset()) -> Outputs:
        """The mixture's log-probabilities.

        Raises:
            DistillError: If more than logits are asked for, or the networks differ in classes.
        """
        if not needs <= {"logits"}:
            raise DistillError(
                f"a loss asks several teachers for {', '.join(sorted(needs - {'logits'}))}, but only what they say can "
                "be averaged; use losses of logits, for language models with chunk 0, or one teacher"
            )
        said = [cast(Outputs, network(batch)).logits.float() for network in self.networks]
        if len({logits.shape for logits in said}) > 1:
            raise DistillError(
                f"teachers tell {', '.join(str(logits.shape[-1]) for logits in said)} classes apart; give several of "
                "the same classes"
            )
        parts = [logits.log_softmax(-1) + share for logits, share in zip(said, self.shares, strict=True)]
        return Outputs(torch.stack(parts).logsumexp(0), rows=batch.get("index"))

    def sizes(self) -> dict[str, object]:
        """Nothing: no hint is defined for several teachers."""
        return {}


def voices(network: nn.Module) -> list[nn.Module]:
    """The networks of an ensemble, or the network itself."""
    return list(network.networks) if isinstance(network, Ensemble) else [network]
