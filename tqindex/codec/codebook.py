"""Scalar codebooks for a coordinate of a uniform point on the sphere of radius sqrt(dim).

The law (TurboQuant, arXiv 2504.19874, Lemma 1): for t = y / sqrt(dim), density proportional to
(1 - t^2)^((dim - 3) / 2) on [-1, 1]; N(0, 1) in the limit for y. With t = sin(theta):

    mass of [a, b]          = int cos(theta)^(dim - 2) dtheta        (Gauss-Legendre)
    first moment of [a, b]  = ((1 - a^2)^((dim-1)/2) - (1 - b^2)^((dim-1)/2)) / (dim - 1)

Widths 1 to 4 are Lloyd-Max codebooks (Lloyd 1982; Max 1960): centroid condition and midpoint boundaries iterated
to a fixed point. Kernels multiply int8 levels, so a centroid's value is step * level with level in [-127, 127].
256 Lloyd-Max levels do not fit int8, so width 8 is the uniform grid step * (code - 127.5) with the best step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

WIDTHS = (1, 2, 3, 4, 8)
_RESOLUTION = 2.0**20
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
#: Beyond this many standard deviations the law's mass is below 1e-40.
_TAIL = 14.0
_TOLERANCE = 1e-11
_MAX_ROUNDS = 100_000


@dataclass(frozen=True, eq=False)
class Codebook:
    """Levels and decision boundaries of one scalar quantiser.

    The value of a code is ``step * (levels[code] + offset)``; a coordinate y gets the code that counts the
    boundaries <= y.

    Attributes
    ----------
    bits : int
    centroids : float64 (2**bits,), multiples of 2**-20, ascending
    boundaries : float32 (2**bits - 1,), midpoints of the centroids, exact
    levels : int8 (2**bits,)
    step : float
    offset : float
        0, or .5 for 8 bits.
    distortion : float
        D_b: expected squared error per coordinate of the int8 levels; the coordinate's variance is 1.
    """

    bits: int
    centroids: Float64Array
    boundaries: npt.NDArray[np.float32]
    levels: npt.NDArray[np.int8]
    step: float
    offset: float
    distortion: float

    @property
    def values(self) -> Float64Array:
        """float64 (2**bits,): what each code stands for."""
        return self.step * (self.levels.astype(np.float64) + self.offset)

    @property
    def nbytes(self) -> int:
        """Bytes of what has to be known beside the codes."""
        return self.centroids.nbytes

    def quantise(self, y: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """Return the codes of coordinates of any shape."""
        return np.searchsorted(self.boundaries, y, side="right").astype(np.uint8)

    def get_config(self) -> dict[str, Any]:
        """Return the codebook as JSON types: centroids in units of 2**-20, and the distortion."""
        return {
            "centroids": [int(c) for c in np.rint(self.centroids * _RESOLUTION)],
            "distortion": self.distortion,
        }

    @classmethod
    def from_config(cls, bits: int, centroids: Sequence[int], distortion: float) -> "Codebook":
        """Rebuild a stored codebook; its numbers win over what this machine would compute.

        Raises
        ------
        ValueError
            Not 2**bits ascending centroids.
        """
        if len(centroids) != 2**bits or list(centroids) != sorted(set(centroids)):
            raise ValueError(f"a codebook of {bits} bits must have {2**bits} ascending centroids, got {len(centroids)}")
        return _from_centroids(bits, np.array(centroids, dtype=np.float64) / _RESOLUTION, distortion)


@lru_cache(maxsize=256)
def make_codebook(dim: int, bits: int) -> Codebook:
    """Compute the codebook of the given width for vectors of `dim` coordinates (cached).

    Parameters
    ----------
    dim : int, at least 2
    bits : {1, 2, 3, 4, 8}
    """
    law = SphereLaw(dim)
    positive = _grid_centroids(law) if bits == 8 else _lloyd_max(law, 2**bits // 2)
    centroids = np.concatenate([-positive[::-1], positive])
    book = _from_centroids(bits, centroids, 0.0)
    return _from_centroids(bits, book.centroids, law.distortion(book.boundaries, book.values))


class SphereLaw:
    """The law of sqrt(dim) times a coordinate of a uniform point on the unit sphere of R^dim."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.root = float(np.sqrt(dim))
        self.reach = min(self.root, _TAIL)
        self._total = 2.0 * float(self._integrate(np.linspace(0.0, self.reach, 9)).sum())

    def _integrate(self, edges: Float64Array) -> Float64Array:
        """Integral of cos(theta)^(dim - 2) between neighbouring edges, given in units of y."""
        half, nodes = self._nodes(edges)
        integrals: Float64Array = half * (np.cos(nodes) ** (self.dim - 2) * _WEIGHTS).sum(axis=1)
        return integrals

    def _nodes(self, edges: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Half the width of each cell as an angle, and the angles (cells, nodes) of its Gauss-Legendre nodes."""
        theta = np.arcsin(np.clip(edges / self.root, -1.0, 1.0))
        half = (theta[1:] - theta[:-1]) / 2.0
        middle = (theta[1:] + theta[:-1]) / 2.0
        return half, middle[:, np.newaxis] + half[:, np.newaxis] * _NODES

    def masses(self, edges: Float64Array) -> Float64Array:
        """Probability of each cell between neighbouring edges."""
        return self._integrate(edges) / self._total

    def moments(self, edges: Float64Array) -> Float64Array:
        """E[y; y in cell] of each cell between neighbouring edges."""
        with np.errstate(divide="ignore"):  # log 0 at the end of the sphere
            tail = np.exp((self.dim - 1) / 2.0 * np.log1p(-np.minimum((edges / self.root) ** 2, 1.0)))
        return (tail[:-1] - tail[1:]) * self.root / (self.dim - 1) / self._total

    def distortion(self, boundaries: npt.NDArray[Any], values: Float64Array) -> float:
        """E (y - value of its cell)^2, expanded with E y^2 = 1."""
        edges = self._edges(boundaries)
        masses, moments = self.masses(edges), self.moments(edges)
        return float(1.0 - 2.0 * (values * moments).sum() + (values**2 * masses).sum())

    def quadrature(self, boundaries: npt.NDArray[Any]) -> tuple[Float64Array, Float64Array]:
        """Return values y and weights, (cells, nodes) each: E f(y) is the sum of weights * f, cell by cell smooth."""
        half, nodes = self._nodes(self._edges(boundaries))
        weights = half[:, np.newaxis] * np.cos(nodes) ** (self.dim - 2) * _WEIGHTS / self._total
        return self.root * np.sin(nodes), weights

    def _edges(self, boundaries: npt.NDArray[Any]) -> Float64Array:
        """Ends of a quantiser's cells."""
        edges = np.concatenate([[-self.reach], boundaries.astype(np.float64), [self.reach]])
        clipped: Float64Array = np.clip(edges, -self.reach, self.reach)
        return clipped


def _lloyd_max(law: SphereLaw, levels: int) -> Float64Array:
    """Positive half of the symmetric Lloyd-Max codebook with 2 * levels centroids."""
    centroids = (np.arange(levels) + 0.5) / levels * min(3.0, law.reach)
    for _ in range(_MAX_ROUNDS):
        edges = np.concatenate([[0.0], (centroids[1:] + centroids[:-1]) / 2.0, [law.reach]])
        better = law.moments(edges) / law.masses(edges)
        change = float(np.abs(better - centroids).max())
        centroids = better
        if change < _TOLERANCE:
            return centroids
    raise ArithmeticError(f"Lloyd-Max did not converge for dim={law.dim}, {2 * levels} levels")


def _grid_centroids(law: SphereLaw) -> Float64Array:
    """Positive half of the 256-level uniform grid; bisection for d(distortion) / d(step) = 0."""
    places = np.arange(128) + 0.5
    # A grid that ends far beyond the sphere is never best; for dim = 2 it would be a second root.
    low, high = 0.5 / 128.0, min(8.0, 1.05 * law.root) / 128.0
    while high - low > _TOLERANCE:
        step = (low + high) / 2.0
        edges = np.append(np.minimum(np.arange(128) * step, law.reach), law.reach)
        if (places * law.moments(edges)).sum() > step * (places**2 * law.masses(edges)).sum():
            low = step
        else:
            high = step
    # An even multiple of 2**-20, so that the half step keeps every centroid a multiple.
    step = float(np.rint(low * _RESOLUTION / 2.0) * 2.0 / _RESOLUTION)
    return np.asarray(places * step, dtype=np.float64)


def _from_centroids(bits: int, centroids: Float64Array, distortion: float) -> Codebook:
    centroids = np.rint(centroids * _RESOLUTION) / _RESOLUTION
    boundaries = ((centroids[1:] + centroids[:-1]) / 2.0).astype(np.float32)
    if bits == 8:
        step, offset = float(centroids[128] * 2.0), 0.5
        levels = np.arange(-128, 128).astype(np.int8)
    else:
        step, offset = float(centroids[-1] / 127.0), 0.0
        levels = np.rint(centroids / step).astype(np.int8)
    return Codebook(bits, centroids, boundaries, levels, step, offset, distortion)
