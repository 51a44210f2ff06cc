"""From ids to rows."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from tqindex.index.segments import Segment

Int64Array = npt.NDArray[np.int64]


class IdMap:
    """Finds the row of an id, removed or not.

    Generated ids are ranges; caller ids are sorted runs, merged when of like length.

    16 bytes per caller id; an insertion costs O(log n) comparisons amortised, a look-up O(log^2 n).
    """

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int, int]] = []  # first id, first row, n
        self._runs: list[tuple[Int64Array, Int64Array]] = []  # sorted ids, their rows

    @classmethod
    def of(cls, segments: Iterable[Segment]) -> "IdMap":
        """Build the map of all rows of the segments."""
        return cls().extended(segments, 0)

    def extended(self, segments: Iterable[Segment], known: int) -> "IdMap":
        """Return a map of all rows of the segments, the first `known` of which this one has; it stays as it is."""
        ids = IdMap()
        ids._ranges, ids._runs = list(self._ranges), list(self._runs)
        row = 0
        for segment in segments:
            start = max(0, known - row)
            if start < segment.n:
                ids._add(segment, start, row + start)
            row += segment.n
        return ids

    def _add(self, segment: Segment, start: int, row: int) -> None:
        """Add a segment's rows from `start` on; `row` is the number of the first of them in the index."""
        if segment.ids.size:
            self._add_run(segment.ids[start : segment.n], row)
            return
        first_id, n = segment.first_id + start, segment.n - start
        if self._ranges:
            last_id, last_row, last_n = self._ranges[-1]
            if (last_id + last_n, last_row + last_n) == (first_id, row):
                self._ranges[-1] = (last_id, last_row, last_n + n)
                return
        self._ranges.append((first_id, row, n))

    def _add_run(self, ids: Int64Array, row: int) -> None:
        run = _latest(ids, np.arange(row, row + len(ids)))
        while self._runs and len(self._runs[-1][0]) <= len(run[0]):
            run = _merge(self._runs.pop(), run)
        self._runs.append(run)

    def find(self, ids: Int64Array) -> Int64Array:
        """Return the latest row of each id, int64 (n,); -1 where there never was one."""
        rows = np.full(len(ids), -1, np.int64)
        for first_id, first_row, n in self._ranges:
            inside = (ids >= first_id) & (ids < first_id + n)
            rows[inside] = np.maximum(rows[inside], ids[inside] - first_id + first_row)
        for sorted_ids, run_rows in self._runs:
            places = np.minimum(np.searchsorted(sorted_ids, ids), len(sorted_ids) - 1)
            hits = sorted_ids[places] == ids
            rows[hits] = np.maximum(rows[hits], run_rows[places[hits]])
        return rows

    @property
    def nbytes(self) -> int:
        """Bytes of the runs."""
        return sum(ids.nbytes + rows.nbytes for ids, rows in self._runs)


def _merge(a: tuple[Int64Array, Int64Array], b: tuple[Int64Array, Int64Array]) -> tuple[Int64Array, Int64Array]:
    return _latest(np.concatenate([a[0], b[0]]), np.concatenate([a[1], b[1]]))


def _latest(ids: Int64Array, rows: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Sort by ids; of an id that was removed and given again keep the last row."""
    order = np.argsort(ids, kind="stable")  # merges sorted runs in linear time
    ids, rows = ids[order], rows[order]
    last = np.append(ids[1:] != ids[:-1], True)
    return ids[last], rows[last]
