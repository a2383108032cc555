"""From two tables to arrays in a canonical order, so that the order of rows and columns and all names do not matter."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from explain.errors import ExplainError
from explain.functional.losses import loss_table, observed_loss, squared_error
from explain.functional.rows import Floats, Rows

Codes = NDArray[np.int64]
Frames = Sequence[pd.DataFrame]

DOMAINS = ("source", "target")
MAX_CLASSES = 50


@dataclass(frozen=True)
class Sample:
    """What the estimators see of both domains; rows and columns in canonical order.

    Attributes:
        features: Columns as numbers, shape (n_0, m) and (n_1, m); a category is its code.
        categorical: Which columns are categories of three or more values, shape (m,).
        baseline: Columns of the baseline.
        groups: Columns of every player.
        names: Names of the players, in the same order.
        loss: Loss of every row.
        table: Loss of every row for every label, shape (n, C); None where labels are not used.
        labels: Codes of the labels; None likewise.
        clusters: Codes of the clusters, common to both domains; None where rows are independent.
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

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of rows of the source and of the target."""
        return len(self.loss.source), len(self.loss.target)

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
        )

    def columns(self, member: NDArray[np.bool_]) -> Codes:
        """Columns of the baseline and of the players that are members, ascending."""
        players = [self.groups[j] for j in np.flatnonzero(member)]
        return np.sort(np.concatenate([self.baseline, *players]))


def as_frame(table: Any, role: str) -> pd.DataFrame:
    """A pandas DataFrame from a DataFrame, a mapping of columns, a `datasets.Dataset` or a matrix.

    Args:
        table: The data; columns of a matrix are named 0, 1, ...
        role: What it is called in messages.

    Raises:
        ExplainError: If it has no rows or is none of these.
    """
    if isinstance(table, pd.DataFrame):
        frame = table.reset_index(drop=True)
    elif isinstance(table, Mapping):
        frame = pd.DataFrame({name: list(column) if np.ndim(column) > 1 else column for name, column in table.items()})
    elif hasattr(table, "to_pandas"):
        frame = table.to_pandas()
    elif np.ndim(table) == 2:
        frame = pd.DataFrame(np.asarray(table))
    else:
        raise ExplainError(
            f"the {role} is a {type(table).__name__}, but a DataFrame, a mapping of columns, a datasets.Dataset or a "
            "matrix is needed"
        )
    if frame.empty:
        raise ExplainError(f"the {role} has {len(frame)} rows and {frame.shape[1]} columns: give at least one of each")
    return frame


def pick(frames: Frames, name: Hashable, use: str) -> list[pd.Series]:
    """A column of every table.

    Raises:
        ExplainError: If a table lacks it or it has missing values.
    """
    found = []
    for role, frame in zip(DOMAINS, frames, strict=False):
        if name not in frame.columns:
            some = ", ".join(map(str, frame.columns[:12]))
            raise ExplainError(f"the {role} has no column '{name}', named as {use}; its columns are {some}")
        column = frame[name]
        missing = int(column.isna().sum())
        if not missing and column.dtype.kind == "f":
            missing = int((~np.isfinite(column.to_numpy(np.float64))).sum())
        if missing:
            raise ExplainError(
                f"column '{name}' of the {role} has {missing} missing or infinite values: drop those rows or fill them"
            )
        found.append(column)
    return found


def encode(columns: Sequence[pd.Series]) -> tuple[list[Floats], bool]:
    """A feature as numbers: numeric columns as they are, others as codes of their sorted categories.

    Returns:
        One array for each table and whether the codes are categories of three or more values.
    """
    if all(column.dtype.kind in "fiub" for column in columns):
        return [column.to_numpy(np.float64) for column in columns], False
    texts = [column.astype(str).to_numpy(str) for column in columns]
    categories, codes = np.unique(np.concatenate(texts), return_inverse=True)
    ends = np.cumsum([len(text) for text in texts])[:-1]
    return [part.astype(np.float64) for part in np.split(codes, ends)], len(categories) > 2


def resolve_groups(
    columns: Sequence[Hashable], baseline: Sequence[Hashable], groups: Mapping[str, Any] | None, taken: set[Hashable]
) -> dict[str, list[Hashable]]:
    """Players by name: as given, or every column that is neither baseline nor taken, on its own.

    Raises:
        ExplainError: If there is no player, or a column plays twice.
    """
    if groups is None:
        groups = {str(name): [name] for name in columns if name not in {*baseline, *taken}}
    players: dict[str, list[Hashable]] = {
        str(name): [part] if isinstance(part, str | int) else list(part) for name, part in groups.items()
    }
    if not players or not all(players.values()):
        raise ExplainError("there is no variable to attribute the gap to: give groups, each of at least one column")
    every = [*baseline, *(column for part in players.values() for column in part)]
    for column in every:
        if every.count(column) > 1:
            raise ExplainError(f"column '{column}' is listed twice: every column belongs to the baseline or one group")
        if column in taken:
            raise ExplainError(f"column '{column}' is a label, prediction, loss or cluster and cannot be a feature too")
    return players


class Losses(NamedTuple):
    """Losses of every table's rows; labels and losses for every label only where labels are used."""

    loss: list[Floats]
    table: list[Floats] | None = None
    labels: list[Codes] | None = None


