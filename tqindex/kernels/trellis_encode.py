"""Encoding of rows as trellis codes, equal bit for bit to `tqindex.codec.trellis`.

The Viterbi algorithm finds, among all streams, the one whose windows' levels are nearest to a row: integers throughout,
so that every machine takes the same path. 32 rows are encoded at once, one in each lane of a vector.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.codec.packing import plane_bytes
from tqindex.codec.trellis import LIMIT, TRELLIS_BITS, WINDOW, TrellisCodebook
from tqindex.kernels.compile import inner_kernel, kernel
from tqindex.kernels.encode import inner_product, quotient
from tqindex.kernels.product import expand_row_portable
from tqindex.kernels.room import make_room
from tqindex.kernels.simd_sums import CHUNK
from tqindex.kernels.simd_trace import make_trace_back, transpose_bits
from tqindex.kernels.simd_trellis import with_start
from tqindex.kernels.simd_viterbi import ROWS, make_find_paths

Float32Array = npt.NDArray[np.float32]

#: Coordinates whose targets are written together, each row's in turn: so many lines of them stay in cache.
_TOGETHER = 64
#: What makes a level a byte.
_BIAS = 128
_find_paths2, _find_paths3, _find_paths4 = (make_find_paths(bits) for bits in TRELLIS_BITS)
_trace_back2, _trace_back3, _trace_back4 = (make_trace_back(bits) for bits in TRELLIS_BITS)
# Numba's types give intrinsics the arguments of their code generators.
_transpose_bits: Any = transpose_bits
_with_start: Any = with_start


class TrellisQuantiser:
    """What one worker keeps from block to block: tables of the levels, and room for ROWS rows."""

    def __init__(self, dim: int, book: TrellisCodebook) -> None:
        bits, states, width = book.bits, 2 ** (WINDOW - book.bits), plane_bytes(dim)
        targets, levels = make_room(ROWS * len(book.targets), np.int16), book.levels.astype(np.int16) + _BIAS
        targets[:] = np.repeat(book.targets, ROWS)
        self._constants, self._tables = (bits, book.fineness / book.step, book.step), (targets, levels.astype(np.uint8))
        self._room = (
            make_room(dim * ROWS, np.int16),
            make_room(_TOGETHER, np.int16),
            make_room(2 * states * ROWS, np.uint16),
            make_room(dim * 2**WINDOW, np.uint32),
            np.zeros(bits * (-(-dim // ROWS) * ROWS), np.uint32),
            np.empty(WINDOW - bits, np.uint32),
            make_room(ROWS, np.uint32),
            np.empty(8 * width, np.uint8),
            make_room(dim),
            make_room(dim + CHUNK, np.float64),
        )
        self._room[0][:] = 0  # lanes without a row

    def __call__(
        self,
        y: Float32Array,
        norms: npt.NDArray[np.float64],
        unbiased: bool,
        planes: npt.NDArray[np.uint8],
        scales: Float32Array,
    ) -> None:
        """Write planes and scales of rows y, as `quantise_rows` does for scalar codes."""
        quantise_by_trellis(y, norms, self._constants, self._tables, unbiased, planes, scales, self._room)


@kernel
def quantise_by_trellis(
    y: Any, norms: Any, constants: Any, tables: Any, unbiased: bool, planes: Any, scales: Any, room: Any
) -> None:
    """Write the planes of rows y, float32 (n, dim), and their scales; zeros for rows of norm 0.

    constants : (bits, units of a target for 1, the codebook's step)
    tables : (levels in units of a target, int16, each ROWS times; levels and _BIAS, u8 (windows,))
    planes, scales : as for `tqindex.kernels.encode.quantise_rows`
    room : (targets, rounded, costs, choices, codes, starts, square, expanded, levels, terms), as `TrellisQuantiser`
        allocates them
    """
    n, dim = y.shape
    bits, units, step = constants
    window_units, table = tables
    targets, rounded, costs, choices, codes, starts, square, expanded, levels, terms = room
    root, width = np.sqrt(np.float64(dim)), planes.shape[1] // bits
    flat_y, flat_planes = y.reshape(y.size), planes.reshape(planes.size)
    for first in range(0, n, ROWS):
        rows = min(ROWS, n - first)
        _write_targets(flat_y, first * dim, rows, dim, units, rounded, targets)
        _find_codes(bits, targets, dim, window_units, costs, choices, codes, starts)
        _write_planes(codes, bits, square, flat_planes, first * bits * width, rows, width)
        for r in range(first, first + rows):
            if norms[r] == 0.0:
                planes[r] = 0
                scales[r] = 0.0
                continue
            start, factor = _start_in(starts, bits, r - first), 1.0
            if unbiased:
                at = r * bits * width
                expand_row_portable(flat_planes, 0, 0, flat_planes, at, bits, width, table, expanded, 0, 64, start)
                for j in range(dim):
                    levels[j] = np.float32(np.int32(expanded[j]) - _BIAS)
                factor = quotient(np.float64(dim), inner_product(flat_y, r * dim, levels, 0, dim, terms) * step)
            scales[r] = _with_start(np.float32(norms[r] / root * factor), start)


@inner_kernel
def _write_targets(y: Any, at: int, rows: int, dim: int, units: float, rounded: Any, targets: Any) -> None:
    """Write `rows` rows of y, from `at` on, as integers: flat [dim][ROWS]."""
    for first in range(0, dim, _TOGETHER):
        count = min(_TOGETHER, dim - first)
        for lane in range(rows):
            _round(y, at + lane * dim + first, count, units, rounded)
            for j in range(count):
                targets[(first + j) * ROWS + lane] = rounded[j]


@inner_kernel
def _round(y: Any, at: int, n: int, units: float, rounded: Any) -> None:
    for j in range(n):
        value = np.rint(np.float64(y[at + j]) * units)
        # In this order NaN, which the caller refuses, becomes a number too.
        value = value if value > -LIMIT else -float(LIMIT)
        value = value if value < LIMIT else float(LIMIT)
        rounded[j] = np.int16(value)


@inner_kernel
def _find_codes(
    bits: int, targets: Any, dim: int, window_units: Any, costs: Any, choices: Any, codes: Any, starts: Any
) -> None:
    """Write the codes of each lane's best stream as planes of words, u32, flat [bits][dim rounded up], and starts."""
    for i in range(costs.shape[0] // 2):
        costs[i] = 0
    stride = codes.shape[0] // bits
    if bits == 2:
        _find_paths2(targets, dim, window_units, costs, choices)
        _trace_back2(costs, dim, choices, codes, stride, starts)
    elif bits == 3:
        _find_paths3(targets, dim, window_units, costs, choices)
        _trace_back3(costs, dim, choices, codes, stride, starts)
    else:
        _find_paths4(targets, dim, window_units, costs, choices)
        _trace_back4(costs, dim, choices, codes, stride, starts)


@inner_kernel
def _start_in(starts: Any, bits: int, lane: int) -> Any:
    """Return a lane's start, of which each word has one bit, the most significant first."""
    start = np.int64(0)
    for i in range(WINDOW - bits):
        start = 2 * start + np.int64((starts[i] >> np.uint32(lane)) & np.uint32(1))
    return start


@inner_kernel
def _write_planes(codes: Any, bits: int, square: Any, planes: Any, at: int, rows: int, width: int) -> None:
    """Write the codes of `rows` rows as planes of `width` bytes each, from `at` on."""
    words = codes.shape[0] // bits // ROWS
    for plane in range(bits):
        for word in range(words):
            _transpose_bits(codes, (plane * words + word) * ROWS, square)
            first = 4 * word
            for lane in range(rows):
                place = at + (lane * bits + plane) * width + first
                for i in range(min(4, width - first)):
                    planes[place + i] = np.uint8(square[lane] >> np.uint32(8 * i))
