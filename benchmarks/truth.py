"""Exact neighbours of a data set's queries, computed once and kept, and recall against them, ties counted as found."""

import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tqindex.bench.exact import exact_neighbors
from tqindex.bench.sets import DataSet
from tqindex.kernels.compile import cache_folder
from tqindex.readers.truth import TIE, true_scores

Int64Array = npt.NDArray[np.int64]

#: Neighbours that recall needs.
DEPTH = 10
#: Queries whose results are scored at a time, in float64.
_QUERY_BLOCK = 64


class Truth:
    """Judges results by the true scores of the vectors, as `tqindex search` does.

    Parameters
    ----------
    data : DataSet
    neighbors : int64 (nq, k), exact, nearest first; at least the nearest 10, or all of a smaller base
    """

    def __init__(self, data: DataSet, neighbors: Int64Array) -> None:
        self._data = data
        # Of equal vectors a file may list either, and float32 rounding may swap neighbours that are all but equal.
        self._scores = np.sort(self._score(neighbors[:, :DEPTH]), axis=1)[:, ::-1]

    def recall(self, ids: Int64Array) -> float:
        """Return recall@k of the first queries' results, (m, k): the share that is as near as the k-th neighbour."""
        k = ids.shape[1]
        return float(self._as_good(self._score(ids), k).mean())

    def recall_1_at(self, ids: Int64Array, counts: list[int]) -> list[float]:
        """Return recall 1@k of results for each k: how often a nearest vector is among the first k."""
        found = self._as_good(self._score(ids), 1)
        return [float(found[:, :k].any(axis=1).mean()) for k in counts]

    def _as_good(self, scores: npt.NDArray[np.float64], rank: int) -> npt.NDArray[np.bool_]:
        wanted = self._scores[: len(scores), rank - 1 : rank]
        return np.asarray(scores >= wanted - np.abs(wanted) * TIE)

    def _score(self, ids: Int64Array) -> npt.NDArray[np.float64]:
        scores = np.full(ids.shape, -np.inf)
        for start in range(0, len(ids), _QUERY_BLOCK):
            block = ids[start : start + _QUERY_BLOCK]
            q, place = np.nonzero(block >= 0)  # -1: no result
            queries = self._data.queries[start + q].astype(np.float64)
            rows = self._data.base[block[q, place]].astype(np.float64)
            scores[start + q, place] = true_scores(queries, rows, self._data.metric)
        return scores


def find_truth(data: DataSet) -> Truth:
    """Take the neighbours that the file lists, or those that were kept, or compute them and keep them."""
    depth = min(DEPTH, len(data.base))
    if data.listed is not None and data.listed.shape[1] >= depth:
        return Truth(data, data.listed)
    path = _kept(data)
    if path is not None and path.exists():
        return Truth(data, np.load(path))
    neighbors = exact_neighbors(data.base, data.queries, depth, data.metric)[0]
    if path is not None:
        path.parent.mkdir(exist_ok=True)
        draft = path.with_suffix(".tmp.npy")
        np.save(draft, neighbors)
        draft.replace(path)
    return Truth(data, neighbors)


def _kept(data: DataSet) -> Path | None:
    """Where neighbours are kept: beside the compiled kernels, named by what decides them."""
    folder = cache_folder()
    identity = json.dumps([data.source.identity(), data.base.shape, data.queries.shape], sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()[:32]
    return None if folder is None else folder.parent / "truth" / f"{digest}.npy"
