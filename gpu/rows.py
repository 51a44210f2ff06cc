"""Segments in device memory: sent once and kept while they live, if they fit; the others are sent by every search."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from tqindex.codec.packing import BLOCK
from tqindex.gpu.runtime import Runtime
from tqindex.index.segments import ALL_LIVE, NO_IDS, Segment
from tqindex.kernels.rows import StoredRows

SIDES = ("scales", "sketch_scales", "offsets")

#: Bytes that segments which stay leave free: for two others on their way, and for what a search itself needs.
RESERVED_BYTES = 2**29
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
    """The device's copy of some StoredRows and of what belongs to them; what came since is sent when asked for."""

    def __init__(self, runtime: Runtime, rows: StoredRows) -> None:
        self._runtime = runtime
        self._codes = DeviceCodes.like(runtime, rows, len(rows))
        self._n = 0
        # What the copies are of: rows without stored ids may get some, and removing makes other live bits.
        self._ids_of, self._ids = NO_IDS, runtime.upload(NO_IDS)
        self._live_of, self._live = ALL_LIVE, runtime.upload(ALL_LIVE)

    def updated(self, segment: Segment) -> DeviceSegment:
        """Return the copy of a segment of these rows, after sending what it lacks."""
        sent, n = self._n, segment.n
        if segment.ids is not self._ids_of:
            room = self._runtime.xp.zeros(segment.ids.shape, "int64")
            self._ids_of, self._ids, sent = segment.ids, room, 0
        if segment.ids.size and sent < n:
            self._ids[sent:n] = self._runtime.upload(segment.ids[sent:n])
        if self._n < n:
            self._send(segment.rows, n)
        if segment.live is not self._live_of:
            self._live_of, self._live = segment.live, self._runtime.upload(segment.live)
        return DeviceSegment(self._codes, self._ids, self._live, segment.first_id, n, segment.n_live)

    def _send(self, rows: StoredRows, n: int) -> None:
        """Send the rows up to n that are not there; a block of the leading planes may have been half full."""
        blocks = slice(self._n // BLOCK, -(-n // BLOCK))
        for plane, source in zip(self._codes.lead, rows.lead, strict=True):
            plane[blocks] = self._runtime.upload(source[blocks])
        for name in ("rest", *SIDES):
            source = getattr(rows, name)
            if source.size:
                getattr(self._codes, name)[self._n : n] = self._runtime.upload(source[self._n : n])
        self._n = n


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
        """Call work(stream, copy) for every segment that has live rows.

        Segments take turns on the runtime's two streams, and each is worked on inside its own: meanwhile the next is
        sent. The copy of one that is not to stay lasts as long as `work`, which is to queue all that reads it.
        """
        for turn, segment in enumerate(segment for segment in segments if segment.n_live):
            with self._runtime.stream(turn % STREAMS):
                work(turn % STREAMS, self._rows_of(segment.rows).updated(segment))

    def clear(self) -> None:
        """Give up all copies."""
        self._held.clear()

    def _rows_of(self, rows: StoredRows) -> DeviceRows:
        """Return the copy of some rows, kept from now on if there is memory for it."""
        copy = self._held.get(rows)
        if copy is None:
            size = sum(array.nbytes for array in rows.arrays().values()) + len(rows) * NO_IDS.itemsize
            has_room = size + self._reserved <= self._runtime.free_bytes()
            copy = DeviceRows(self._runtime, rows)
            if has_room:
                self._held[rows] = copy
        return copy
