"""Rotations of blocks of rows, in the oracle's order of operations (`tqindex.codec.rotation`)."""

from typing import Any

from tqindex.kernels.compile import kernel


@kernel
def rotate_rows(rows: Any, permutations: Any, signs: Any, scratch: Any) -> None:
    """Rotate rows, float32 (n, dim), in place; `HadamardRotation.apply`. scratch: float32 (dim,)."""
    n, dim = rows.shape
    width = signs.shape[2]
    for r in range(n):
        row = rows[r]
        for turn in range(permutations.shape[0]):
            for j in range(dim):
                scratch[j] = row[permutations[turn, j]]
            first, last = scratch[:width], scratch[dim - width :]
            for j in range(width):
                first[j] *= signs[turn, 0, j]
            walsh_hadamard(first)
            for j in range(width):
                last[j] *= signs[turn, 1, j]
            walsh_hadamard(last)
            for j in range(dim):
                row[j] = scratch[j]


@kernel
def walsh_hadamard(x: Any) -> None:
    """Unscaled transform of x, float32 (2**k,), in place: butterflies at distance 1, 2, 4, ..."""
    width = x.shape[0]
    distance = 1
    while distance < width:
        for start in range(0, width, 2 * distance):
            low, high = x[start : start + distance], x[start + distance : start + 2 * distance]
            for j in range(distance):
                a, b = low[j], high[j]
                low[j] = a + b
                high[j] = a - b
        distance *= 2


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
