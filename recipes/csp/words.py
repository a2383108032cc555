"""What the words of a csp report mean, and which policy its numbers say to deploy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recipes.running.page import Row

GLOSSARY = {
    "target": "the opponent that was recorded; every number is about one whose policy does not change",
    "agent": "our side; its policies are the rows of the table of policies",
    "proxy": "what CSP trains the agent against: it plays like the target on the data and does us harm elsewhere",
    "fitted model": "a policy fitted to the data alone; off the data it is a guess",
    "consistent": "of a target that the held-out data do not tell from the fitted model, within attack.slack",
    "guaranteed": "the same as certified; nothing else is",
    "certified 95 %": "the value against the true target is at least this, with probability 0.95 over the data; exact",
    "worst exact": "worst value within radii 1/(2 sqrt n) of what was seen; likely, and no promise",
    "worst estimated (optimistic)": "against the worst target that a search found; the truth may be lower",
    "worst against anyone": "worst value if the target may do anything, data or not; exact",
    "obtained": "value against the true target, which only a test knows",
    "against model": "value against the fitted model; it promises nothing off the data",
    "Nash": "the best value that can be had against anyone, without data",
    "best response": "the best value that can be had against the true target by one who knows it",
    "coverage": "share of the target's steps at observations that the data saw never, rarely, often",
    "excess nats": "by how much the data are less likely under a target than under the fitted model",
    "bc_first": "best response to the fitted model",
    "self_play": "trained without data, against an adversary that may do anything",
    "imitation": "what our own seat did in the recorded episodes",
    "rnr": "restricted Nash response: the target plays the model in a fixed share of the episodes",
    "dbr": "data-biased response: the target plays the model the more surely, the more often a state was seen",
    "oracle": "best response to the true target; nobody has it outside a test",
}
ENOUGH = 0.005  # a difference of values that is not worth another policy


def row_name(row: Row) -> str:
    """What the policy of a row is called: its name, or for card games its method and setting."""
    return str(row["policy"] if "policy" in row else f"{row['method']} {row['setting']}".strip())


def file_name(row: str) -> str:
    """The name, without ending, of the files of a policy."""
    return "".join(c if c.isalnum() else "-" for c in row)


def glossary(shown: Sequence[Row]) -> list[dict[str, str]]:
    """Rows of the words that a report uses.

    Args:
        shown: Rows of its tables; methods that are in none of them are left out.
    """
    methods = {"bc_first", "self_play", "imitation", "rnr", "dbr", "oracle"}
    used = {row_name(row).split()[0] for row in shown}
    absent = methods - used
    return [{"word": word, "meaning": meaning} for word, meaning in GLOSSARY.items() if word not in absent]


def deploy(rows: Sequence[Row], certified: str, estimated: str, *, plan: float | None = None) -> str:
    """The sentence that says which policy to deploy, and why.

    Args:
        rows: Of the table of policies; the oracle, which nobody has, is left out.
        certified: Name of the column of certified values; it may be in no row.
        estimated: Name of the column of estimated ones.
        plan: Certified value of the exact plan for these data, where there is one beside the rows.
    """
    own = [row for row in rows if row_name(row) != "oracle"]
    if own and certified in own[0]:
        best = max(own, key=lambda row: float(row[certified]))
        value = float(best[certified])
        if plan is not None and plan > value + ENOUGH:
            return (
                f"Deploy policies/certified-plan.safetensors, the exact solver's plan for these data, because its "
                f"certified value, {plan:.3f}, is the highest; of the trained policies, {row_name(best)} has the "
                f"highest, {value:.3f}."
            )
        return (
            f"Deploy {row_name(best)}, because its certified value, {value:.3f}, is the highest of the {len(own)} "
            "policies: against a target that does not change it gets no less, with probability 0.95 over the data."
        )
    found = sorted(
        (row for row in own if row.get(estimated) is not None), key=lambda row: float(row[estimated]), reverse=True
    )
    if not found:
        return "No policy was searched for its worst case, so none can be named for deployment; raise attack."
    best, others = found[0], found[1:]
    second = f", before {row_name(others[0])} with {float(others[0][estimated]):.3f}" if others else ""
    among = (
        f"of the {len(found)} policies that were searched is its own the highest" if others else "no other was searched"
    )
    return (
        f"No policy is certified, as this game has no exact solver; the one to deploy is {row_name(best)}, because its "
        f"worst value found is {float(best[estimated]):.3f}{second} ({among}): an optimistic estimate, no promise."
    )
