"""How an index keeps code planes: the leading ones by blocks of 8 rows, the others row by row.

`tqindex.codec.packing.interleave_rows` defines a block.
"""

from typing import Any

from tqindex.codec.packing import BLOCK
from tqindex.kernels.compile import inner_kernel, kernel
from tqindex.kernels.simd_count import gather_row

_WORD = 8
_BLOCK_BITS = BLOCK.bit_length() - 1
# Numba's types give intrinsics the arguments of their code generators.
_gather_row: Any = gather_row


@kernel
def store_rows(planes: Any, places: Any, lead: Any, rest: Any, start: int) -> None:
    """Write planes of whole bytes, uint8 (n, bits * width), as rows start.. of an index.

    places: `tqindex.codec.packing.row_places`; lead: uint8 (leading planes, blocks, 8 * width); rest: uint8
    (rows, other planes * width).
    """
    leading, _, block_bytes = lead.shape
    width = block_bytes // BLOCK
    whole = width // _WORD
    for r in range(planes.shape[0]):
        block, lane = divmod(start + r, BLOCK)
        for plane in range(leading):
            at = plane * width
            for i in range(whole):
                for byte in range(_WORD):
                    lead[plane, block, _WORD * (BLOCK * i + lane) + byte] = planes[r, at + _WORD * i + byte]
            for i in range(_WORD * whole, width):
                lead[plane, block, places[lane, i]] = planes[r, at + i]
        rest[start + r] = planes[r, leading * width :]


@inner_kernel
def load_lead(lead: Any, planes: int, blocks: int, block_bytes: int, row: int, out: Any) -> None:
    """Copy one row's leading planes to `out`, uint8 (planes * padded), each padded to whole words; lead: flat."""
    width = block_bytes // BLOCK
    block, lane = row >> _BLOCK_BITS, row & (BLOCK - 1)
    for plane in range(planes):
        _gather_row(lead, (plane * blocks + block) * block_bytes, lane, width, out, plane * padded_width(width))


@inner_kernel
def padded_width(width: int) -> int:
    """Return the bytes of a plane padded to whole words."""
    return (width + _WORD - 1) // _WORD * _WORD
