"""The search plan: which rows are scanned by which thread, and how their best are joined."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.codec import Codec
from tqindex.codec.codes import QueryCodes
from tqindex.codec.packing import plane_bytes
from tqindex.index.segments import Segment
from tqindex.kernels.product import LANES, TILE_CONFIGURATION, WORD, pack_queries
from tqindex.kernels.scan import (
    BIASES,
    NO_ID,
    SHIFTS,
    SKETCH_SHIFTS,
    SKETCH_STEPS,
    STEPS,
    scan_rows,
)
from tqindex.kernels.scan_single import scan_rows_single
from tqindex.kernels.threads import run_parallel

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

#: Multiply-adds of one task, some milliseconds: Ctrl-C is answered soon, and threads end at about the same time.
_CHUNK_WORK = 2**30
_CHUNK_ROWS = (2048, 16_384)
#: Queries that one pass over the rows serves; their int8 levels stay in cache.
_QUERY_BLOCK = 512
# Their many arguments come as tuples, whose lengths mypy cannot follow.
_scan_rows: Any = scan_rows
_scan_rows_single: Any = scan_rows_single


@dataclass(frozen=True, eq=False)
class _Chunk:
    segment: Segment
    start: int
    stop: int


def search_segments(
    codec: Codec, segments: Sequence[Segment], queries: QueryCodes, k: int, threads: int
) -> tuple[Float32Array, Int64Array]:
    """Return the k best scores and ids per query, (nq, k), best first, ties by the smaller id.

    Missing entries have score -inf and id -1. The result does not depend on `threads` or on the segments' cuts.
    """
    nq = len(queries.levels)
    least, most = _CHUNK_ROWS
    rows = min(max(_CHUNK_WORK // (codec.dim * max(1, min(nq, _QUERY_BLOCK))), least), most)
    scores, ids = np.full((nq, k), -np.inf, np.float32), np.full((nq, k), -1, np.int64)
    chunks = [
        _Chunk(segment, start, min(start + rows, segment.n))
        for segment in segments
        for start in range(0, segment.n, rows)
    ]
    workers = min(threads, len(chunks))
    found = min(k, sum(segment.n for segment in segments))
    if not found or not nq:
        return scores, ids
    for first in range(0, nq, _QUERY_BLOCK):
        block = slice(first, min(first + _QUERY_BLOCK, nq))
        tables = _Tables(codec, queries[block])
        shape = (workers, block.stop - block.start, found)
        best_scores, best_ids = np.full(shape, -np.inf, np.float32), np.full(shape, NO_ID, np.int64)

        def scan(worker: int, chunk: _Chunk) -> None:
            tables.scan(chunk, best_scores[worker], best_ids[worker])  # noqa: B023 (runs within the loop)

        run_parallel(chunks, workers, scan)
        scores[block, :found], ids[block, :found] = _join(best_scores, best_ids, found)
    return scores, ids


class _Tables:
    """What `scan_rows` needs of codec and queries, in the form it takes."""

    def __init__(self, codec: Codec, queries: QueryCodes) -> None:
        book = codec.codebook
        self.bits = codec.bits
        # One level per combined code; the sketch's sign is the lowest bit.
        levels = np.repeat(book.levels, 2) if codec.kind == "prod" else book.levels
        biased = (levels.astype(np.int16) + 128).astype(np.uint8)
        self.table = np.tile(np.resize(biased, 16), 4) if codec.bits < 8 else np.zeros(64, np.uint8)
        self.sketch_table = np.tile(np.resize(np.array([0, 1], np.uint8), 16), 4)
        # 8 bits: 2 * sum((code - 128) * q) + sum(q) = 2 P - 255 sum(q); else sum(level * q) = P - 128 sum(q).
        self.multiplier, shift = (2, -255) if book.offset else (1, -128)
        self.packed = pack_queries(queries.levels)
        self.nq = len(queries.levels)
        self.sides = np.zeros((6, LANES * len(self.packed)), np.float32)
        self.sides[STEPS, : self.nq], self.sides[BIASES, : self.nq] = queries.steps, queries.biases
        self.sides[SHIFTS, : self.nq] = (queries.sums * np.int32(shift)).view(np.float32)
        self.sketch_packed = np.empty((0, 0, LANES, 4), np.int8)
        if queries.sketch_levels is not None and queries.sketch_steps is not None:
            self.sketch_packed = pack_queries(queries.sketch_levels)
            self.sides[SKETCH_STEPS, : self.nq] = queries.sketch_steps
            sums = queries.sketch_levels.sum(axis=1, dtype=np.int32)
            self.sides[SKETCH_SHIFTS, : self.nq] = (-sums).view(np.float32)
        self.single = self._pack_single() if self.nq == 1 and plane_bytes(codec.dim) >= WORD else None

    def scan(self, chunk: _Chunk, best_scores: Float32Array, best_ids: Int64Array) -> None:
        """Score one chunk of rows; best_scores and best_ids: (nq, k)."""
        rows = chunk.segment.rows
        arrays: tuple[Any, ...] = (rows.planes, rows.scales, rows.sketch_scales, rows.offsets, chunk.segment.ids)
        where: tuple[Any, ...] = (*map(_read_only, arrays), chunk.segment.first_id, chunk.start, chunk.stop)
        tables: tuple[Any, ...] = (self.bits, self.table, self.sketch_table)
        if self.single is not None:
            _scan_rows_single(*where, *tables, *self.single, best_scores, best_ids)
        else:
            packed: tuple[Any, ...] = (TILE_CONFIGURATION, self.nq, self.packed, self.sketch_packed, self.multiplier)
            _scan_rows(*where, *tables, *packed, self.sides.copy(), best_scores, best_ids)

    def _pack_single(self) -> tuple[Any, ...]:
        """Return the only query as `scan_rows_single` takes it."""
        sides, depth = self.sides[:, 0], 4 * self.packed.shape[1]
        shifts = sides.view(np.int32)
        # The first lane of the packed form is the query itself.
        query = self.packed[0, :, 0].reshape(depth)
        sketch_query = self.sketch_packed[0, :, 0].reshape(depth) if self.sketch_packed.size else np.empty(0, np.int8)
        return (
            np.ascontiguousarray(query),
            np.ascontiguousarray(sketch_query),
            self.multiplier,
            int(shifts[SHIFTS]),
            int(shifts[SKETCH_SHIFTS]),
            sides[STEPS],
            sides[SKETCH_STEPS],
            sides[BIASES],
        )


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a view in the one form for which the kernel is compiled, whether memory is ours or a mapped file's."""
    view = array.view(np.ndarray)
    view.flags.writeable = False
    return view


def _join(scores: Float32Array, ids: Int64Array, k: int) -> tuple[Float32Array, Int64Array]:
    """Join the workers' best, (workers, nq, k), and sort: larger score first, then smaller id."""
    scores, ids = np.concatenate(list(scores), axis=1), np.concatenate(list(ids), axis=1)
    order = np.lexsort((ids, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)
