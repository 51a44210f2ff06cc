"""The search plan: which rows are scanned by which thread, and how their best are joined."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.codec.codes import QueryCodes
from tqindex.codec.packing import BLOCK
from tqindex.index.plan import EPS, BatchQueries, ScanPlan, deviations, single_queries
from tqindex.index.segments import Segment
from tqindex.kernels.cascade import scan_rows_single
from tqindex.kernels.scan import NO_ID, scan_rows
from tqindex.kernels.threads import run_parallel

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

#: Queries up to this number are scanned one by one: a plane read once per query costs less than a tile's expansion.
FEW_QUERIES = 8
#: Multiply-adds of one task, some milliseconds: Ctrl-C is answered soon, and threads end at about the same time.
_CHUNK_WORK = 2**30
_CHUNK_ROWS = (256, 16_384)
#: What keeping a row costs, as multiply-adds, where the best k exceed the cache.
_PUSH_WORK = 2**12
#: Rows of a task for few queries: a task's start costs as much as thousands of rows.
_SINGLE_ROWS = (4096, 131_072)
#: Queries that one pass over the rows serves; their int8 levels stay in cache.
QUERY_BLOCK = 512
# Their arguments come as tuples, whose lengths mypy cannot follow.
_scan_rows: Any = scan_rows
_scan_rows_single: Any = scan_rows_single


@dataclass(frozen=True, eq=False)
class _Chunk:
    segment: Segment
    start: int
    stop: int

    def where(self) -> tuple[Any, ...]:
        """Return the rows as kernels take them."""
        return self.segment.kernel_arrays, self.segment.first_id, self.start, self.stop


@dataclass(frozen=True, eq=False)
class Found:
    """The k best scores, float32, and ids, int64, of every query, (nq, k); and the share of rows scored in full."""

    scores: Float32Array
    ids: Int64Array
    scored: float


def search_segments(
    plan: ScanPlan,
    segments: Sequence[Segment],
    queries: QueryCodes,
    k: int,
    threads: int,
    exact_scan: bool = False,
    eps: float = EPS,
) -> Found:
    """Return the k best of each of at most QUERY_BLOCK queries, best first, ties by the smaller id.

    Missing entries have score -inf and id -1.

    Few queries go through the cascade, one by one: the probability that it loses any of a query's k best is at most
    eps, over the rotation. More queries, or `exact_scan`: every row is scored in full, and the result does not
    depend on `threads` or on the segments' cuts.
    """
    nq, n = len(queries), sum(segment.n_live for segment in segments)
    scores, ids = np.full((nq, k), -np.inf, np.float32), np.full((nq, k), -1, np.int64)
    kept, scored = min(k, n), 1.0
    if not kept or not nq:
        return Found(scores, ids, scored)
    if nq > FEW_QUERIES:
        batch = BatchQueries.of(plan, queries)
        chunks = _cut(segments, _chunk_rows(plan.codec.dim, nq, kept))

        def scan_batch(_: int, chunk: _Chunk, *best: npt.NDArray[Any]) -> None:
            _scan_rows(*chunk.where(), batch.tables, batch.queries, batch.sides.copy(), *best)

        scores[:, :kept], ids[:, :kept] = _scan(chunks, nq, kept, threads, scan_batch)
    else:
        rows = sum(segment.n for segment in segments)
        singles = single_queries(plan, queries, None if exact_scan else deviations(plan, kept, n, eps))
        chunks = _cut(segments, min(max(rows // (4 * threads), _SINGLE_ROWS[0]), _SINGLE_ROWS[1]) if threads > 1 else rows)
        counts = np.zeros((min(threads, len(chunks)), nq), np.int64)

        def scan_singles(worker: int, chunk: _Chunk, best_scores: Float32Array, best_ids: Int64Array) -> None:
            where = chunk.where()
            for q, (query, stages) in enumerate(singles):
                best = best_scores[q : q + 1], best_ids[q : q + 1]
                counts[worker, q] += _scan_rows_single(*where, plan.tables, query, stages, *best)

        scores[:, :kept], ids[:, :kept] = _scan(chunks, nq, kept, threads, scan_singles)
        scored = float(counts.sum() / (n * nq))
    return Found(scores, ids, scored)


def _chunk_rows(dim: int, nq: int, k: int) -> int:
    """Rows of a task for many queries, in the worst case of which the first k rows are all kept."""
    work = _CHUNK_WORK // nq
    rows = work // (dim + _PUSH_WORK)
    if rows > k:
        rows = (work - k * _PUSH_WORK) // dim
    return min(max(rows, _CHUNK_ROWS[0]), _CHUNK_ROWS[1])


def _cut(segments: Sequence[Segment], rows: int) -> list[_Chunk]:
    """Cut segments into chunks of at most `rows` rows that start at whole blocks."""
    step = max(rows // BLOCK, 1) * BLOCK
    return [
        _Chunk(segment, start, min(start + step, segment.n))
        for segment in segments
        for start in range(0, segment.n, step)
    ]


def _scan(
    chunks: Sequence[_Chunk],
    nq: int,
    k: int,
    threads: int,
    scan: Callable[[int, _Chunk, Float32Array, Int64Array], None],
) -> tuple[Float32Array, Int64Array]:
    """Call scan(worker, chunk, scores, ids) for all chunks and join what the workers kept, (nq, k), sorted."""
    workers = min(threads, len(chunks))
    scores, ids = np.full((workers, nq, k), -np.inf, np.float32), np.full((workers, nq, k), NO_ID, np.int64)
    run_parallel(chunks, workers, lambda worker, chunk: scan(worker, chunk, scores[worker], ids[worker]))
    joined_scores, joined_ids = scores.swapaxes(0, 1).reshape(nq, -1), ids.swapaxes(0, 1).reshape(nq, -1)
    order = np.lexsort((joined_ids, -joined_scores), axis=1)[:, :k]
    row = np.arange(nq)[:, np.newaxis]
    best = joined_ids[row, order]
    return joined_scores[row, order], np.where(best == NO_ID, -1, best)
