"""Encoding of queries, equal bit for bit to `tqindex.codec.Codec.encode_queries`."""

from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.checks import MAX_NORM, check_nonzero, check_norms
from tqindex.codec import Codec
from tqindex.codec.codes import QueryCodes
from tqindex.codec.rotation import HadamardRotation, MatrixProjection
from tqindex.kernels.coarse import coarsen_query
from tqindex.kernels.compile import kernel
from tqindex.kernels.encode import dot, normalise_rows
from tqindex.kernels.encoder import project
from tqindex.kernels.rotate import project_rows, rotate_row

Float32Array = npt.NDArray[np.float32]

#: Columns of `reals` and `integers`, what belongs to each of few queries besides its levels.
STEP, SKETCH_STEP, BIAS = range(3)
SHIFT, SKETCH_SHIFT, STAGES = range(3)
#: Below this step of a query float32 loses digits of its products, by which bounds could miss scores.
LEAST_STEP = 2.0**-110


def encode_queries(codec: Codec, queries: Float32Array, metric: str, first_row: int = 0) -> QueryCodes:
    """Centre, rotate and round queries, finite float32 (nq, dim), to int8.

    Raises
    ------
    VectorError
        A norm above 2**60, a zero query under "cosine"; the message counts rows from `first_row`.
    """
    rows = queries.copy()
    n = len(rows)
    scratch, squares, along = np.empty(codec.dim), np.empty(n), np.zeros(n)
    if metric == "cosine":
        lengths = np.empty(n)
        normalise_rows(rows, lengths, scratch)
        check_nonzero(lengths, "queries", first_row)
    subtract_center(rows, np.empty(0, np.float32) if codec.center is None else codec.center, squares, along, scratch)
    check_norms(np.sqrt(squares), "queries", first_row)
    project(codec.rotate, rows)
    levels, scales, sums = _round(rows)
    sketch_levels = sketch_steps = None
    if codec.sketch_projection is not None:
        project(codec.sketch_projection, rows)
        sketch_levels, sketch_scales, _ = _round(rows)
        sketch_steps = sketch_scales.astype(np.float32)
    biases = -0.5 * squares if metric == "l2" else along
    steps = (scales * codec.product_step).astype(np.float32)
    return QueryCodes(levels, steps, sums, biases.astype(np.float32), sketch_levels, sketch_steps)


def _round(rows: Any) -> tuple[Any, Any, Any]:
    n, dim = rows.shape
    levels, scales, sums = np.empty((n, dim), np.int8), np.empty(n), np.empty(n, np.int32)
    round_rows(rows, levels, scales, sums)
    return levels, scales, sums


def matrices(projection: HadamardRotation | MatrixProjection | None) -> tuple[Any, Any, Any]:
    """Return a projection as `encode_few` takes it: (permutations, signs, columns), those that it lacks empty."""
    permutations, signs = np.empty((0, 0), np.int32), np.empty((0, 2, 0), np.float32)
    columns = np.empty((0, 0), np.float32)
    if isinstance(projection, HadamardRotation):
        permutations, signs = projection.permutations, projection.signs
    elif projection is not None:
        columns = projection.columns
    return permutations, signs, columns


@kernel
def subtract_center(rows: Any, center: Any, squares: Any, along: Any, scratch: Any) -> None:
    """Subtract the centre in place; writes <q, c>, if there is a centre, and |q - c|^2, float64 (n,) each."""
    for r in range(rows.shape[0]):
        row = rows[r]
        if center.shape[0] > 0:
            along[r] = dot(row, center, scratch)
            for j in range(row.shape[0]):
                row[j] -= center[j]
        squares[r] = dot(row, row, scratch)


@kernel
def round_rows(rows: Any, levels: Any, scales: Any, sums: Any) -> None:
    """Round rows to integers in [-127, 127], int8 (n, dim or more); writes each row's step, float64, and sum, int32."""
    n, dim = rows.shape
    for r in range(n):
        row, out = rows[r], levels[r]
        largest = np.float32(0)
        for j in range(dim):
            largest = max(largest, abs(row[j]))
        factor = 127.0 / np.float64(largest) if largest > 0 else 0.0
        total = np.int32(0)
        for j in range(dim):
            level = np.int8(np.rint(np.float64(row[j]) * factor))
            out[j] = level
            total += np.int32(level)
        scales[r], sums[r] = np.float64(largest) / 127.0, total


@kernel
def encode_few(rows: Any, form: Any, margins: Any, out: Any) -> bool:
    """Centre, rotate and round few queries, float32 (nq, dim), in one call; overwrites them.

    Equal bit for bit to `encode_queries`. Returns False at the first one that it refuses, or that is not finite.

    form : (normalised, squared, center, rotation, sketch, step, multiplier, stages); which metric it is, two
        projections as `matrices` gives them, the codebook's step, what turns sums of levels into shifts, and the
        cascade's stages as `coarsen_query` takes them
    margins : (deviations, sketch_deviations) of `coarsen_query`
    out : (levels, sketch_levels, slices, weights, reals, integers), zeroed, as
        `tqindex.kernels.cascade.scan_rows_few` takes them
    """
    normalised, squared, center, rotation, sketch, step, multiplier, stages = form
    levels, sketch_levels, slices, weights, reals, integers = out
    nq, dim = rows.shape
    has_sketch = sketch[0].shape[0] + sketch[2].shape[0] > 0
    scratch, spare = np.empty(dim), np.empty(dim, np.float32)
    one, square, along, coarse = np.empty(1), np.empty(1), np.zeros(1), np.zeros(levels.shape[1], np.int8)
    scale, total = np.empty(1), np.empty(1, np.int32)
    for q in range(nq):
        row = rows[q : q + 1]
        if normalised:
            normalise_rows(row, one, scratch)
            if one[0] == 0.0:
                return False
        subtract_center(row, center, square, along, scratch)
        if not np.sqrt(square[0]) <= MAX_NORM:
            return False
        _project(row, rotation, spare)
        round_rows(row, levels[q : q + 1], scale, total)
        reals[q, STEP] = np.float32(scale[0] * step)
        reals[q, BIAS] = np.float32(-0.5 * square[0] if squared else along[0])
        integers[q, SHIFT] = total[0] * multiplier
        if has_sketch:
            _project(row, sketch, spare)
            round_rows(row, sketch_levels[q : q + 1], scale, total)
            reals[q, SKETCH_STEP] = np.float32(scale[0])
            integers[q, SKETCH_SHIFT] = -total[0]
        if stages.shape[0] > 0 and reals[q, STEP] >= LEAST_STEP:
            # A query's step counts the codebook's step too.
            unit = np.float64(reals[q, STEP]) / step
            coarsen_query(levels[q], dim, unit, margins[0], margins[1], stages, coarse, slices[q], weights[q])
            integers[q, STAGES] = stages.shape[0]
    return True


@kernel
def _project(row: Any, matrices: Any, spare: Any) -> None:
    """Apply a projection to one row, float32 (1, dim), in place."""
    permutations, signs, columns = matrices
    if permutations.shape[0] > 0:
        rotate_row(row[0], permutations, signs, spare)
    else:
        project_rows(row, columns, spare)
