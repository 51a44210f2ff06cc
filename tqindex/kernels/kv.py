"""Attention on packed keys and values: decode them, multiply them with queries, sum them up by weights.

Rows are those of one block of a cache: `tokens` of each head, head after head, in which only the first few may count.
A reading of a row is a code book's levels, or the signs of a sketch:

    value = factor * (u - twice_shift / 2),      u the byte that `expand_tile` makes

with reading = (first_plane, bits, table, twice_shift, factor). What a kernel computes is added to its output.
"""

from typing import Any

import numpy as np

from tqindex.codec.packing import BLOCK
from tqindex.kernels.bounds import EVERY
from tqindex.kernels.compile import inner_kernel, kernel
from tqindex.kernels.kv_norms import unpack_norm
from tqindex.kernels.layout import padded_width
from tqindex.kernels.product import (
    BLOCK_GROUPS,
    DEPTH_MULTIPLE,
    LANES,
    LINE,
    TILE,
    TILE_CONFIGURATION,
    begin_tiles,
    end_tiles,
    expand_tile,
    first_line,
    multiply_tile,
    place_row,
)
from tqindex.kernels.simd_product import ROWS

_COLUMNS = LANES * BLOCK_GROUPS
#: A query is the sum of two int8 vectors, the second of which is this much finer.
_FINER = 254
#: Rows that are summed up together.
_AT_ONCE = 4
_int64: Any = np.int64
_float32: Any = np.float32


@inner_kernel
def _load_tile(
    rows: Any, first: int, count: int, reading: Any, levels: Any, numbers: Any, scales: Any, work: Any
) -> None:
    """Expand rows first..first + count, and unpack their norms to scales, float32 (TILE,) seen as u32."""
    lead, rest, norms = rows
    for r in range(count):
        numbers[r] = first + r
        scales[r] = unpack_norm(norms[first + r])
    expand_tile(lead, rest, numbers, count, _int64(reading[0]), _int64(reading[1]), reading[2], levels, work)


@inner_kernel
def _unpack_levels(levels: Any, r: int, dim: int, depth: int, half: Any, out: Any, out_at: int) -> None:
    """Write u - shift of a tile's row r as float32 (dim,)."""
    at, step = place_row(r, depth)
    for block in range(0, dim, DEPTH_MULTIPLE):
        for j in range(min(DEPTH_MULTIPLE, dim - block)):
            out[out_at + block + j] = _float32(levels[at + j]) - half
        at += step


@kernel
def decode_rows(rows: Any, tokens: int, reading: Any, out: Any) -> None:
    """Add the values of each head's first tokens to out, float32 (heads, tokens wanted, dim).

    rows : (lead, rest, norms) as `tqindex.kernels.rows.StoredRows` keeps them, but norms of 16 bits
    """
    heads, wanted, dim = out.shape
    depth = (dim + DEPTH_MULTIPLE - 1) // DEPTH_MULTIPLE * DEPTH_MULTIPLE
    levels, numbers, work = (
        np.zeros((TILE, depth), np.uint8),
        np.empty(TILE, np.int64),
        np.zeros(_work_bytes(rows[0]), np.uint8),
    )
    flat, scales, row = levels.reshape(levels.size), np.empty(TILE, np.uint32), np.empty(dim, np.float32)
    values, half, factor = scales.view(np.float32), _float32(reading[3] * 0.5), _float32(reading[4])
    for head in range(heads):
        for start in range(0, wanted, TILE):
            count = min(TILE, wanted - start)
            _load_tile(rows, head * tokens + start, count, reading, levels, numbers, scales, work)
            for r in range(count):
                _unpack_levels(flat, r, dim, depth, half, row, 0)
                scale, target = values[r] * factor, out[head, start + r]
                for j in range(dim):
                    target[j] += scale * row[j]


