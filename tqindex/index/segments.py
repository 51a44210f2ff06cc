"""The rows of an index: immutable segments and one growing tail."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.checks import check_finite
from tqindex.codec import Codec
from tqindex.kernels.rows import StoredRows

Int64Array = npt.NDArray[np.int64]
UInt8Array = npt.NDArray[np.uint8]

#: A segment is full at this many bytes of codes, side numbers and ids.
SEGMENT_BYTES = 64 * 2**20
#: Rows are allotted by multiples of this, so that arrays on disk start at multiples of 64 bytes.
ROW_MULTIPLE = 64
_FIRST_CAPACITY = 1024
#: A row's first plane costs about a sixteenth of scoring a row that is picked.
_LEAST_LIVE = 1 / 16
_ID_BYTES = 8
NO_IDS: Int64Array = np.empty(0, np.int64)
ALL_LIVE: UInt8Array = np.empty(0, np.uint8)
NO_ORIGINALS: npt.NDArray[Any] = np.empty((0, 0), np.float32)


@dataclass(frozen=True, eq=False)
class Segment:
    """Rows that no longer change, but for being removed: that makes a new Segment of the same rows.

    Attributes
    ----------
    rows : StoredRows, with room for at least n rows; those past n belong to nobody
    ids : int64, one per row, or (0,) where row i has id first_id + i
    first_id : int
    n : int
    file : str
        Name of the file that holds the segment, empty while there is none.
    live : uint8, bits of the rows that are not removed as `tqindex.kernels.live` has them, or (0,) if none is removed
    live_file : str
        Name of the file that holds `live`, empty while there is none.
    originals : float16 or float32, the vectors as they came, a row for each of `rows`, or (0, 0) where none are kept
    """

    rows: StoredRows
    ids: Int64Array
    first_id: int
    n: int
    file: str = ""
    live: UInt8Array = field(default_factory=lambda: ALL_LIVE)
    live_file: str = ""
    originals: npt.NDArray[Any] = field(default_factory=lambda: NO_ORIGINALS)

    @cached_property
    def n_live(self) -> int:
        """Number of rows that are not removed."""
        return int(np.bitwise_count(self.live).sum()) if self.live.size else self.n

    def live_rows(self) -> Int64Array:
        """Return the numbers of the rows that are not removed, int64 (n_live,)."""
        return self.live_rows_of(0, self.n)

    def live_rows_of(self, start: int, stop: int) -> Int64Array:
        """Return those of them that are from `start`, a multiple of 8, on and before `stop`."""
        stop = min(stop, self.n)
        if not self.live.size:
            return np.arange(start, stop, dtype=np.int64)
        bits = self.live[start // 8 : -(-stop // 8)]
        return start + np.flatnonzero(np.unpackbits(bits, count=stop - start, bitorder="little"))

    def is_live(self, rows: Int64Array) -> npt.NDArray[np.bool_]:
        """Say of some rows whether they are not removed."""
        if not self.live.size:
            return np.ones(len(rows), np.bool_)
        bits: UInt8Array = (self.live[rows // 8] >> (rows % 8).astype(np.uint8)) & np.uint8(1)
        return bits.astype(np.bool_)

    def keep_originals(self, vectors: npt.NDArray[np.float32], at: int, first_row: int) -> None:
        """Write vectors as the originals of the rows from `at` on, which are kept; messages count from `first_row`.

        Raises
        ------
        VectorError
            A number is too large for float16.
        """
        with np.errstate(over="ignore"):
            self.originals[at : at + len(vectors)] = vectors
        check_finite(self.originals[at : at + len(vectors)], "vectors", first_row)

    def without(self, rows: Int64Array) -> "Segment":
        """Return this segment with some rows removed."""
        live = self.live.copy() if self.live.size else live_bits(np.arange(self.n), self.n)
        np.bitwise_and.at(live, rows // 8, ~(1 << (rows % 8)).astype(np.uint8))
        return replace(self, live=live, live_file="")

    def all_ids(self) -> Int64Array:
        """Return the ids of all rows, int64 (n,)."""
        if self.ids.size:
            return self.ids[: self.n]
        return np.arange(self.first_id, self.first_id + self.n, dtype=np.int64)

    def ids_of(self, rows: Int64Array) -> Int64Array:
        """Return the ids of some rows."""
        return self.ids[rows] if self.ids.size else self.first_id + rows

    @property
    def is_dense(self) -> bool:
        """Whether so many rows are live that it pays to read the planes of all of them first."""
        return self.n_live >= _LEAST_LIVE * self.n

    @cached_property
    def kernel_arrays(self) -> tuple[npt.NDArray[Any], ...]:
        """Arrays of rows, ids and live bits as kernels take them, read-only: one form, whosever memory it is."""
        views = [array.view(np.ndarray) for array in (*self.rows.arrays().values(), self.ids, self.live)]
        for view in views:
            view.flags.writeable = False
        return tuple(views)

    @property
    def id_bytes(self) -> int:
        """Bytes of stored ids; generated ones need none."""
        return _ID_BYTES * self.n if self.ids.size else 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one row: code, side numbers and stored id."""
        return self.rows.code_bytes + self.rows.side_bytes + (_ID_BYTES if self.ids.size else 0)


