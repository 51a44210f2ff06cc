"""Rotations of blocks of rows, in the oracle's order of operations (`tqindex.codec.rotation`).

Rows are taken LANES at a time and transposed, so that every butterfly is one operation on vectors.
"""

from typing import Any

import numpy as np

from tqindex.kernels.compile import inner_kernel, kernel
from tqindex.kernels.simd_rotate import LANES, butterfly2, butterfly4, move_scaled, transpose_square

#: Coordinates of a transform that are taken through all their steps while they are in the first cache.
_CACHED = 256
# Numba's types give intrinsics the arguments of their code generators.
_butterfly2: Any = butterfly2
_butterfly4: Any = butterfly4
_move_scaled: Any = move_scaled
_transpose_square: Any = transpose_square


@kernel
def rotate_rows(rows: Any, permutations: Any, signs: Any, work: Any, spare: Any) -> None:
    """Rotate rows, float32 (n, dim), in place; `HadamardRotation.apply`. work, spare: float32 (dim * LANES,)."""
    n, dim = rows.shape
    width = signs.shape[2]
    start = dim - width
    flat = rows.reshape(rows.size)
    for first in range(0, n, LANES):
        count = min(LANES, n - first)
        squares = dim // LANES * LANES if count == LANES else 0
        for j in range(0, squares, LANES):
            _transpose_square(flat, first * dim + j, dim, work, j * LANES, LANES)
        for lane in range(count):
            for j in range(squares, dim):
                work[j * LANES + lane] = rows[first + lane, j]
        for turn in range(permutations.shape[0]):
            for j in range(dim):
                sign = signs[turn, 0, j] if j < width else np.float32(1)
                _move_scaled(spare, j, work, permutations[turn, j], sign)
            walsh_hadamard(spare, 0, width)
            for j in range(width):
                _move_scaled(spare, start + j, spare, start + j, signs[turn, 1, j])
            walsh_hadamard(spare, start, width)
            work, spare = spare, work
        for j in range(0, squares, LANES):
            _transpose_square(work, j * LANES, LANES, flat, first * dim + j, dim)
        for lane in range(count):
            for j in range(squares, dim):
                rows[first + lane, j] = work[j * LANES + lane]


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
        row[:] = spare


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
        walsh_hadamard(square, 0, LANES)
        _transpose_square(square, 0, LANES, x, first, LANES)
    walsh_hadamard(x, 0, width // LANES)


@inner_kernel
def walsh_hadamard(x: Any, first: int, width: int) -> None:
    """Unscaled transforms, in place, of coordinates first..first + width, width a power of two: distance 1, 2, 4, ...

    x: float32, flat, LANES per coordinate. Two distances are taken in one pass; each sum is the same as in two.
    """
    cached = min(width, _CACHED)
    for block in range(first, first + width, cached):
        walsh_hadamard_steps(x, block, cached, 1)
    if cached < width:
        walsh_hadamard_steps(x, first, width, cached)


@inner_kernel
def walsh_hadamard_steps(x: Any, first: int, width: int, distance: int) -> None:
    """The steps of `walsh_hadamard` from `distance` on."""
    while 2 * distance < width:
        for start in range(first, first + width, 4 * distance):
            for i in range(start, start + distance):
                _butterfly4(x, i, distance)
        distance *= 4
    if distance < width:
        for start in range(first, first + width, 2 * distance):
            for i in range(start, start + distance):
                _butterfly2(x, i, distance)


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
        rows[r] = scratch
