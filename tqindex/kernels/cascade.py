"""The scan for one query: planes are read most significant first, and most rows are given up after one or two.

A row is kept while its bound (`tqindex.codec.refinement`) reaches the k-th best score so far; the rows that are left
are scored in full, float for float as `Codec.scores` does. Without stages every row is scored in full.
"""

from typing import Any

import numpy as np

from tqindex.codec.packing import BLOCK
from tqindex.kernels.coarse import BOUND, ESTIMATE, FIRST, OFFSET, SECOND, WEIGHTS, sum_blocks
from tqindex.kernels.compile import called_kernel, inner_kernel, kernel
from tqindex.kernels.layout import padded_width
from tqindex.kernels.live import live_bits
from tqindex.kernels.product import multiply_row
from tqindex.kernels.queries import BIAS, SHIFT, SKETCH_SHIFT, SKETCH_STEP, STAGES, STEP
from tqindex.kernels.scan import NO_ID, is_better, push
from tqindex.kernels.simd_count import STREAMS, make_reach_pairs, prefetch
from tqindex.kernels.simd_trellis import start_of

# Numba's types give intrinsics the arguments of their code generators.
_reach_without_offsets, _reach_with_offsets = make_reach_pairs(False), make_reach_pairs(True)
_prefetch: Any = prefetch
_start_of: Any = start_of
#: Rows are long whose plane has more bytes. Of short ones both planes are counted before any is given up, so many rows
#: at a time: counts of these stay in cache.
_SHORT_WIDTH, _PIECE = 64, 2**15
#: Of long rows one block in so many is scanned first, for a threshold to begin with: their first plane is most of the
#: work, and bounds are so tight that a better threshold saves little. Rows that partial scores alone make likely ones
#: are enough for that. It pays where there are so many rows for each of the k best.
_SAMPLE, _SAMPLE_ROWS = 64, 32
#: Above this share of rows scored in full, planes are no longer read first: a row that is picked costs two to three
#: times what one costs in a full scan.
_MOST_SCORED = 0.5
#: Blocks that go through the stages together; at first, when no threshold is known, this many pairs.
_BATCH, _FIRST_BATCH = 128, 1
#: What float32 sums of scores may differ by, relative to their largest part.
_SLACK = np.float32(2.0**-21)
_ALL, _BLOCK_ROWS = np.uint32(2 ** (BLOCK * STREAMS) - 1), np.uint32(2**BLOCK - 1)
#: Where more than this share of blocks is left by the first plane, both planes are counted together; one batch in so
#: many is counted apart, to see whether that is still so.
_MOST_KEPT, _TRY_APART = 0.5, 16
#: What is kept of a block between the stages: its number, where its counts stand, and its rows as bits.
_BLOCKS, _COUNTS_AT, _MASKS = range(3)
#: Room that the parts of a scan share: what is kept of blocks, rows to be scored, masks of pairs of blocks, counts of
#: the two leading planes, and one row's planes and levels.
_KEPT, _WANTED, _REACHED, _FIRST_COUNTS, _SECOND_COUNTS, _PLANES, _LEVELS = range(7)


