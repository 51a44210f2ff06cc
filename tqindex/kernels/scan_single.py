"""The scan for one query: its products are taken straight from the code planes, row by row, without a tile."""

from typing import Any

import numpy as np

from tqindex.kernels.compile import kernel
from tqindex.kernels.product import dot_row as _dot_row
from tqindex.kernels.scan import is_better, push


@kernel
def scan_rows_single(
    planes: Any,
    scales: Any,
    sketch_scales: Any,
    offsets: Any,
    ids: Any,
    first_id: int,
    start: int,
    stop: int,
    bits: int,
    table: Any,
    sketch_table: Any,
    query: Any,
    sketch_query: Any,
    multiplier: int,
    shift: int,
    sketch_shift: int,
    step: float,
    sketch_step: float,
    bias: float,
    best_scores: Any,
    best_ids: Any,
) -> None:
    """As `tqindex.kernels.scan.scan_rows`, for planes of at least `WORD` bytes each.

    query, sketch_query: i8 (depth,); best_scores, best_ids: (1, k).
    """
    has_sketch, has_offsets, has_ids = sketch_scales.shape[0] > 0, offsets.shape[0] > 0, ids.shape[0] > 0
    row_bytes = planes.shape[1]
    width = row_bytes // bits
    flat_planes = planes.reshape(planes.size)
    for row in range(start, stop):
        at = row * row_bytes
        product = np.int32(multiplier * _dot_row(flat_planes, at, width, bits, table, query) + shift)
        score = scales[row] * (step * np.float32(product))
        if has_sketch:
            signs = _dot_row(flat_planes, at + (bits - 1) * width, width, 1, sketch_table, sketch_query)
            score += sketch_scales[row] * (sketch_step * np.float32(np.int32(2 * signs + sketch_shift)))
        if has_offsets:
            score += offsets[row]
        score += bias
        if score >= best_scores[0, 0]:
            row_id = ids[row] if has_ids else first_id + row
            if is_better(score, row_id, best_scores[0, 0], best_ids[0, 0]):
                push(best_scores, best_ids, 0, score, row_id)
