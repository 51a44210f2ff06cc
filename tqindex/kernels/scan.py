"""Exhaustive search over encoded rows: expand a tile of codes once, multiply it with many queries, keep what counts.

Integer products equal `Codec`'s bit for bit, float32 scores are taken in its order of operations, and the best k are
kept tile by tile, so that no (nq, n) matrix exists.
"""

from typing import Any

import numpy as np

from tqindex.codec.packing import BLOCK
from tqindex.kernels.bounds import EVERY, LARGEST_SCALE, LARGEST_STEP, inverse, next_reaching, set_bounds
from tqindex.kernels.compile import called_kernel, inner_kernel, kernel
from tqindex.kernels.cpu import simd_level
from tqindex.kernels.layout import padded_width
from tqindex.kernels.live import next_rows
from tqindex.kernels.product import (
    LANES,
    TILE,
    begin_tiles,
    end_tiles,
    expand_tile,
    multiply_tile,
)
from tqindex.kernels.room import LINE, first_line
from tqindex.kernels.simd_product import ROWS
from tqindex.kernels.simd_score import (
    INSERTED,
    STEPS,
    STRIP,
    THRESHOLDS,
    insert,
    lowest_bit,
    make_next_reached,
    make_seed,
)

#: Marks an empty place among the best.
NO_ID = np.iinfo(np.int64).max
_MASK = 2**STRIP - 1
_int64: Any = np.int64
#: A scan begins with thresholds from some of its rows, which are multiplied twice: so many tiles of one coordinate, at
#: most a share of all, for so few results.
_SEED_DEPTH, _SEED_SHARE, _MOST_SEEDS = 1536, 8, 32
_seed, _seed_with_sketch = make_seed(False), make_seed(True)
_next_reached, _next_reached_with_sketch = make_next_reached(False), make_next_reached(True)
# Numba's types give intrinsics the arguments of their code generators.
_lowest_bit: Any = lowest_bit
_insert: Any = insert
# A constant, so that other CPUs, for which the compiler takes masked vectors apart, need not compile it.
_HAS_INSERT = simd_level() in ("amx", "avx512", "avx2")


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
    k = best_scores.shape[1]
    left = np.uint32(reached)
    while left != 0:
        lane = np.int64(_lowest_bit(left))
        left &= left - np.uint32(1)
        q = first + lane
        if is_better(scores[lane], row_id, best_scores[q, 0], best_ids[q, 0]):
            # Either way the worst is on top.
            if _HAS_INSERT and k <= INSERTED:
                worst = _insert(best_scores, best_ids, q * k, k, scores[lane], row_id)
            else:
                push(best_scores, best_ids, q, scores[lane], row_id)
                worst = best_scores[q, 0]
            thresholds[q] = max(thresholds[q], worst)


@inner_kernel
def _k_of(kept: Any) -> int:
    k: int = kept[0].shape[1]
    return k


@inner_kernel
def _no_k(_kept: Any) -> int:
    return 0


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


@inner_kernel
def _fill_tile(rows: Any, tile_rows: int, tables: Any, room: Any) -> tuple[float, float, float]:
    """Expand the rows room.numbers[:tile_rows] and gather their side numbers.

    Returns the inverses of their least and largest scale, as `set_bounds` takes them, and their largest offset.
    """
    lead, rest, scales, sketch_scales, offsets = rows[:5]
    bits, table, sketch_table = tables[:3]
    # Numbers of one type, so that `expand_tile` is compiled once.
    work, levels, signs, numbers, tile_scales, tile_sketch_scales, tile_offsets = room
    expand_tile(lead, rest, numbers, tile_rows, _int64(0), _int64(bits), table, levels, work, scales)
    if sketch_scales.shape[0] > 0:
        expand_tile(lead, rest, numbers, tile_rows, _int64(bits - 1), _int64(1), sketch_table, signs, work, scales)
        for r in range(tile_rows):
            tile_sketch_scales[r] = sketch_scales[numbers[r]]
    least, largest, offset = np.inf, 0.0, 0.0
    for r in range(tile_rows):
        tile_scales[r] = scales[numbers[r]]
        least, largest = min(least, np.float64(tile_scales[r])), max(largest, np.float64(tile_scales[r]))
    if offsets.shape[0] > 0:
        offset = -np.inf
        for r in range(tile_rows):
            tile_offsets[r] = offsets[numbers[r]]
            offset = max(offset, np.float64(tile_offsets[r]))
    return inverse(least, LARGEST_SCALE), inverse(largest, LARGEST_SCALE), offset


