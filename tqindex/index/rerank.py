"""Reranking: candidates of a search, scored again by their original vectors."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.checks import as_rows
from tqindex.errors import ArgumentError
from tqindex.index.segments import RowSet

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
#: Gives the vectors of ids, int64 (n,): float (n, dim).
Fetch = Callable[[Int64Array], Any]

#: Bytes of vectors that are fetched at a time.
_BLOCK_BYTES = 64 * 2**20


def stored_originals(rows: RowSet, find: Callable[[RowSet, Int64Array], Int64Array]) -> Fetch:
    """Return what gives the original vectors that an index keeps; find(rows, ids) gives the rows of ids.

    Raises
    ------
    ArgumentError
        It keeps none.
    """
    if rows.originals is None:
        raise ArgumentError("rerank needs originals: tq.Index(..., originals='float16'), or a callable as index.fetch")
    return lambda ids: rows.gather(find(rows, ids), lambda segment, own: segment.originals[own])


def rerank(
    queries: Float32Array, candidates: Int64Array, k: int, metric: str, fetch: Fetch
) -> tuple[Float32Array, Int64Array]:
    """Return the k best candidates of every query by exact scores, best first, equal ones by the smaller id.

    Parameters
    ----------
    queries : float32 (nq, dim)
    candidates : int64 (nq, at least k), ids; -1 for none
    metric : under "l2" the scores are -|q - x|^2 / 2, else inner products or cosines
    fetch : gives the vectors of ids

    Raises
    ------
    VectorError, ArgumentError
        What `fetch` returns cannot be used.
    """
    scores = np.empty(candidates.shape, np.float32)
    step = max(1, _BLOCK_BYTES // (4 * queries.shape[1] * candidates.shape[1]))
    for start in range(0, len(queries), step):
        block = slice(start, start + step)
        scores[block] = _score(queries[block], candidates[block], metric, fetch)
    order = np.lexsort((candidates, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(candidates, order, axis=1)


def _score(queries: Float32Array, candidates: Int64Array, metric: str, fetch: Fetch) -> Float32Array:
    """Exact scores, float32 (nq, candidates); -inf where there is no candidate."""
    ids, places = np.unique(candidates, return_inverse=True)
    known = ids >= 0
    vectors = np.zeros((len(ids), queries.shape[1]), np.float32)
    vectors[known] = _fetched(fetch, ids[known], queries.shape[1])
    if metric == "cosine":
        vectors, queries = _unit(vectors), _unit(queries)
    picked = vectors[places.reshape(candidates.shape)]
    if metric == "l2":
        picked -= queries[:, np.newaxis]
        scores = np.float32(-0.5) * np.einsum("qcd,qcd->qc", picked, picked)
    else:
        scores = np.matmul(picked, queries[:, :, np.newaxis])[:, :, 0]
    return np.where(candidates >= 0, scores, np.float32(-np.inf))


def _unit(rows: Float32Array) -> Float32Array:
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))[:, np.newaxis]
    unit: Float32Array = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0, casting="same_kind")
    return unit


def _fetched(fetch: Fetch, ids: Int64Array, dim: int) -> Float32Array:
    rows = as_rows(fetch(ids), dim, "originals")
    if len(rows) != len(ids):
        raise ArgumentError(f"originals must give one vector per id, {len(ids)}, got {len(rows)}")
    return rows
