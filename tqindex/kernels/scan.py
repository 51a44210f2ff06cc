"""Exhaustive search over encoded rows: expand a tile of codes once, score it against many queries, keep the best.

Integer products equal `Codec`'s bit for bit, float32 scores are taken in its order of operations, and the best
k are kept tile by tile, so that no (nq, n) matrix exists.
"""

from typing import Any

import numpy as np

from tqindex.kernels.compile import kernel

_LOW_BITS = np.uint64(0x0101010101010101)
#: Multiplied with a byte, puts a copy of it into every byte of a word; bit i is then kept of byte i and moved down.
_SPREAD_MASK = np.uint64(0x8040201008040201)
_CARRY = np.uint64(0x7F7F7F7F7F7F7F7F)
_SEVEN = np.uint64(7)
#: Marks an empty place among the best.
NO_ID = np.iinfo(np.int64).max
TILE = 64


@kernel
def expand_rows(planes: Any, start: int, stop: int, bits: int, words: Any) -> None:
    """Undo `pack_rows` for rows start..stop; words: uint64 (rows, m), eight codes each."""
    width = words.shape[1]
    for r in range(start, stop):
        out = words[r - start]
        out[:] = 0
        for plane in range(bits):
            row = planes[r, plane * width : (plane + 1) * width]
            for i in range(width):
                kept = (np.uint64(row[i]) * _LOW_BITS) & _SPREAD_MASK
                # A byte that is not 0 carries into its highest bit.
                bit = (((kept & _CARRY) + _CARRY) | kept) >> _SEVEN
                out[i] = (out[i] << np.uint64(1)) | (bit & _LOW_BITS)


@kernel
def look_up(codes: Any, table: Any, levels: Any) -> None:
    """Replace codes, uint8 (rows, padded), by int8 levels, table int8 (2**bits,)."""
    for r in range(codes.shape[0]):
        row, out = codes[r], levels[r]
        for j in range(codes.shape[1]):
            out[j] = table[row[j]]


@kernel
def multiply_tile(levels: Any, query: Any, products: Any) -> None:
    """Inner products of int8 rows with an int8 query; products: int32 (rows,)."""
    for r in range(levels.shape[0]):
        row = levels[r]
        total = np.int32(0)
        for j in range(query.shape[0]):
            total = np.int32(total + np.int32(row[j]) * np.int32(query[j]))
        products[r] = total


@kernel
def push(scores: Any, ids: Any, score: float, row_id: int) -> None:
    """Replace the worst of the k best, kept as a heap with the worst (lowest score, then largest id) on top."""
    k = scores.shape[0]
    place = 0
    while True:
        child = 2 * place + 1
        if child >= k:
            break
        other = child + 1
        if other < k and is_better(scores[child], ids[child], scores[other], ids[other]):
            child = other
        if not is_better(score, row_id, scores[child], ids[child]):
            break
        scores[place], ids[place] = scores[child], ids[child]
        place = child
    scores[place], ids[place] = score, row_id


@kernel
def is_better(score: float, row_id: int, other_score: float, other_id: int) -> bool:
    """Order of results: larger score first, then smaller id."""
    return score > other_score or (score == other_score and row_id < other_id)


@kernel
def scan_rows(
    planes: Any,
    scales: Any,
    sketch_scales: Any,
    offsets: Any,
    ids: Any,
    first_id: int,
    start: int,
    stop: int,
    bits: int,
    level_table: Any,
    half_step: bool,
    queries: Any,
    steps: Any,
    sums: Any,
    biases: Any,
    sketch_queries: Any,
    sketch_steps: Any,
    best_scores: Any,
    best_ids: Any,
) -> None:
    """Score rows start..stop against all queries and update the best k of each.

    Arrays of shape (0,) stand for sides that the codec or metric does not have: sketch_scales, offsets, ids (then
    a row's id is first_id + row) and sketch_queries, sketch_steps (0, 0). queries, sketch_queries: int8
    (nq, padded); best_scores: float32 (nq, k), best_ids: int64 (nq, k), heaps as `push` keeps them.
    """
    padded = queries.shape[1]
    has_sketch, has_offsets, has_ids = sketch_scales.shape[0] > 0, offsets.shape[0] > 0, ids.shape[0] > 0
    words = np.empty((TILE, padded // 8), np.uint64)
    levels = np.empty((TILE, padded), np.int8)
    signs = np.empty((TILE if has_sketch else 0, padded), np.int8)
    sign_table = np.empty(level_table.shape[0], np.int8)
    for code in range(sign_table.shape[0]):
        sign_table[code] = 2 * (code & 1) - 1
    products = np.empty(TILE, np.int32)
    sketch_products = np.empty(TILE, np.int32)
    for tile in range(start, stop, TILE):
        rows = min(TILE, stop - tile)
        expand_rows(planes, tile, tile + rows, bits, words)
        codes = words[:rows].view(np.uint8)
        look_up(codes, level_table, levels)
        if has_sketch:
            look_up(codes, sign_table, signs)
        for q in range(queries.shape[0]):
            multiply_tile(levels[:rows], queries[q], products)
            if has_sketch:
                multiply_tile(signs[:rows], sketch_queries[q], sketch_products)
            scores, places = best_scores[q], best_ids[q]
            for r in range(rows):
                row = tile + r
                product = products[r]
                if half_step:
                    product = np.int32(2 * product + sums[q])
                score = scales[row] * (steps[q] * np.float32(product))
                if has_sketch:
                    score += sketch_scales[row] * (sketch_steps[q] * np.float32(sketch_products[r]))
                if has_offsets:
                    score += offsets[row]
                score += biases[q]
                if score >= scores[0]:
                    row_id = ids[row] if has_ids else first_id + row
                    if is_better(score, row_id, scores[0], places[0]):
                        push(scores, places, score, row_id)
