"""Exhaustive search over encoded rows: expand a tile of codes once, multiply it with many queries, keep the best.

Integer products equal `Codec`'s bit for bit, float32 scores are taken in its order of operations, and the best k are
kept tile by tile, so that no (nq, n) matrix exists.
"""

from typing import Any

import numpy as np

from tqindex.codec.packing import BLOCK
from tqindex.kernels.compile import inner_kernel, kernel
from tqindex.kernels.layout import padded_width
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


@kernel
def scan_rows(
    rows: Any,
    first_id: int,
    start: int,
    stop: int,
    tables: Any,
    queries: Any,
    sides: Any,
    best_scores: Any,
    best_ids: Any,
) -> None:
    """Score rows start..stop against all queries and update the best k of each.

    Arrays of shape (0, ...) stand for sides that the codec or metric does not have.

    rows : (lead, rest, scales, sketch_scales, offsets, ids), as `tqindex.kernels.rows.StoredRows`; without ids a row's
        id is first_id + row
    tables : (bits, table, sketch_table, configuration)
    queries : (nq, packed, sketch_packed, multiplier), int8 as `pack_queries` makes them, nq of them real
    sides : float32 (6, columns), what belongs to each packed query; its thresholds are this call's own
    best_scores, best_ids : float32 and int64 (nq, k), heaps as `push` keeps them
    """
    lead, rest, scales, sketch_scales, offsets, ids = rows
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
    flat_sides = sides.reshape(sides.size)
    scores, tile_offsets = np.empty(STRIP, np.float32), np.zeros(TILE, np.float32)
    thresholds = sides[THRESHOLDS]
    thresholds[:] = np.inf
    for q in range(nq):
        thresholds[q] = best_scores[q, 0]
    begin_tiles(configuration)
    for tile in range(start, stop, TILE):
        tile_rows = min(TILE, stop - tile)
        expand_tile(lead, rest, tile, tile_rows, 0, bits, table, levels, work)
        if has_sketch:
            expand_tile(lead, rest, tile, tile_rows, bits - 1, 1, sketch_table, signs, work)
        if has_offsets:
            for r in range(tile_rows):
                tile_offsets[r] = offsets[tile + r]
        for group in range(0, groups, BLOCK_GROUPS):
            first = LANES * group
            multiply_tile(flat_levels, tile_rows, depth, flat_packed, group, products)
            if has_sketch:
                multiply_tile(flat_signs, tile_rows, depth, flat_sketch, group, sketch_products)
            row = 0
            while True:
                of_rows = scales, sketch_scales, tile, tile_offsets, row, tile_rows, has_offsets, multiplier, scores
                if has_sketch:
                    found = _next_reached_with_sketch(products, sketch_products, flat_sides, columns, first, *of_rows)
                else:
                    found = _next_reached(products, products, flat_sides, columns, first, *of_rows)
                row = found >> 32
                if row == tile_rows:
                    break
                row_id = ids[tile + row] if has_ids else first_id + tile + row
                keep_reached(found & _MASK, first, scores, row_id, best_scores, best_ids, thresholds)
                row += 1
    end_tiles()


@inner_kernel
def keep_reached(
    reached: int, first: int, scores: Any, row_id: int, best_scores: Any, best_ids: Any, thresholds: Any
) -> None:
    """Push one row for the queries, from `first` on, whose bit is set in `reached`."""
    left = np.uint32(reached)
    while left != 0:
        lane = np.int64(_lowest_bit(left))
        left &= left - np.uint32(1)
        q = first + lane
        if is_better(scores[lane], row_id, best_scores[q, 0], best_ids[q, 0]):
            push(best_scores, best_ids, q, scores[lane], row_id)
            thresholds[q] = best_scores[q, 0]