@kernel
def scan_rows_few(
    rows: Any, first_id: int, start: int, stop: int, tables: Any, queries: Any, best_scores: Any, best_ids: Any
) -> int:
    """Score the live rows of start..stop, start a multiple of 8, against few queries, one by one.

    Updates the best k of each query; returns how many rows were scored in full.

    rows : as `tqindex.kernels.scan.scan_rows`, and whether enough rows are live for reading planes first
    tables : (bits, table, sketch_table, multiplier)
    queries : (levels, sketch_levels, coarse, weights, reals, integers), one row per query, as
        `tqindex.kernels.queries.encode_few` writes them
    best_scores, best_ids : (nq, k), heaps as `push` keeps them
    """
    lead, rest, dense = rows[0], rows[1], rows[7]
    levels, sketch_levels, coarse, weights, reals, integers = queries
    k, width = best_scores.shape[1], lead.shape[2] // BLOCK
    # Flat arrays, since every reshape within a loop would cost a call.
    flat = lead.reshape(lead.size), rest.reshape(rest.size), rows[2], rows[3], rows[4], rows[5], rows[6]
    shape = lead.shape[0], lead.shape[1], lead.shape[2], rest.shape[1]
    is_short = width <= _SHORT_WIDTH
    enough = _SAMPLE_ROWS * k if is_short else _SAMPLE * max(BLOCK * _BATCH, _SAMPLE_ROWS * k)
    piece = min(_PIECE, stop - start) if is_short else stop - start
    counted = (piece + BLOCK * STREAMS if is_short else 0) + _BATCH * BLOCK
    kept, wanted, masks = (
        np.empty((3, _BATCH), np.int64),
        np.empty(_BATCH * BLOCK, np.int64),
        np.empty(_BATCH, np.uint32),
    )
    counts, second_counts = np.zeros(counted, np.int32), np.zeros(counted, np.int32)
    planes, work = np.zeros(lead.shape[0] * padded_width(width), np.uint8), np.zeros(levels.shape[1], np.uint8)
    scratch = kept, wanted, masks, counts, second_counts, planes, work
    sample = np.empty((1, k), np.float32), np.empty((1, k), np.int64)
    scored = 0
    for q in range(levels.shape[0]):
        sample[0][:], sample[1][:] = -np.inf, NO_ID
        query = levels[q], sketch_levels[q], reals[q], integers[q]
        n_stages = integers[q, STAGES] if dense else 0
        stages, best = (coarse[q], weights[q]), (best_scores[q : q + 1], best_ids[q : q + 1])
        # Without a threshold to begin with, likely rows come first, and then again.
        begins = n_stages > 0 and best[0][0, 0] == -np.inf and stop - start >= enough
        for first in range(start, stop, max(piece, 1)):
            last = min(first + piece, stop)
            if is_short and n_stages > 0:
                _count_piece(flat, shape, first, last, n_stages, stages[0], scratch)
            for part in (ESTIMATE, BOUND):
                if part == BOUND or begins:
                    step = _SAMPLE if part == ESTIMATE and not is_short else 1
                    target, floor = sample if part == ESTIMATE else best, sample[0][0, 0]
                    found = _scan_blocks(
                        flat,
                        shape,
                        first_id,
                        first,
                        last,
                        step,
                        part,
                        is_short,
                        tables,
                        query,
                        n_stages,
                        stages,
                        floor,
                        target,
                        scratch,
                    )
                    scored += found
            if found - k > _MOST_SCORED * (last - first):
                n_stages, begins = 0, False
    return scored


@inner_kernel
def _count_piece(rows: Any, shape: Any, start: int, stop: int, n_stages: int, coarse: Any, scratch: Any) -> None:
    """Count the leading planes of the rows start..stop as `_scan_blocks` pairs their blocks."""
    first = start // BLOCK
    count = (stop + BLOCK - 1) // BLOCK - first
    half = (count + 1) // STREAMS
    _count_pairs(rows[0], shape, 0, first, first + half, 1, half, count - half, coarse, scratch[_FIRST_COUNTS])
    if n_stages > 1:
        _count_pairs(rows[0], shape, 1, first, first + half, 1, half, count - half, coarse, scratch[_SECOND_COUNTS])


