"""What a cache keeps of a teacher's answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from distill.errors import DistillError

Kind = Literal["logits", "hidden", "top", "sampled", "tokens"]


@dataclass(frozen=True)
class Form:
    """What is kept of an answer.

    Attributes:
        kind: `logits`, all of them; `hidden`, the state before the head, whose width may be far below the number of
            classes, and the head once; `top`, the largest logits and the log-sum-exp of the others at some temperatures
            (for the tails `zero` and `ghost` of :func:`~distill.functional.sparse.top_kd`); `sampled`, an unbiased
            sample at the first temperature; or `tokens`, how a language model itself goes on with a text.
        dtype: Of stored logits and states: float32 replays bit for bit, float16 and bfloat16 halve the size.
        kept: Classes of a row, for `top` and `sampled`.
        temperatures: For `top` and `sampled`.
        exponent: Of `sampled`, as in :func:`~distill.functional.sparse.sampled_classes`.
    """

    kind: Kind = "logits"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    kept: int = 0
    temperatures: tuple[float, ...] = (1.0,)
    exponent: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what no row can be kept in."""
        if self.kind not in get_args(Kind):
            raise DistillError(f"the form is {self.kind!r}; accepted are {', '.join(get_args(Kind))}")
        if self.dtype not in ("float32", "float16", "bfloat16"):
            raise DistillError(f"the stored type is {self.dtype!r}; accepted are float32, float16 and bfloat16")
        if (self.kind in ("top", "sampled")) != (self.kept > 0) or not self.temperatures:
            raise DistillError(
                f"{self.kind} with kept={self.kept} and {len(self.temperatures)} temperatures: top and "
                "sampled keep at least 1 class at 1 temperature, the other kinds keep everything (0)"
            )
