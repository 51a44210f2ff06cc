"""Encoding of queries, equal bit for bit to `tqindex.codec.Codec.encode_queries`."""

from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.checks import check_nonzero, check_norms
from tqindex.codec import Codec
from tqindex.codec.codes import QueryCodes
from tqindex.kernels.compile import kernel
from tqindex.kernels.encode import dot, normalise_rows
from tqindex.kernels.encoder import project

Float32Array = npt.NDArray[np.float32]


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
    half = 0.5 if codec.codebook.offset else 1.0
    sketch_levels = sketch_steps = None
    if codec.sketch_projection is not None:
        project(codec.sketch_projection, rows)
        sketch_levels, sketch_scales, _ = _round(rows)
        sketch_steps = sketch_scales.astype(np.float32)
    biases = -0.5 * squares if metric == "l2" else along
    steps = (scales * (codec.codebook.step * half)).astype(np.float32)
    return QueryCodes(levels, steps, sums, biases.astype(np.float32), sketch_levels, sketch_steps)


def _round(rows: Any) -> tuple[Any, Any, Any]:
    n, dim = rows.shape
    levels, scales, sums = np.empty((n, dim), np.int8), np.empty(n), np.empty(n, np.int32)
    round_rows(rows, levels, scales, sums)
    return levels, scales, sums


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
    """Round rows to integers in [-127, 127], int8 (n, dim); writes each row's step, float64, and sum, int32."""
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
