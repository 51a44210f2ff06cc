"""Recall against the exact neighbours that a query file brings."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.readers.base import VectorFile

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

_BLOCK_ROWS = 4096
#: Vectors and distances in a file are float32: a score or distance this close to the k-th, relatively, ties with it.
TIE = 1e-6


@dataclass(frozen=True)
class Recall:
    """Share of the k exact neighbours found, ties counted as found.

    Attributes
    ----------
    value : float, None where it cannot be told
    k : int
    why : str
        How scores were compared, or why there is no value.
    """

    value: float | None
    k: int
    why: str


def measure_recall(queries: VectorFile, ids: Int64Array, metric: str, n: int) -> Recall:
    """Compare results with the exact neighbours in the query file.

    A result counts when its true score is no worse than that of the k-th exact neighbour (as ann-benchmarks
    judges). True scores come from the base vectors where the file holds them, else from its listed distances.

    Parameters
    ----------
    queries : the open query file
    ids : int64 (nq, k), row numbers of the base, best first, -1 where missing
    metric : the index's
    n : number of vectors in the index
    """
    neighbors, distances = queries.neighbors, queries.distances
    if neighbors is None:
        return Recall(None, ids.shape[1], "the query file has no exact neighbours")
    k = min(ids.shape[1], neighbors.shape[1], n)
    neighbors, ids = neighbors.astype(np.int64), ids[:, :k]
    foreign = _foreign(queries, neighbors[:, :k], ids, metric, n)
    if foreign:
        return Recall(None, k, foreign)
    base = queries.base()
    if base is not None:
        with base:
            if len(base) != n:
                return Recall(None, k, f"the file's neighbours are among {len(base)} vectors, the index has {n}")
            why = "by true scores" if queries.metric else "by true scores; the file states no metric that is known"
            return Recall(_by_scores(queries, base, neighbors[:, :k], ids, metric), k, why)
    if distances is not None:
        return Recall(_by_distances(neighbors, distances, ids, k), k, "by listed distances")
    return Recall(_share_found(ids, neighbors[:, :k]), k, "by ids")


def _foreign(queries: VectorFile, neighbors: Int64Array, ids: Int64Array, metric: str, n: int) -> str | None:
    """Say why the file's neighbours cannot be those of the index; None if nothing speaks against it."""
    if queries.metric not in (None, metric):
        return f"the file's neighbours are for metric {queries.metric}, the index has {metric}"
    if not neighbors.size or neighbors.min() < 0 or neighbors.max() >= n:
        return f"the file's neighbours name rows that are not in this index of {n}"
    if ids.max() >= n:
        return f"the index has ids that are no row numbers, {ids.max()} for one"
    return None


def _share_found(ids: Int64Array, wanted: Int64Array) -> float:
    return float((ids[:, :, np.newaxis] == wanted[:, np.newaxis, :]).any(axis=2).mean())


def _by_distances(neighbors: Int64Array, distances: npt.NDArray[Any], ids: Int64Array, k: int) -> float:
    """Count the first k neighbours, and the listed ones after them that are as far away as the k-th."""
    last = distances[:, k - 1 : k].astype(np.float64)
    counted = np.abs(distances - last) <= np.abs(last) * TIE
    counted[:, :k] = True
    return _share_found(ids, np.where(counted, neighbors, -2))  # -1 is a missing result


def _by_scores(queries: VectorFile, base: VectorFile, neighbors: Int64Array, ids: Int64Array, metric: str) -> float:
    """Score results and the k-th neighbours in float64 with the same arithmetic, so that equal vectors tie."""
    wanted = np.concatenate([ids, neighbors], axis=1)
    scores = np.full(wanted.shape, -np.inf)
    query_rows = queries[:].astype(np.float64)
    for start in range(0, len(base), _BLOCK_ROWS):
        rows = base[start : start + _BLOCK_ROWS].astype(np.float64)
        q, place = np.nonzero((wanted >= start) & (wanted < start + len(rows)))
        scores[q, place] = true_scores(query_rows[q], rows[wanted[q, place] - start], metric)
    found, exact = scores[:, : ids.shape[1]], scores[:, ids.shape[1] :]
    # The k-th best of the listed neighbours; listed in another order, the worst of them is still it.
    worst = exact.min(axis=1, keepdims=True)
    return float((found >= worst - np.abs(worst) * TIE).mean())


def true_scores(queries: Float64Array, rows: Float64Array, metric: str) -> Float64Array:
    """Score pairs of rows, larger is better, in the same arithmetic wherever they stand, so that equal vectors tie."""
    if metric == "l2":
        return np.asarray(-((queries - rows) ** 2).sum(axis=1))
    products = (queries * rows).sum(axis=1)
    if metric == "cosine":
        # Queries' norms do not change the order; rows of norm 0 are not in a cosine index.
        products = products / np.sqrt((rows * rows).sum(axis=1))
    return np.asarray(products)
