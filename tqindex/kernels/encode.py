"""Encoding of blocks of rows, equal bit for bit to `tqindex.codec.codec`."""

from typing import Any

import numpy as np

from tqindex.codec.effort import UNITS, UNITS_PER_BIN
from tqindex.kernels.compile import kernel

_LOW_BITS = np.uint64(0x0101010101010101)
_GATHER = np.uint64(0x0102040810204080)


@kernel
def fold(terms: Any, n: int) -> Any:
    """Sum terms[:n], float64, by the oracle's tree (`tqindex.codec.sums`); overwrites terms."""
    half = 1
    while half < n:
        half *= 2
    half //= 2
    while half > 0:
        for j in range(n - half):
            terms[j] += terms[half + j]
        n = half
        half //= 2
    return terms[0]


@kernel
def dot(a: Any, b: Any, scratch: Any) -> Any:
    """Inner product of float32 vectors in float64, summed by `fold`. scratch: float64 (dim,)."""
    for j in range(a.shape[0]):
        scratch[j] = np.float64(a[j]) * np.float64(b[j])
    return fold(scratch, a.shape[0])


@kernel
def to_length(row: Any, norm: float, length: float) -> None:
    """Scale a row of the given norm to `length`; a zero row stays zero."""
    factor = length / norm if norm != 0.0 else 0.0
    for j in range(row.shape[0]):
        row[j] = np.float32(np.float64(row[j]) * factor)


@kernel
def normalise_rows(rows: Any, norms: Any, scratch: Any) -> None:
    """Scale rows to norm 1 in place; writes the norms they had, float64 (n,), 0 where there is no direction."""
    for r in range(rows.shape[0]):
        norms[r] = np.sqrt(dot(rows[r], rows[r], scratch))
        to_length(rows[r], norms[r], 1.0)


@kernel
def centre_rows(rows: Any, center: Any, norms: Any, along: Any, scratch: Any) -> None:
    """Subtract the centre in place and scale to sqrt(dim); writes r and, if there is a centre, <c, u>.

    rows: float32 (n, dim); center: float32 (dim,) or (0,); norms, along: float64 (n,).
    """
    n, dim = rows.shape
    length = np.sqrt(np.float64(dim))
    for r in range(n):
        row = rows[r]
        if center.shape[0] > 0:
            for j in range(dim):
                row[j] -= center[j]
            along[r] = dot(row, center, scratch)
        norms[r] = np.sqrt(dot(row, row, scratch))
        to_length(row, norms[r], length)


@kernel
def choose_stretches(y: Any, norms: Any, edges: Any, levels: Any, choices: Any) -> None:
    """Write the row of `edges` with the largest <y, z>^2 / |z|^2, int64 (n,): `StretchedCodebook.choose`.

    Both sums need no coordinate again: each level of z adds its step above the level below to all coordinates beyond
    its edge, and number and sum of those are read off a histogram, summed up from its upper end.
    """
    stretches, inner = edges.shape
    counts = np.empty(edges.max() + 1, np.int32)
    sums = np.empty(counts.shape[0], np.int32)
    magnitudes = np.empty(y.shape[1], np.int32)
    for r in range(y.shape[0]):
        choices[r] = 0
        if norms[r] == 0.0:
            continue
        sum_tails(y[r], magnitudes, counts, sums)
        best = -1.0
        for choice in range(stretches):
            along = levels[0] * sums[0]
            square = levels[0] * levels[0] * counts[0]
            for i in range(inner):
                edge, lower, upper = edges[choice, i], levels[i], levels[i + 1]
                along += (upper - lower) * sums[edge]
                square += (upper * upper - lower * lower) * counts[edge]
            score = np.float64(along) * np.float64(along) / np.float64(square)
            if score > best:
                best = score
                choices[r] = choice


