"""Exhaustive search over encoded rows: expand a tile of codes once, multiply it with many queries, keep what counts.

Integer products equal `Codec`'s bit for bit, float32 scores are taken in its order of operations, and the best k are
kept tile by tile, so that no (nq, n) matrix exists.
"""

from typing import Any

import numpy as np

from tqindex.codec.packing import BLOCK
from tqindex.kernels.compile import inner_kernel, kernel
from tqindex.kernels.layout import padded_width
from tqindex.kernels.live import next_rows
from tqindex.kernels.product import (
    BLOCK_GROUPS,
    LANES,
    TILE,
    begin_tiles,
    end_tiles,
    expand_tile,
    multiply_tile,
)
from tqindex.kernels.simd_score import STRIP, THRESHOLDS, lowest_bit, make_next_reached

#: Marks an empty place among the best.
NO_ID = np.iinfo(np.int64).max
_MASK = 2**STRIP - 1
_next_reached, _next_reached_with_sketch = make_next_reached(False), make_next_reached(True)
# Numba's types give intrinsics the arguments of their code generators.
_lowest_bit: Any = lowest_bit


@inner_kernel
def push(scores: Any, ids: Any, q: Any, score: float, row_id: int) -> None:
    """Replace the worst of query q's k best, kept as a heap with the worst (lowest score, then largest id) on top."""
    k = scores.shape[1]
    place = 0
    while True:
        child = 2 * place + 1
        if child >= k:
            break
        other = child + 1
        if other < k and is_better(scores[q, child], ids[q, child], scores[q, other], ids[q, other]):
            child = other
        if not is_better(score, row_id, scores[q, child], ids[q, child]):
            break
        scores[q, place], ids[q, place] = scores[q, child], ids[q, child]
        place = child
    scores[q, place], ids[q, place] = score, row_id


@inner_kernel
def is_better(score: float, row_id: int, other_score: float, other_id: int) -> bool:
    """Order of results: larger score first, then smaller id."""
    return score > other_score or (score == other_score and row_id < other_id)


@inner_kernel
def _keep_best(reached: int, first: int, scores: Any, row_id: int, kept: Any, thresholds: Any) -> None:
    """Push one row for the queries, from `first` on, whose bit is set in `reached`."""
    best_scores, best_ids = kept
    left = np.uint32(reached)
    while left != 0:
        lane = np.int64(_lowest_bit(left))
        left &= left - np.uint32(1)
        q = first + lane
        if is_better(scores[lane], row_id, best_scores[q, 0], best_ids[q, 0]):
            push(best_scores, best_ids, q, scores[lane], row_id)
            thresholds[q] = best_scores[q, 0]


@inner_kernel
def _always(_kept: Any, _wanted: int) -> bool:
    return True


@inner_kernel
def _keep_all(reached: int, first: int, scores: Any, row_id: int, kept: Any, _thresholds: Any) -> None:
    """Note one row for the queries, from `first` on, whose bit is set in `reached`."""
    found_queries, found_scores, found_ids, count = kept
    left = np.uint32(reached)
    while left != 0:
        lane = np.int64(_lowest_bit(left))
        left &= left - np.uint32(1)
        found_queries[count[0]], found_scores[count[0]], found_ids[count[0]] = first + lane, scores[lane], row_id
        count[0] += 1


@inner_kernel
def _has_room(kept: Any, wanted: int) -> bool:
    room: int = kept[0].shape[0] - kept[3][0]
    return room >= wanted