def live_bits(rows: Int64Array, n: int) -> UInt8Array:
    """Return the bits of some of n rows, uint8 (ceil(n / 8),)."""
    flags = np.zeros(n, np.bool_)
    flags[rows] = True
    return np.packbits(flags, bitorder="little")


def segment_capacity(codec: Codec, metric: str) -> int:
    """Rows of a full segment; depends on the codec alone, so that batches leave no trace."""
    form = StoredRows.allocate(codec, metric, ROW_MULTIPLE)
    rows = SEGMENT_BYTES // (form.code_bytes + form.side_bytes + _ID_BYTES)
    return max(rows // ROW_MULTIPLE, 1) * ROW_MULTIPLE


@dataclass
class RowSet:
    """A state of the index's rows. `reserve` on a `draft` leaves the state it was drafted from as it is.

    Attributes
    ----------
    segments : full or saved segments, in the order of their rows
    tail : the growing segment, or None; its arrays may be longer than its n
    next_id : int
        The next generated id: one more than the largest id ever given.
    originals : {"float16", "float32", None}
        What is kept of the vectors as they came.
    """

    codec: Codec
    metric: str
    segments: list[Segment] = field(default_factory=list)
    tail: Segment | None = None
    next_id: int = 0
    originals: str | None = None

    def draft(self) -> "RowSet":
        """Return a state to append to. The tail's arrays are shared: rows past its n are not yet anybody's."""
        return replace(self, segments=list(self.segments))

    def all_segments(self) -> list[Segment]:
        """Return segments and tail."""
        return [*self.segments, self.tail] if self.tail is not None else list(self.segments)

    def __len__(self) -> int:
        return sum(segment.n_live for segment in self.all_segments())

    @property
    def n_rows(self) -> int:
        """Number of rows, removed ones included."""
        return sum(segment.n for segment in self.all_segments())

    def split(self, rows: Int64Array) -> Iterator[tuple[int, npt.NDArray[np.bool_], Int64Array]]:
        """Yield, for every segment that has any of the rows: its place, which of the rows, and their numbers in it."""
        first = 0
        for i, segment in enumerate(self.all_segments()):
            here = (rows >= first) & (rows < first + segment.n)
            if here.any():
                yield i, here, rows[here] - first
            first += segment.n

    def gather(
        self, rows: Int64Array, read: Callable[[Segment, Int64Array], npt.NDArray[Any]]
    ) -> npt.NDArray[np.float32]:
        """Return float32 (n, dim): what read(segment, numbers) gives for the rows that a segment has."""
        segments, vectors = self.all_segments(), np.empty((len(rows), self.codec.dim), np.float32)
        for i, here, own in self.split(rows):
            vectors[here] = read(segments[i], own)
        return vectors

    def are_live(self, rows: Int64Array) -> npt.NDArray[np.bool_]:
        """Say of some rows whether they exist, and are not removed."""
        live, segments = np.zeros(len(rows), np.bool_), self.all_segments()
        for i, here, own in self.split(rows):
            live[here] = segments[i].is_live(own)
        return live

    def remove(self, rows: Int64Array) -> None:
        """Take rows out."""
        segments = self.all_segments()
        for i, _, own in list(self.split(rows)):
            segments[i] = segments[i].without(own)
        if self.tail is not None:
            self.tail = segments.pop()
        self.segments = segments

    def reserve(self, n: int, ids: Int64Array | range | None, more: int = 0) -> Iterator[tuple[slice, Segment, int]]:
        """Make room for n more rows, with caller ids, int64 (n,), or consecutive ones; None: the next generated ones.

        `more`: how many further rows are known to come, for which memory is set aside, not yet used.

        Yields which of the n rows go where: to a segment's rows, from the given one on. They are to be written before
        the next step.
        """
        start, capacity = 0, segment_capacity(self.codec, self.metric)
        ids = range(self.next_id, self.next_id + n) if ids is None else ids
        while start < n:
            used = self.tail.n if self.tail is not None else 0
            stop = min(n, start + capacity - used)
            room = min(used + n - start + more, capacity)
            tail = self._extend_tail(stop - start, ids[start:stop], room)
            self.next_id = max(self.next_id, (ids[stop - 1] if isinstance(ids, range) else int(ids.max())) + 1)
            yield slice(start, stop), tail, used
            start = stop
            if tail.n == capacity:
                self.seal_tail()

    def room(self) -> int:
        """Return the number of rows until the tail is full."""
        return segment_capacity(self.codec, self.metric) - (self.tail.n if self.tail is not None else 0)

    def seal_tail(self) -> None:
        """Make the tail a segment like the others."""
        if self.tail is not None:
            self.segments.append(self.tail)
            self.tail = None

    def _extend_tail(self, n: int, ids: Int64Array | range, room: int) -> Segment:
        """Append n rows to the tail; where it must grow, to at least `room` rows."""
        tail = self.tail
        if tail is None:
            first_id = ids.start if isinstance(ids, range) else 0
            rows = StoredRows.allocate(self.codec, self.metric, 0)
            tail = Segment(rows, NO_IDS, first_id, 0, originals=self._room_for_originals(0))
        total = tail.n + n
        if total > len(tail.rows):
            capacity = segment_capacity(self.codec, self.metric)
            tail = self._grow(tail, min(max(2 * len(tail.rows), room, _FIRST_CAPACITY), capacity))
        follows = isinstance(ids, range) and not tail.ids.size and tail.first_id + tail.n == ids.start
        if not follows:
            tail = self._with_ids(tail)
            tail.ids[tail.n : total] = np.arange(ids.start, ids.stop) if isinstance(ids, range) else ids
        live = tail.live
        if live.size:
            live = live_bits(np.concatenate([tail.live_rows(), np.arange(tail.n, total)]), total)
        self.tail = replace(tail, n=total, live=live)
        return self.tail

    def _grow(self, tail: Segment, capacity: int) -> Segment:
        capacity = -(-capacity // ROW_MULTIPLE) * ROW_MULTIPLE
        rows = tail.rows.grown(self.codec, self.metric, capacity)
        ids = tail.ids
        if ids.size:
            ids = np.zeros(capacity, np.int64)
            ids[: tail.n] = tail.ids[: tail.n]
        originals = self._room_for_originals(capacity)
        if originals.size:
            originals[: tail.n] = tail.originals[: tail.n]
        return replace(tail, rows=rows, ids=ids, originals=originals)

    def _room_for_originals(self, n: int) -> npt.NDArray[Any]:
        return NO_ORIGINALS if self.originals is None else np.zeros((n, self.codec.dim), self.originals)

    def _with_ids(self, tail: Segment) -> Segment:
        """Give the tail stored ids, where its ids are still a range."""
        if tail.ids.size:
            return tail
        ids = np.zeros(len(tail.rows), np.int64)
        ids[: tail.n] = tail.all_ids()
        return replace(tail, ids=ids)
