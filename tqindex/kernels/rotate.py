"""Rotations of blocks of rows, in the oracle's order of operations (`tqindex.codec.rotation`).

Rows are taken LANES at a time and transposed, so that every butterfly is one operation on vectors.
"""

from typing import Any

import numpy as np

from tqindex.kernels.compile import called_kernel, inner_kernel, kernel
from tqindex.kernels.simd_rotate import (
    LANES,
    make_butterflies,
    make_first_butterflies,
    make_permuted_butterflies,
    move_scaled,
    transpose_square,
)

#: Coordinates of a transform that are taken through all their steps while they are in the first cache.
_CACHED = 256
#: Coordinates that go through four steps in registers. Not a plain Python number, nor those after it: Numba would
#: compile a part once more for each of those that it is called with.
_IN_REGISTERS: Any = np.int64(16)
_ZERO: Any = np.int64(0)
_ONE: Any = np.int64(1)
_butterflies2, _butterflies4, _butterflies8, _butterflies16 = (make_butterflies(steps) for steps in (1, 2, 3, 4))
_first_butterflies16, _permuted_butterflies16 = make_first_butterflies(4), make_permuted_butterflies(4)
# Numba's types give intrinsics the arguments of their code generators.
_move_scaled: Any = move_scaled
_transpose_square: Any = transpose_square


@kernel
def rotate_rows(rows: Any, permutations: Any, signs: Any, work: Any, spare: Any) -> None:
    """Rotate rows, float32 (n, dim), in place; `HadamardRotation.apply`. work, spare: float32 (dim * LANES,)."""
    n, dim = rows.shape
    width, flat = signs.shape[2], rows.reshape(rows.size)
    flat_permutations, flat_signs = permutations.reshape(permutations.size), signs.reshape(signs.size)
    for first in range(0, n, LANES):
        count = min(LANES, n - first)
        squares = dim // LANES * LANES if count == LANES else 0
        for j in range(0, squares, LANES):
            _transpose_square(flat, first * dim + j, dim, work, j * LANES, LANES)
        for lane in range(count):
            for j in range(squares, dim):
                work[j * LANES + lane] = rows[first + lane, j]
        for turn in range(permutations.shape[0]):
            _rotate_lanes(work, spare, flat_permutations, flat_signs, turn, dim, width)
            work, spare = spare, work
        for j in range(0, squares, LANES):
            _transpose_square(work, j * LANES, LANES, flat, first * dim + j, dim)
        for lane in range(count):
            for j in range(squares, dim):
                rows[first + lane, j] = work[j * LANES + lane]


@inner_kernel
def _rotate_lanes(source: Any, target: Any, permutations: Any, signs: Any, turn: int, dim: int, width: int) -> None:
    """One round, from source to target, LANES rows at a time; permutations, signs: flat.

    Every block of coordinates goes through its first steps while it is in the first cache; blocks that only the second
    transform takes, those from `alone` on, do so as they are permuted.
    """
    places, first, last = turn * dim, 2 * turn * width, (2 * turn + 1) * width
    start, cached = dim - width, min(width, _CACHED)
    alone = (width - start + cached - 1) // cached * cached
    for block in range(0, width + width - alone, cached):
        at, scaled = (block, first) if block < width else (block - width + alone + start, last + alone - width)
        _begin_permuted(source, target, permutations, places + at, signs, scaled + block, at, cached)
    for j in range(width, start + alone):
        _move_scaled(target, j, source, permutations[places + j], np.float32(1))
    walsh_hadamard(target, _ZERO, width, cached)
    for block in range(0, alone, cached):
        _begin(target, signs, last + block, start + block, cached)
    walsh_hadamard(target, start, width, cached)


