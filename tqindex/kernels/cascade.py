"""The scan for one query: planes are read most significant first, and most rows are given up after one or two.

A row is kept while its bound (`tqindex.codec.refinement`) reaches the k-th best score so far; the rows that are left
are scored in full, float for float as `Codec.scores` does. Without stages every row is scored in full.
"""

from typing import Any

import numpy as np

from tqindex.codec.packing import BLOCK
from tqindex.kernels.compile import kernel
from tqindex.kernels.layout import load_lead
from tqindex.kernels.product import multiply_row
from tqindex.kernels.scan import NO_ID, is_better, push
from tqindex.kernels.simd_count import STREAMS, count_blocks, make_reach_block

# Numba's types give intrinsics the arguments of their code generators.
_count_blocks: Any = count_blocks
_reach_block, _reach_block_with_offsets = make_reach_block(False), make_reach_block(True)
#: One block in so many is scanned first, for a threshold to begin with.
_SAMPLE = 32
#: Above this share of rows scored in full, the planes are not worth reading first (measured: see `docs` of the scan).
_MOST_SCORED = 0.5
_CHECK_EVERY = 128
#: What float32 sums of scores may differ by, relative to their largest part.
_SLACK = np.float32(2.0**-21)
_ALL = np.uint32(2**BLOCK - 1)


@kernel
def scan_rows_single(
    rows: Any, first_id: int, start: int, stop: int, tables: Any, query: Any, stages: Any, best_scores: Any, best_ids: Any
) -> int:
    """Score rows start..stop, start a multiple of 8, and update the best k; returns how many were scored in full.

    rows : as `tqindex.kernels.scan.scan_rows`
    tables : (bits, table, sketch_table)
    query : (levels, sketch_levels, multiplier, shift, sketch_shift, step, sketch_step, bias), levels i8 (depth,)
    stages : (slices, weights), as `count_blocks` and `make_reach_block` take them; no weights: no stages
    best_scores, best_ids : (1, k), heaps as `push` keeps them
    """
    k = best_scores.shape[1]
    floor = np.float32(-np.inf)
    scored = 0
    if stages[1].shape[0] > 0 and best_scores[0, 0] == -np.inf:
        sample_scores, sample_ids = np.full((1, k), floor, np.float32), np.full((1, k), NO_ID, np.int64)
        scored += _scan_blocks(
            rows, first_id, start, stop, _SAMPLE, tables, query, stages, floor, sample_scores, sample_ids
        )
        floor = sample_scores[0, 0]
    return scored + _scan_blocks(
        rows, first_id, start, stop, 1, tables, query, stages, floor, best_scores, best_ids
    )


