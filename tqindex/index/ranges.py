"""Range search: all rows whose scores reach a threshold."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tqindex.index.plan import BatchQueries, ScanPlan
from tqindex.index.search import QUERY_BLOCK, Chunk, cut_for_batch
from tqindex.index.segments import Segment
from tqindex.kernels.product import TILE
from tqindex.kernels.queries import encode_queries
from tqindex.kernels.scan import collect_rows
from tqindex.kernels.threads import run_parallel

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

#: Queries, int64, scores, float32, and ids, int64, of results in any order.
Collected = tuple[npt.NDArray[Any], ...]
#: Results that are collected before they are put aside, at least.
_ROOM = 2**16


class RangeResult(NamedTuple):
    """What `Index.range_search` returns, in the form of faiss.

    Attributes
    ----------
    lims : int64 (nq + 1,); results of query q stand at lims[q] to lims[q + 1]
    scores : float32 (lims[-1],), as `SearchResult.scores`
    ids : int64 (lims[-1],)
    """

    lims: Int64Array
    scores: Float32Array
    ids: Int64Array


def search_range(
    plan: ScanPlan, segments: Sequence[Segment], queries: Float32Array, threshold: float, threads: int
) -> RangeResult:
    """Return all rows whose scores reach a float32 threshold, query by query, best first, ties by the smaller id."""
    blocks = []
    for first in range(0, len(queries), QUERY_BLOCK):
        rows = queries[first : first + QUERY_BLOCK]
        batch = BatchQueries.of(plan, encode_queries(plan.codec, rows, plan.metric, first))
        blocks.append(in_order(_collect(plan, segments, batch, threshold, threads), len(rows)))
    return joined(blocks)


def in_order(found: Sequence[Collected], nq: int) -> RangeResult:
    """Return what was found in any order query by query, best first, ties by the smaller id."""
    nothing = np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64)
    of_query, scores, ids = (np.concatenate(parts) for parts in zip(nothing, *found, strict=True))
    order = np.lexsort((ids, -scores, of_query))
    lims = np.cumsum(np.concatenate([[0], np.bincount(of_query, minlength=nq)]))
    return RangeResult(lims, scores[order], ids[order])


def joined(blocks: Sequence[RangeResult]) -> RangeResult:
    """Return the results of blocks of queries as those of all."""
    counts = [np.zeros(1, np.int64), *(np.diff(block.lims) for block in blocks)]
    scores, ids = [np.empty(0, np.float32)], [np.empty(0, np.int64)]
    return RangeResult(
        np.cumsum(np.concatenate(counts)),
        np.concatenate(scores + [block.scores for block in blocks]),
        np.concatenate(ids + [block.ids for block in blocks]),
    )


def _collect(
    plan: ScanPlan, segments: Sequence[Segment], batch: BatchQueries, threshold: float, threads: int
) -> list[Collected]:
    """Return what every chunk gave."""
    nq, found = batch.queries[0], list[Collected]()

    def scan(_: int, chunk: Chunk) -> None:
        arrays, first_id, start, stop = chunk
        size = max(_ROOM, TILE * nq)
        room = np.empty(size, np.int64), np.empty(size, np.float32), np.empty(size, np.int64), np.zeros(1, np.int64)
        sides = batch.sides_from(threshold)
        while start < stop:
            start = collect_rows(arrays, first_id, start, stop, batch.tables, batch.queries, sides, room)
            n = int(room[3][0])
            found.append((room[0][:n].copy(), room[1][:n].copy(), room[2][:n].copy()))
            room[3][0] = 0

    run_parallel(cut_for_batch(plan, segments, nq), threads, scan)
    return found


def least_float32(value: float) -> float:
    """Return the smallest float32 that is not below `value`."""
    with np.errstate(over="ignore"):
        near = np.float32(value)
    return float(near if float(near) >= value else np.nextafter(near, np.float32(np.inf)))
