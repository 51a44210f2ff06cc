"""One query or few against many rows on the device: the first plane of all rows, then the likely rows; see `few.cu`.

A row is given up only where its bound is below a score that k rows are known to reach, so that the eps of the rule is
that of `tqindex.kernels.cascade`, and the result does not depend on the order in which blocks run.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tqindex.codec import Codec
from tqindex.gpu.best import Best, Candidates, keep_best, no_best
from tqindex.gpu.codes import DeviceQueries, code_defines, every_defines, list_live, row_arguments
from tqindex.gpu.rows import DeviceSegment
from tqindex.gpu.runtime import Kernel, Runtime
from tqindex.gpu.scan import Kept
from tqindex.index.plan import ScanPlan
from tqindex.kernels.coarse import FIRST_GAP, KAPPA, LOWEST, SKETCH, VARIANCE

_KERNELS = "bound_rows", "list_survivors", "score_rows", "score_survivors"
_THREADS, _ROWS_PER_BLOCK = 256, 64
#: Blocks of a launch that scores rows, at most; they take more rows in turn.
_BLOCKS = 2048
#: Groups of rows, of which only the likeliest row may be scored for the threshold: 32 in each block, which has up to 8
#: rows for each thread, if there are at least so many groups for each of the k best. So many times k rows are scored.
_BLOCK_GROUPS, _MOST_TURNS, _GROUPS_PER_RESULT, _PROBES_PER_RESULT = 32, 8, 8, 2
#: Below this share of live rows, or so many for each of the k best, all are scored.
_LEAST_LIVE, _ROWS_PER_RESULT = 1 / 16, 32
#: What float32 scores may differ by, relative to the largest that a row could reach (tqindex.kernels.coarse).
_SLACK = 2.0**-20


def specialisations() -> Iterator[Kernel]:
    """Yield every kernel that some codec runs."""
    for defines in every_defines():
        yield from (Kernel("few.cu", name, defines) for name in _KERNELS)


class Scanned(NamedTuple):
    """The best so far, and how many rows each query had scored in full, int64 (nq,) of the device."""

    best: Best
    scored: Any


class Bounds(NamedTuple):
    """Bounds of all rows: uint8 codes (nq, n), and float32 ranges (nq, ceil(n / 256), 2) in which they lie."""

    codes: Any
    ranges: Any


def scan_rows_few(
    runtime: Runtime,
    plan: ScanPlan,
    queries: DeviceQueries,
    segment: DeviceSegment,
    best: Best,
    margins: tuple[float, float] | None,
) -> Scanned:
    """Return the best of the live rows and of those so far, for each query.

    margins: as `tqindex.index.plan.deviations` gives them; None: every row is scored in full. So it is too where the
    codec has no stages, or too few rows are live.
    """
    nq, k = best.scores.shape
    if not nq or not k or not segment.n_live:
        return Scanned(best, runtime.xp.zeros(nq, np.int64))
    scan = _Scan(runtime, plan.codec, queries, segment)
    if margins is None or not len(plan.stages) or not is_worth_bounds(segment.n, segment.n_live, k):
        return scan.all_rows(best)
    return scan.survivors(best, bound_constants(plan, margins))


def is_worth_bounds(n: int, n_live: int, k: int) -> bool:
    """Return whether so many rows are live that it pays to bound all of them first."""
    return n_live >= max(_LEAST_LIVE * n, _ROWS_PER_RESULT * k)


def bound_constants(plan: ScanPlan, margins: tuple[float, float]) -> tuple[float, float, float]:
    """Return what the first plane's bounds are made of, for a query of step 1; margins: as `scan_rows_few`.

    What `tqindex.kernels.coarse.coarsen_query` makes of a coarse query that is the query itself: v of a coordinate
    whose bit is 0, what the bit adds, and the margin for a query of norm 1.
    """
    known, dim, codec = plan.stages[0], plan.codec.dim, plan.codec
    code_step = codec.product_step
    deviations = margins[0] * math.sqrt(known[VARIANCE]) + margins[1] * known[SKETCH]
    margin = deviations * math.sqrt(dim / (dim - 1.0)) + _SLACK * math.sqrt(dim)
    partial = known[KAPPA] / code_step
    return partial * known[LOWEST], partial * known[FIRST_GAP], margin / code_step


def count_turns(n: int, k: int) -> int:
    """Return how many rows a thread bounds, so that there are enough groups of rows."""
    return max(1, min(_MOST_TURNS, n * _BLOCK_GROUPS // (_THREADS * _GROUPS_PER_RESULT * k)))


def count_probes(groups: int, k: int) -> int:
    """Return how many rows are scored for the threshold."""
    return min(groups, _PROBES_PER_RESULT * k)


@dataclass(frozen=True, eq=False)
class _Scan:
    """The launches of `few.cu` for some queries and rows."""

    runtime: Runtime
    codec: Codec
    queries: DeviceQueries
    segment: DeviceSegment

    def all_rows(self, best: Best) -> Scanned:
        """Score every live row in full."""
        segment, nq = self.segment, len(self.queries)
        numbers = list_live(self.runtime, segment) if segment.live.size else None
        scores = self.score(segment.n_live, numbers)
        best = keep_best(self.runtime, best, Candidates(scores, numbers, ids=segment.ids, first_id=segment.first_id))
        return Scanned(best, self.runtime.xp.full(nq, segment.n_live, np.int64))

    def survivors(self, best: Best, constants: tuple[float, float, float]) -> Scanned:
        """Score the rows in full whose bound reaches what the best k of the likeliest rows score."""
        runtime, segment, k = self.runtime, self.segment, best.scores.shape[1]
        bounds, likely = self.bound(constants, k)
        probes = likely.scores.shape[1]
        known = keep_best(runtime, best, Candidates(self.score(probes, likely.rows), likely.rows))
        listed, counts = self.list_survivors(bounds, known.scores)
        scores, kept, kept_counts = self.score_survivors(listed, counts, known.scores)
        found = Candidates(scores, kept, ids=segment.ids, first_id=segment.first_id, counts=kept_counts)
        return Scanned(keep_best(runtime, best, found), counts.astype(np.int64) + probes)

    def bound(self, constants: tuple[float, float, float], k: int) -> tuple[Bounds, Kept]:
        """Return the bounds of all rows, and the likeliest rows with their estimates."""
        runtime, segment, xp, nq = self.runtime, self.segment, self.runtime.xp, len(self.queries)
        turns = count_turns(segment.n, k)
        blocks = -(-segment.n // (turns * _THREADS))
        ranges = xp.empty((nq, -(-segment.n // _THREADS), 2), np.float32)
        bounds = Bounds(xp.empty((nq, segment.n), np.uint8), ranges)
        shape = nq, blocks * _BLOCK_GROUPS
        estimates = Kept(xp.empty(shape, np.float32), xp.empty(shape, np.uint32))
        lead, _, _, _, width, scales, _, offsets, has_offsets = row_arguments(self.codec, segment.codes)
        live = segment.live, np.int32(segment.live.size > 0), np.int64(segment.n)
        of_rows = lead, width, scales, offsets, has_offsets, *live
        of_queries = self.queries.levels, np.int32(self.queries.depth), self.queries.reals, self.queries.integers
        of_bounds = *map(np.float64, constants), np.int32(turns)
        self.launch("bound_rows", blocks, (*of_rows, *of_queries, *of_bounds, *bounds, *estimates))
        probes = count_probes(shape[1], k)
        likely = keep_best(runtime, no_best(runtime, nq, probes), Candidates(estimates.scores, estimates.rows))
        # The id of no row ends in the bits of the number of none.
        return bounds, Kept(likely.scores, likely.ids.astype(np.uint32))

    def list_survivors(self, bounds: Bounds, best_scores: Any) -> tuple[Any, Any]:
        """Return the rows whose bounds reach the last of the best, (nq, n), and how many there are of each query."""
        xp, (nq, n), k = self.runtime.xp, bounds.codes.shape, best_scores.shape[1]
        listed, counts = xp.empty((nq, n), np.uint32), xp.zeros(nq, np.uint32)
        arguments = *bounds, np.int64(n), best_scores, np.int32(k), self.queries.reals, listed, counts
        self.launch("list_survivors", -(-n // _THREADS), arguments)
        return listed, counts

    def score_survivors(self, listed: Any, counts: Any, best_scores: Any) -> tuple[Any, Any, Any]:
        """Return scores and rows, (nq, n), of those that reach the last of the best, and how many there are."""
        xp, (nq, n), k = self.runtime.xp, listed.shape, best_scores.shape[1]
        scores, kept, kept_counts = xp.empty((nq, n), np.float32), xp.empty((nq, n), np.uint32), xp.zeros(nq, np.uint32)
        of_rows = *row_arguments(self.codec, self.segment.codes), listed, counts, np.int64(n)
        of_queries = *self.queries.arguments(), np.int32(self.queries.depth), best_scores, np.int32(k)
        self.launch("score_survivors", self.score_blocks(n), (*of_rows, *of_queries, scores, kept, kept_counts))
        return scores, kept, kept_counts

    def score(self, count: int, numbers: Any) -> Any:
        """Return the scores of `count` rows, or of those that `numbers` lists, (count,) or (nq, count)."""
        xp, nq = self.runtime.xp, len(self.queries)
        scores = xp.empty((nq, count), np.float32)
        listed = xp.empty(0, np.uint32) if numbers is None else numbers
        stride = count if listed.ndim > 1 else 0
        of_list = listed, np.int32(numbers is not None), np.int64(stride), np.int64(count)
        of_rows = *row_arguments(self.codec, self.segment.codes), *of_list
        of_queries = *self.queries.arguments(), np.int32(self.queries.depth)
        self.launch("score_rows", self.score_blocks(count), (*of_rows, *of_queries, scores))
        return scores

    def score_blocks(self, count: int) -> int:
        """Return the blocks that score so many rows of each query."""
        return max(1, min(-(-count // _ROWS_PER_BLOCK), _BLOCKS // len(self.queries)))

    def launch(self, name: str, blocks: int, arguments: tuple[Any, ...]) -> None:
        """Run a kernel on so many blocks for each query."""
        kernel = Kernel("few.cu", name, code_defines(self.codec))
        self.runtime.function(kernel)((blocks, len(self.queries)), (_THREADS,), arguments)
