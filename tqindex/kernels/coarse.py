"""Coarse queries for the cascade: a query's levels at 4 bits, cut into bit slices, and the weights of the bounds."""

from typing import Any

import numpy as np

from tqindex.kernels.compile import kernel
from tqindex.kernels.simd_count import SLICES

#: Step of a coarse query's levels in units of its root mean square: the best uniform step of 15 levels for N(0, 1).
_STEP = 0.335
_MOST = 2 ** (SLICES - 1) - 1
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
    slices: Any,
    weights: Any,
) -> None:
    """Write a query's bit slices and the weights of its bounds.

    The coarse query c times `unit` stands for the query's levels l; the unit makes the rest l - unit c orthogonal to
    l, so that it adds to the variance of the bounds but not to their mean.

    levels : i8 (depth,), scale * levels is R q'
    deviations, sketch_deviations : what the bounds' margin holds, in standard deviations of either error
    stages : float64 (stages, 7)
    slices, weights : u64 (depth / 64 * SLICES,) and f32 (5 * stages,), zeroed, written as
        `tqindex.kernels.simd_count` takes them
    """
    squares: Any = 0
    for j in range(dim):
        squares += np.int64(levels[j]) * np.int64(levels[j])
    step = _STEP * np.sqrt(max(squares, 1) / dim)
    along: Any = 0
    coarse_squares: Any = 0
    total: Any = 0
    for j in range(dim):
        coarse = np.int64(min(max(np.rint(levels[j] / step), -_MOST), _MOST))
        along += coarse * np.int64(levels[j])
        coarse_squares += coarse * coarse
        total += coarse
        for s in range(SLICES):
            bit = np.uint64((coarse >> s) & 1)
            slices[j // 64 * SLICES + s] |= bit << np.uint64(j % 64)
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
