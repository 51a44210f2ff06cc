"""Bounds for products: a row whose products with all queries of a strip are below them reaches no threshold.

A score is ((scale * (step * P)) + offset) + bias, each step rounded to float32 and none of them falling as P grows. So
the least P that may reach a threshold follows from the largest scale and offset of a tile, or where it is negative
from the least scale. It is taken in float64, and lowered by more than the rounding of scores can make up for.
"""

from typing import Any

import numpy as np

from tqindex.kernels.compile import inner_kernel
from tqindex.kernels.simd_product import ROWS
from tqindex.kernels.simd_score import BIASES, SHIFTS, STRIP, THRESHOLDS, lowest_bit

# Numba's types give intrinsics the arguments of their code generators.
_lowest_bit: Any = lowest_bit

#: Relative and absolute slack: float32 rounds by 2**-24 at each of five steps, and below 2**-126 by 2**-150.
_RELATIVE, _ABSOLUTE, _LARGEST_FLOAT = 2.0**-20, 1e-30, 1e39
#: Scales and steps beyond which products are not bounded, since rounding might exceed the slack or a score overflow.
LARGEST_SCALE, LARGEST_STEP = 1e10, 1e20
#: What stands for the inverse of 0.
_INVERSE_OF_0 = 1e100
#: Bounds that every product reaches, and none.
EVERY, _NONE = -(2**31), 2**31 - 1


@inner_kernel
def inverse(number: float, largest: float) -> float:
    """1 / number, a large number for 0, NaN outside 0..largest."""
    if number > 0.0 and number <= largest:
        return 1.0 / np.float64(number)
    return _INVERSE_OF_0 if number == 0.0 else np.nan


@inner_kernel
def set_bounds(
    sides: Any,
    shifts: Any,
    columns: int,
    first: int,
    inverse_steps: Any,
    of_least: float,
    of_largest: float,
    offset: float,
    multiplier: int,
    bounds: Any,
) -> None:
    """Write the bounds of the STRIP queries from `first` on; EVERY where a number is not in its range.

    sides: f32, flat (6, columns), and shifts: its int32s; inverse_steps: f64 (columns,), as `inverse` gives them;
    of_least, of_largest: inverses of a tile's least and largest scale; offset: the tile's largest; bounds: i32 (STRIP,)
    """
    halves = 1.0 / multiplier
    # Unsigned, so that Numba does not ask whether an index counts from the end: one vector instead of a gather.
    at, threshold_at, bias_at, shift_at = (
        np.uint64(first),
        np.uint64(THRESHOLDS * columns + first),
        np.uint64(BIASES * columns + first),
        np.uint64(SHIFTS * columns + first),
    )
    for i in range(STRIP):
        lane = np.uint64(i)
        threshold = np.float64(sides[threshold_at + lane])
        bias = np.float64(sides[bias_at + lane])
        size = min(abs(threshold), _LARGEST_FLOAT) + abs(bias) + abs(offset)
        wanted = threshold - bias - offset - (_RELATIVE * size + _ABSOLUTE)
        least = wanted * (of_largest if wanted > 0.0 else of_least) * inverse_steps[at + lane]
        least = (least - np.float64(shifts[shift_at + lane])) * halves - 2.0
        least = least if least > EVERY else EVERY  # NaN too
        bounds[lane] = np.int32(least if least < _NONE else _NONE)


@inner_kernel
def next_reaching(reaching: Any, row: int, rows: int) -> int:
    """Return the next of row..rows whose bit is set in reaching, u32 (rows / ROWS,); `rows` if there is none."""
    while row < rows:
        bits = np.uint32(reaching[row // ROWS]) >> np.uint32(row % ROWS)
        if bits != 0:
            found: int = row + int(_lowest_bit(bits))
            return found if found < rows else rows
        row = (row // ROWS + 1) * ROWS
    return rows
