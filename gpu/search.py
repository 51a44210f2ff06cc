"""Searching an index's rows on the device, segment by segment: `tqindex.index.search` and `ranges` are the CPU's."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tqindex.gpu.best import Best, join_best, no_best
from tqindex.gpu.codes import DeviceQueries, list_live
from tqindex.gpu.encode import Encoder
from tqindex.gpu.few import scan_rows_few
from tqindex.gpu.rows import DeviceSegment, DeviceStore
from tqindex.gpu.runtime import Runtime
from tqindex.gpu.scan import MATRIX_BYTES, scan_rows, score_rows
from tqindex.index.plan import EPS, ScanPlan, deviations
from tqindex.index.ranges import Collected, RangeResult, in_order, joined
from tqindex.index.search import Found
from tqindex.index.segments import Segment

#: Queries of a call that go one by one through the cascade: measured on an H100, a batch takes no longer than two.
_FEW_QUERIES = 2
#: Queries that one pass over the segments serves, and results of all of them together, which are there three times:
#: with a matrix of scores, less than the store leaves free (tqindex.gpu.rows).
_QUERY_BLOCK, _RESULTS = 4096, 2**22


@dataclass(frozen=True, eq=False)
class DeviceSearch:
    """What a search needs besides segments and queries.

    Attributes
    ----------
    runtime : Runtime
    store : DeviceStore
        Sends segments, or has them.
    encoder : Encoder
        Of the queries.
    plan : ScanPlan
        What codec and metric say of scores.
    """

    runtime: Runtime
    store: DeviceStore
    encoder: Encoder
    plan: ScanPlan

    def search(self, segments: Sequence[Segment], queries: Any, k: int, exact_scan: bool) -> Found:
        """Return the k best of each query, (nq, dim), as arrays of the device, and the share of rows scored in full.

        Few queries go through the cascade, unless `exact_scan`; see `tqindex.index.search.search_segments`.
        """
        nq, n, xp = len(queries), sum(segment.n_live for segment in segments), self.runtime.xp
        kept = min(k, n)
        margins = deviations(self.plan, kept, n, EPS) if kept and not exact_scan else None
        scores, ids = xp.full((nq, k), -np.inf, np.float32), xp.full((nq, k), -1, np.int64)
        scored = 1.0
        for block, encoded in self._encoded(queries, max(1, min(_QUERY_BLOCK, _RESULTS // k))):
            if nq > _FEW_QUERIES:
                best = self._scan_many(segments, encoded, kept)
            else:
                best, full = self._scan_few(segments, encoded, kept, margins)
                scored = full / (n * nq) if n * nq else 1.0
            scores[block, :kept], ids[block, :kept] = best.scores, best.ids
        return Found(scores, ids, scored)

    def search_range(self, segments: Sequence[Segment], queries: Any, threshold: float) -> RangeResult:
        """Return all rows whose scores reach a float32 threshold, as NumPy's arrays, put in order by the CPU."""
        of_query = 4 * max(self.store.most_rows(segments), 1)
        blocks = []
        for block, encoded in self._encoded(queries, max(1, min(_QUERY_BLOCK, MATRIX_BYTES // of_query))):
            found: list[Collected] = []

            def collect(_: int, segment: DeviceSegment, encoded: Any = encoded, found: Any = found) -> None:
                found.append(self._collect(segment, encoded, np.float32(threshold)))

            self.store.visit(segments, collect)
            blocks.append(in_order(found, block.stop - block.start))
        return joined(blocks)

    def _encoded(self, queries: Any, step: int) -> Iterator[tuple[slice, DeviceQueries]]:
        """Yield blocks of queries as the scans take them; those of host memory are sent."""
        for first in range(0, len(queries), step):
            rows = queries[first : first + step]
            rows = self.runtime.upload(rows) if isinstance(rows, np.ndarray) else rows
            encoded = self.encoder.encode_queries(rows, first_row=first)
            yield slice(first, first + len(rows)), DeviceQueries.of(self.runtime, self.plan.codec, encoded)

    def _scan_many(self, segments: Sequence[Segment], queries: DeviceQueries, k: int) -> Best:
        runtime, best = self.runtime, dict[int, Best]()

        def scan(stream: int, segment: DeviceSegment) -> None:
            known = best.get(stream) or no_best(runtime, len(queries), k)
            best[stream] = scan_rows(runtime, self.plan.codec, queries, segment, known)

        self.store.visit(segments, scan)
        return self._joined(best, queries, k)

    def _scan_few(
        self, segments: Sequence[Segment], queries: DeviceQueries, k: int, margins: tuple[float, float] | None
    ) -> tuple[Best, int]:
        """Return how many rows were scored in full too."""
        runtime, best, counts = self.runtime, dict[int, Best](), list[Any]()

        def scan(stream: int, segment: DeviceSegment) -> None:
            known = best.get(stream) or no_best(runtime, len(queries), k)
            best[stream], scored = scan_rows_few(runtime, self.plan, queries, segment, known, margins)
            counts.append(scored)

        self.store.visit(segments, scan)
        found = self._joined(best, queries, k)
        return found, sum(int(runtime.download(count).sum()) for count in counts)

    def _joined(self, best: dict[int, Best], queries: DeviceQueries, k: int) -> Best:
        """Return the best of what was found on each stream."""
        parts = list(best.values()) or [no_best(self.runtime, len(queries), k)]
        return join_best(self.runtime, parts)

    def _collect(self, segment: DeviceSegment, queries: DeviceQueries, threshold: np.float32) -> Collected:
        """Return a segment's rows that reach the threshold."""
        xp = self.runtime.xp
        scores = score_rows(self.runtime, self.plan.codec, queries, segment)
        reached = scores >= threshold
        if segment.live.size:
            is_live = xp.zeros(segment.n, np.bool_)
            is_live[list_live(self.runtime, segment)] = True
            reached &= is_live
        of_query, rows = xp.nonzero(reached)
        ids = segment.ids[rows] if segment.ids.size else rows + segment.first_id
        return tuple(map(self.runtime.download, (of_query, scores[of_query, rows], ids)))
