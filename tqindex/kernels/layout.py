"""How an index keeps code planes: the leading ones by blocks of 8 rows, the others row by row.

`tqindex.codec.packing.interleave_rows` defines a block.
"""

from typing import Any

import numpy as np

from tqindex.codec.packing import BLOCK
from tqindex.kernels.compile import inner_kernel, kernel
from tqindex.kernels.simd_layout import copy_bytes, gather_row, scatter_row

_WORD = 8
_BLOCK_BITS = BLOCK.bit_length() - 1
# Numba's types give intrinsics the arguments of their code generators.
_gather_row: Any = gather_row
_scatter_row: Any = scatter_row
_copy_bytes: Any = copy_bytes


@kernel
def store_rows(planes: Any, lead: Any, rest: Any, start: int) -> None:
    """Write planes of whole bytes, uint8 (n, bits * width), as rows start.. of an index.

    lead: uint8 (leading planes, blocks, 8 * width); rest: uint8 (rows, other planes * width).
    """
    leading, blocks, block_bytes = lead.shape
    width, row_bytes, rest_bytes = block_bytes // BLOCK, planes.shape[1], rest.shape[1]
    flat_planes, flat_lead, flat_rest = planes.reshape(planes.size), lead.reshape(lead.size), rest.reshape(rest.size)
    for r in range(planes.shape[0]):
        block, lane, at = (start + r) >> _BLOCK_BITS, (start + r) & (BLOCK - 1), r * row_bytes
        for plane in range(leading):
            block_at = (plane * blocks + block) * block_bytes
            _scatter_row(flat_planes, at + plane * width, width, flat_lead, block_at, lane)
        _copy_bytes(flat_planes, at + leading * width, flat_rest, (start + r) * rest_bytes, rest_bytes)


@kernel
def copy_rows(lead: Any, rest: Any, rows: Any, to_lead: Any, to_rest: Any, start: int) -> None:
    """Copy some rows' planes to the rows start.. of other arrays of the same width.

    lead, rest, to_lead, to_rest: as for `store_rows`; rows: int64, their numbers
    """
    leading, blocks, block_bytes = lead.shape
    to_blocks, width, rest_bytes = to_lead.shape[1], block_bytes // BLOCK, rest.shape[1]
    flat_lead, flat_rest = lead.reshape(lead.size), rest.reshape(rest.size)
    flat_to_lead, flat_to_rest = to_lead.reshape(to_lead.size), to_rest.reshape(to_rest.size)
    plane_bytes = np.empty(padded_width(width), np.uint8)
    for r in range(rows.shape[0]):
        row, target = rows[r], start + r
        for plane in range(leading):
            block_at = (plane * blocks + (row >> _BLOCK_BITS)) * block_bytes
            _gather_row(flat_lead, block_at, row & (BLOCK - 1), width, plane_bytes, 0)
            block_at = (plane * to_blocks + (target >> _BLOCK_BITS)) * block_bytes
            _scatter_row(plane_bytes, 0, width, flat_to_lead, block_at, target & (BLOCK - 1))
        _copy_bytes(flat_rest, row * rest_bytes, flat_to_rest, target * rest_bytes, rest_bytes)


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