@kernel
def sum_tails(row: Any, magnitudes: Any, counts: Any, sums: Any) -> None:
    """Count and sum up, for each bin, the magnitudes in it or above, in units of 2**-14; the last bin is open.

    magnitudes: int32 (dim,), scratch; counts, sums: int32 (bins,).
    """
    last = counts.shape[0] - 1
    counts[:] = 0
    sums[:] = 0
    for j in range(row.shape[0]):
        magnitudes[j] = np.int32(np.abs(row[j]) * np.float32(UNITS))
    for j in range(row.shape[0]):
        place = min(magnitudes[j] // UNITS_PER_BIN, last)
        counts[place] += 1
        sums[place] += magnitudes[j]
    for place in range(last - 1, -1, -1):
        counts[place] += counts[place + 1]
        sums[place] += sums[place + 1]


@kernel
def quantise_rows(y: Any, norms: Any, boundaries: Any, choices: Any, uniform_step: float, codes: Any) -> None:
    """Count the boundaries <= y; codes: uint8 (n, padded), zeros beyond dim and for rows of norm 0.

    boundaries: float32 (stretches, 2**bits - 1), of which row r takes boundaries[choices[r]].
    A uniform_step above 0 is the 8-bit grid's, whose boundaries are its multiples.
    """
    n, dim = y.shape
    counts = np.empty(dim, np.int32)  # as wide as a coordinate, so that both fill a vector alike
    for r in range(n):
        row, out = y[r], codes[r]
        out[:] = 0
        if norms[r] == 0.0:
            continue
        if uniform_step > 0.0:
            for j in range(dim):
                code = np.floor(np.float64(row[j]) / uniform_step) + 128.0
                out[j] = np.uint8(min(max(code, 0.0), 255.0))
        else:
            counts[:] = 0
            for boundary in boundaries[choices[r]]:
                for j in range(dim):
                    counts[j] += np.int32(row[j] >= boundary)
            for j in range(dim):
                out[j] = np.uint8(counts[j])


@kernel
def scale_rows(
    y: Any, norms: Any, codes: Any, levels: Any, step: float, offset: float, unbiased: bool, scales: Any, scratch: Any
) -> None:
    """Write the scales of kind "mse": s = r sqrt(dim) / <y, z>, or r / sqrt(dim)."""
    n, dim = y.shape
    root = np.sqrt(np.float64(dim))
    for r in range(n):
        if norms[r] == 0.0:
            scales[r] = 0.0
            continue
        factor = 1.0
        if unbiased:
            for j in range(dim):
                scratch[j] = np.float64(y[r, j]) * (np.float64(levels[codes[r, j]]) + offset)
            factor = np.float64(dim) / (fold(scratch, dim) * step)
        scales[r] = np.float32(norms[r] / root * factor)


@kernel
def subtract_levels(
    y: Any, norms: Any, codes: Any, levels: Any, step: float, unbiased: bool, scales: Any, squares: Any, scratch: Any
) -> None:
    """Kind "prod": turn y into its residual e = y - a z in place; writes s = a r / sqrt(dim) and |e|^2."""
    n, dim = y.shape
    root = np.sqrt(np.float64(dim))
    for r in range(n):
        row = y[r]
        factor = 1.0 if norms[r] != 0.0 else 0.0
        if unbiased and norms[r] != 0.0:
            for j in range(dim):
                scratch[j] = np.float64(row[j]) * np.float64(levels[codes[r, j]])
            along = fold(scratch, dim) * step
            for j in range(dim):
                scratch[j] = np.float64(levels[codes[r, j]]) * np.float64(levels[codes[r, j]])
            factor = along / (fold(scratch, dim) * (step * step))
        scales[r] = np.float32(norms[r] / root * factor)
        value = np.float32(factor * step)
        for j in range(dim):
            row[j] = row[j] - value * np.float32(levels[codes[r, j]])
        squares[r] = dot(row, row, scratch)


@kernel
def sketch_rows(
    projected: Any, norms: Any, squares: Any, gaussian: bool, codes: Any, sketch_scales: Any, scratch: Any
) -> None:
    """Kind "prod": append the signs of S e to the codes as their lowest bit; writes g = f r / sqrt(dim)."""
    n, dim = projected.shape
    root = np.sqrt(np.float64(dim))
    for r in range(n):
        row = projected[r]
        if norms[r] == 0.0:
            sketch_scales[r] = 0.0
            continue
        for j in range(dim):
            codes[r, j] = np.uint8(codes[r, j] * 2 + (row[j] >= 0.0))
        if gaussian:
            factor = np.sqrt(np.pi / 2.0) * np.sqrt(squares[r]) / np.float64(dim)
        else:
            for j in range(dim):
                scratch[j] = np.abs(np.float64(row[j]))
            total = fold(scratch, dim)
            factor = squares[r] / total if total != 0.0 else 0.0
        sketch_scales[r] = np.float32(norms[r] / root * factor)


@kernel
def pack_rows(codes: Any, bits: int, planes: Any) -> None:
    """Pack codes, uint8 (n, 8 * m), to planes, uint8 (n, bits * m), most significant bit's plane first."""
    n = codes.shape[0]
    width = codes.shape[1] // 8
    words = codes.view(np.uint64)
    for r in range(n):
        for plane in range(bits):
            shift = np.uint64(bits - 1 - plane)
            for i in range(width):
                # The product moves the lowest bits of eight bytes into the top byte, the first one lowest.
                word = (words[r, i] >> shift) & _LOW_BITS
                planes[r, plane * width + i] = np.uint8((word * _GATHER) >> np.uint64(56))
