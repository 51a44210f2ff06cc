"""Random projections made from a seed: two rotations, and the Gaussian matrix of the paper's sketch.

All arithmetic is float32 + - * in a stated order, without fused multiply-adds, so that every implementation
rounds alike (the order is part of the format).
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from tqindex.codec.random import RandomStream
from tqindex.codec.sums import tree_sum

Float32Array = npt.NDArray[np.float32]

ROTATIONS = ("hadamard", "dense")
#: Below this width a few rounds of Walsh-Hadamard are too far from a Haar rotation and a dense one costs little.
DENSE_BELOW = 64
_ROUNDS = 3
_ROWS_AT_ONCE = 32


class Projection(Protocol):
    """A linear map of R^dim made from a seed."""

    def apply(self, rows: Float32Array) -> Float32Array:
        """Return the images of rows (n, dim), shape (n, dim)."""

    def transpose(self, rows: Float32Array) -> Float32Array:
        """Return the images of rows (n, dim) under the transposed map, which for a rotation is the inverse."""


class HadamardRotation:
    """Three rounds of permutation, signs and Walsh-Hadamard transforms, in O(dim log dim), without padding.

    One round: permute all coordinates; multiply the first m = 2**k (the largest power of two <= dim) by random
    signs and transform them; the same for the last m. The permutation is what spreads sparse vectors when dim is
    far from a power of two (fast Johnson-Lindenstrauss, Ailon and Chazelle 2009; measured in tests/).

    Attributes
    ----------
    permutations : int32 (3, dim), row r maps coordinate permutations[r, j] to place j
    signs : float32 (3, 2, m), +-2**(-k/2): the transform's scale goes in with the sign
    """

    def __init__(self, dim: int, seed: int, key: int) -> None:
        self.dim = dim
        self.width = 1 << (dim.bit_length() - 1)
        stream = RandomStream(seed, key)
        scale = np.float32(np.sqrt(1.0 / self.width))
        self.permutations = np.empty((_ROUNDS, dim), np.int32)
        self.signs = np.empty((_ROUNDS, 2, self.width), np.float32)
        for r in range(_ROUNDS):
            self.permutations[r] = stream.permutation(dim)
            self.signs[r] = stream.signs(2 * self.width).reshape(2, self.width) * scale

    def apply(self, rows: Float32Array) -> Float32Array:
        """Return the rotated rows, shape (n, dim)."""
        first, last = slice(0, self.width), slice(self.dim - self.width, self.dim)
        for permutation, signs in zip(self.permutations, self.signs, strict=True):
            rows = rows[:, permutation]
            rows[:, first] = _walsh_hadamard(rows[:, first] * signs[0])
            rows[:, last] = _walsh_hadamard(rows[:, last] * signs[1])
        return rows

    def transpose(self, rows: Float32Array) -> Float32Array:
        """Undo `apply`, up to float32 rounding."""
        first, last = slice(0, self.width), slice(self.dim - self.width, self.dim)
        rows = rows.copy()
        for permutation, signs in zip(self.permutations[::-1], self.signs[::-1], strict=True):
            rows[:, last] = _walsh_hadamard(rows[:, last].copy()) * signs[1]
            rows[:, first] = _walsh_hadamard(rows[:, first].copy()) * signs[0]
            straight = np.empty_like(rows)
            straight[:, permutation] = rows
            rows = straight
        return rows


def _walsh_hadamard(rows: Float32Array) -> Float32Array:
    """Unscaled transform of contiguous rows (n, 2**k) in place: butterflies at distance 1, 2, 4, ..."""
    n, width = rows.shape
    distance = 1
    while distance < width:
        pairs = rows.reshape(n, width // (2 * distance), 2, distance)
        total = pairs[:, :, 0] + pairs[:, :, 1]
        np.subtract(pairs[:, :, 0], pairs[:, :, 1], out=pairs[:, :, 1])
        pairs[:, :, 0] = total
        distance *= 2
    return rows


class MatrixProjection:
    """A dense matrix, applied one input coordinate after the other: out += rows[:, i] * columns[i].

    Attributes
    ----------
    columns : float32 (dim, dim), the matrix transposed, C order
    """

    def __init__(self, columns: Float32Array) -> None:
        self.columns = np.ascontiguousarray(columns)

    def apply(self, rows: Float32Array) -> Float32Array:
        """Return rows times the transposed matrix, shape (n, dim)."""
        return _accumulate(rows, self.columns)

    def transpose(self, rows: Float32Array) -> Float32Array:
        """Return rows times the matrix, shape (n, dim)."""
        return _accumulate(rows, self.columns.T)


def _accumulate(rows: Float32Array, columns: Float32Array) -> Float32Array:
    out = np.zeros_like(rows)
    for i in range(rows.shape[1]):
        out += rows[:, i : i + 1] * columns[i]
    return out


def gaussian_projection(dim: int, seed: int, key: int) -> MatrixProjection:
    """Return the sketch matrix S of TurboQuant_prod (arXiv 2504.19874, Definition 1): i.i.d. N(0, 1) entries."""
    entries = RandomStream(seed, key).gaussians(dim * dim).reshape(dim, dim)
    return MatrixProjection(entries.astype(np.float32))


def dense_rotation(dim: int, seed: int, key: int) -> MatrixProjection:
    """Return a rotation from the Haar measure, as a product of Householder reflections (Stewart 1980).

    Reflection i acts on the last dim - i coordinates and sends the first of them to a Gaussian vector's
    direction; with random signs in front the product is Haar distributed. float64, sums by `tree_sum`.
    """
    stream = RandomStream(seed, key)
    columns = np.diag(stream.signs(dim).astype(np.float64))
    reflections = [_householder(stream.gaussians(dim - i)) for i in range(dim - 2, -1, -1)][::-1]
    # Rows of `columns` are independent: taken a few at a time they stay in cache.
    for first in range(0, dim, _ROWS_AT_ONCE):
        rows = columns[first : first + _ROWS_AT_ONCE]
        for i in range(min(first + len(rows), dim - 1) - 1, -1, -1):
            v, twice_inverse_square = reflections[i]
            block = rows[max(i - first, 0) :, i:]
            factors = tree_sum(block * v) * twice_inverse_square
            block -= factors[:, np.newaxis] * v
    return MatrixProjection(columns.astype(np.float32))


def _householder(v: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], float]:
    """Reflection that sends the first axis to the line of v: its normal, and 2 / |normal|^2."""
    # Adding the length with the sign of v[0] avoids cancellation; the random sign in front keeps the law.
    v[0] += np.copysign(np.sqrt(tree_sum(v * v)), v[0])
    return v, 2.0 / float(tree_sum(v * v))


def make_rotation(kind: str, dim: int, seed: int, key: int) -> HadamardRotation | MatrixProjection:
    """Return the rotation named `kind`, one of `ROTATIONS`."""
    return HadamardRotation(dim, seed, key) if kind == "hadamard" else dense_rotation(dim, seed, key)
