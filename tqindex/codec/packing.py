"""Bit packing by planes: plane 0 holds every code's most significant bit, and so on down.

A row's planes follow each other as one string of bits, least significant bit of each byte first, so that
3-bit codes take exactly 3 bits. The sketch sign of kind "prod" is the last plane.
"""

from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]

#: Planes that an index keeps interleaved by blocks of rows, so that many rows are counted at once; the others follow
#: each other row by row.
LEADING = 2
#: Rows of a block.
BLOCK = 8


def pack_codes(codes: UInt8Array, bits: int) -> UInt8Array:
    """Pack codes below 2**bits, shape (n, dim), to shape (n, ceil(dim * bits / 8))."""
    shifts = np.arange(bits - 1, -1, -1, dtype=np.uint8)
    planes = (codes[:, np.newaxis, :] >> shifts[:, np.newaxis]) & np.uint8(1)
    return np.packbits(planes.reshape(len(codes), bits * codes.shape[1]), axis=1, bitorder="little")


def unpack_codes(packed: UInt8Array, dim: int, bits: int) -> UInt8Array:
    """Undo `pack_codes`; returns codes of shape (n, dim)."""
    flat: npt.NDArray[Any] = np.unpackbits(packed, axis=1, count=dim * bits, bitorder="little")
    planes = flat.reshape(len(packed), bits, dim)
    codes = np.zeros((len(packed), dim), np.uint8)
    for plane in range(bits):
        codes = (codes << 1) | planes[:, plane]
    return codes


def plane_bytes(dim: int) -> int:
    """Bytes of one plane where planes start at whole bytes, as the index keeps them."""
    return (dim + 7) // 8


def pad_planes(codes: UInt8Array, bits: int) -> UInt8Array:
    """Pack codes with every plane rounded up to whole bytes, shape (n, bits * plane_bytes(dim))."""
    padding = -codes.shape[1] % 8
    return pack_codes(np.pad(codes, ((0, 0), (0, padding))), bits)


def repack_planes(planes: UInt8Array, dim: int, bits: int) -> UInt8Array:
    """Turn planes of whole bytes into the form of `pack_codes`."""
    if dim % 8 == 0:
        return planes
    return pack_codes(unpack_codes(planes, 8 * plane_bytes(dim), bits)[:, :dim], bits)


def interleave_rows(plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Arrange one plane's rows, shape (n, width), by blocks of 8: shape (ceil(n / 8), 8 * width).

    A block holds the first word (8 bytes) of its 8 rows, then their second word, ..., then what is left of their
    widths in pieces of 4, 2 and 1 bytes. Missing rows of the last block are zeros.
    """
    n, width = plane.shape
    blocks = np.pad(plane, ((0, -n % BLOCK), (0, 0))).reshape(-(-n // BLOCK), BLOCK, width)
    sizes = [8] * (width // 8) + [size for size in (4, 2, 1) if width & size]
    cuts = np.cumsum([0, *sizes])
    pieces = [blocks[:, :, first:last].reshape(len(blocks), -1) for first, last in pairwise(cuts)]
    return np.concatenate(pieces, axis=1)


@lru_cache(maxsize=64)
def row_places(width: int) -> npt.NDArray[np.int64]:
    """Return where `interleave_rows` puts byte i of a block's row r, int64 (8, width)."""
    sources = interleave_rows(np.arange(BLOCK * width).reshape(BLOCK, width))[0]
    return np.argsort(sources).reshape(BLOCK, width)
