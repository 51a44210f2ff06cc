"""One query or few against many rows on the device: the first plane of all rows, then the likely rows; see `few.cu`.

A row is given up only where its bound is below a score that k rows are known to reach, so that the eps of the rule is
that of `tqindex.kernels.cascade`, and the result does not depend on the order in which blocks run.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tqindex.codec import Codec
from tqindex.codec.codes import QueryCodes
from tqindex.codec.packing import plane_bytes
from tqindex.gpu.best import Best, Candidates, keep_best, no_best
from tqindex.gpu.codes import DeviceQueries, DeviceRows, code_defines
from tqindex.gpu.runtime import Kernel, Runtime
from tqindex.gpu.scan import Found, list_live
from tqindex.index.plan import ScanPlan
from tqindex.kernels.coarse import FIRST_GAP, KAPPA, LOWEST, SKETCH, VARIANCE
from tqindex.kernels.queries import LEAST_STEP

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

_THREADS, _ROWS_PER_BLOCK = 256, 64
#: Blocks that keep any device busy; those that score rows take more rows in turn.
_BLOCKS = 2048
#: Groups of rows, of which only the likeliest row may be scored for the threshold, have at most so many rows, and are
#: at least so many times k; so many times k rows are scored.
_MOST_GROUP, _GROUPS_PER_RESULT, _PROBES_PER_RESULT = 16, 32, 2
#: Planes of fewer bytes have their bounds in 2 bytes, not in 4: written and read again they would cost too much.
_SHORT_WIDTH = 32
#: Below this share of live rows, and below so many for each of the k best as there must be groups, all are scored.
_LEAST_LIVE = 1 / 16
#: What float32 scores may differ by, relative to the largest that a row could reach (tqindex.kernels.coarse).
_SLACK = 2.0**-20


class Scanned(NamedTuple):
    """The best so far, and how many rows each query had scored in full, int64 (nq,) of the device."""

    best: Best
    scored: Any


def scan_rows_few(
    runtime: Runtime,
    plan: ScanPlan,
    queries: DeviceQueries,
    rows: DeviceRows,
    best: Best,
    margins: tuple[float, float] | None,
) -> Scanned:
    """Return the best of the live rows and of those so far, for each query.

    margins: as `tqindex.index.plan.deviations` gives them; None: every row is scored in full. So it is too where the
    codec has no stages, or a query is so short that float32 would lose digits of its bounds.
    """
    nq, k = best.scores.shape
    if not nq or not k or not rows.n_live:
        return Scanned(best, runtime.xp.zeros(nq, np.int64))
    weights = None
    if margins is not None and is_worth_bounds(rows.n, rows.n_live, k):
        weights = bound_weights(plan, queries.codes, margins)
    scan = _Scan(runtime, plan.codec, queries, rows)
    return scan.all_rows(best) if weights is None else scan.survivors(best, weights)


def is_worth_bounds(n: int, n_live: int, k: int) -> bool:
    """Return whether so many rows are live that it pays to bound all of them first."""
    return n_live >= max(_LEAST_LIVE * n, _GROUPS_PER_RESULT * k)


def bound_weights(plan: ScanPlan, queries: QueryCodes, margins: tuple[float, float]) -> Float32Array | None:
    """Return the weights of the first plane's bounds as `tqindex.kernels.coarse` has them, (nq, 5), or None.

    The query is at full precision: what `coarsen_query` computes with a coarse query that is the query.
    """
    codec = plan.codec
    if not len(plan.stages) or queries.steps.min(initial=np.inf) < LEAST_STEP:
        return None
    known, dim = plan.stages[0], codec.dim
    squares = (queries.levels.astype(np.int64) ** 2).sum(axis=1).astype(np.float64)
    half = 0.5 if codec.codebook.offset else 1.0
    scale = queries.steps.astype(np.float64) / (codec.codebook.step * half)
    margin = margins[0] * np.sqrt(known[VARIANCE] * squares) + margins[1] * known[SKETCH] * np.sqrt(squares)
    margin = margin * np.sqrt(dim / (dim - 1.0)) + _SLACK * np.sqrt(squares * dim)
    factor = scale * known[KAPPA]
    lowest = factor * known[LOWEST] * queries.sums
    nothing = np.zeros_like(scale)
    columns = factor * known[FIRST_GAP], nothing, lowest + scale * margin, lowest, nothing + _SLACK
    return np.column_stack(columns).astype(np.float32)


def group_size(n: int, k: int) -> int:
    """Return of how many rows only the likeliest may be scored for the threshold."""
    return max(1, min(_MOST_GROUP, n // (_GROUPS_PER_RESULT * k)))


def count_probes(groups: int, k: int) -> int:
    """Return how many rows are scored for the threshold."""
    return min(groups, _PROBES_PER_RESULT * k)


@dataclass(frozen=True, eq=False)
class _Scan:
    """The launches of `few.cu` for some queries and rows."""

    runtime: Runtime
    codec: Codec
    queries: DeviceQueries
    rows: DeviceRows

    def all_rows(self, best: Best) -> Scanned:
        """Score every live row in full."""
        rows, nq = self.rows, len(self.queries)
        numbers = list_live(self.runtime, rows) if rows.live.size else None
        scores = self.score(rows.n_live, numbers)
        best = keep_best(self.runtime, best, Candidates(scores, numbers, ids=rows.ids, first_id=rows.first_id))
        return Scanned(best, self.runtime.xp.full(nq, rows.n_live, np.int64))

    def survivors(self, best: Best, weights: Float32Array) -> Scanned:
        """Score the rows in full whose bound reaches what the best k of the likeliest rows score."""
        runtime, rows, k = self.runtime, self.rows, best.scores.shape[1]
        bounds, likely = self.bound(weights, k)
        probes = likely.scores.shape[1]
        known = keep_best(runtime, best, Candidates(self.score(probes, likely.rows), likely.rows))
        listed, counts = self.list_survivors(bounds, known.scores)
        scores, kept, kept_counts = self.score_survivors(listed, counts, known.scores)
        found = Candidates(scores, kept, ids=rows.ids, first_id=rows.first_id, counts=kept_counts)
        return Scanned(keep_best(runtime, best, found), counts.astype(np.int64) + probes)

    def bound(self, weights: Float32Array, k: int) -> tuple[Any, Found]:
        """Return the bounds of all rows, and the likeliest rows with their estimates."""
        runtime, rows, xp, nq = self.runtime, self.rows, self.runtime.xp, len(self.queries)
        group = group_size(rows.n, k)
        blocks = -(-rows.n // (group * _THREADS))
        bounds = xp.empty((nq, rows.n), np.uint16 if self.is_short else np.float32)
        shape = nq, blocks * _THREADS
        estimates = Found(xp.empty(shape, np.float32), xp.empty(shape, np.uint32))
        lead, _, _, _, width, scales, _, offsets, has_offsets = rows.arguments(self.codec)
        of_rows = lead, width, scales, offsets, has_offsets, rows.live, np.int32(rows.live.size > 0), np.int64(rows.n)
        of_queries = self.queries.levels, np.int32(self.queries.depth), runtime.upload(weights)
        self.launch("bound_rows", blocks, (*of_rows, *of_queries, np.int32(group), bounds, *estimates))
        probes = count_probes(shape[1], k)
        likely = keep_best(runtime, no_best(runtime, nq, probes), Candidates(estimates.scores, estimates.rows))
        # The id of no row ends in the bits of the number of none.
        return bounds, Found(likely.scores, likely.ids.astype(np.uint32))

    def list_survivors(self, bounds: Any, best_scores: Any) -> tuple[Any, Any]:
        """Return the rows whose bounds reach the last of the best, (nq, n), and how many there are of each query."""
        xp, (nq, n), k = self.runtime.xp, bounds.shape, best_scores.shape[1]
        listed, counts = xp.empty((nq, n), np.uint32), xp.zeros(nq, np.uint32)
        arguments = bounds, np.int64(n), best_scores, np.int32(k), self.queries.reals, listed, counts
        self.launch("list_survivors", -(-n // _THREADS), arguments)
        return listed, counts

    def score_survivors(self, listed: Any, counts: Any, best_scores: Any) -> tuple[Any, Any, Any]:
        """Return scores and rows, (nq, n), of those that reach the last of the best, and how many there are."""
        xp, (nq, n), k = self.runtime.xp, listed.shape, best_scores.shape[1]
        scores, kept, kept_counts = xp.empty((nq, n), np.float32), xp.empty((nq, n), np.uint32), xp.zeros(nq, np.uint32)
        of_rows = *self.rows.arguments(self.codec), listed, counts, np.int64(n)
        of_queries = *self.queries.arguments(), np.int32(self.queries.depth), best_scores, np.int32(k)
        self.launch("score_survivors", self.score_blocks(n), (*of_rows, *of_queries, scores, kept, kept_counts))
        return scores, kept, kept_counts

    def score(self, count: int, numbers: Any) -> Any:
        """Return the scores of `count` rows, or of those that `numbers` lists, (count,) or (nq, count)."""
        xp, nq = self.runtime.xp, len(self.queries)
        scores = xp.empty((nq, count), np.float32)
        listed = xp.empty(0, np.uint32) if numbers is None else numbers
        stride = count if listed.ndim > 1 else 0
        of_rows = *self.rows.arguments(self.codec), listed, np.int32(numbers is not None), np.int64(stride)
        of_queries = np.int64(count), *self.queries.arguments(), np.int32(self.queries.depth)
        self.launch("score_rows", self.score_blocks(count), (*of_rows, *of_queries, scores))
        return scores

    def score_blocks(self, count: int) -> int:
        """Return the blocks that score so many rows of each query."""
        return max(1, min(-(-count // _ROWS_PER_BLOCK), _BLOCKS // len(self.queries)))

    @property
    def is_short(self) -> bool:
        """Whether bounds are kept in 2 bytes."""
        return plane_bytes(self.codec.dim) < _SHORT_WIDTH

    def launch(self, name: str, blocks: int, arguments: tuple[Any, ...]) -> None:
        """Run a kernel on so many blocks for each query."""
        defines = tuple(sorted((*code_defines(self.codec), ("SHORT_BOUNDS", int(self.is_short)))))
        kernel = Kernel("few.cu", name, defines)
        self.runtime.function(kernel)((blocks, len(self.queries)), (_THREADS,), arguments)