@inner_kernel
def _multiply_strip(first: int, tile_rows: int, limits: Any, queries: Any, sides: Any, tile: Any) -> None:
    """Multiply a tile with the queries first..first + STRIP and note which rows may reach a threshold.

    limits: as `_fill_tile` returns them
    """
    of_least, of_largest, offset = limits
    _, flat_packed, flat_sketch, multiplier, columns, depth = queries
    flat_sides, shifts, _, inverse_steps = sides
    flat_levels, flat_signs, products, sketch_products, bounds, reaching = tile
    group = first // LANES
    if flat_sketch.size > 0:
        multiply_tile(flat_signs, tile_rows, depth, flat_sketch, group, sketch_products, bounds, reaching)
    else:
        set_bounds(flat_sides, shifts, columns, first, inverse_steps, of_least, of_largest, offset, multiplier, bounds)
    multiply_tile(flat_levels, tile_rows, depth, flat_packed, group, products, bounds, reaching)


@inner_kernel
def _raise_thresholds(thresholds: Any, nq: int, seeds: Any, k: int) -> None:
    """Take the last of each query's seeds as its threshold."""
    for q in range(nq):
        thresholds[q] = max(thresholds[q], seeds[(q // STRIP * k + k - 1) * STRIP + q % STRIP])


@inner_kernel
def _seed_tiles(start: int, stop: int, depth: int, k: int, threshold: float) -> int:
    """Return of how many tiles thresholds are taken before a scan, none where it begins with some."""
    if k == 0 or k > _MOST_SEEDS or threshold > -np.inf:
        return 0
    return min(_SEED_DEPTH // depth, (stop - start) // (_SEED_SHARE * TILE))


def _make_find(keep: Any) -> Any:
    """Return the part of a scan that takes a strip's scores."""

    @inner_kernel
    def find(
        first: int,
        tile_rows: int,
        rows: Any,
        first_id: int,
        queries: Any,
        sides: Any,
        tile: Any,
        room: Any,
        seeds: Any,
        k: int,
        scores: Any,
        kept: Any,
    ) -> None:
        """Take a strip's scores: the best as seeds, if there is room for them, or all that reach the thresholds."""
        ids = rows[5]
        _, _, flat_sketch, multiplier, columns, _ = queries
        flat_sides, _, thresholds, _ = sides
        _, _, products, sketch_products, _, reaching = tile
        _, _, _, numbers, tile_scales, tile_sketch_scales, tile_offsets = room
        has_sketch = flat_sketch.size > 0
        strip = products, sketch_products, flat_sides, columns, first, tile_scales, tile_sketch_scales, tile_offsets
        if k > 0:
            if has_sketch:
                _seed_with_sketch(*strip, tile_rows, multiplier, seeds, k)
            else:
                _seed(*strip, tile_rows, multiplier, seeds, k)
            return
        r = 0
        while True:
            end = tile_rows
            if not has_sketch:
                r = next_reaching(reaching, r, tile_rows)
                end = min(r + 1, tile_rows)
            if r >= tile_rows:
                break
            of_rows = r, end, multiplier, scores
            found = _next_reached_with_sketch(*strip, *of_rows) if has_sketch else _next_reached(*strip, *of_rows)
            r = found >> 32
            if r < end:
                row_id = ids[numbers[r]] if ids.shape[0] > 0 else first_id + numbers[r]
                keep(found & _MASK, first, scores, row_id, kept, thresholds)
                r += 1

    return find


def _make_scan(name: str, keep: Any, has_room: Any, wanted: Any) -> Any:
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
    find = _make_find(keep)

    # Apart from what allocates, so that no reference is counted: a count costs as much as the scores of 500 queries.
    @called_kernel
    def scan_tiles(
        rows: Any,
        first_id: int,
        start: int,
        stop: int,
        tables: Any,
        queries: Any,
        sides: Any,
        tile: Any,
        room: Any,
        seeds: Any,
        k: int,
        seed_tiles: int,
        scores: Any,
        kept: Any,
    ) -> int:
        nq, columns, live, numbers = queries[0], queries[4], rows[6], room[3]
        next_row = start
        while next_row < stop and has_room(kept, TILE * nq):
            tile_rows, next_row = next_rows(live, next_row, stop, numbers)
            limits = _fill_tile(rows, tile_rows, tables, room)
            seeded = k if seed_tiles > 0 else 0
            for first in range(0, columns, STRIP):
                _multiply_strip(first, tile_rows, limits, queries, sides, tile)
                find(first, tile_rows, rows, first_id, queries, sides, tile, room, seeds, seeded, scores, kept)
            if seed_tiles > 0:
                seed_tiles -= 1
                if seed_tiles == 0 or next_row >= stop:
                    _raise_thresholds(sides[2], nq, seeds, k)
                    next_row, seed_tiles = start, 0
        return next_row

    def scan(rows: Any, first_id: int, start: int, stop: int, tables: Any, queries: Any, sides: Any, kept: Any) -> int:
        lead, sketch_scales = rows[0], rows[3]
        nq, packed, sketch_packed, multiplier = queries
        planes, depth, columns = 2 if sketch_scales.shape[0] > 0 else 1, 4 * packed.shape[1], sides.shape[1]
        # Levels and products of a strip, which stay in the first cache until they are scored.
        level_bytes, product_bytes = TILE * depth, 4 * TILE * STRIP
        lines = np.zeros(planes * (level_bytes + product_bytes) + LINE, np.uint8)
        at = first_line(lines)
        levels, signs = lines[at : at + level_bytes], lines[at : at + planes * level_bytes][-level_bytes:]
        at += planes * level_bytes
        products = lines[at : at + product_bytes].view(np.int32)
        sketch_products = lines[at : at + planes * product_bytes][-product_bytes:].view(np.int32)
        bounds, reaching = np.full(STRIP, EVERY, np.int32), np.empty(TILE // ROWS, np.uint32)
        work = np.zeros(lead.shape[0] * padded_width(lead.shape[2] // BLOCK), np.uint8)
        numbers, tile_sides = np.empty(TILE, np.int64), np.zeros((3, TILE), np.float32)
        inverse_steps = np.empty(columns, np.float64)
        for column in range(columns):
            inverse_steps[column] = inverse(np.float64(sides[STEPS, column]), LARGEST_STEP)
        k, flat_sides = wanted(kept), sides.reshape(sides.size)
        seed_tiles = _seed_tiles(start, stop, depth, k, sides[THRESHOLDS, 0])
        seeds = np.full(columns * k if seed_tiles > 0 else 0, -np.inf, np.float32)
        begin_tiles(tables[3])
        next_row: int = scan_tiles(
            rows,
            first_id,
            start,
            stop,
            tables,
            (nq, packed.reshape(packed.size), sketch_packed.reshape(sketch_packed.size), multiplier, columns, depth),
            (flat_sides, flat_sides.view(np.int32), sides[THRESHOLDS], inverse_steps),
            (levels, signs, products, sketch_products, bounds, reaching),
            (
                work,
                levels.reshape(TILE, depth),
                signs.reshape(TILE, depth),
                numbers,
                tile_sides[0],
                tile_sides[1],
                tile_sides[2],
            ),
            seeds,
            k,
            seed_tiles,
            np.empty(STRIP, np.float32),
            kept,
        )
        end_tiles()
        return next_row

    scan.__name__ = scan.__qualname__ = name  # by which compiled kernels are kept
    return kernel(scan)


#: Keeps the best k, kept = (scores, ids), float32 and int64 (nq, k), heaps as `push` keeps them.
scan_rows = _make_scan("scan_rows", _keep_best, _always, _k_of)
#: Keeps all that reach the thresholds, while there is room for a tile: kept = (queries, scores, ids, count), int64,
#: float32, int64 and int64 (1,).
collect_rows = _make_scan("collect_rows", _keep_all, _has_room, _no_k)
