"""One row of the table of a merged language model: its scores by task, normalised by the experts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from recipes.merge.evaluation import Scores


@dataclass(frozen=True)
class LanguageScores(Scores):
    """Shares from 0 to 1, where higher is better, and perplexities, where lower is.

    Attributes:
        lower: The tasks that are judged by perplexity.
    """

    lower: frozenset[str] = field(default_factory=frozenset)

    @property
    def mean(self) -> float:
        """Mean of the scores that are shares; of the perplexities where there are no others."""
        shares = [score for task, score in self.tasks.items() if task not in self.lower] or list(self.tasks.values())
        return sum(shares) / len(shares)

    def beats(self, other: Scores, task: str) -> bool:
        """Whether this row is better than another on a task.

        >>> low, high = (LanguageScores({"talk": n}, 1.0, frozenset({"talk"})) for n in (40.0, 50.0))
        >>> low.beats(high, "talk"), high.beats(low, "talk")
        (True, False)
        """
        ours, theirs = self.tasks[task], other.tasks[task]
        return ours < theirs if task in self.lower else ours > theirs

    def normalised(self, experts: Scores) -> float:
        """Mean over tasks of score / expert's score; of a perplexity, expert's perplexity / perplexity.

        Tasks whose expert scores nothing are left out; NaN when none is left.

        >>> own = LanguageScores({"spell": 0.4, "talk": 50.0}, 1.0, frozenset({"talk"}))
        >>> own.normalised(LanguageScores({"spell": 0.8, "talk": 40.0}, 1.0, frozenset({"talk"})))
        0.65
        """
        shares = [
            experts.tasks[task] / score if task in self.lower else score / experts.tasks[task]
            for task, score in self.tasks.items()
            if experts.tasks[task] > 0
        ]
        return sum(shares) / len(shares) if shares else math.nan

    def recovered(self, experts: Scores, base: Scores) -> dict[str, float]:
        """Share of the gap between the base and the experts that is closed, per task; of perplexities, of their logs.

        Tasks whose gap is below two points (of perplexities, 2 %) are left out.
        """

        def height(scores: Scores, task: str) -> float:
            return -math.log(scores.tasks[task]) if task in self.lower else scores.tasks[task]

        gaps = {task: height(experts, task) - height(base, task) for task in self.tasks}
        return {t: (height(self, t) - height(base, t)) / gap for t, gap in gaps.items() if gap >= 0.02}
