"""Effort "search": each vector's codes are the best of several roundings of its coordinates.

Rounding t y instead of y, for a factor t around 1, gives other codes, and some z that they stand for lies closer to y
in direction; z's length does not count, since the stored scale makes up for it. The z of the largest cosine among all
that the levels can form is the rounding of some t y (take 1/t = <y, z> / |z|^2: flipping single codes cannot gain
more), so t is all that need be searched (extended RaBitQ, arXiv 2409.09913, does so on a uniform grid). Rounding t y
is rounding y with the boundaries stretched by 1/t; the stretches are the same few for every vector, dimension and
width.

Estimates stay unbiased, for any choice that sees y alone: given y = sqrt(dim) R u / r, the part of R q' across y is
as likely to point one way as the opposite one, so that <R q', z> is <q', u> <y, z> / (r sqrt(dim)) on average.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from tqindex.codec.codebook import Codebook

Effort = Literal["plain", "search"]
EFFORTS = ("plain", "search")
#: Widths with a boundary to stretch, and levels so few that it matters.
SEARCHED_WIDTHS = (2, 3, 4)
#: 21 stretches hold at least 95 % of what any number of them gains below 768 dimensions, 80 % at 1536, where that is
#: 2.3 % of the distortion at 4 bits and .1 % at 2. Measured on the sphere's law, not on data.
STRETCHES = np.arange(24, 45) / 32.0
#: Coordinates are compared in units of 2**-14, in which 65,536 of them sum up in int32.
UNITS = 2**14
#: Stretched boundaries are multiples of 2**-7, so that kernels answer all stretches from one histogram. This costs
#: nothing: 2**-7 is a thirtieth of the narrowest cell, and a boundary's error enters squared.
UNITS_PER_BIN = 2**7
#: 2.4 * 44/32 is the largest that occurs; a damaged codebook must not have kernels leave their histogram.
_LAST_BIN = 4 * UNITS // UNITS_PER_BIN


@dataclass(frozen=True, eq=False)
class StretchedCodebook:
    """A codebook with its boundaries stretched by every one of `STRETCHES`.

    Attributes
    ----------
    boundaries : float32 (stretches, 2**bits - 1), multiples of 2**-7, ascending in each row
    edges : int32 (stretches, 2**(bits - 1) - 1)
        The positive boundaries in units of 2**-7.
    levels : int64 (2**(bits - 1),)
        The positive levels.
    """

    boundaries: npt.NDArray[np.float32]
    edges: npt.NDArray[np.int32]
    levels: npt.NDArray[np.int64]

    @classmethod
    def of(cls, book: Codebook) -> "StretchedCodebook":
        """Stretch a codebook of 2, 3 or 4 bits; its boundaries are symmetric about 0."""
        half = 2 ** (book.bits - 1)
        positive = book.boundaries[half:].astype(np.float64)
        bins_per_one = UNITS // UNITS_PER_BIN
        edges = np.rint(STRETCHES[:, np.newaxis] * positive * bins_per_one).clip(0, _LAST_BIN).astype(np.int32)
        # At most 10 bits over a power of two: exact in float32.
        upper = edges.astype(np.float32) / np.float32(bins_per_one)
        boundaries = np.hstack([-upper[:, ::-1], np.zeros((len(upper), 1), np.float32), upper])
        return cls(boundaries, edges, book.levels[half:].astype(np.int64))

    def quantise(self, y: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """Return the codes of rows y, (n, dim), each by the boundaries that `choose` names."""
        choices = self.choose(y)
        codes = np.empty(y.shape, np.uint8)
        for choice, boundaries in enumerate(self.boundaries):
            rows = choices == choice
            codes[rows] = np.searchsorted(boundaries, y[rows], side="right")
        return codes

    def choose(self, y: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Return for each row the stretch with the largest <y, z>^2 / |z|^2, int64 (n,); of equal ones the smallest.

        Both sums are over magnitudes, |y_i| rounded down to units of 2**-14, and exact in integers; the score takes
        one product and one quotient in float64.
        """
        magnitudes = (np.abs(y) * np.float32(UNITS)).astype(np.int64)
        choices, best = np.zeros(len(y), np.int64), np.full(len(y), -1.0)
        for choice, edges in enumerate(self.edges):
            levels = self.levels[np.searchsorted(edges, magnitudes // UNITS_PER_BIN, side="right")]
            along = (magnitudes * levels).sum(axis=1).astype(np.float64)
            scores = along * along / (levels * levels).sum(axis=1).astype(np.float64)
            better = scores > best
            choices[better], best[better] = choice, scores[better]
        return choices