@inner_kernel
def _begin_permuted(
    source: Any, target: Any, permutations: Any, places: int, signs: Any, at: int, block: int, width: int
) -> None:
    """Permute, multiply by signs and transform coordinates block..block + width of target."""
    if width >= _IN_REGISTERS:
        for j in range(0, width, _IN_REGISTERS):
            _permuted_butterflies16(target, block + j, source, permutations, places + j, signs, at + j)
        walsh_hadamard(target, block, width, _IN_REGISTERS)
    else:
        for j in range(width):
            _move_scaled(target, block + j, source, permutations[places + j], signs[at + j])
        walsh_hadamard(target, block, width, _ONE)


@inner_kernel
def _begin(x: Any, signs: Any, at: int, block: int, width: int) -> None:
    """Multiply coordinates block..block + width by signs and transform them, in place."""
    if width >= _IN_REGISTERS:
        for j in range(0, width, _IN_REGISTERS):
            _first_butterflies16(x, block + j, signs, at + j)
        walsh_hadamard(x, block, width, _IN_REGISTERS)
    else:
        for j in range(block, block + width):
            _move_scaled(x, j, x, j, signs[at + j - block])
        walsh_hadamard(x, block, width, _ONE)


@kernel
def rotate_row(row: Any, permutations: Any, signs: Any, spare: Any) -> None:
    """As `rotate_rows` for one row, float32 (dim,), without the work on empty lanes; spare: float32 (dim,)."""
    dim, width = row.shape[0], signs.shape[2]
    start = dim - width
    square = np.empty(LANES * LANES, np.float32)
    for turn in range(permutations.shape[0]):
        for j in range(width):
            spare[j] = row[permutations[turn, j]] * signs[turn, 0, j]
        for j in range(width, dim):
            spare[j] = row[permutations[turn, j]]
        _transform(spare[:width], square)
        for j in range(width):
            spare[start + j] *= signs[turn, 1, j]
        _transform(spare[start:], square)
        for j in range(dim):  # an assignment of arrays would compile messages for some seconds
            row[j] = spare[j]


@inner_kernel
def _transform(x: Any, square: Any) -> None:
    """Transform one row, float32 (width,), as `walsh_hadamard` does; square: float32 (LANES * LANES,)."""
    width = x.shape[0]
    if width < square.shape[0]:
        distance = 1
        while distance < width:
            for start in range(0, width, 2 * distance):
                for i in range(start, start + distance):
                    a, b = x[i], x[i + distance]
                    x[i], x[i + distance] = a + b, a - b
            distance *= 2
        return
    for first in range(0, width, square.shape[0]):
        # Neighbours share a vector: transposed, their distances are those of vectors.
        _transpose_square(x, first, LANES, square, 0, LANES)
        walsh_hadamard(square, _ZERO, square.shape[0] // LANES, _ONE)
        _transpose_square(square, 0, LANES, x, first, LANES)
    walsh_hadamard(x, _ZERO, width // LANES, _ONE)


@called_kernel
def walsh_hadamard(x: Any, first: int, width: int, distance: int) -> None:
    """Unscaled transforms, in place, of coordinates first..first + width: distance, 2 distance, ..., width / 2.

    x: float32, flat, LANES per coordinate; width: a power of two. Up to four distances are taken in one pass; each sum
    is the same as in four.
    """
    while 8 * distance < width:
        for start in range(first, first + width, 16 * distance):
            for i in range(start, start + distance):
                _butterflies16(x, i, distance)
        distance *= 16
    if 4 * distance < width:
        for i in range(first, first + distance):
            _butterflies8(x, i, distance)
    elif 2 * distance < width:
        for i in range(first, first + distance):
            _butterflies4(x, i, distance)
    elif distance < width:
        for i in range(first, first + distance):
            _butterflies2(x, i, distance)


@kernel
def project_rows(rows: Any, columns: Any, scratch: Any) -> None:
    """Multiply rows, float32 (n, dim), in place by a matrix given by columns; `MatrixProjection.apply`."""
    n, dim = rows.shape
    for r in range(n):
        scratch[:] = 0
        for i in range(dim):
            factor = rows[r, i]
            column = columns[i]
            for j in range(dim):
                scratch[j] += factor * column[j]
        for j in range(dim):
            rows[r, j] = scratch[j]
