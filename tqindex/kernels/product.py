"""What differs between SIMD levels: expanding code planes, and multiplying a tile of rows with many queries.

Both are chosen once, when this module is imported.

Levels are kept as u8: a codebook level plus 128, the plain code for 8 bits, 0 or 1 for a sketch sign. Queries are i8,
packed by 16 as [group][depth / 4][16][4], so that 16 queries fill a vector's lanes and four bytes of a row are
broadcast against them. A product P then gives the wanted integer as multiplier * P + shift * sum(query).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.codec.packing import BLOCK
from tqindex.codec.trellis import WINDOW
from tqindex.kernels.compile import called_kernel, inner_kernel
from tqindex.kernels.cpu import has_bit_matrices, simd_level
from tqindex.kernels.layout import load_lead, padded_width
from tqindex.kernels.room import make_room
from tqindex.kernels.simd import OPERATIONS
from tqindex.kernels.simd_product import (
    HELD_DEPTH,
    ROWS,
    TILE_CONFIG,
    configure_tiles,
    make_multiply_block,
    multiply_block_amx,
    multiply_held_amx,
    reaching_rows,
    release_tiles,
)
from tqindex.kernels.simd_rows import make_dot_row, make_expand_row
from tqindex.kernels.simd_trellis import WINDOWS, MatrixWindowLevels, WindowLevels, start_of

#: Rows of a tile; a multiple of every level's block.
TILE = 96
#: Coordinates are padded to whole vectors of 64 bytes.
DEPTH_MULTIPLE = 64
LANES = 16
_SPREAD = np.uint64(0x0101010101010101)
_SPREAD_MASK = np.uint64(0x8040201008040201)
_CARRY = np.uint64(0x7F7F7F7F7F7F7F7F)

_LEVEL = simd_level()
#: Planes beyond the leading ones that have fewer bytes are expanded by portable code.
WORD = 8
# A constant, so that the compiler never sees instructions that the CPU lacks.
_HAS_SHUFFLE = _LEVEL != "portable"
_USES_TILES = _LEVEL == "amx"
#: Rows and groups of queries of a block: as many products as there are registers for.
BLOCK_ROWS = {"amx": 32, "avx512": 12, "avx2": 4, "i8mm": 2, "dotprod": 2, "portable": 4}[_LEVEL]
BLOCK_GROUPS = 2
# Numba's types give intrinsics the arguments of their code generators.
_multiply_block: Any = multiply_block_amx
_configure_tiles: Any = configure_tiles
_multiply_held: Any = multiply_held_amx
_reaching_rows: Any = reaching_rows
_release_tiles: Any = release_tiles
_start_of: Any = start_of
_operations = OPERATIONS[_LEVEL]
_window_levels = MatrixWindowLevels if has_bit_matrices() else WindowLevels
if not _USES_TILES:
    _multiply_block = make_multiply_block(_operations, BLOCK_ROWS, BLOCK_GROUPS)
_expand_row, _dot_row = make_expand_row(_operations), make_dot_row(_operations)
_expand_windows, _dot_windows = make_expand_row(_operations, _window_levels), make_dot_row(_operations, _window_levels)
TILE_CONFIGURATION = np.frombuffer(TILE_CONFIG, np.uint8).copy()


def pack_queries(levels: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """Pack int8 queries (nq, dim) as [group][depth / 4][16][4], padded with zeros to whole blocks."""
    nq, dim = levels.shape
    depth = -(-dim // DEPTH_MULTIPLE) * DEPTH_MULTIPLE
    groups = -(-nq // (LANES * BLOCK_GROUPS)) * BLOCK_GROUPS
    padded = np.zeros((groups * LANES, depth), np.int8)
    padded[:nq, :dim] = levels
    packed = make_room(padded.size, np.int8).reshape(groups, depth // 4, LANES, 4)
    packed[:] = padded.reshape(groups, LANES, depth // 4, 4).transpose(0, 2, 1, 3)
    return packed


@called_kernel
def expand_tile(
    lead: Any,
    rest: Any,
    numbers: Any,
    rows: int,
    first_plane: int,
    bits: int,
    table: Any,
    out: Any,
    work: Any,
    scales: Any,
) -> None:
    """Write levels of the rows numbers[:rows]; out: u8 (TILE, depth), rows by `_place_row`, zero beyond their width.

    lead, rest: as `tqindex.kernels.rows.StoredRows` keeps them; planes first_plane..first_plane + bits are read: all,
    or one. table: u8, of 64 entries as `expand_row` takes it, of WINDOWS where rows are trellis codes; work: as
    `load_lead` fills it; scales: f32, which hold the starts of trellis codes.
    """
    planes, blocks, block_bytes = lead.shape
    width, depth = block_bytes // BLOCK, out.shape[1]
    leading, others, skipped = split_planes(planes, first_plane, bits)
    flat_lead, flat_rest, flat_out = lead.reshape(lead.size), rest.reshape(rest.size), out.reshape(out.size)
    lead_at, plane_bytes = first_plane * padded_width(width), blocks * block_bytes
    for r in range(rows):
        row = numbers[r]
        start = _start_of(scales, row)
        rest_at = row * rest.shape[1] + skipped * width
        out_at, step = _place_row(r, depth)
        if _HAS_SHUFFLE and (width >= WORD or others == 0):
            at, lane = first_plane * plane_bytes + row // BLOCK * block_bytes, row % BLOCK
            stored = flat_lead, at, plane_bytes, lane, leading, flat_rest, rest_at, others, width
            if table.shape[0] == WINDOWS:
                _expand_windows(*stored, table, flat_out, out_at, step, start)
            else:
                _expand_row(*stored, table, flat_out, out_at, step, start)
        else:
            load_lead(flat_lead, planes, blocks, block_bytes, row, work)
            expand_row_portable(
                work, lead_at, leading, flat_rest, rest_at, others, width, table, flat_out, out_at, step, start
            )


@inner_kernel
def _place_row(r: int, depth: int) -> tuple[int, int]:
    """Return where a row's levels begin in a tile, and how far apart its steps of 64 are.

    With AMX 16 rows of 64 coordinates follow each other, as one tile register takes them.
    """
    if _USES_TILES:
        return r // LANES * LANES * depth + r % LANES * DEPTH_MULTIPLE, LANES * DEPTH_MULTIPLE
    return r * depth, DEPTH_MULTIPLE


@inner_kernel
def split_planes(leading: int, first_plane: int, bits: int) -> tuple[int, int, int]:
    """Return how many of `bits` planes are leading ones, how many others, and how many others come before them."""
    used = max(0, min(leading - first_plane, bits))
    return used, bits - used, max(0, first_plane - leading)


@inner_kernel
def expand_row_portable(
    lead: Any,
    lead_at: int,
    leading: int,
    rest: Any,
    rest_at: int,
    others: int,
    width: int,
    table: Any,
    out: Any,
    out_at: int,
    step: int,
    start: int,
) -> None:
    """As `tqindex.kernels.simd_rows.make_expand_row`, for planes of any width and any CPU."""
    padded = (width + 7) // 8 * 8
    bits = leading + others
    # The windows before the row, as far as they are known: the last is its start.
    codes_before = np.uint64(start) << np.uint64(56)
    pairs_before = codes_before | ((np.uint64(start) >> np.uint64(bits)) << np.uint64(48))
    for i in range(width):
        codes = np.uint64(0)
        for plane in range(leading):
            codes = (codes << np.uint64(1)) | _spread(lead[lead_at + plane * padded + i])
        for plane in range(others):
            codes = (codes << np.uint64(1)) | _spread(rest[rest_at + plane * width + i])
        if table.shape[0] == WINDOWS:
            pairs = _lengthened(codes, codes_before, 1, bits)
            codes_before = codes
            codes = pairs if 2 * bits >= WINDOW else _lengthened(pairs, pairs_before, 2, 2 * bits)
            pairs_before = pairs
        at = out_at + i // 8 * step + i % 8 * 8
        for j in range(8):
            code = np.uint8(codes >> np.uint64(8 * j))
            out[at + j] = code if bits == 8 else table[code]


@inner_kernel
def _lengthened(known: Any, before: Any, lag: int, bits: int) -> Any:
    """Return what is known of eight windows, `bits` bits each, with as many bits of those `lag` places earlier.

    known, before: words, a byte for each window, of the eight and of the eight before them; bits beyond a byte are lost
    """
    places = np.uint64(8 * lag)
    earlier = (known << places) | (before >> (np.uint64(64) - places))
    kept = _SPREAD * np.uint64((1 << (WINDOW - bits)) - 1)
    return known | ((earlier & kept) << np.uint64(bits))


@inner_kernel
def _spread(byte: Any) -> Any:
    """Return a word whose byte i is bit i of `byte`.

    A copy of the byte in every byte of a word, bit i kept in byte i, then moved to the lowest place: a byte that is
    not 0 carries into its highest bit.
    """
    kept = (np.uint64(byte) * _SPREAD) & _SPREAD_MASK
    return ((((kept & _CARRY) + _CARRY) | kept) >> np.uint64(7)) & _SPREAD


@called_kernel
def multiply_tile(
    levels: Any, rows: int, depth: int, packed: Any, group: int, products: Any, bounds: Any, reaching: Any
) -> None:
    """Multiply the first `rows` rows of a tile with the queries of groups group..group + BLOCK_GROUPS.

    levels: u8, flat (TILE, depth), as `expand_tile` writes them; packed: i8, flat [group][depth / 4][16][4]; products:
    i32, flat (TILE, 16 * BLOCK_GROUPS), written in whole blocks of rows. bounds: i32, one for each query; reaching: u32
    (TILE / 16,), written: a bit for each row that has a product which is not below its query's bound.
    """
    columns, stride = LANES * BLOCK_GROUPS, LANES * depth if _USES_TILES else depth
    if _USES_TILES:  # noqa: SIM102 (only this constant's branch is left out where there are no tiles)
        if depth == HELD_DEPTH:
            _multiply_held(levels, (rows + ROWS - 1) // ROWS, packed, group * LANES * depth, products, bounds, reaching)
            return
    for row in range(0, rows, BLOCK_ROWS):
        _multiply_block(
            levels,
            row * depth,
            stride,
            packed,
            group * LANES * depth,
            LANES * depth,
            depth,
            products,
            row * columns,
            columns,
        )
    for row in range(0, rows, ROWS):
        reaching[row // ROWS] = _reaching_rows(products, row, bounds)


@inner_kernel
def begin_tiles(configuration: Any) -> None:
    """Prepare this thread for `multiply_tile`."""
    if _USES_TILES:
        _configure_tiles(configuration)


@inner_kernel
def end_tiles() -> None:
    """Undo `begin_tiles`."""
    if _USES_TILES:
        _release_tiles()


@inner_kernel
def multiply_row(
    lead: Any,
    shape: Any,
    row: int,
    first_plane: int,
    bits: int,
    rest: Any,
    table: Any,
    query: Any,
    work: Any,
    levels: Any,
    start: int,
) -> Any:
    """Multiply one row's levels with one query; planes first_plane..first_plane + bits are read: all, or one.

    lead, rest: flat, as `tqindex.kernels.rows.StoredRows` keeps them; shape: (leading planes, blocks, bytes of a block,
    bytes of a row of `rest`); query: i8 (depth,); work: as `load_lead` fills it; levels: u8 (depth,), room for the
    levels, zero beyond the planes' width; start: of a trellis code.
    """
    planes, blocks, block_bytes, rest_bytes = shape
    width = block_bytes // BLOCK
    leading, others, skipped = split_planes(planes, first_plane, bits)
    rest_at = row * rest_bytes + skipped * width
    if _HAS_SHUFFLE and (width >= WORD or others == 0):
        at = (first_plane * blocks + row // BLOCK) * block_bytes
        stored = lead, at, blocks * block_bytes, row % BLOCK, leading, rest, rest_at, others, width
        if table.shape[0] == WINDOWS:
            return _multiply_windows(stored, table, query, start)
        return _dot_row(*stored, table, query, start)
    load_lead(lead, planes, blocks, block_bytes, row, work)
    lead_at = first_plane * padded_width(width)
    expand_row_portable(work, lead_at, leading, rest, rest_at, others, width, table, levels, 0, DEPTH_MULTIPLE, start)
    total = np.int32(0)
    for j in range(levels.shape[0]):
        total += np.int32(levels[j]) * np.int32(query[j])
    return total


@called_kernel
def _multiply_windows(stored: Any, table: Any, query: Any, start: int) -> Any:
    """Multiply one row of trellis codes with one query; stored: as `make_dot_row` takes it, up to the table."""
    return _dot_windows(*stored, table, query, start)
