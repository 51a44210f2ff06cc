"""Encoding of rows as trellis codes, equal bit for bit to `tqindex.codec.trellis`.

The Viterbi algorithm finds, among all streams, the one whose windows' levels are nearest to a row: integers throughout,
so that every machine takes the same path. 32 rows are encoded at once, one in each lane of a vector.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.codec.trellis import LIMIT, TRELLIS_BITS, WINDOW, TrellisCodebook
from tqindex.kernels.compile import inner_kernel, kernel
from tqindex.kernels.encode import inner_product, make_room, quotient
from tqindex.kernels.simd_sums import CHUNK
from tqindex.kernels.simd_trellis import store_planes, with_start
from tqindex.kernels.simd_viterbi import ROWS, make_find_paths

Float32Array = npt.NDArray[np.float32]

#: Coordinates whose targets are written together, each row's in turn: so many lines of them stay in cache.
_TOGETHER = 64
_find_paths2, _find_paths3, _find_paths4 = (make_find_paths(bits) for bits in TRELLIS_BITS)
# Numba's types give intrinsics the arguments of their code generators.
_store_planes: Any = store_planes
_with_start: Any = with_start


class TrellisQuantiser:
    """What one worker keeps from block to block: tables of the levels, and room for ROWS rows."""

    def __init__(self, dim: int, book: TrellisCodebook) -> None:
        bits, states = book.bits, 2 ** (WINDOW - book.bits)
        targets, levels = make_room(ROWS * len(book.targets), np.int16), book.levels.astype(np.float32)
        targets[:] = np.repeat(book.targets, ROWS)
        self._constants, self._tables = (bits, book.fineness / book.step, book.step), (targets, levels)
        # Odd numbers of lines, so that rows do not share a set of the cache.
        stride = (dim + 63) // 64 * 64 | 64
        self._room = (
            make_room(dim * ROWS, np.int16),
            make_room(_TOGETHER, np.int16),
            make_room(2 * states * ROWS, np.uint16),
            make_room(dim * states * (2**bits - 1), np.uint32),
            np.zeros(ROWS * stride, np.uint8),
            np.empty(ROWS, np.uint64),
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
    tables : (levels in units of a target, int16, each ROWS times; levels, float32 (WINDOWS,))
    planes, scales : as for `tqindex.kernels.encode.quantise_rows`
    room : (targets, rounded, costs, choices, windows, states, levels, terms), as `TrellisQuantiser` allocates them
    """
    n, dim = y.shape
    bits, units, step = constants
    window_units, window_levels = tables
    targets, rounded, costs, choices, windows, states, levels, terms = room
    root, width, stride = np.sqrt(np.float64(dim)), planes.shape[1] // bits, windows.shape[0] // ROWS
    flat_y, flat_planes = y.reshape(y.size), planes.reshape(planes.size)
    for first in range(0, n, ROWS):
        rows = min(ROWS, n - first)
        _write_targets(flat_y, first * dim, rows, dim, units, rounded, targets)
        _find_windows(bits, targets, dim, window_units, costs, choices, states, windows, stride)
        for lane in range(rows):
            r = first + lane
            if norms[r] == 0.0:
                planes[r] = 0
                scales[r] = 0.0
                continue
            _store_planes(windows, lane * stride, dim, bits, flat_planes, r * bits * width, width)
            for j in range(dim):
                levels[j] = window_levels[windows[lane * stride + j]]
            factor = 1.0
            if unbiased:
                factor = quotient(np.float64(dim), inner_product(flat_y, r * dim, levels, 0, dim, terms) * step)
            scales[r] = _with_start(np.float32(norms[r] / root * factor), np.int64(states[lane]))


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
def _find_windows(
    bits: int,
    targets: Any,
    dim: int,
    window_units: Any,
    costs: Any,
    choices: Any,
    states: Any,
    windows: Any,
    stride: int,
) -> None:
    """Write the windows of each lane's best stream, u8, `stride` bytes apart."""
    costs[: costs.shape[0] // 2] = 0
    if bits == 2:
        _find_paths2(targets, dim, window_units, costs, choices)
        _begin_at_ends(costs, dim, states)
        _trace_back2(choices, dim, states, windows, stride)
    elif bits == 3:
        _find_paths3(targets, dim, window_units, costs, choices)
        _begin_at_ends(costs, dim, states)
        _trace_back3(choices, dim, states, windows, stride)
    else:
        _find_paths4(targets, dim, window_units, costs, choices)
        _begin_at_ends(costs, dim, states)
        _trace_back4(choices, dim, states, windows, stride)


@inner_kernel
def _begin_at_ends(costs: Any, dim: int, states: Any) -> None:
    """Write each lane's cheapest state after the last coordinate, the smallest of equals."""
    half = costs.shape[0] // 2
    at = half * (dim & 1)
    for lane in range(ROWS):
        best = np.int64(0)
        for state in range(1, half // ROWS):
            if costs[at + state * ROWS + lane] < costs[at + best * ROWS + lane]:
                best = state
        states[lane] = best


def _make_trace_back(bits: int) -> Any:
    """Return the part that follows the choices back from the last coordinate."""
    n_states, rounds = 2 ** (WINDOW - bits), 2**bits - 1

    @inner_kernel
    def trace_back(choices: Any, dim: int, states: Any, windows: Any, stride: int) -> None:
        # Unsigned numbers, for which no index is looked at whether it counts from the end.
        for j in range(np.uint64(dim)):
            place = np.uint64(dim - 1) - j
            for lane in range(np.uint64(ROWS)):
                state = states[lane]
                at = (place * np.uint64(n_states) + state) * np.uint64(rounds)
                # Rounds are numbered as a heap: 0, then 1 or 2, then 3 to 6; what follows the last is the choice.
                number = np.uint64(0)
                for _ in range(bits):
                    word = choices[at + number] >> np.uint32(lane)
                    number = np.uint64(2) * number + np.uint64(1) + np.uint64(word & np.uint32(1))
                window = (number - np.uint64(rounds)) * np.uint64(n_states) + state
                windows[lane * np.uint64(stride) + place] = np.uint8(window)
                states[lane] = window >> np.uint64(bits)

    return trace_back


_trace_back2, _trace_back3, _trace_back4 = (_make_trace_back(bits) for bits in TRELLIS_BITS)
