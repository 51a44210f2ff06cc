"""Segments in device memory: sent once and kept while they live, if they fit; the others are sent by every search."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import numpy.typing as npt

from tqindex.codec.packing import BLOCK
from tqindex.gpu.runtime import Runtime
from tqindex.index.segments import ALL_LIVE, NO_IDS, Segment
from tqindex.kernels.rows import SIDES, StoredRows

#: Bytes that segments which stay leave free: for two others on their way, and for what a search itself needs.
RESERVED_BYTES = 2**29
#: Rows that are one segment on the device at most: a few queries take 13 bytes of each while they are scanned.
MOST_GROUPED = 2**22
STREAMS = 2


@dataclass(frozen=True, eq=False)
class DeviceCodes:
    """`tqindex.kernels.rows.StoredRows` in device memory."""

    lead: Any
    rest: Any
    scales: Any
    sketch_scales: Any
    offsets: Any

    @classmethod
    def like(cls, runtime: Runtime, rows: StoredRows, n: int) -> "DeviceCodes":
        """Return zeroed room for n rows of the same form, rounded up to whole blocks."""
        blocks, zeros = -(-n // BLOCK), runtime.xp.zeros
        return cls(
            zeros((rows.lead.shape[0], blocks, rows.lead.shape[2]), "uint8"),
            zeros((blocks * BLOCK, rows.rest.shape[1]), "uint8"),
            *(zeros(blocks * BLOCK * bool(getattr(rows, name).size), "float32") for name in SIDES),
        )


@dataclass(frozen=True, eq=False)
class DeviceSegment:
    """A segment in device memory. Arrays that it does not have are of length 0.

    Attributes
    ----------
    codes : DeviceCodes, with room for at least n rows
    ids : int64, one per row, or (0,) where row i has id first_id + i
    live : uint8, as `tqindex.kernels.live` has them, or (0,) where all rows take part
    first_id, n, n_live : int
    """

    codes: DeviceCodes
    ids: Any
    live: Any
    first_id: int
    n: int
    n_live: int


class DeviceRows:
    """The device's copy of the rows of segments that follow each other, and of what belongs to them.

    They are one segment there, so that a search starts its kernels once for all of them. What came since is sent when
    asked for.

    Parameters
    ----------
    runtime : Runtime
    rows : StoredRows of the segments; all but the last are full
    """

    def __init__(self, runtime: Runtime, rows: Sequence[StoredRows]) -> None:
        self._runtime = runtime
        self._rows = [ref(each) for each in rows]
        self._starts = np.cumsum([0, *map(len, rows)]).tolist()
        self._codes = DeviceCodes.like(runtime, rows[0], self._starts[-1])
        self._sent = [0] * len(rows)
        # What the copies are of: rows without stored ids may get some, and removing makes other live bits.
        self._ids_of: list[npt.NDArray[np.int64] | None] = [NO_IDS] * len(rows)
        self._ids = runtime.upload(NO_IDS)
        self._live_of, self._live = [ALL_LIVE] * len(rows), runtime.upload(ALL_LIVE)

    def __len__(self) -> int:
        return len(self._rows)

    def is_of(self, segments: Sequence[Segment]) -> bool:
        """Return whether these are the rows of the segments."""
        return len(segments) == len(self) and all(
            ours() is theirs.rows for ours, theirs in zip(self._rows, segments, strict=True)
        )

    def updated(self, segments: Sequence[Segment]) -> DeviceSegment:
        """Return the copy of the segments of these rows, after sending what it lacks."""
        n, n_live = self._starts[len(self) - 1] + segments[-1].n, sum(segment.n_live for segment in segments)
        self._update_ids(segments)
        for number, segment in enumerate(segments):
            self._send(number, segment.rows, segment.n)
        live_of = [segment.live for segment in segments]
        if any(new is not old for new, old in zip(live_of, self._live_of, strict=True)):
            bits = [segment.live if segment.live.size else full_bits(segment.n) for segment in segments]
            self._live = self._runtime.upload(np.concatenate(bits) if n_live < n else ALL_LIVE)
            self._live_of = live_of  # only now: a search may be interrupted in between
        return DeviceSegment(self._codes, self._ids, self._live, segments[0].first_id, n, n_live)

    def _update_ids(self, segments: Sequence[Segment]) -> None:
        """Send ids that are stored, or that do not count on from one segment to the next; before rows are sent."""
        counts_on = [segment.first_id - start for segment, start in zip(segments, self._starts, strict=False)]
        has_ids = any(segment.ids.size for segment in segments) or len(set(counts_on)) > 1
        if not has_ids:
            return
        if not self._ids.size:
            self._ids_of = [None] * len(self)
            self._ids = self._runtime.xp.zeros(self._starts[-1], "int64")
        for number, (start, segment) in enumerate(zip(self._starts, segments, strict=False)):
            sent = 0 if segment.ids is not self._ids_of[number] else self._sent[number]
            if sent < segment.n:
                first = segment.first_id
                ids = segment.ids if segment.ids.size else np.arange(first, first + segment.n, dtype=np.int64)
                self._ids[start + sent : start + segment.n] = self._runtime.upload(ids[sent : segment.n])
            self._ids_of[number] = segment.ids

    def _send(self, number: int, rows: StoredRows, n: int) -> None:
        """Send the rows up to n that are not there; a block of the leading planes may have been half full."""
        start, sent = self._starts[number], self._sent[number]
        if sent == n:
            return
        from_blocks = slice(sent // BLOCK, -(-n // BLOCK))
        blocks = slice(start // BLOCK + from_blocks.start, start // BLOCK + from_blocks.stop)
        for plane, source in zip(self._codes.lead, rows.lead, strict=True):
            plane[blocks] = self._runtime.upload(source[from_blocks])
        for name in ("rest", *SIDES):
            source = getattr(rows, name)
            if source.size:
                getattr(self._codes, name)[start + sent : start + n] = self._runtime.upload(source[sent:n])
        self._sent[number] = n


def full_bits(n: int) -> npt.NDArray[np.uint8]:
    """Return the live bits of n rows of which none is removed."""
    bits = np.full(-(-n // 8), 0xFF, np.uint8)
    if n % 8:
        bits[-1] = (1 << n % 8) - 1
    return bits


class DeviceStore:
    """Keeps copies of segments on one device.

    Parameters
    ----------
    runtime : Runtime
    reserved : int
        Bytes that it leaves free.
    """

    def __init__(self, runtime: Runtime, reserved: int = RESERVED_BYTES) -> None:
        self._runtime, self._reserved = runtime, reserved
        self._held: WeakKeyDictionary[StoredRows, DeviceRows] = WeakKeyDictionary()

    def visit(self, segments: Sequence[Segment], work: Callable[[int, DeviceSegment], None]) -> None:
        """Call work(stream, copy) for copies of all segments that have live rows.

        Copies take turns on the runtime's two streams, and each is worked on inside its own: meanwhile the next is
        sent. The copy of one that is not to stay lasts as long as `work`, which is to queue all that reads it.
        """
        turn = 0
        for number, following in self._grouped(segments):
            group = segments[number:following]
            if any(segment.n_live for segment in group):
                with self._runtime.stream(turn % STREAMS):
                    work(turn % STREAMS, self._copy_of(group).updated(group))
                turn += 1

    def most_rows(self, segments: Sequence[Segment]) -> int:
        """Return a bound of the rows that `visit` hands over at a time."""
        lengths = [segment.n for segment in segments if segment.n_live]
        return max(min(sum(lengths), MOST_GROUPED), max(lengths, default=0))

    def clear(self) -> None:
        """Give up all copies."""
        self._held.clear()

    def _grouped(self, segments: Sequence[Segment]) -> Iterator[tuple[int, int]]:
        """Yield from where to where segments have one copy, or are to have one."""
        number = 0
        while number < len(segments):
            copy = self._held.get(segments[number].rows)
            if copy is not None and not copy.is_of(segments[number : number + len(copy)]):
                for rows in [rows for rows, held in self._held.items() if held is copy]:
                    del self._held[rows]
                copy = None
            following = number + (len(copy) if copy else self._count_group(segments[number:]))
            yield number, following
            number = following

    def _count_group(self, segments: Sequence[Segment]) -> int:
        """Return how many segments from the first on are full, have no copy, and fit together; at least one."""
        free, rows, count = self._runtime.free_bytes() - self._reserved, 0, 0
        for segment in segments:
            free, rows = free - _size(segment.rows), rows + len(segment.rows)
            is_full = segment.n == len(segment.rows)
            if not is_full or segment.rows in self._held or free < 0 or rows > MOST_GROUPED:
                break
            count += 1
        return max(count, 1)

    def _copy_of(self, segments: Sequence[Segment]) -> DeviceRows:
        """Return the copy of some segments, kept from now on if there is memory for it."""
        copy = self._held.get(segments[0].rows)
        if copy is None:
            has_room = sum(_size(each.rows) for each in segments) + self._reserved <= self._runtime.free_bytes()
            copy = DeviceRows(self._runtime, [each.rows for each in segments])
            if has_room:
                self._held.update((each.rows, copy) for each in segments)
        return copy


def _size(rows: StoredRows) -> int:
    """Return the bytes of a copy, with ids."""
    return sum(array.nbytes for array in rows.arrays().values()) + len(rows) * NO_IDS.itemsize
