"""What differs between SIMD levels: expanding code planes, and multiplying a tile of rows with many queries.

Both are chosen once, when this module is imported.

Levels are kept as u8: a codebook level plus 128, the plain code for 8 bits, 0 or 1 for a sketch sign. Queries are i8,
packed by 16 as [group][depth / 4][16][4], so that 16 queries fill a vector's lanes and four bytes of a row are
broadcast against them. A product P then gives the wanted integer as multiplier * P + shift * sum(query).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.kernels.compile import kernel
from tqindex.kernels.cpu import simd_level
from tqindex.kernels.simd import OPERATIONS
from tqindex.kernels.simd_product import (
    TILE_CONFIG,
    configure_tiles,
    make_multiply_block,
    multiply_block_amx,
    release_tiles,
)
from tqindex.kernels.simd_rows import make_dot_row, make_expand_row

#: Rows of a tile; a multiple of every level's block.
TILE = 96
#: Coordinates are padded to whole vectors of 64 bytes.
DEPTH_MULTIPLE = 64
LANES = 16
_SPREAD = np.uint64(0x0101010101010101)
_SPREAD_MASK = np.uint64(0x8040201008040201)
_CARRY = np.uint64(0x7F7F7F7F7F7F7F7F)

_LEVEL = simd_level()
#: Planes of fewer bytes are expanded by portable code, and a single query over them goes the way of a batch.
WORD = 8 if _LEVEL != "portable" else 1 << 60
# A constant, so that the compiler never sees instructions that the CPU lacks.
_HAS_SHUFFLE = _LEVEL != "portable"
_USES_TILES = _LEVEL == "amx"
#: Rows and groups of queries of a block: as many products as there are registers for.
BLOCK_ROWS = {"amx": 32, "avx512": 12, "avx2": 4, "i8mm": 2, "dotprod": 2, "portable": 4}[_LEVEL]
BLOCK_GROUPS = 2
# Numba's types give intrinsics the arguments of their code generators.
_multiply_block: Any = multiply_block_amx
_configure_tiles: Any = configure_tiles
_release_tiles: Any = release_tiles
if not _USES_TILES:
    _multiply_block = make_multiply_block(OPERATIONS[_LEVEL], BLOCK_ROWS, BLOCK_GROUPS)
_expand_row, dot_row = make_expand_row(OPERATIONS[_LEVEL]), make_dot_row(OPERATIONS[_LEVEL])
TILE_CONFIGURATION = np.frombuffer(TILE_CONFIG, np.uint8).copy()


def pack_queries(levels: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """Pack int8 queries (nq, dim) as [group][depth / 4][16][4], padded with zeros to whole blocks."""
    nq, dim = levels.shape
    depth = -(-dim // DEPTH_MULTIPLE) * DEPTH_MULTIPLE
    groups = -(-nq // (LANES * BLOCK_GROUPS)) * BLOCK_GROUPS
    padded = np.zeros((groups * LANES, depth), np.int8)
    padded[:nq, :dim] = levels
    return np.ascontiguousarray(padded.reshape(groups, LANES, depth // 4, 4).transpose(0, 2, 1, 3))


@kernel
def expand_tile(
    planes: Any, start: int, rows: int, first_plane: int, bits: int, all_bits: int, table: Any, out: Any
) -> None:
    """Write levels of rows start..start + rows; out: u8 (TILE, depth), zero beyond the planes' width.

    Planes first_plane..first_plane + bits of `all_bits` are read; table: u8 (64,), as `expand_row` takes it.
    """
    row_bytes = planes.shape[1]
    width = row_bytes // all_bits
    depth = out.shape[1]
    flat_planes, flat_out = planes.reshape(planes.size), out.reshape(out.size)
    for r in range(rows):
        at = (start + r) * row_bytes + first_plane * width
        if _HAS_SHUFFLE and width >= WORD:
            _expand_row(flat_planes, at, width, bits, table, flat_out, r * depth)
        else:
            expand_row_portable(flat_planes, at, width, bits, table, flat_out, r * depth)


@kernel
def expand_row_portable(planes: Any, at: int, width: int, bits: int, table: Any, out: Any, out_at: int) -> None:
    """As `tqindex.kernels.simd.make_expand_row`, for planes of any width and any CPU."""
    for i in range(width):
        codes = np.uint64(0)
        for plane in range(bits):
            # A copy of the byte in every byte of a word, bit i kept in byte i, then moved to the lowest place:
            # a byte that is not 0 carries into its highest bit.
            kept = (np.uint64(planes[at + plane * width + i]) * _SPREAD) & _SPREAD_MASK
            bit = ((((kept & _CARRY) + _CARRY) | kept) >> np.uint64(7)) & _SPREAD
            codes = (codes << np.uint64(1)) | bit
        for j in range(8):
            code = np.uint8(codes >> np.uint64(8 * j))
            out[out_at + 8 * i + j] = code if bits == 8 else table[code]


@kernel
def multiply_tile(levels: Any, rows: int, packed: Any, products: Any) -> None:
    """Multiply the first `rows` rows of a tile with all queries.

    levels: u8 (TILE, depth); packed: i8 [group][depth / 4][16][4]; products: i32 (TILE, 16 * groups), written in
    whole blocks of rows.
    """
    depth, groups = levels.shape[1], packed.shape[0]
    columns = products.shape[1]
    flat_levels, flat_queries = levels.reshape(levels.size), packed.reshape(packed.size)
    flat_products = products.reshape(products.size)
    for group in range(0, groups, BLOCK_GROUPS):
        for row in range(0, rows, BLOCK_ROWS):
            _multiply_block(
                flat_levels,
                row * depth,
                depth,
                flat_queries,
                group * LANES * depth,
                LANES * depth,
                depth,
                flat_products,
                row * columns + group * LANES,
                columns,
            )


@kernel
def begin_tiles(configuration: Any) -> None:
    """Prepare this thread for `multiply_tile`."""
    if _USES_TILES:
        _configure_tiles(configuration)


@kernel
def end_tiles() -> None:
    """Undo `begin_tiles`."""
    if _USES_TILES:
        _release_tiles()
