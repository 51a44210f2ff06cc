"""Coarse queries for the cascade: a query's levels at few bits, in the form in which blocks are counted."""

from typing import Any

import numpy as np

from tqindex.kernels.compile import inner_kernel, kernel
from tqindex.kernels.cpu import has_byte_tables
from tqindex.kernels.simd_count import SLICES, count_blocks
from tqindex.kernels.simd_lookup import TABLES, look_up_blocks

#: Tables take finer queries than slices, each bit of which costs as much as the first.
_HAS_TABLES = has_byte_tables()
#: Largest level of a coarse query (four of them add up to an i8), and the step of its levels in units of its root mean
#: square: the best uniform steps of 63 and of 15 levels for N(0, 1).
_MOST, _STEP = (31, 0.104) if _HAS_TABLES else (2 ** (SLICES - 1) - 1, 0.335)
#: Bytes of 64 coordinates of a coarse query.
COARSE_BYTES = TABLES if _HAS_TABLES else 8 * SLICES
# Numba's types give intrinsics the arguments of their code generators.
#: Sums coarse queries over set bits, of runs of blocks of a plane.
sum_blocks: Any = look_up_blocks if _HAS_TABLES else count_blocks
#: What float32 scores may differ by, relative to the largest that a row could reach.
_SLACK = 2.0**-20
#: Columns of `stages`: v of the lowest group, what the first and the second plane's bit add to it, kappa, sigma^2,
#: E[v^2] and the sketch's deviation (`tqindex.codec.refinement`).
LOWEST, FIRST_GAP, SECOND_GAP, KAPPA, VARIANCE, POWER, SKETCH = range(7)

#: A stage's weights: of the two counts, what is added for the bound or for the partial score alone, of |offset|.
FIRST, SECOND, BOUND, ESTIMATE, OFFSET = range(5)
WEIGHTS = 5


@kernel
def coarsen_query(
    levels: Any,
    dim: int,
    scale: float,
    deviations: float,
    sketch_deviations: float,
    stages: Any,
    coarse: Any,
    out: Any,
    weights: Any,
) -> None:
    """Write a coarse query and the weights of its bounds.

    The coarse query c times `unit` stands for the query's levels l; the unit makes the rest l - unit c orthogonal to
    l, so that it adds to the variance of the bounds but not to their mean.

    levels : i8 (depth,), scale * levels is R q'
    deviations, sketch_deviations : what the bounds' margin holds, in standard deviations of either error
    stages : float64 (stages, 7)
    coarse : i8 (depth,), zeroed, scratch: c
    out, weights : u8 (depth / 64 * COARSE_BYTES,) and f32 (5 * stages,), zeroed, written as `sum_blocks` and
        `tqindex.kernels.simd_count.make_reach_pairs` take them
    """
    squares: Any = 0
    for j in range(dim):
        squares += np.int64(levels[j]) * np.int64(levels[j])
    step = _STEP * np.sqrt(max(squares, 1) / dim)
    along: Any = 0
    coarse_squares: Any = 0
    total: Any = 0
    for j in range(dim):
        level = np.int64(min(max(np.rint(levels[j] / step), -_MOST), _MOST))
        coarse[j] = level
        along += level * np.int64(levels[j])
        coarse_squares += level * level
        total += level
    if _HAS_TABLES:
        _write_tables(coarse, out)
    else:
        _write_slices(coarse, out)
    unit = squares / along if along > 0 else 0.0
    rest = max(unit * unit * coarse_squares - squares, 0.0)
    for stage in range(stages.shape[0]):
        known = stages[stage]
        factor = scale * known[KAPPA] * unit
        variance = known[VARIANCE] * squares + known[KAPPA] ** 2 * known[POWER] * rest
        sketch = sketch_deviations * known[SKETCH] * np.sqrt(np.float64(squares))
        margin = (deviations * np.sqrt(variance) + sketch) * np.sqrt(dim / (dim - 1.0))
        margin += _SLACK * np.sqrt(np.float64(squares * dim))
        at = WEIGHTS * stage
        weights[at + FIRST] = factor * known[FIRST_GAP]
        weights[at + SECOND] = factor * known[SECOND_GAP]
        weights[at + BOUND] = factor * known[LOWEST] * total + scale * margin
        weights[at + ESTIMATE] = factor * known[LOWEST] * total
        weights[at + OFFSET] = _SLACK


@inner_kernel
def _write_slices(coarse: Any, out: Any) -> None:
    for j in range(coarse.shape[0]):
        for s in range(SLICES):
            out[(j // 64 * SLICES + s) * 8 + j % 64 // 8] |= ((coarse[j] >> s) & 1) << (j % 8)


@inner_kernel
def _write_tables(coarse: Any, out: Any) -> None:
    """Write the sums of every four coordinates over the set bits of 0..16."""
    for j in range(0, coarse.shape[0], 4):
        word, half, byte, nibble = j // 64, j // 32 % 2, j // 8 % 4, j // 4 % 2
        at = TABLES * word + TABLES // 2 * half + TABLES // 4 * nibble + 16 * byte
        c0, c1, c2, c3 = coarse[j], coarse[j + 1], coarse[j + 2], coarse[j + 3]
        for bits in range(16):
            out[at + bits] = c0 * (bits & 1) + c1 * (bits >> 1 & 1) + c2 * (bits >> 2 & 1) + c3 * (bits >> 3)
