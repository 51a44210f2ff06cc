"""Trellis codes: every value depends on the bits of its neighbours too, at the cost of no bit more.

A row is one stream of bits: coordinate j emits e_j, b = 2, 3 or 4 bits of it. What e_j stands for is decided by the
last WINDOW = 8 bits of the stream, the window

    w_j = (w_{j-1} << b | e_j) & 255,

which selects one of 256 levels: z_j = step * levels[w_j]. So a coordinate chooses among 2**b values, but which ones
these are depends on the choices before, and the encoder picks the whole path of windows with the least squared
error (Viterbi's algorithm). This is trellis-coded quantisation (Marcellin and Fischer 1990) in the form of a shift
register (bitshift trellis: QTIP, arXiv 2406.11235).

The encoder also chooses the 8 - b bits before the row, its start w_{-1}. In 100 dimensions that saves a tenth of the
error that a start of zeros would leave, and it takes no byte: the lowest 8 bits of a row's scale, a float32, hold it.
The scale is the nearest that does, at most 2**-16 of its size away, and it is used as it is.

The levels are constants, made for the normal law by `tqindex.bench.trellis`: a rotated row's coordinates have nearly
that law in any dimension (`tqindex.codec.codebook` has the exact one).

The search is part of the format and takes integers alone:

    Y_j     = rint(y_j * (fineness / step)), at most LIMIT either way
    m(j, w) = min(|Y_j - fineness * levels[w]|, 255)**2 >> 2

A state is the last 8 - b bits; its cost is the least sum of m over all paths that end in it, less the least of all
states at every step (which changes no choice, and keeps costs below 2**16: any state can be reached in three steps).
All states begin with cost 0. Of two equal paths into a state the one whose window has the smaller bits on top is kept,
and of equal states at the end the smallest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.codec.trellis_levels import DISTORTIONS, FINENESS, LEVELS, STEPS

Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]
Int16Array = npt.NDArray[np.int16]

TRELLIS_BITS = (2, 3, 4)
#: Bits of the stream that select a level.
WINDOW = 8
#: Largest coordinate in the search's units; beyond the outermost level only the order of levels counts.
LIMIT = 4095
#: Distances count up to here, and their squares are shifted by so many bits: metrics below 2**14.
FARTHEST, METRIC_SHIFT = 255, 2
#: Bits of a scale that hold a start.
START_BITS = 8
_MAGNITUDE = np.uint32(2**31 - 1)
#: Levels of a damaged file must not leave int16.
_MOST_FINENESS = 16
_RESOLUTION = 2.0**20
#: Rows that are encoded together, and numbers of the table of choices at most.
_ROWS_AT_ONCE, _MOST_CHOICES = 512, 2**25


@dataclass(frozen=True, eq=False)
class TrellisCodebook:
    """What a trellis code's windows stand for: ``step * levels[window]``.

    Attributes
    ----------
    bits : int
        b: how many each coordinate emits.
    levels : int8 (256,), by window
    step : float, a multiple of 2**-20
    fineness : int
        Units of the encoder's integers to one level.
    distortion : float
        Expected squared error per coordinate of variance 1, in long rows of the normal law, measured.
    offset : float
        0, as in `tqindex.codec.codebook.Codebook`.
    """

    bits: int
    levels: npt.NDArray[np.int8]
    step: float
    fineness: int
    distortion: float
    offset: float = 0.0

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """float64 (256,): what each window stands for."""
        return self.step * self.levels.astype(np.float64)

    @property
    def targets(self) -> Int16Array:
        """int16 (256,): what each window stands for, in the units of the search."""
        return self.levels.astype(np.int16) * np.int16(self.fineness)

    @property
    def nbytes(self) -> int:
        """Bytes of what has to be known beside the codes."""
        return self.levels.nbytes

    def quantise(self, y: npt.NDArray[np.float32]) -> tuple[UInt8Array, UInt8Array]:
        """Return the bits that each coordinate emits, uint8 (n, dim), and starts, uint8 (n,), of rows y, (n, dim)."""
        codes, starts = np.empty(y.shape, np.uint8), np.empty(len(y), np.uint8)
        step = min(_ROWS_AT_ONCE, max(1, _MOST_CHOICES // (y.shape[1] << (WINDOW - self.bits))))
        for first in range(0, len(y), step):
            rows = slice(first, first + step)
            codes[rows], starts[rows] = find_paths(self.to_units(y[rows]), self.targets, self.bits)
        return codes, starts

    def to_units(self, y: npt.NDArray[np.float32]) -> Int16Array:
        """Return coordinates in the units of the search."""
        units = np.rint(y.astype(np.float64) * (self.fineness / self.step))
        return units.clip(-LIMIT, LIMIT).astype(np.int16)

    def expand(self, codes: UInt8Array, starts: UInt8Array) -> npt.NDArray[np.int8]:
        """Return the levels of rows of codes, int8 (n, dim)."""
        return self.levels[windows_of(codes, starts, self.bits)]

    def get_config(self) -> dict[str, Any]:
        """Return the codebook as JSON types: the step in units of 2**-20."""
        return {
            "levels": self.levels.tolist(),
            "step": int(np.rint(self.step * _RESOLUTION)),
            "fineness": self.fineness,
            "distortion": self.distortion,
        }

    @classmethod
    def from_config(
        cls, bits: int, levels: Sequence[int], step: int, fineness: int, distortion: float
    ) -> "TrellisCodebook":
        """Rebuild a stored codebook.

        Raises
        ------
        ValueError
            Not 256 levels of int8, or a step or fineness that the search cannot take.
        """
        table = np.array(levels)
        if table.shape != (2**WINDOW,) or table.dtype.kind != "i" or table.min() < -127 or table.max() > 127:
            raise ValueError(f"a trellis must have {2**WINDOW} levels from -127 to 127, got {len(levels)}")
        for name, value, most in (("step", step, int(_RESOLUTION)), ("fineness", fineness, _MOST_FINENESS)):
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(f"a trellis must have a {name} from 1 to {most}, got {value!r}")
        return cls(bits, table.astype(np.int8), step / _RESOLUTION, fineness, distortion)


@lru_cache(maxsize=len(TRELLIS_BITS))
def trellis_codebook(bits: int) -> TrellisCodebook:
    """Return the codebook of a width, one of `TRELLIS_BITS`: the same in every dimension."""
    return TrellisCodebook.from_config(bits, LEVELS[bits], STEPS[bits], FINENESS[bits], DISTORTIONS[bits])


def windows_of(codes: UInt8Array, starts: UInt8Array, bits: int) -> UInt8Array:
    """Return the windows, uint8 (n, dim), of rows of codes, uint8 (n, dim), and their starts, uint8 (n,)."""
    windows = codes.copy()
    for lag in range(1, -(-WINDOW // bits)):
        windows[:, lag:] |= codes[:, :-lag] << np.uint8(bits * lag)
        windows[:, lag - 1 : lag] |= (starts << np.uint8(bits * lag))[:, np.newaxis]
    return windows


def with_starts(scales: Float32Array, starts: UInt8Array) -> Float32Array:
    """Return the nearest scales, float32 (n,), whose lowest 8 bits are the starts, uint8 (n,)."""
    bits = scales.view(np.uint32)
    magnitudes = (bits & _MAGNITUDE).astype(np.int64)
    kept = np.maximum((magnitudes - starts + 2 ** (START_BITS - 1)) >> START_BITS, 0).astype(np.uint32)
    held: Float32Array = (bits & ~_MAGNITUDE | kept << np.uint32(START_BITS) | starts).view(np.float32)
    return held


def starts_of(scales: Float32Array) -> UInt8Array:
    """Return the starts, uint8 (n,), that scales, float32 (n,), hold."""
    return scales.view(np.uint32).astype(np.uint8)


def find_paths(units: Int16Array, targets: Int16Array, bits: int) -> tuple[UInt8Array, UInt8Array]:
    """Return the codes, uint8 (n, dim), and starts, uint8 (n,), of the cheapest paths.

    Parameters
    ----------
    units : int16 (n, dim), `TrellisCodebook.to_units`
    targets : int16 (256,)
    bits : int
    """
    n, dim = units.shape
    branches, states = 2**bits, 2 ** (WINDOW - bits)
    costs = np.zeros((states, n), np.uint16)
    chosen = np.zeros((dim, states, n), np.uint8)
    for j in range(dim):
        distances = np.minimum(np.abs(units[:, j] - targets[:, np.newaxis]), FARTHEST).astype(np.uint16)
        # Window w comes from state w >> bits and leads to its own lowest bits: those of its row among the branches.
        through = (distances * distances >> METRIC_SHIFT) + np.repeat(costs, branches, axis=0)
        through = through.reshape(branches, states, n)
        best = through[0]
        for branch in range(1, branches):
            better = through[branch] < best
            np.copyto(best, through[branch], where=better)
            np.copyto(chosen[j], np.uint8(branch), where=better)
        costs = best - best.min(axis=0)
    codes, rows = np.empty((n, dim), np.uint8), np.arange(n)
    state = costs.argmin(axis=0)
    for j in range(dim - 1, -1, -1):
        window = chosen[j, state, rows].astype(np.int64) * states + state
        codes[:, j] = window & (branches - 1)
        state = window >> bits
    return codes, state.astype(np.uint8)
