"""Codes of keys and values as `tqindex.kernels.simd_kv` reads them: strips of 16 lanes."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tqindex.kernels.simd_kv import FIELDS, LANES, STEP, Unit

UInt8Array = npt.NDArray[np.uint8]
UInt32Array = npt.NDArray[np.uint32]


def unit_codes(bits: int) -> int:
    """Return the codes of a lane that fill whole words: depths are padded to multiples of this."""
    return Unit.of(bits).steps * STEP


def strips_shape(bits: int, lanes: int, depth: int) -> tuple[int, int, int, int]:
    """Return the shape of so many lanes' strips: (strips, units, words of a unit, 16)."""
    return -(-lanes // LANES), -(-depth // unit_codes(bits)), Unit.of(bits).words, LANES


def pack_strips(codes: UInt8Array, bits: int) -> UInt32Array:
    """Pack codes, (..., lanes, depth), as strips: (..., ceil(lanes / 16), units, words of a unit, 16).

    Lanes and codes that are missing from the last strip or unit are 0.
    """
    *outer, lanes, depth = codes.shape
    size = unit_codes(bits)
    strips, units = strips_shape(bits, lanes, depth)[:2]
    padded = np.zeros((*outer, strips * LANES, units * size), np.uint8)
    padded[..., :lanes, :depth] = codes
    # [strip][lane][unit][step][byte]: the bytes of a step are those of a word.
    steps = padded.reshape(*outer, strips, LANES, units, size // STEP, STEP).view("<u4")[..., 0]
    words = np.zeros((*outer, strips, LANES, units, Unit.of(bits).words), np.uint32)
    for place in _places(bits):
        field = (steps[..., place.step] >> np.uint32(place.low)) & place.mask
        words[..., place.word] |= field << np.uint32(place.shift)
    return np.ascontiguousarray(np.moveaxis(words, -3, -1))


def unpack_strips(strips: UInt32Array, bits: int, lanes: int, depth: int) -> UInt8Array:
    """Undo `pack_strips`; returns codes of shape (..., lanes, depth)."""
    words = np.moveaxis(strips, -1, -3)
    *outer, count, _, units, _ = words.shape
    steps = np.zeros((*words.shape[:-1], Unit.of(bits).steps), "<u4")
    for place in _places(bits):
        field = (words[..., place.word] >> np.uint32(place.shift)) & place.mask
        steps[..., place.step] |= field << np.uint32(place.low)
    codes = steps.view(np.uint8).reshape(*outer, count * LANES, units * unit_codes(bits))
    return codes[..., :lanes, :depth]


class _Place(NamedTuple):
    """Where a field of a step's codes is kept: width bits from `low` of a code on, in a word from bit `shift` on."""

    width: int
    low: int
    word: int
    step: int
    shift: int

    @property
    def mask(self) -> np.uint32:
        """The field's bits in every byte, lowest first."""
        return np.uint32(((1 << self.width) - 1) * 0x01010101)


@lru_cache(maxsize=8)
def _places(bits: int) -> list[_Place]:
    """Return where a unit keeps the fields of its steps."""
    places, first, low, steps = [], 0, bits, Unit.of(bits).steps
    for width in FIELDS[bits]:
        low -= width
        for step in range(steps):
            word, place = divmod(step, 8 // width)
            places.append(_Place(width, low, first + word, step, width * place))
        first += steps * width // 8
    return places
