"""Encoding of blocks of rows, equal bit for bit to `tqindex.codec.codec`."""

from typing import Any

import numpy as np

from tqindex.codec.effort import UNITS, UNITS_PER_BIN
from tqindex.kernels.compile import inner_kernel, kernel
from tqindex.kernels.simd_quantise import ENTRIES, make_quantise_row
from tqindex.kernels.simd_sums import CHUNK, add_terms, multiply_terms, scale_chunks, sum_chunk

# Numba's types give intrinsics the arguments of their code generators.
_add_terms: Any = add_terms
_multiply_terms: Any = multiply_terms
_scale_chunks: Any = scale_chunks
_sum_chunk: Any = sum_chunk
_quantise1, _quantise2, _quantise3, _quantise4, _quantise8 = (make_quantise_row(bits) for bits in (1, 2, 3, 4, 8))


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


@inner_kernel
def inner_product(a: Any, a_at: int, b: Any, b_at: int, n: int, terms: Any) -> Any:
    """As `dot`, of n coordinates of flat arrays; terms: float64, n rounded up to a multiple of CHUNK."""
    _multiply_terms(a, a_at, b, b_at, n, terms)
    half = CHUNK
    while half < n:
        half *= 2
    end = (n + CHUNK - 1) // CHUNK * CHUNK
    half //= 2
    while half >= CHUNK:
        for j in range(0, end - half, CHUNK):
            _add_terms(terms, j, half + j)
        end = half
        half //= 2
    return _sum_chunk(terms)


@inner_kernel
def quotient(a: float, b: float) -> float:
    """a / b, and 0 where b is 0."""
    return a / b if b != 0.0 else 0.0


@kernel
def prepare_rows(
    rows: Any, center: Any, normalised: bool, work: Any, lengths: Any, norms: Any, along: Any, terms: Any
) -> None:
    """Write rows to `work`: scaled to norm 1 if `normalised`, less the centre, then scaled to sqrt(dim).

    rows, work: float32 (n, dim); center: float32 (dim,) or (0,). Writes float64 (n,): lengths, the norms before the
    first scaling, if there is one; norms, those before the second; along, <c, u>, if there is a centre.
    """
    n, dim = rows.shape
    source, target = rows.reshape(rows.size), work.reshape(work.size)
    root, centred = np.sqrt(np.float64(dim)), center.shape[0] > 0
    for r in range(n):
        at = r * dim
        if not normalised and not centred:
            norms[r] = np.sqrt(inner_product(source, at, source, at, dim, terms))
            _scale_chunks(source, at, quotient(root, norms[r]), target, at, dim)
            continue
        factor = 1.0
        if normalised:
            lengths[r] = np.sqrt(inner_product(source, at, source, at, dim, terms))
            factor = quotient(1.0, lengths[r])
        _scale_chunks(source, at, factor, target, at, dim)
        if centred:
            for j in range(dim):
                target[at + j] -= center[j]
            along[r] = inner_product(target, at, center, 0, dim, terms)
        norms[r] = np.sqrt(inner_product(target, at, target, at, dim, terms))
        _scale_chunks(target, at, quotient(root, norms[r]), target, at, dim)


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
        if not 0.0 < norms[r] < np.inf:  # NaN and inf, which the caller refuses, would leave the histogram
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


@inner_kernel
def _quantise(
    bits: int, y: Any, at: int, n: int, tables: Any, table_at: int, planes: Any, plane_at: int, width: int, levels: Any
) -> None:
    if bits == 1:
        _quantise1(y, at, n, tables, table_at, planes, plane_at, width, levels)
    elif bits == 2:
        _quantise2(y, at, n, tables, table_at, planes, plane_at, width, levels)
    elif bits == 3:
        _quantise3(y, at, n, tables, table_at, planes, plane_at, width, levels)
    elif bits == 4:
        _quantise4(y, at, n, tables, table_at, planes, plane_at, width, levels)
    else:
        _quantise8(y, at, n, tables, table_at, planes, plane_at, width, levels)


