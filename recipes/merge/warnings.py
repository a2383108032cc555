"""What a reader of a merge's report must know before believing its headline: sentences that the run says itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recipes.data.splits import TextTask
    from recipes.merge.evaluation import Scores


def warnings_of(
    rows: Mapping[str, Scores], best_static: str, tasks: Sequence[TextTask] = (), sizes: Mapping[str, int] | None = None
) -> list[str]:
    """Sentences about results that say less than they seem to.

    Args:
        rows: test scores by row name; has `experts`, `pretrained` and `routed`.
        best_static: the row of the static merge that was best on validation.
        tasks: for their metrics and kinds.
        sizes: bytes by row name.
    """
    experts, routed = rows["experts"], rows["routed"]
    found = []
    for name, what in (("linear probe", "a linear probe on the frozen base"), ("pretrained", "the base itself")):
        weak = [] if name not in rows else [t for t in experts.tasks if not experts.beats(rows[name], t)]
        if weak:
            found.append(
                f"The experts of {_listed(weak)} score no better than {what}: there is nothing to lose by merging "
                "them, and their shares of the experts' scores prove nothing."
            )
            break
    static = rows.get(best_static)
    if static is not None and routed.normalised(experts) < static.normalised(experts):
        found.append(
            f"The routed twin ({routed.normalised(experts):.1%} of the experts) is under the static merge "
            f"{best_static} ({static.normalised(experts):.1%}), which is smaller and faster: keep more of the "
            "exclusive experts, give the router more items, or use the static merge."
        )
    numbers = [task.name for task in tasks if task.kind == "regression"]
    if numbers and "routed, head routed too" in rows:
        found.append(
            f"In the row 'routed, head routed too' a wrong head on {_listed(numbers)} counts as the mean of its "
            "training labels, since no number is wrong for sure: the row is kinder to regression than to classes."
        )
    metrics = list(dict.fromkeys(task.metric for task in tasks))
    if len(metrics) > 1:
        found.append(
            f"The column 'mean' averages unlike metrics ({_listed(metrics)}); compare rows by 'normalised', which puts "
            "every task on its expert's scale."
        )
    if sizes and sizes["routed"] > sizes["experts"]:
        found.append(
            f"The twin ({sizes['routed'] / 1e6:.1f} MB) is larger than its experts together "
            f"({sizes['experts'] / 1e6:.1f} MB); lower the rank, or keep fewer vectors (exclusive.dense)."
        )
    return found


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