def _make_scan(name: str, keep: Any, has_room: Any) -> Any:
    """Return a kernel that scores the live rows of start..stop against all queries and keeps those it is told to.

    scan(rows, first_id, start, stop, tables, queries, sides, kept) -> the row to go on with, `stop` unless room ended.
    Arrays of shape (0, ...) stand for sides that the codec or metric does not have.

    rows : (lead, rest, scales, sketch_scales, offsets, ids, live, dense), as `tqindex.kernels.rows.StoredRows`;
        without ids a row's id is first_id + row; live as `tqindex.kernels.live` has it
    tables : (bits, table, sketch_table, configuration)
    queries : (nq, packed, sketch_packed, multiplier), int8 as `pack_queries` makes them, nq of them real
    sides : float32 (6, columns), what belongs to each packed query; its thresholds are this call's own
    kept : what `keep` writes
    """

    def scan(rows: Any, first_id: int, start: int, stop: int, tables: Any, queries: Any, sides: Any, kept: Any) -> int:
        lead, rest, scales, sketch_scales, offsets, ids, live, _ = rows
        bits, table, sketch_table, configuration = tables
        nq, packed, sketch_packed, multiplier = queries
        has_sketch, has_offsets, has_ids = sketch_scales.shape[0] > 0, offsets.shape[0] > 0, ids.shape[0] > 0
        groups, depth = packed.shape[0], 4 * packed.shape[1]
        columns = LANES * groups
        work = np.zeros(lead.shape[0] * padded_width(lead.shape[2] // BLOCK), np.uint8)
        levels, signs = np.zeros((TILE, depth), np.uint8), np.zeros((TILE if has_sketch else 0, depth), np.uint8)
        flat_levels, flat_signs = levels.reshape(levels.size), signs.reshape(signs.size)
        flat_packed, flat_sketch = packed.reshape(packed.size), sketch_packed.reshape(sketch_packed.size)
        # A strip's products stay in the first cache until they are scored.
        products, sketch_products = np.empty(TILE * STRIP, np.int32), np.empty(TILE * STRIP, np.int32)
        numbers, tile_sides = np.empty(TILE, np.int64), np.zeros((3, TILE), np.float32)
        tile_scales, tile_sketch_scales, tile_offsets = tile_sides[0], tile_sides[1], tile_sides[2]
        flat_sides, scores = sides.reshape(sides.size), np.empty(STRIP, np.float32)
        thresholds = sides[THRESHOLDS]
        begin_tiles(configuration)
        next_row = start
        while next_row < stop and has_room(kept, TILE * nq):
            tile_rows, next_row = next_rows(live, next_row, stop, numbers)
            expand_tile(lead, rest, numbers, tile_rows, 0, bits, table, levels, work)
            if has_sketch:
                expand_tile(lead, rest, numbers, tile_rows, bits - 1, 1, sketch_table, signs, work)
            for r in range(tile_rows):
                tile_scales[r] = scales[numbers[r]]
                if has_sketch:
                    tile_sketch_scales[r] = sketch_scales[numbers[r]]
                if has_offsets:
                    tile_offsets[r] = offsets[numbers[r]]
            for group in range(0, groups, BLOCK_GROUPS):
                first = LANES * group
                multiply_tile(flat_levels, tile_rows, depth, flat_packed, group, products)
                if has_sketch:
                    multiply_tile(flat_signs, tile_rows, depth, flat_sketch, group, sketch_products)
                r = 0
                while True:
                    of_rows = (
                        tile_scales,
                        tile_sketch_scales,
                        tile_offsets,
                        r,
                        tile_rows,
                        has_offsets,
                        multiplier,
                        scores,
                    )
                    if has_sketch:
                        found = _next_reached_with_sketch(
                            products, sketch_products, flat_sides, columns, first, *of_rows
                        )
                    else:
                        found = _next_reached(products, products, flat_sides, columns, first, *of_rows)
                    r = found >> 32
                    if r == tile_rows:
                        break
                    row_id = ids[numbers[r]] if has_ids else first_id + numbers[r]
                    keep(found & _MASK, first, scores, row_id, kept, thresholds)
                    r += 1
        end_tiles()
        return next_row

    scan.__name__ = scan.__qualname__ = name  # by which compiled kernels are kept
    return kernel(scan)


#: Keeps the best k, kept = (scores, ids), float32 and int64 (nq, k), heaps as `push` keeps them.
scan_rows = _make_scan("scan_rows", _keep_best, _always)
#: Keeps all that reach the thresholds, while there is room for a tile: kept = (queries, scores, ids, count), int64,
#: float32, int64 and int64 (1,).
collect_rows = _make_scan("collect_rows", _keep_all, _has_room)
