"""From two tables to arrays in a canonical order, so that the order of rows and columns and all names do not matter."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from explain.encode import Column, encode
from explain.errors import ExplainError
from explain.functional.metrics import Metric
from explain.functional.rows import Floats, Rows
from explain.outcomes import Losses, one_type
from explain.tables import Frames, find, pick, read_weights

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Columns:
    """What is known of the columns beside their values.

    Attributes:
        cluster: Names the cluster of a row; none where rows are independent.
        weight: Holds the weight of a row; none where all count the same.
        categorical: Numbers that are codes of categories.
        ordinal: Values from the lowest to the highest, by column.
    """

    cluster: Hashable | None = None
    weight: Hashable | None = None
    categorical: Sequence[Hashable] = ()
    ordinal: Mapping[Hashable, Sequence[Hashable]] = field(default_factory=dict)


class Scored(NamedTuple):
    """What a metric is computed from.

    Attributes:
        kind: The metric.
        positive: Labels, 0 or 1.
        score: What the model says of them.
    """

    kind: Metric
    positive: Rows
    score: Rows


@dataclass(frozen=True)
class Sample:
    """What the estimators see of both domains; rows and columns in canonical order.

    Attributes:
        features: Columns as numbers, shape (n_0, m) and (n_1, m); a category is its code, a missing number is NaN.
        categorical: Which columns are categories of three or more values, shape (m,).
        baseline: Columns of the baseline.
        groups: Columns of every player.
        names: Names of the players, in the same order.
        upstream: Names of the columns of the baseline, in their order.
        loss: Loss of every row.
        table: Loss of every row for every label, shape (n, C); None where labels are not used.
        labels: Codes of the labels; None likewise.
        clusters: Codes of the clusters, common to both domains; None where rows are independent.
        weight: Weights of the rows, positive; None where all count the same.
        pair: Losses of the two models whose difference `loss` is; None where there is one model.
        scored: What a metric is computed from that is no mean of losses; `loss` is then a loss of rows in its place.
        said: What a reader should know of some columns, by name.
        origin: Where every row stands in its table.
    """

    features: Rows
    categorical: NDArray[np.bool_]
    baseline: Codes
    groups: tuple[Codes, ...]
    names: tuple[str, ...]
    loss: Rows
    table: Rows | None = None
    labels: tuple[Codes, Codes] | None = None
    clusters: tuple[Codes, Codes] | None = None
    weight: Rows | None = None
    pair: tuple[Rows, Rows] | None = None
    scored: Scored | None = None
    said: Mapping[str, object] = field(default_factory=dict)
    origin: tuple[Codes, Codes] | None = None
    upstream: tuple[str, ...] = ()

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of rows of the source and of the target."""
        return len(self.loss.source), len(self.loss.target)

    @property
    def share(self) -> Rows | None:
        """Weights that sum to 1 in each domain."""
        return None if self.weight is None else Rows(*(part / part.sum() for part in self.weight))

    def weight_of(self, domain: int) -> Floats:
        """Weights of the rows of a domain, ones where all count the same."""
        return np.ones(self.sizes[domain]) if self.weight is None else self.weight[domain]

    def weights(self, domain: int, rows: Codes | NDArray[np.bool_] | slice) -> Floats | None:
        """Weights of some rows of a domain; None where all count the same."""
        return None if self.weight is None else self.weight[domain][rows]

    def mass(self, rows: tuple[Codes, Codes]) -> tuple[float, float]:
        """How much some rows of both domains weigh: their number where all count the same."""
        if self.weight is None:
            return float(len(rows[0])), float(len(rows[1]))
        return float(self.weight.source[rows[0]].sum()), float(self.weight.target[rows[1]].sum())

    def take(self, source: Codes, target: Codes) -> Sample:
        """The sample of some of the rows."""

        def part(rows: Any) -> Any:
            return None if rows is None else Rows(rows[0][source], rows[1][target])

        return replace(
            self,
            features=part(self.features),
            loss=part(self.loss),
            table=part(self.table),
            labels=part(self.labels),
            clusters=part(self.clusters),
            weight=part(self.weight),
            origin=part(self.origin),
            scored=None
            if self.scored is None
            else Scored(self.scored.kind, part(self.scored.positive), part(self.scored.score)),
            pair=None if self.pair is None else (part(self.pair[0]), part(self.pair[1])),
        )

    def columns(self, member: NDArray[np.bool_]) -> Codes:
        """Columns of the baseline and of the players that are members, ascending."""
        players = [self.groups[j] for j in np.flatnonzero(member)]
        return np.sort(np.concatenate([self.baseline, *players]))


