"""Attention on packed keys and values: products of keys with queries, sums of values by weights, and plain decoding.

Keys are strips of 16 tokens, values strips of 16 channels of a page (`tqindex.kernels.simd_kv`). Either way a strip is
multiplied with the same few vectors: queries, or the weights of a page's tokens times their norms. Each of these is the
sum of two int8 vectors, so that products are exact integers; what rounding loses is below 2**-15 of a vector's largest
number. A reading, (table, twice_shift, factor), tells what bytes stand for: factor * (u - twice_shift / 2). Whatever a
kernel computes is added to its output.

Of trellis codes the table is of windows, and norms end with starts (`tqindex.kernels.simd_kv_trellis`).
"""

from functools import cache
from typing import Any

import numpy as np

from tqindex.codec.trellis import WINDOW
from tqindex.kernels.compile import inner_kernel, kernel
from tqindex.kernels.cpu import simd_level
from tqindex.kernels.kv_layout import unit_codes
from tqindex.kernels.kv_norms import unpack_norm
from tqindex.kernels.simd import OPERATIONS
from tqindex.kernels.simd_kv import LANES, STEP, add_products, make_dot_strip, make_expand_strip
from tqindex.kernels.simd_kv_trellis import LaneWindows, StripWindows

_OPERATIONS = OPERATIONS[simd_level()]
#: Vectors that a strip is multiplied with at once: as many as there are registers for.
_AT_ONCE = 4
_COARSEST = 127
#: The second int8 vector is this much finer than the first.
_FINER = 254
#: float32 numbers below 2**22 are rounded to integers when this is added and subtracted again.
_ROUNDER = np.float32(1.5 * 2**23)
_LEAST = 2.0**-100
_ABSOLUTE = np.int32(0x7FFFFFFF)
_float32: Any = np.float32
# Numba's types give intrinsics the arguments of their code generators.
_add_products: Any = add_products


@inner_kernel
def _pack_vectors(vectors: Any, columns: int, parts: Any, packed: Any, sums: Any, steps: Any) -> None:
    """Write vectors, float32 (n, depth), as `dot_strip` takes them, in groups of columns / 2.

    parts : (coarse, fine, cell), int8 (depth,), zero beyond the vectors' end, and i32 (1,)
    packed : i32
    sums : i32 (2, n), of the int8 vectors; steps : float32 (2, n), what these are multiplied with
    """
    coarse, fine, cell = parts
    coarse_words, fine_words = coarse.view(np.int32), fine.view(np.int32)
    count = coarse_words.shape[0]
    for v in range(vectors.shape[0]):
        vector = vectors[v]
        bits = vector.view(np.int32)
        largest_bits = np.int32(0)  # absolute numbers are ordered as their bits are
        for j in range(bits.shape[0]):
            largest_bits = max(largest_bits, bits[j] & _ABSOLUTE)
        cell[0] = largest_bits
        largest = np.float64(cell.view(np.float32)[0])
        # What is smaller counts as 0: its inverse might overflow.
        inverse = _float32(_COARSEST / largest) if largest > _LEAST else _float32(0)
        coarse_sum, fine_sum = np.int32(0), np.int32(0)
        for j in range(vector.shape[0]):
            scaled = vector[j] * inverse
            rounded = (scaled + _ROUNDER) - _ROUNDER
            rest = ((scaled - rounded) * _float32(_FINER) + _ROUNDER) - _ROUNDER
            coarse[j], fine[j] = np.int8(rounded), np.int8(rest)
            coarse_sum += np.int32(rounded)
            fine_sum += np.int32(rest)
        sums[0, v], sums[1, v] = coarse_sum, fine_sum
        steps[0, v], steps[1, v] = largest / _COARSEST, largest / (_COARSEST * _FINER)
        group, column = v // (columns // 2), v % (columns // 2) * 2
        for step in range(count):
            place = (group * count + step) * columns + column
            packed[place], packed[place + 1] = coarse_words[step], fine_words[step]


@inner_kernel
def _add(
    products: Any, at: int, reading: Any, sums: Any, steps: Any, v: int, scales: Any, scale_at: int, out: Any
) -> None:
    """Add vector v's products with a strip to out = (array, place, lanes that count, room for 16 numbers)."""
    half, twice_shift = _float32(reading[2] * 0.5), np.int32(reading[1])
    shifts = np.int32(twice_shift * sums[0, v]), np.int32(twice_shift * sums[1, v])
    factors = half * steps[0, v], half * steps[1, v]
    array, to, lanes, room = out
    if lanes == LANES:
        _add_products(products, at, shifts, factors, scales, scale_at, array, to)
        return
    for lane in range(LANES):
        room[lane] = 0
    _add_products(products, at, shifts, factors, scales, scale_at, room, 0)
    for lane in range(lanes):
        array[to + lane] += room[lane]