def read_losses(frames: Frames, kind: str, outcome: str, label: Hashable, prediction: Any, given: Any) -> Losses:
    """Losses from labels and predictions, or from a column that holds them.

    Args:
        frames: The tables.
        kind: "zero_one", "brier", "log", "squared" or "given".
        outcome: "risk" to keep labels and losses for every label.
        label: Column of the labels.
        prediction: Column of predictions, or a list with the probabilities of every class.
        given: Column of a given loss.

    Raises:
        ExplainError: If labels and predictions do not fit.
    """
    if kind == "given":
        return Losses([_numbers(part, given) for part in pick(frames, given, "the loss")])
    raw = pick(frames, label, "the label")
    names = prediction if isinstance(prediction, list) else [prediction]
    predicted = [pick(frames, name, "the prediction") for name in names]
    if kind == "squared":
        outcomes = [_numbers(part, label) for part in raw]
        means = [_numbers(part, names[0]) for part in predicted[0]]
        return Losses([squared_error(f, y) for f, y in zip(means, outcomes, strict=True)])

    classes, codes = np.unique(np.concatenate([part.to_numpy() for part in raw]), return_inverse=True)
    if len(classes) < 2:
        raise ExplainError(f"column '{label}' holds one label, {classes[0]!r}, but at least two classes are needed")
    if len(classes) > MAX_CLASSES:
        raise ExplainError(
            f"column '{label}' holds {len(classes)} different labels, more than {MAX_CLASSES} classes: "
            "use loss='squared' or loss='given' with outcome='loss'"
        )
    labels = np.split(codes.astype(np.int64), [len(raw[0])])
    tables = []
    for position in range(len(frames)):
        parts = [column[position] for column in predicted]
        if len(parts) == 1:
            f = _one_column(parts[0], classes, kind)
        else:
            f = np.column_stack([_numbers(part, name) for part, name in zip(parts, names, strict=True)])
        try:
            tables.append(loss_table(kind, f, len(classes)))  # type: ignore[arg-type]
        except ValueError as error:
            raise ExplainError(f"the {DOMAINS[position]}'s {error}") from error
    loss = [observed_loss(table, code) for table, code in zip(tables, labels, strict=True)]
    return Losses(loss, tables, labels) if outcome == "risk" else Losses(loss)