def make_sample(
    frames: Frames,
    losses: Losses,
    baseline: Sequence[Hashable],
    groups: Mapping[str, Sequence[Hashable]],
    known: Columns,
    seed: int,
    *,
    anchored: bool = False,
) -> Sample:
    """The data in an order of rows and columns that depends on their content and the seed alone.

    Columns are sorted by a hash of their sorted values in every table, players by their columns, rows by their values
    (then by labels, losses and weights), and shuffled with the seed. Nothing depends on the order or the names given;
    only columns with exactly the same values in another order (rare but for binary ones) keep the order they are named
    in.

    Args:
        frames: The source and the target, or a single table.
        losses: Of their rows.
        baseline: Names of the baseline columns.
        groups: Columns by player.
        known: Clusters, weights and kinds of columns.
        seed: Of the shuffle.
        anchored: Whether the first table alone decides the order of columns and the codes of its categories, so that
            its part is the same whatever it is compared with.

    Raises:
        ExplainError: If a column cannot be used as what it is named as.
    """
    names = [*baseline, *(column for part in groups.values() for column in part)]
    weights = None if known.weight is None else read_weights(frames, known.weight)
    encoded = _encode(frames, losses, weights, names, baseline, known, anchored=anchored)
    digests = [_digest(column, weights, 1 if anchored else len(frames)) for column in encoded]
    order = sorted(range(len(names)), key=lambda index: (digests[index], index))
    place = {names[index]: rank for rank, index in enumerate(order)}
    matrices = [np.column_stack([encoded[index].parts[side] for index in order]) for side in range(len(frames))]
    pairs = [] if losses.pair is None else list(losses.pair)
    sorted_rows, orders = [], []
    for side, matrix in enumerate(matrices):
        ties: list[NDArray[np.generic]] = [] if weights is None else [weights[side]]
        ties += [losses.loss[side]] if losses.labels is None else [losses.labels[side]]
        ties += [model[side] for model in pairs]
        ties += [] if losses.scored is None else [losses.scored.positive[side], losses.scored.score[side]]
        ties += [] if losses.table is None else list(losses.table[side].T)
        rows = np.lexsort([*ties, *matrix.T])
        sorted_rows.append(rows)
        orders.append(rows[np.random.default_rng([seed, side]).permutation(len(rows))])

    def ordered(parts: Sequence[NDArray[np.generic]] | None) -> Any:
        return (
            None
            if parts is None
            else Rows(*(cast(Floats, part[rows]) for part, rows in zip(parts, orders, strict=True)))
        )

    players = {name: np.array(sorted(place[column] for column in part)) for name, part in groups.items()}
    ranked = sorted(players, key=lambda name: players[name].tolist())
    said = {str(name): column.said for name, column in zip(names, encoded, strict=True) if column.said}
    return Sample(
        features=ordered(matrices),
        categorical=np.array([encoded[index].category for index in order]),
        baseline=np.array(sorted(place[column] for column in baseline), dtype=np.int64),
        groups=tuple(players[name] for name in ranked),
        names=tuple(ranked),
        loss=ordered(losses.loss),
        table=ordered(losses.table),
        labels=ordered(losses.labels),
        clusters=None if known.cluster is None else ordered(_clusters(frames, known.cluster, sorted_rows)),
        weight=ordered(weights),
        pair=None if losses.pair is None else (ordered(losses.pair[0]), ordered(losses.pair[1])),
        scored=None
        if losses.scored is None
        else Scored(losses.scored.kind, ordered(losses.scored.positive), ordered(losses.scored.score)),
        said=dict(sorted(said.items())),
        upstream=tuple(str(column) for column in sorted(baseline, key=place.__getitem__)),
        origin=ordered([np.arange(len(part)) for part in losses.loss]),
    )


def _encode(
    frames: Frames,
    losses: Losses,
    weights: Sequence[Floats] | None,
    names: Sequence[Hashable],
    baseline: Sequence[Hashable],
    known: Columns,
    *,
    anchored: bool,
) -> list[Column]:
    """Every column as numbers."""
    for option, listed in (("categorical", known.categorical), ("ordinal", known.ordinal)):
        for column in listed:
            if column not in names:
                raise ExplainError(
                    f"{option} names '{column}', but the columns of the baseline and the groups are "
                    f"{', '.join(map(str, names))}"
                )
            if option == "ordinal" and column in known.categorical:
                raise ExplainError(f"column '{column}' is listed as categorical and as ordinal: choose one")
    return [
        encode(
            find(frames, name, "a baseline column" if name in baseline else "a column of a group"),
            losses.loss,
            weights,
            categorical=name in known.categorical,
            levels=known.ordinal.get(name),
            anchored=anchored,
        )
        for name in names
    ]


def _clusters(frames: Frames, name: Hashable, orders: Sequence[Codes]) -> list[Codes]:
    """Codes by first appearance among the sorted rows, so that neither names nor repeated rows matter."""
    found = pick(frames, name, "the cluster")
    one_type([column for column in found if len(column)], name, "clusters")
    columns = [column.to_numpy() for column in found]
    codes, _ = pd.factorize(np.concatenate([part[rows] for part, rows in zip(columns, orders, strict=True)]))
    parts = []
    for part, rows in zip(np.split(codes, [len(orders[0])]), orders, strict=False):
        back = np.empty(len(rows), dtype=np.int64)
        back[rows] = part
        parts.append(back)
    return parts[: len(frames)]


def _digest(column: Column, weights: Sequence[Floats] | None, tables: int) -> bytes:
    """A hash of the values in the first tables and their shares, in which a row of weight 2 is two rows."""
    digest = hashlib.sha256(bytes([column.category]))
    for side, part in enumerate(column.parts[:tables]):
        values, codes = np.unique(part, return_inverse=True)
        mass = np.bincount(codes, None if weights is None else weights[side])
        digest.update(values.tobytes() + (mass / max(mass.sum(), 1)).round(9).tobytes())
    return digest.digest()