@kernel
def score_rows(rows: Any, tokens: int, reading: Any, queries: Any, at: int, count: int, out: Any) -> None:
    """Add the products of each head's first `count` tokens with its queries to out[:, :, at : at + count].

    rows : as `decode_rows` takes them
    queries : float32 (heads, n, dim); out : float32 (heads, n, columns)
    """
    heads, n, dim = queries.shape
    depth = (dim + DEPTH_MULTIPLE - 1) // DEPTH_MULTIPLE * DEPTH_MULTIPLE
    groups = (n + LANES - 1) // LANES
    level_bytes, packed_bytes = TILE * depth, 2 * groups * LANES * depth
    # Tiles are loaded and stored by whole cache lines.
    lines = np.zeros(level_bytes + packed_bytes + TILE * _COLUMNS * 4 + LINE, np.uint8)
    begin = first_line(lines)
    levels, packed = lines[begin : begin + level_bytes], lines[begin + level_bytes :][:packed_bytes].view(np.int8)
    products = lines[begin + level_bytes + packed_bytes :][: TILE * _COLUMNS * 4].view(np.int32)
    tile = (
        levels.reshape(TILE, depth),
        np.empty(TILE, np.int64),
        np.empty(TILE, np.uint32),
        np.zeros(_work_bytes(rows[0]), np.uint8),
    )
    sums, steps = np.empty((2, n), np.int32), np.empty((2, n), np.float32)
    scales = tile[2].view(np.float32)
    bounds, reaching = np.full(_COLUMNS, EVERY, np.int32), np.empty(TILE // ROWS, np.uint32)
    begin_tiles(TILE_CONFIGURATION)
    for head in range(heads):
        _pack_queries(queries[head], depth, packed, sums, steps)
        for start in range(0, count, TILE):
            tile_rows = min(TILE, count - start)
            _load_tile(rows, head * tokens + start, tile_rows, reading, *tile)
            for group in range(groups):
                multiply_tile(levels, tile_rows, depth, packed, 2 * group, products, bounds, reaching)
                for q in range(group * LANES, min(n, (group + 1) * LANES)):
                    target = out[head, q, at + start : at + start + tile_rows]
                    _add_scores(products, q % LANES, scales, reading, sums[:, q], steps[:, q], target)
    end_tiles()


@inner_kernel
def _pack_queries(queries: Any, depth: int, packed: Any, sums: Any, steps: Any) -> None:
    """Write each query as the sum of two int8 vectors, in two groups of lanes; sums and steps: (2, n)."""
    n, dim = queries.shape
    for q in range(n):
        largest = _float32(0)
        for j in range(dim):
            largest = max(largest, abs(queries[q, j]))
        step = np.float64(largest) / 127.0
        inverse = 127.0 / np.float64(largest) if largest > 0 else 0.0
        group_at = (2 * (q // LANES) * (depth // 4) * LANES + q % LANES) * 4
        coarse_sum, fine_sum = np.int32(0), np.int32(0)
        for j in range(dim):
            scaled = np.float64(queries[q, j]) * inverse
            coarse = np.rint(scaled)
            fine = np.rint((scaled - coarse) * _FINER)
            place = group_at + j // 4 * (4 * LANES) + j % 4
            packed[place], packed[place + depth * LANES] = np.int8(coarse), np.int8(fine)
            coarse_sum += np.int32(coarse)
            fine_sum += np.int32(fine)
        sums[0, q], sums[1, q] = coarse_sum, fine_sum
        steps[0, q], steps[1, q] = step, step / _FINER


@inner_kernel
def _add_scores(products: Any, lane: int, scales: Any, reading: Any, sums: Any, steps: Any, out: Any) -> None:
    """Turn one query's products with a tile into scores: exact integers until they are scaled in float32."""
    half = _float32(reading[4] * 0.5)
    twice_shift = np.int32(reading[3])
    coarse_shift, fine_shift = twice_shift * sums[0], twice_shift * sums[1]
    for r in range(out.shape[0]):
        coarse = _float32(2 * products[r * _COLUMNS + lane] - coarse_shift)
        fine = _float32(2 * products[r * _COLUMNS + LANES + lane] - fine_shift)
        out[r] += scales[r] * half * (steps[0] * coarse + steps[1] * fine)


@kernel
def sum_rows(rows: Any, tokens: int, reading: Any, weights: Any, at: int, count: int, out: Any) -> None:
    """Add to out the values of each head's first `count` tokens times weights[:, :, at : at + count].

    rows : as `decode_rows` takes them
    weights : float32 (heads, n, columns); out : float32 (heads, n, dim)
    """
    heads, n, dim = out.shape
    depth = (dim + DEPTH_MULTIPLE - 1) // DEPTH_MULTIPLE * DEPTH_MULTIPLE
    levels, numbers, work = (
        np.zeros((TILE, depth), np.uint8),
        np.empty(TILE, np.int64),
        np.zeros(_work_bytes(rows[0]), np.uint8),
    )
    flat, norms, values = levels.reshape(levels.size), np.empty(TILE, np.uint32), np.zeros(TILE * dim, np.float32)
    factors, total = np.zeros(TILE, np.float32), np.empty(dim, np.float32)
    scales, half, factor = norms.view(np.float32), _float32(reading[3] * 0.5), _float32(reading[4])
    for head in range(heads):
        for start in range(0, count, TILE):
            tile_rows = min(TILE, count - start)
            _load_tile(rows, head * tokens + start, tile_rows, reading, levels, numbers, norms, work)
            for r in range(tile_rows):
                _unpack_levels(flat, r, dim, depth, half, values, r * dim)
            for q in range(n):
                for r in range(tile_rows):
                    factors[r] = weights[head, q, at + start + r] * scales[r] * factor
                for r in range(tile_rows, (tile_rows + _AT_ONCE - 1) // _AT_ONCE * _AT_ONCE):
                    factors[r] = 0
                total[:] = out[head, q]
                _sum_tile(values, factors, tile_rows, total)
                out[head, q] = total


@inner_kernel
def _sum_tile(values: Any, factors: Any, rows: int, total: Any) -> None:
    """Add rows of values times factors to total, few at a time, since the total is loaded and stored each time."""
    dim = total.shape[0]
    for r in range(0, rows, _AT_ONCE):
        a, b, c, d = factors[r], factors[r + 1], factors[r + 2], factors[r + 3]
        at = r * dim
        for j in range(dim):
            first = a * values[at + j] + b * values[at + dim + j]
            total[j] += first + (c * values[at + 2 * dim + j] + d * values[at + 3 * dim + j])


@inner_kernel
def _work_bytes(lead: Any) -> int:
    """Bytes of the room that `expand_tile` needs."""
    size: int = lead.shape[0] * padded_width(lead.shape[2] // BLOCK)
    return size
