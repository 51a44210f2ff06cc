"""The search plan: which rows are scanned by which thread, and how their best are joined."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tqindex.checks import check_finite
from tqindex.codec.codes import QueryCodes
from tqindex.codec.packing import BLOCK
from tqindex.index.plan import EPS, BatchQueries, ScanPlan, deviations, encode_few_queries
from tqindex.index.segments import Segment
from tqindex.kernels.best import join_best
from tqindex.kernels.cascade import scan_rows_few
from tqindex.kernels.cpu import simd_level
from tqindex.kernels.queries import encode_queries
from tqindex.kernels.scan import NO_ID, scan_rows
from tqindex.kernels.threads import run_parallel

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

#: Queries up to this number are scanned one by one: a plane read once per query costs less than a tile's expansion.
FEW_QUERIES = 8
#: The same where no planes are read first, of scalar codes and of trellis codes: a batch expands a row once for all of
#: its queries, but multiplies 32 queries at least, which takes longest without wide registers.
_FEW_IN_FULL = {"amx": (2, 1), "avx512": (4, 2), "portable": (2, 2)}.get(simd_level(), (FEW_QUERIES, 2))
#: Multiply-adds of one task, some milliseconds: Ctrl-C is answered soon, and threads end at about the same time.
_CHUNK_WORK = 2**30
_CHUNK_ROWS = (256, 16_384)
#: What keeping a row costs, as multiply-adds, where the best k exceed the cache.
_PUSH_WORK = 2**12
#: Multiply-adds of one task for few queries, if every row were scored in full; at most some tenths of a second.
_FEW_WORK = 2**31
#: Rows of a task for few queries: a task's start costs as much as thousands of rows.
_SINGLE_ROWS = (4096, 131_072)
_SORTED_RESULTS = 2**21
#: Queries that one pass over the rows serves; their int8 levels stay in cache.
QUERY_BLOCK = 512
# Their arguments come as tuples, whose lengths mypy cannot follow.
_scan_rows_few: Any = scan_rows_few


#: The rows of a task, as the kernels take them: arrays and whether they are dense, first id, start, stop.
Chunk = tuple[tuple[Any, ...], int, int, int]
_Best = tuple[Float32Array, Int64Array]


class SearchResult(NamedTuple):
    """What `Index.search` returns.

    Attributes
    ----------
    scores : float32 (nq, k), or (k,) for a single query
        Estimated inner products or cosines, larger is better; under "l2" estimated squared distances, smaller is
        better (not clamped: an estimate may be slightly negative). Missing entries: -inf, under "l2" +inf.
    ids : int64 of the same shape; -1 where an entry is missing
    """

    scores: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int64]


class Found(NamedTuple):
    """The k best scores, float32, and ids, int64, of every query, (nq, k); and the share of rows scored in full."""

    scores: Float32Array
    ids: Int64Array
    scored: float


def search_rows(
    plan: ScanPlan, segments: Sequence[Segment], queries: Float32Array, k: int, threads: int, exact_scan: bool
) -> Found:
    """As `search_segments` for any number of queries, which need not be finite nor checked."""
    if len(queries) <= few_queries(plan, exact_scan):  # the kernel that encodes them looks for what is not finite
        return search_segments(plan, segments, queries, k, threads, exact_scan)
    check_finite(queries, "queries")
    scores, ids = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    # Of many results per query fewer queries go together: sorting theirs cannot be interrupted.
    step, scored = max(1, min(QUERY_BLOCK, _SORTED_RESULTS // k)), 1.0
    for first in range(0, len(queries), step):
        block = slice(first, first + step)
        found = search_segments(plan, segments, queries[block], k, threads, exact_scan, first_row=first)
        scores[block], ids[block], scored = found
    return Found(scores, ids, scored)


def few_queries(plan: ScanPlan, exact_scan: bool) -> int:
    """Return up to how many queries are scanned one by one."""
    if len(plan.stages) and not exact_scan:
        return FEW_QUERIES
    return _FEW_IN_FULL[plan.codec.kind == "trellis"]


def search_segments(
    plan: ScanPlan,
    segments: Sequence[Segment],
    queries: Float32Array,
    k: int,
    threads: int,
    exact_scan: bool = False,
    eps: float = EPS,
    first_row: int = 0,
) -> Found:
    """Return the k best of each of at most QUERY_BLOCK queries, float32 (nq, dim), best first, ties by the smaller id.

    Missing entries have score -inf and id -1. Few queries need not be finite, nor checked; messages count rows from
    `first_row`.

    Few queries go through the cascade, one by one: the probability that it loses any of a query's k best is at most
    eps, over the rotation. More queries, `exact_scan` or a plan without stages: every row is scored in full, and the
    result does not depend on `threads`, on the segments' cuts or on how many queries go together.
    """
    n = sum([segment.n_live for segment in segments])
    kept = min(k, n)
    if len(queries) > few_queries(plan, exact_scan):
        encoded = encode_queries(plan.codec, queries, plan.metric, first_row)
        best, scored = _search_many(plan, segments, encoded, kept, threads), 1.0
    else:
        margins = None if exact_scan or not kept else deviations(plan, kept, n, eps)
        few = encode_few_queries(plan, queries, margins, first_row)
        best, scored = _search_few(plan, segments, few, kept, threads)
    return Found(*(best if kept == k else _padded(best, k)), scored)


def _search_many(plan: ScanPlan, segments: Sequence[Segment], queries: QueryCodes, k: int, threads: int) -> _Best:
    """Score every row in full, tile by tile, against all queries at once."""
    batch, nq = BatchQueries.of(plan, queries), len(queries)
    chunks = cut_for_batch(plan, segments, nq, k)

    def scan(_: int, chunk: Chunk, scores: Float32Array, ids: Int64Array) -> None:
        scan_rows(*chunk, batch.tables, batch.queries, batch.sides_from(scores[:, 0]), (scores, ids))

    return _scan(chunks, nq, k, threads, scan)


def _search_few(
    plan: ScanPlan, segments: Sequence[Segment], queries: tuple[npt.NDArray[Any], ...], k: int, threads: int
) -> tuple[_Best, float]:
    """Read planes first, query by query; returns the share of rows scored in full too."""
    n, nq = sum([segment.n for segment in segments]), len(queries[0])
    rows = n if threads == 1 else min(max(n // (4 * threads), _SINGLE_ROWS[0]), _SINGLE_ROWS[1])
    chunks = _cut(segments, min(rows, _FEW_WORK // (plan.codec.dim * max(nq, 1))))
    counts, tables = [0] * max(threads, 1), (*plan.tables, plan.multiplier)

    def scan(worker: int, chunk: Chunk, scores: Float32Array, ids: Int64Array) -> None:
        counts[worker] += _scan_rows_few(*chunk, tables, queries, scores, ids)

    best = _scan(chunks, nq, k, threads, scan)
    live = sum([segment.n_live for segment in segments]) * nq
    return best, sum(counts) / live if live else 1.0


def cut_for_batch(plan: ScanPlan, segments: Sequence[Segment], nq: int, k: int = 0) -> list[Chunk]:
    """Cut segments into tasks for many queries, in the worst case of which the first k rows are all kept."""
    dim, work = plan.codec.dim, _CHUNK_WORK // max(nq, 1)
    rows = work // (dim + _PUSH_WORK)
    if rows > k:
        rows = (work - k * _PUSH_WORK) // dim
    return _cut(segments, min(max(rows, _CHUNK_ROWS[0]), _CHUNK_ROWS[1]))


def _cut(segments: Sequence[Segment], rows: int) -> list[Chunk]:
    """Cut segments into chunks of at most `rows` rows that start at whole blocks."""
    step = max(rows // BLOCK, 1) * BLOCK
    return [
        ((*segment.kernel_arrays, segment.is_dense), segment.first_id, start, min(start + step, segment.n))
        for segment in segments
        for start in range(0, segment.n, step)
    ]


def _scan(
    chunks: Sequence[Chunk],
    nq: int,
    k: int,
    threads: int,
    scan: Callable[[int, Chunk, Float32Array, Int64Array], None],
) -> _Best:
    """Call scan(worker, chunk, scores, ids) for all chunks and join what the workers kept, (nq, k), sorted."""
    workers = max(min(threads, len(chunks)), 1)
    scores, ids = np.empty((workers, nq, k), np.float32), np.empty((workers, nq, k), np.int64)
    scores.fill(-np.inf)
    ids.fill(NO_ID)
    if k:
        run_parallel(chunks, workers, lambda worker, chunk: scan(worker, chunk, scores[worker], ids[worker]))
        join_best(scores, ids)
    return scores[0], ids[0]


def _padded(best: _Best, k: int) -> _Best:
    """Return the best with missing entries up to k."""
    nq, kept = best[0].shape
    scores, ids = np.full((nq, k), -np.inf, np.float32), np.full((nq, k), -1, np.int64)
    scores[:, :kept], ids[:, :kept] = best
    return scores, ids