def _one_column(column: pd.Series, classes: NDArray[Any], kind: str) -> Floats:
    """Probabilities from one column: those of the second of two classes, or predicted labels for the 0-1 loss."""
    values = column.to_numpy()
    number = column.dtype.kind in "fiub"
    if number and len(classes) == 2 and (kind != "zero_one" or not np.isin(values, classes).all()):
        return np.asarray(values, dtype=np.float64)
    if kind != "zero_one":
        raise ExplainError(
            f"the loss '{kind}' needs probabilities: name a list of {len(classes)} prediction columns, one a class"
            + (" or one column of numbers" if len(classes) == 2 else "")
        )
    unknown = set(np.unique(values).tolist()) - set(classes.tolist())
    if unknown:
        raise ExplainError(
            f"column '{column.name}' predicts {min(unknown, key=str)!r}, which is not among the labels "
            f"{classes[:10].tolist()}"
        )
    return np.asarray(values[:, None] == classes, dtype=np.float64)


def _numbers(column: pd.Series, name: Hashable) -> Floats:
    if column.dtype.kind not in "fiub":
        raise ExplainError(f"column '{name}' holds {column.dtype} values, but numbers are needed")
    return np.asarray(column.to_numpy(np.float64))


def make_sample(
    frames: Frames,
    losses: Losses,
    baseline: Sequence[Hashable],
    groups: Mapping[str, Sequence[Hashable]],
    cluster: Hashable | None,
    seed: int,
) -> Sample:
    """The data in an order of rows and columns that depends on their content and the seed alone.

    Columns are sorted by a hash of their sorted values in every table, players by their columns, rows by their values
    (then by labels and losses), and shuffled with the seed. Nothing depends on the order or the names given; only
    columns with exactly the same values in another order (rare but for binary ones) keep the order they are named in.

    Args:
        frames: The source and the target, or a single table.
        losses: Of their rows.
        baseline: Names of the baseline columns.
        groups: Columns by player.
        cluster: Column of the clusters.
        seed: Of the shuffle.
    """
    names = [*baseline, *(column for part in groups.values() for column in part)]
    encoded = [
        encode(pick(frames, name, "a baseline column" if name in baseline else "a column of a group")) for name in names
    ]
    digests = [_digest(parts, category) for parts, category in encoded]
    order = sorted(range(len(names)), key=lambda index: (digests[index], index))
    place = {names[index]: rank for rank, index in enumerate(order)}
    matrices = [np.column_stack([encoded[index][0][side] for index in order]) for side in range(len(frames))]
    orders = []
    for side, matrix in enumerate(matrices):
        ties = [losses.loss[side]] if losses.labels is None else [losses.labels[side]]
        ties += [] if losses.table is None else list(losses.table[side].T)
        rows = np.lexsort([*ties, *matrix.T])
        orders.append(rows[np.random.default_rng([seed, side]).permutation(len(rows))])

    def ordered(parts: Sequence[NDArray[Any]] | None) -> Any:
        return None if parts is None else Rows(*(part[rows] for part, rows in zip(parts, orders, strict=True)))

    clusters = None
    if cluster is not None:
        named = ordered([part.to_numpy() for part in pick(frames, cluster, "the cluster")])
        codes, _ = pd.factorize(np.concatenate(named))  # by first appearance, so that names do not matter
        clusters = codes[: len(named[0])].astype(np.int64), codes[len(named[0]) :].astype(np.int64)
    players = {name: np.array(sorted(place[column] for column in part)) for name, part in groups.items()}
    ranked = sorted(players, key=lambda name: players[name].tolist())
    return Sample(
        features=ordered(matrices),
        categorical=np.array([encoded[index][1] for index in order]),
        baseline=np.array(sorted(place[column] for column in baseline), dtype=np.int64),
        groups=tuple(players[name] for name in ranked),
        names=tuple(ranked),
        loss=ordered(losses.loss),
        table=ordered(losses.table),
        labels=ordered(losses.labels),
        clusters=clusters,
    )


def _digest(parts: Sequence[Floats], category: bool) -> bytes:
    digest = hashlib.sha256(bytes([category]))
    for part in parts:
        digest.update(np.sort(part).tobytes())
    return digest.digest()