@called_kernel
def _scan_blocks(
    rows: Any,
    shape: Any,
    first_id: int,
    start: int,
    stop: int,
    step: int,
    part: int,
    is_counted: bool,
    tables: Any,
    query: Any,
    n_stages: int,
    stages: Any,
    floor: Any,
    best: Any,
    scratch: Any,
) -> int:
    """Scan for one query every `step`-th block; rows that score less than `floor` are of no interest.

    rows: flat arrays; shape: (leading planes, blocks, bytes of a block, bytes of a row of `rest`); part: BOUND, or
    ESTIMATE for the likely rows alone; is_counted: whether the counts of all blocks are there.

    Blocks go through the stages in batches, so that what a later stage reads is asked for in time.
    """
    first_block = start // BLOCK
    count = ((stop + BLOCK - 1) // BLOCK - first_block + step - 1) // step
    half = (count + 1) // STREAMS
    bias, k = query[2][BIAS], best[0].shape[1]
    scored, last, batch, batches, together = 0, 0, _FIRST_BATCH, 0, is_counted and n_stages > 1
    while last < half:
        first, last = last, min(last + batch, half)
        batch = min(2 * batch, _BATCH // STREAMS)  # a threshold is soon had
        batches += 1
        if batches % _TRY_APART == 0 and not is_counted:
            together = False
        threshold = _lowered(max(floor, best[0][0, 0]), bias)
        a, b = first_block + step * first, first_block + step * (half + first)
        both = min(last, count - half) - first  # the second run may be one block shorter
        if n_stages > 0 and not is_counted:
            _count_pairs(rows[0], shape, 0, a, b, step, last - first, both, stages[0], scratch[_FIRST_COUNTS])
            if together:
                _count_pairs(rows[0], shape, 1, a, b, step, last - first, both, stages[0], scratch[_SECOND_COUNTS])
        at = BLOCK * STREAMS * first if is_counted else 0
        stage = min(n_stages, 1 + together) - 1
        found = _keep_reached(
            rows, shape, a, b, step, last - first, both, at, stage, part, stages[1], threshold, scratch
        )
        if n_stages > 1 and not together:
            together = found > _MOST_KEPT * STREAMS * (last - first)
            _count_second(rows, shape, found, part, stages, threshold, scratch)
        n_wanted = _list_rows(rows, shape, found, stop, scratch)
        _score_rows(rows, shape, first_id, n_wanted, tables, query, best, scratch)
        scored += n_wanted
        if last >= _BATCH and scored - k > _MOST_SCORED * BLOCK * STREAMS * last:
            n_stages, together = 0, False
    return scored


@called_kernel
def _count_pairs(
    lead: Any, shape: Any, plane: int, a: int, b: int, step: int, pairs: int, both: int, coarse: Any, counts: Any
) -> None:
    """Count blocks a, a + step, ... and b, b + step, ... of a plane; of the second run only the first `both`."""
    blocks, block_bytes = shape[1], shape[2]
    width, at_a, at_b = block_bytes // BLOCK, (plane * blocks + a) * block_bytes, (plane * blocks + b) * block_bytes
    sum_blocks(lead, at_a, at_b, step * block_bytes, both, width, coarse, counts, 0)
    if both < pairs:
        at_a += both * step * block_bytes
        sum_blocks(lead, at_a, at_a, 0, 1, width, coarse, counts, BLOCK * STREAMS * both)


@inner_kernel
def _keep_reached(
    rows: Any,
    shape: Any,
    a: int,
    b: int,
    step: int,
    pairs: int,
    both: int,
    at: int,
    stage: int,
    part: int,
    weights: Any,
    threshold: Any,
    scratch: Any,
) -> int:
    """Note the blocks, counted from `at` on, with rows that reach the threshold by a stage; all before the first stage.

    Returns how many.
    """
    reached = scratch[_REACHED]
    if stage >= 0:
        _reach(rows, a, b, step, both, at, at + BLOCK, at, stage, part, weights, threshold, scratch, 0)
        if both < pairs:
            odd, odd_at = a + step * both, at + BLOCK * STREAMS * both
            _reach(rows, odd, odd, 0, 1, odd_at, odd_at, odd_at, stage, part, weights, threshold, scratch, both)
    found = 0
    for j in range(pairs):
        mask = reached[j] if stage >= 0 else _ALL
        if mask != 0:
            counts_at = at + BLOCK * STREAMS * j
            found = _keep(rows, shape, a + step * j, mask & _BLOCK_ROWS, counts_at, found, stage, scratch)
            if j < both:
                found = _keep(rows, shape, b + step * j, mask >> BLOCK, counts_at + BLOCK, found, stage, scratch)
    return found


@inner_kernel
def _keep(rows: Any, shape: Any, block: int, mask: Any, at: int, found: int, stage: int, scratch: Any) -> int:
    """Note a block whose rows `mask` are left, if live, and whose counts stand from `at` on; returns the number."""
    kept = scratch[_KEPT]
    mask &= live_bits(rows[6], block)
    if mask == 0:
        return found
    if stage == 0 and shape[0] > 1:
        _prefetch(rows[0], (shape[1] + block) * shape[2], shape[2])
    kept[_BLOCKS, found], kept[_COUNTS_AT, found], kept[_MASKS, found] = block, at, mask
    return found + 1


@inner_kernel
def _count_second(rows: Any, shape: Any, found: int, part: int, stages: Any, threshold: Any, scratch: Any) -> None:
    """Strike the rows of noted blocks that do not reach the threshold by both leading planes."""
    lead, kept, second_counts = rows[0], scratch[_KEPT], scratch[_SECOND_COUNTS]
    for i in range(0, found, STREAMS):
        other = min(i + 1, found - 1)
        a, b = kept[_BLOCKS, i], kept[_BLOCKS, other]
        _count_pairs(lead, shape, 1, a, b, 0, 1, 1, stages[0], second_counts)
        at_a, at_b = kept[_COUNTS_AT, i], kept[_COUNTS_AT, other]
        _reach(rows, a, b, 0, 1, at_a, at_b, 0, 1, part, stages[1], threshold, scratch, 0)
        mask = scratch[_REACHED][0]
        kept[_MASKS, i] &= mask & _BLOCK_ROWS
        if other != i:
            kept[_MASKS, other] &= mask >> BLOCK


@inner_kernel
def _list_rows(rows: Any, shape: Any, found: int, stop: int, scratch: Any) -> int:
    """List the rows of kept blocks that are left, those before `stop`; returns how many."""
    kept, wanted, rest_bytes = scratch[_KEPT], scratch[_WANTED], shape[3]
    n_wanted = 0
    for i in range(found):
        first, mask = BLOCK * kept[_BLOCKS, i], kept[_MASKS, i]
        if first + BLOCK > stop:
            mask &= (1 << (stop - first)) - 1
        for lane in range(BLOCK):  # without a branch: which rows are left cannot be foreseen
            wanted[n_wanted] = first + lane
            n_wanted += (mask >> lane) & 1
    for i in range(n_wanted):
        _prefetch(rows[1], wanted[i] * rest_bytes, rest_bytes)
    return n_wanted


@inner_kernel
def _reach(
    rows: Any,
    a: int,
    b: int,
    step: int,
    pairs: int,
    at_a: int,
    at_b: int,
    second_at: int,
    stage: int,
    part: int,
    weights: Any,
    threshold: Any,
    scratch: Any,
    to: int,
) -> None:
    """Find the rows of blocks a, a + step, ... and b, b + step, ... whose bound or partial score reaches the threshold.

    Their counts stand from at_a, at_b and second_at on; part: BOUND or ESTIMATE. Writes masks from `to` on.
    """
    scales, offsets, at = rows[2], rows[4], WEIGHTS * stage
    counts = scratch[_FIRST_COUNTS], at_a, at_b, scratch[_SECOND_COUNTS], second_at
    sides = scales, offsets, BLOCK * a, BLOCK * b, BLOCK * step, pairs
    factors = weights[at + FIRST], weights[at + SECOND], weights[at + part], weights[at + OFFSET], threshold
    target = scratch[_REACHED], to
    if offsets.shape[0] > 0:
        _reach_with_offsets(*counts, *sides, *factors, *target)
    else:
        _reach_without_offsets(*counts, *sides, *factors, *target)


@inner_kernel
def _lowered(threshold: Any, bias: Any) -> Any:
    """The threshold of bounds, which lack the query's bias."""
    return np.float32(threshold - bias - _SLACK * (abs(threshold) + abs(bias)))


@called_kernel
def _score_rows(
    rows: Any, shape: Any, first_id: int, n_wanted: int, tables: Any, query: Any, best: Any, scratch: Any
) -> None:
    """Score the listed rows in full and keep the best."""
    lead, rest, scales, sketch_scales, offsets, ids, _ = rows
    bits, table, sketch_table, multiplier = tables
    query_levels, sketch_levels, reals, integers = query
    step, sketch_step, bias = reals[STEP], reals[SKETCH_STEP], reals[BIAS]
    shift, sketch_shift = integers[SHIFT], integers[SKETCH_SHIFT]
    best_scores, best_ids = best
    wanted, planes, levels = scratch[_WANTED], scratch[_PLANES], scratch[_LEVELS]
    has_sketch, has_offsets, has_ids = sketch_scales.shape[0] > 0, offsets.shape[0] > 0, ids.shape[0] > 0
    for i in range(n_wanted):
        row = wanted[i]
        start = _start_of(scales, row)
        product = multiply_row(lead, shape, row, 0, bits, rest, table, query_levels, planes, levels, start)
        score = scales[row] * (step * np.float32(np.int32(multiplier * product + shift)))
        if has_sketch:
            signs = multiply_row(
                lead, shape, row, bits - 1, 1, rest, sketch_table, sketch_levels, planes, levels, start
            )
            score += sketch_scales[row] * (sketch_step * np.float32(np.int32(2 * signs + sketch_shift)))
        if has_offsets:
            score += offsets[row]
        score += bias
        if score >= best_scores[0, 0]:
            row_id = ids[row] if has_ids else first_id + row
            if is_better(score, row_id, best_scores[0, 0], best_ids[0, 0]):
                push(best_scores, best_ids, 0, score, row_id)