@kernel
def _scan_blocks(
    rows: Any,
    first_id: int,
    start: int,
    stop: int,
    step: int,
    tables: Any,
    query: Any,
    stages: Any,
    floor: float,
    best_scores: Any,
    best_ids: Any,
) -> int:
    """As `scan_rows_single` for every `step`-th block; rows that score less than `floor` are of no interest."""
    lead, rest, scales, sketch_scales, offsets, ids = rows
    slices, weights = stages
    leading, blocks, block_bytes = lead.shape
    width = block_bytes // BLOCK
    flat_lead = lead.reshape(lead.size)
    flat_weights = weights.reshape(weights.size)
    first_counts, second_counts = np.zeros(BLOCK * STREAMS, np.int32), np.zeros(BLOCK * STREAMS, np.int32)
    work = np.zeros((leading, (width + 7) // 8 * 8), np.uint8)
    levels = np.zeros(query[0].shape[0], np.uint8)
    first_block = start // BLOCK
    count = ((stop + BLOCK - 1) // BLOCK - first_block + step - 1) // step
    half = (count + 1) // STREAMS
    has_stages = weights.shape[0] > 0
    bias = query[7]
    scored = 0
    for j in range(half):
        a = first_block + step * j
        b = first_block + step * min(half + j, count - 1)
        wanted_a, wanted_b = _ALL, _ALL if half + j < count else np.uint32(0)
        if has_stages:
            threshold = _lowered(max(floor, best_scores[0, 0]), bias)
            _count_blocks(flat_lead, a * block_bytes, b * block_bytes, width, slices, first_counts)
            wanted_a &= _reach(first_counts, second_counts, 0, scales, offsets, BLOCK * a, flat_weights, 0, threshold)
            wanted_b &= _reach(first_counts, second_counts, 8, scales, offsets, BLOCK * b, flat_weights, 0, threshold)
            if weights.shape[0] > 1 and (wanted_a | wanted_b) != 0:
                at = blocks * block_bytes
                _count_blocks(flat_lead, at + a * block_bytes, at + b * block_bytes, width, slices, second_counts)
                wanted_a &= _reach(
                    first_counts, second_counts, 0, scales, offsets, BLOCK * a, flat_weights, 1, threshold
                )
                wanted_b &= _reach(
                    first_counts, second_counts, 8, scales, offsets, BLOCK * b, flat_weights, 1, threshold
                )
        if wanted_a != 0:
            scored += _score_block(
                rows, first_id, BLOCK * a, stop, wanted_a, tables, query, work, levels, best_scores, best_ids
            )
        if wanted_b != 0:
            scored += _score_block(
                rows, first_id, BLOCK * b, stop, wanted_b, tables, query, work, levels, best_scores, best_ids
            )
        if j % _CHECK_EVERY == _CHECK_EVERY - 1 and scored > _MOST_SCORED * (BLOCK * STREAMS * (j + 1)):
            has_stages = False
    return scored


@kernel
def _reach(
    first: Any, second: Any, at: int, scales: Any, offsets: Any, row: int, weights: Any, stage: int, threshold: float
) -> int:
    if offsets.shape[0] > 0:
        return _reach_block_with_offsets(first, second, at, scales, offsets, row, weights, stage, threshold)
    return _reach_block(first, second, at, scales, offsets, row, weights, stage, threshold)


@kernel
def _lowered(threshold: float, bias: float) -> float:
    """The threshold of bounds, which lack the query's bias."""
    return np.float32(threshold - bias - _SLACK * (abs(threshold) + abs(bias)))


@kernel
def _score_block(
    rows: Any,
    first_id: int,
    first_row: int,
    stop: int,
    wanted: int,
    tables: Any,
    query: Any,
    work: Any,
    levels: Any,
    best_scores: Any,
    best_ids: Any,
) -> int:
    """Score the wanted rows of a block in full, those before `stop`; returns how many."""
    lead, rest, scales, sketch_scales, offsets, ids = rows
    bits, table, sketch_table = tables
    query_levels, sketch_levels, multiplier, shift, sketch_shift, step, sketch_step, bias = query
    width = lead.shape[2] // BLOCK
    words, work_words = lead.reshape(lead.size).view(np.uint64), work.reshape(work.size).view(np.uint64)
    scored = 0
    for lane in range(BLOCK):
        row = first_row + lane
        if not (wanted >> lane) & 1 or row >= stop:
            continue
        scored += 1
        load_lead(lead, words, row, work, work_words)
        product = multiply_row(work, rest, row, 0, bits, width, table, query_levels, levels)
        score = scales[row] * (step * np.float32(np.int32(multiplier * product + shift)))
        if sketch_scales.shape[0] > 0:
            signs = multiply_row(work, rest, row, bits - 1, 1, width, sketch_table, sketch_levels, levels)
            score += sketch_scales[row] * (sketch_step * np.float32(np.int32(2 * signs + sketch_shift)))
        if offsets.shape[0] > 0:
            score += offsets[row]
        score += bias
        if score >= best_scores[0, 0]:
            row_id = ids[row] if ids.shape[0] > 0 else first_id + row
            if is_better(score, row_id, best_scores[0, 0], best_ids[0, 0]):
                push(best_scores, best_ids, 0, score, row_id)
    return scored