@kernel
def quantise_rows(
    y: Any,
    norms: Any,
    bits: int,
    tables: Any,
    choices: Any,
    step: float,
    unbiased: bool,
    planes: Any,
    scales: Any,
    levels: Any,
    terms: Any,
) -> None:
    """Write the planes of rows y, float32 (n, dim), and the scales of kind "mse"; zeros for rows of norm 0.

    s = r sqrt(dim) / <y, z>, or r / sqrt(dim). tables: flat, as `make_quantise_row` searches them, of which row r takes
    number choices[r]; planes: uint8 (n, bits * width); levels: float32 (dim,), scratch.
    """
    n, dim = y.shape
    root, size, width = np.sqrt(np.float64(dim)), (bits + 1) * ENTRIES, planes.shape[1] // bits
    flat_y, flat_planes = y.reshape(y.size), planes.reshape(planes.size)
    for r in range(n):
        if norms[r] == 0.0:
            planes[r] = 0
            scales[r] = 0.0
            continue
        _quantise(bits, flat_y, r * dim, dim, tables, choices[r] * size, flat_planes, r * bits * width, width, levels)
        factor = 1.0
        if unbiased:
            factor = np.float64(dim) / (inner_product(flat_y, r * dim, levels, 0, dim, terms) * step)
        scales[r] = np.float32(norms[r] / root * factor)


@kernel
def quantise_to_residuals(
    y: Any,
    norms: Any,
    bits: int,
    tables: Any,
    choices: Any,
    step: float,
    unbiased: bool,
    planes: Any,
    scales: Any,
    squares: Any,
    levels: Any,
    terms: Any,
) -> None:
    """The same of kind "prod", without the last plane; turns y into its residual e = y - a z.

    Writes s = a r / sqrt(dim) and |e|^2, float64 (n,).
    """
    n, dim = y.shape
    root, size, width = np.sqrt(np.float64(dim)), (bits + 1) * ENTRIES, planes.shape[1] // (bits + 1)
    flat_y, flat_planes = y.reshape(y.size), planes.reshape(planes.size)
    for r in range(n):
        at = r * dim
        if norms[r] == 0.0:
            planes[r] = 0
            scales[r] = 0.0
            continue
        first = r * (bits + 1) * width
        _quantise(bits, flat_y, at, dim, tables, choices[r] * size, flat_planes, first, width, levels)
        factor = 1.0
        if unbiased:
            along = inner_product(flat_y, at, levels, 0, dim, terms) * step
            factor = along / (inner_product(levels, 0, levels, 0, dim, terms) * (step * step))
        scales[r] = np.float32(norms[r] / root * factor)
        value = np.float32(factor * step)
        for j in range(dim):
            flat_y[at + j] -= value * levels[j]
        squares[r] = inner_product(flat_y, at, flat_y, at, dim, terms)


@kernel
def sketch_rows(
    projected: Any,
    norms: Any,
    squares: Any,
    gaussian: bool,
    tables: Any,
    planes: Any,
    bits: int,
    sketch_scales: Any,
    signs: Any,
    terms: Any,
) -> None:
    """Kind "prod": write the signs of S e as the last of so many planes; writes g = f r / sqrt(dim).

    tables: flat, those of the boundary 0 and the levels -1 and 1; signs: float32 (dim,), scratch.
    """
    n, dim = projected.shape
    root, width = np.sqrt(np.float64(dim)), planes.shape[1] // bits
    flat, flat_planes = projected.reshape(projected.size), planes.reshape(planes.size)
    for r in range(n):
        if norms[r] == 0.0:
            sketch_scales[r] = 0.0
            continue
        _quantise1(flat, r * dim, dim, tables, 0, flat_planes, ((r + 1) * bits - 1) * width, width, signs)
        if gaussian:
            factor = np.sqrt(np.pi / 2.0) * np.sqrt(squares[r]) / np.float64(dim)
        else:
            factor = quotient(squares[r], inner_product(flat, r * dim, signs, 0, dim, terms))
        sketch_scales[r] = np.float32(norms[r] / root * factor)
