"""How an index keeps code planes: the leading ones by blocks of 8 rows, the others row by row.

`tqindex.codec.packing.interleave_rows` defines a block.
"""

from typing import Any

from tqindex.codec.packing import BLOCK
from tqindex.kernels.compile import kernel

_WORD = 8


@kernel
def store_rows(planes: Any, lead: Any, rest: Any, start: int) -> None:
    """Write planes of whole bytes, uint8 (n, bits * width), as rows start.. of an index.

    lead: uint8 (leading planes, blocks, 8 * width); rest: uint8 (rows, other planes * width).
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
                lead[plane, block, tail_place(width, lane, i)] = planes[r, at + i]
        rest[start + r] = planes[r, leading * width :]


@kernel
def tail_place(width: int, lane: int, i: int) -> int:
    """Return where byte i of a row's plane, one behind its whole words, stands in its block."""
    at = width // _WORD * _WORD
    place = -1
    for size in (4, 2, 1):
        if width & size:
            if at <= i < at + size:
                place = BLOCK * at + size * lane + i - at
            at += size
    return place


@kernel
def load_lead(lead: Any, words: Any, row: int, out: Any, out_words: Any) -> None:
    """Copy one row's leading planes to `out`, uint8 (leading planes, padded); padded: a multiple of 8.

    words and out_words are `lead` and `out` as one-dimensional uint64. Bytes beyond the planes' width stay as they are.
    """
    leading, blocks, block_bytes = lead.shape
    width, padded = block_bytes // BLOCK, out.shape[1] // _WORD
    whole = width // _WORD
    block, lane = divmod(row, BLOCK)
    for plane in range(leading):
        at = (plane * blocks + block) * width + lane
        for i in range(whole):
            out_words[plane * padded + i] = words[at + BLOCK * i]
        for i in range(_WORD * whole, width):
            out[plane, i] = lead[plane, block, tail_place(width, lane, i)]