@inner_kernel
def _unpack_norms(packed: Any, norms: Any) -> None:
    """Write norms of 16 bits as float32 seen as u32."""
    for i in range(packed.shape[0]):
        norms[i] = unpack_norm(packed[i])


@inner_kernel
def _write_lane_starts(norms: Any, first: int, start_mask: int, before: Any) -> None:
    """Write what stands before the codes of 16 rows, whose norms begin at `first`, as `LaneWindows` takes it."""
    words = before.view(np.uint32)
    for lane in range(LANES):
        words[lane] = np.uint32(norms[first + lane] & np.uint16(start_mask)) << np.uint32(24)


@inner_kernel
def _write_strip_starts(norms: Any, first: int, page: int, start_mask: int, before: Any) -> None:
    """Write what stands before the codes of a page's rows, whose norms begin at `first`, as `StripWindows` takes it."""
    for row in range(page):
        last = (row // STEP + 1) * (LANES * STEP) - STEP + row % STEP
        before[last], before[last - STEP] = np.uint8(norms[first + row] & np.uint16(start_mask)), np.uint8(0)


@cache
def _make_dot(bits: int, windows: Any) -> Any:
    """Return dot(n, ...), which multiplies a strip with n vectors, 1 or _AT_ONCE, as `make_dot_strip`'s does."""
    few, one = (make_dot_strip(_OPERATIONS, bits, columns, windows) for columns in (2 * _AT_ONCE, 2))

    def dot(
        n: int, words: Any, at: int, units: int, table: Any, before: Any, packed: Any, packed_at: int, products: Any
    ) -> None:
        if n == 1:
            one(words, at, units, table, before, packed, packed_at, products)
        else:
            few(words, at, units, table, before, packed, packed_at, products)

    return inner_kernel(dot)


@cache
def make_score_keys(bits: int, trellis: bool = False) -> Any:
    """Return score_keys(words, norms, reading, queries, at, tokens, out), for keys of so many bits.

    It adds the products of each head's first tokens with its queries to out[:, :, at : at + tokens].

    words : u32 (heads, strips, units, words, 16); norms : u16 (heads, 16 * strips)
    queries : float32 (heads, n, dim); out : float32 (heads, n, columns); tokens : int
    """
    dot, depth_of_unit = _make_dot(bits, LaneWindows if trellis else None), unit_codes(bits)
    start_mask = (1 << (WINDOW - bits)) - 1

    def score_keys(words: Any, packed_norms: Any, reading: Any, queries: Any, at: int, tokens: int, out: Any) -> None:
        heads, n, _ = queries.shape
        strips, units = words.shape[1], words.shape[2]
        strip_words, depth = units * words.shape[3] * LANES, units * depth_of_unit
        at_once = 1 if n == 1 else _AT_ONCE
        groups, group_words = (n + at_once - 1) // at_once, depth // STEP * 2 * at_once
        flat, table, packed = words.reshape(words.size), reading[0], np.zeros(groups * group_words, np.int32)
        parts = np.zeros(depth, np.int8), np.zeros(depth, np.int8), np.empty(1, np.int32)
        sums, steps = np.empty((2, n), np.int32), np.empty((2, n), np.float32)
        products, norms = np.empty(2 * _AT_ONCE * LANES, np.int32), np.empty(packed_norms.shape[1], np.uint32)
        scales, totals, before = norms.view(np.float32), np.empty(LANES, np.float32), np.empty(LANES * STEP, np.uint8)
        flat_out, columns = out.reshape(out.size), out.shape[2]
        for head in range(heads):
            _pack_vectors(queries[head], 2 * at_once, parts, packed, sums, steps)
            _unpack_norms(packed_norms[head], norms)
            for strip in range((tokens + LANES - 1) // LANES):
                first = strip * LANES
                count = min(LANES, tokens - first)
                word_at = (head * strips + strip) * strip_words
                if trellis:
                    _write_lane_starts(packed_norms[head], first, start_mask, before)
                for group in range(groups):
                    dot(at_once, flat, word_at, units, table, before, packed, group * group_words, products)
                    for v in range(group * at_once, min(n, (group + 1) * at_once)):
                        column, to = 2 * (v - group * at_once), (head * n + v) * columns + at + first
                        target = flat_out, to, count, totals
                        _add(products, column * LANES, reading, sums, steps, v, scales, first, target)

    return _named(score_keys, bits, trellis)


@kernel
def score_means(means: Any, page: int, queries: Any, at: int, tokens: int, out: Any) -> None:
    """Write the products of the means of each head's pages with its queries to out[:, :, at : at + tokens].

    means : uint16 (heads, pages, dim), the bits of bfloat16; queries : float32 (heads, n, dim)
    """
    heads, n, dim = queries.shape
    sums, bits = np.empty(LANES, np.float32), np.empty(dim, np.uint32)
    mean = bits.view(np.float32)
    for head in range(heads):
        for number in range((tokens + page - 1) // page):
            first, packed = number * page, means[head, number]
            for j in range(dim):
                bits[j] = np.uint32(packed[j]) << np.uint32(16)
            for v in range(n):
                total = _product(queries[head, v], mean, sums)
                out[head, v, at + first : at + min(tokens, first + page)] = total


@inner_kernel
def _product(a: Any, b: Any, sums: Any) -> Any:
    """Return the product of two vectors, float32, summed up in 16 lanes at once."""
    for lane in range(LANES):
        sums[lane] = 0
    for first in range(0, a.shape[0], LANES):
        left, right = a[first : first + LANES], b[first : first + LANES]
        for lane in range(left.shape[0]):
            sums[lane] += left[lane] * right[lane]
    total = _float32(0)
    for lane in range(LANES):
        total += sums[lane]
    return total


@cache
def make_sum_values(bits: int, trellis: bool = False) -> Any:
    """Return sum_values(words, norms, reading, weights, at, tokens, out), for values of so many bits.

    It adds each head's first tokens times weights[:, :, at : at + tokens] to out.

    words : u32 (heads, pages, strips, units, words, 16); norms : u16 (heads, pages * page)
    weights : float32 (heads, n, columns); out : float32 (heads, n, dim)
    """
    dot, depth_of_unit = _make_dot(bits, StripWindows if trellis else None), unit_codes(bits)
    start_mask = (1 << (WINDOW - bits)) - 1

    def sum_values(words: Any, packed_norms: Any, reading: Any, weights: Any, at: int, tokens: int, out: Any) -> None:
        heads, n, dim = out.shape
        pages, strips, units = words.shape[1], words.shape[2], words.shape[3]
        strip_words, page = units * words.shape[4] * LANES, units * depth_of_unit
        at_once = 1 if n == 1 else _AT_ONCE
        groups, group_words = (n + at_once - 1) // at_once, page // STEP * 2 * at_once
        flat, table, packed = words.reshape(words.size), reading[0], np.zeros(groups * group_words, np.int32)
        parts = np.zeros(page, np.int8), np.zeros(page, np.int8), np.empty(1, np.int32)
        sums, steps = np.empty((2, n), np.int32), np.empty((2, n), np.float32)
        products, norms = np.empty(2 * _AT_ONCE * LANES, np.int32), np.empty(page, np.uint32)
        scales, vectors = norms.view(np.float32), np.zeros((n, page), np.float32)
        before = np.empty(page * LANES, np.uint8)
        ones, totals, flat_out = np.ones(LANES, np.float32), np.empty(LANES, np.float32), out.reshape(out.size)
        for head in range(heads):
            for number in range((tokens + page - 1) // page):
                first = number * page
                count = min(page, tokens - first)
                _unpack_norms(packed_norms[head, first : first + page], norms)
                _weigh(weights[head], at + first, count, scales, vectors)
                _pack_vectors(vectors, 2 * at_once, parts, packed, sums, steps)
                for group in range(groups):
                    if trellis:
                        _write_strip_starts(packed_norms[head], first, page, start_mask, before)
                    for strip in range(strips):
                        channel = strip * LANES
                        word_at = ((head * pages + number) * strips + strip) * strip_words
                        dot(at_once, flat, word_at, units, table, before, packed, group * group_words, products)
                        for v in range(group * at_once, min(n, (group + 1) * at_once)):
                            column, to = 2 * (v - group * at_once), (head * n + v) * dim + channel
                            target = flat_out, to, min(LANES, dim - channel), totals
                            _add(products, column * LANES, reading, sums, steps, v, ones, 0, target)

    return _named(sum_values, bits, trellis)


@inner_kernel
def _weigh(weights: Any, at: int, count: int, norms: Any, vectors: Any) -> None:
    """Write a page's weights times norms to vectors, (n, page); 0 beyond `count`."""
    for v in range(vectors.shape[0]):
        source, vector = weights[v, at : at + count], vectors[v]
        for t in range(count):
            vector[t] = source[t] * norms[t]
        for t in range(count, vector.shape[0]):
            vector[t] = 0


@cache
def make_decode_keys(bits: int, trellis: bool = False) -> Any:
    """Return decode_keys(words, norms, reading, out), for keys of so many bits.

    It adds each head's first tokens to out, float32 (heads, tokens, dim); words, norms: as for `make_score_keys`.
    """
    expand = make_expand_strip(_OPERATIONS, bits, LaneWindows if trellis else None)
    depth_of_unit, start_mask = unit_codes(bits), (1 << (WINDOW - bits)) - 1

    def decode_keys(words: Any, packed_norms: Any, reading: Any, out: Any) -> None:
        heads, tokens, dim = out.shape
        strips, units = words.shape[1], words.shape[2]
        strip_words, depth = units * words.shape[3] * LANES, units * depth_of_unit
        flat, levels, norms = words.reshape(words.size), np.empty(depth * LANES, np.uint8), np.empty(LANES, np.uint32)
        scales, half, factor = norms.view(np.float32), _float32(reading[1] * 0.5), _float32(reading[2])
        before = np.empty(LANES * STEP, np.uint8)
        for head in range(heads):
            for first in range(0, tokens, LANES):
                _unpack_norms(packed_norms[head, first : first + LANES], norms)
                if trellis:
                    _write_lane_starts(packed_norms[head], first, start_mask, before)
                expand(flat, (head * strips + first // LANES) * strip_words, units, reading[0], before, levels)
                for lane in range(min(LANES, tokens - first)):
                    target, scale, lane_levels = out[head, first + lane], scales[lane] * factor, levels[lane * STEP :]
                    for j in range(dim):
                        place = j // STEP * (LANES * STEP) + j % STEP
                        target[j] += scale * (_float32(lane_levels[place]) - half)

    return _named(decode_keys, bits, trellis)


@cache
def make_decode_values(bits: int, trellis: bool = False) -> Any:
    """Return decode_values(words, norms, reading, out), for values of so many bits.

    It adds each head's first tokens to out, float32 (heads, tokens, dim); words, norms: as for `make_sum_values`.
    """
    expand = make_expand_strip(_OPERATIONS, bits, StripWindows if trellis else None)
    depth_of_unit, start_mask = unit_codes(bits), (1 << (WINDOW - bits)) - 1

    def decode_values(words: Any, packed_norms: Any, reading: Any, out: Any) -> None:
        heads, tokens, dim = out.shape
        pages, strips, units = words.shape[1], words.shape[2], words.shape[3]
        strip_words, page = units * words.shape[4] * LANES, units * depth_of_unit
        flat, levels, norms = words.reshape(words.size), np.empty(page * LANES, np.uint8), np.empty(page, np.uint32)
        scales, half, factor = norms.view(np.float32), _float32(reading[1] * 0.5), _float32(reading[2])
        before = np.empty(page * LANES, np.uint8)
        for head in range(heads):
            for first in range(0, tokens, page):
                _unpack_norms(packed_norms[head, first : first + page], norms)
                if trellis:
                    _write_strip_starts(packed_norms[head], first, page, start_mask, before)
                for strip in range(strips):
                    channel = strip * LANES
                    at = ((head * pages + first // page) * strips + strip) * strip_words
                    expand(flat, at, units, reading[0], before, levels)
                    for t in range(min(page, tokens - first)):
                        target, scale = out[head, first + t, channel : min(dim, channel + LANES)], scales[t] * factor
                        token_levels = levels[t // STEP * (LANES * STEP) + t % STEP :]
                        for lane in range(target.shape[0]):
                            target[lane] += scale * (_float32(token_levels[lane * STEP]) - half)

    return _named(decode_values, bits, trellis)


def _named(function: Any, bits: int, trellis: bool) -> Any:
    """Compile a kernel under the name by which it is kept."""
    function.__name__ = function.__qualname__ = f"{function.__name__}_{'trellis' if trellis else 'plain'}_{bits}"
    return kernel(function)
