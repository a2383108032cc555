"""Folds for cross-fitting: of equal size, stratified by domain and label, with clusters kept whole."""

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]


def assign_folds(
    sizes: tuple[int, int],
    folds: int,
    rng: np.random.Generator,
    labels: tuple[Codes, Codes] | None = None,
    clusters: tuple[Codes, Codes] | None = None,
    weight: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
) -> tuple[Codes, Codes]:
    """The fold of every row of both domains.

    Args:
        sizes: Rows of the source and of the target.
        folds: Number of folds K.
        rng: Source of randomness.
        labels: Codes of labels; every fold then holds the same share of each, domain by domain.
        clusters: Codes from 0 on, common to both domains; rows of a cluster share a fold, also across domains. They are
            dealt out by the domains they occur in, largest first, which keeps folds of like size; labels are not
            used.
        weight: Weights of the rows; clusters are then as large as their rows weigh.

    Returns:
        Folds from 0 to K - 1, shape (n_0,) and (n_1,).

    Example:
        >>> source, target = assign_folds((6, 4), 2, np.random.default_rng(0))
        >>> sorted(source.tolist()), sorted(target.tolist())
        ([0, 0, 0, 1, 1, 1], [0, 0, 1, 1])
    """
    if clusters is not None:
        count = 1 + int(np.concatenate(clusters).max())
        mass = (None, None) if weight is None else weight
        here = np.stack([np.bincount(part, of, count) for part, of in zip(clusters, mass, strict=True)]).round(9)
        order = rng.permutation(count)
        order = order[np.lexsort([-here.sum(0)[order], here[0][order] > 0, here[1][order] > 0])]
        fold = np.empty(count, dtype=np.int64)
        fold[order] = np.arange(count) % folds
        return fold[clusters[0]], fold[clusters[1]]
    found = []
    for domain, size in enumerate(sizes):
        order = rng.permutation(size)
        if labels is not None:
            order = order[np.argsort(labels[domain][order], kind="stable")]
        fold = np.empty(size, dtype=np.int64)
        fold[order] = np.arange(size) % folds
        found.append(fold)
    return found[0], found[1]
