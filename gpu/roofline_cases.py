"""What the roofline page tells of: encoding, one query, many queries; each prepared for any number of rows.

The same cases are counted in the host run, at few rows, and measured on a device, at all of them (`measure.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tqindex.codec import Codec
from tqindex.codec.packing import BLOCK, plane_bytes
from tqindex.gpu.best import no_best
from tqindex.gpu.codes import DeviceQueries
from tqindex.gpu.encode import Encoder
from tqindex.gpu.few import scan_rows_few
from tqindex.gpu.host.count import CountingRuntime, Counts
from tqindex.gpu.rows import DeviceCodes, DeviceSegment
from tqindex.gpu.runtime import Runtime
from tqindex.gpu.scan import scan_rows
from tqindex.index.plan import EPS, ScanPlan, deviations
from tqindex.index.segments import ALL_LIVE, NO_IDS
from tqindex.kernels.encoder import encode_rows
from tqindex.kernels.rows import SIDES, StoredRows

_METRIC = "ip"
_RESULTS = 10
_MANY_QUERIES = 128
#: Rows near to a query, by a noise of this length relative to the query's: a cosine of 0.8.
_NEAR_ROWS, _DISTANCE = 20, np.float32(0.75)
#: Rows that are made and encoded at a time.
_PIECE = 65_536


class Task(NamedTuple):
    """A case that is ready to run.

    Attributes
    ----------
    work : function that queues it on the device
    least_bytes : function that makes of what `work` returns the bytes that must go through device memory
    """

    work: Callable[[], Any]
    least_bytes: Callable[[Any], float]


@dataclass(frozen=True, eq=False)
class Sample:
    """A case counted at some number of rows.

    Attributes
    ----------
    rows : int
    counts : list of Counts, of its launches
    least_bytes : what must go through device memory
    """

    rows: int
    counts: list[Counts]
    least_bytes: float


@dataclass(frozen=True)
class Case:
    """Something the GPU does.

    Attributes
    ----------
    name : str
    rows : int, for which the page tells it
    counted_rows : the sizes that are counted; the first two give the line, the third tests it
    prepare : function that makes it ready
    codec : Codec
    """

    name: str
    rows: int
    counted_rows: tuple[int, int, int]
    prepare: Callable[[Runtime, Codec, int], Task]
    codec: Codec

    def sample(self, rows: int) -> Sample:
        """Count it at so many rows."""
        runtime = CountingRuntime()
        task = self.prepare(runtime, self.codec, rows)
        runtime.counts.clear()
        found = task.work()
        return Sample(rows, runtime.counts, task.least_bytes(found))


class _UncheckedEncoder(Encoder):
    """Does not wait for what kernels refused: nothing is wrong with random rows."""

    def _check(self, rows: Any, refused: Any, name: str, first_row: int) -> None:
        del rows, refused, name, first_row


def encode(runtime: Runtime, codec: Codec, rows: int) -> Task:
    """Encode vectors."""
    encoder, vectors, codes = _encoder(runtime, codec), _gaussian(runtime, rows, codec.dim), _room(runtime, codec, rows)
    stored = StoredRows.allocate(codec, _METRIC, BLOCK)
    least = vectors.nbytes + rows * (stored.code_bytes + stored.side_bytes)
    return Task(lambda: encoder.encode_rows(vectors, codes), lambda _: least)


def search_one(runtime: Runtime, codec: Codec, rows: int) -> Task:
    """Answer one query, to which some rows are near."""
    return _search_one(runtime, codec, rows, _NEAR_ROWS)


def search_one_far(runtime: Runtime, codec: Codec, rows: int) -> Task:
    """Answer one query to which all rows are alike: the worst for a shortlist."""
    return _search_one(runtime, codec, rows, 0)


def _search_one(runtime: Runtime, codec: Codec, rows: int, near: int) -> Task:
    query, plan = _gaussian(runtime, 1, codec.dim, seed=1), ScanPlan(codec, _METRIC)
    segment, encoder = _segment(runtime, codec, rows, query, near), _encoder(runtime, codec)
    margins = deviations(plan, _RESULTS, rows, EPS)

    def work() -> Any:
        queries = DeviceQueries.of(runtime, codec, encoder.encode_queries(query))
        return scan_rows_few(runtime, plan, queries, segment, no_best(runtime, 1, _RESULTS), margins).scored

    def least_bytes(scored: Any) -> float:
        plane, side = plane_bytes(codec.dim), np.dtype(np.float32).itemsize
        in_full = (codec.bits - 1) * plane + side * (codec.kind == "prod")
        return float(rows * (plane + side) + int(scored.sum()) * in_full)

    return Task(work, least_bytes)


def search_many(runtime: Runtime, codec: Codec, rows: int) -> Task:
    """Answer many queries."""
    given = _gaussian(runtime, _MANY_QUERIES, codec.dim, seed=1)
    segment, encoder = _segment(runtime, codec, rows, given[:1], 0), _encoder(runtime, codec)

    def work() -> Any:
        queries = DeviceQueries.of(runtime, codec, encoder.encode_queries(given))
        return scan_rows(runtime, codec, queries, segment, no_best(runtime, _MANY_QUERIES, _RESULTS))

    codes = segment.codes
    arrays = codes.lead, codes.rest, codes.scales, codes.sketch_scales
    least = sum(array.nbytes for array in arrays) + _MANY_QUERIES * codec.dim
    return Task(work, lambda _: float(least))


def _encoder(runtime: Runtime, codec: Codec) -> Encoder:
    return _UncheckedEncoder(runtime, codec, _METRIC)


def _gaussian(runtime: Runtime, rows: int, dim: int, seed: int = 0) -> Any:
    return runtime.xp.random.default_rng(seed).standard_normal((rows, dim), np.float32)


def _room(runtime: Runtime, codec: Codec, rows: int) -> DeviceCodes:
    return DeviceCodes.like(runtime, StoredRows.allocate(codec, _METRIC, BLOCK), rows)


def _segment(runtime: Runtime, codec: Codec, rows: int, query: Any, near: int) -> DeviceSegment:
    """Return encoded rows on the device, of which `near` among the first are near to the query."""
    on_host = runtime.xp is np
    stored = StoredRows.allocate(codec, _METRIC, -(-rows // BLOCK) * BLOCK if on_host else BLOCK)
    codes = DeviceCodes.like(runtime, stored, 0 if on_host else rows)
    for start in range(0, rows, _PIECE):
        piece = _gaussian(runtime, min(_PIECE, rows - start), codec.dim, seed=2 + start)
        if near and not start:
            chosen = piece[:: len(piece) // near][:near]
            chosen *= _DISTANCE
            chosen += query
        if on_host:  # where the kernels would take minutes
            encode_rows(codec, piece, _METRIC, stored, threads=1, at=start)
        else:
            _encoder(runtime, codec).encode_rows(piece, codes, at=start)
    if on_host:
        codes = DeviceCodes(*(runtime.upload(getattr(stored, name)) for name in ("lead", "rest", *SIDES)))
    return DeviceSegment(codes, runtime.upload(NO_IDS), runtime.upload(ALL_LIVE), 0, rows, rows)


def all_cases() -> list[Case]:
    """Return the cases of the page."""
    encoded = [*(Codec(dim) for dim in (256, 768, 1536, 3072)), *(Codec(1536, bits=bits) for bits in (1, 2, 8))]
    encoded.append(Codec(1536, kind="prod"))
    found = [Case(f"encode {_name(c)}", 100_000, (16, 32, 48), encode, c) for c in encoded]
    one = [Codec(100), Codec(256), Codec(768), Codec(1536, bits=2), Codec(1536), Codec(1536, kind="prod"), Codec(3072)]
    sizes = 16_384, 32_768, 49_152
    found += [Case(f"one query, {_name(c)}", 1_000_000, sizes, search_one, c) for c in one]
    found.append(Case(f"one query, no near rows, {_name(one[4])}", 1_000_000, sizes, search_one_far, one[4]))
    many = [Codec(256), Codec(1536, bits=2), Codec(1536), Codec(1536, bits=8), Codec(1536, bits=4, kind="prod")]
    name = f"{_MANY_QUERIES} queries"
    found += [Case(f"{name}, {_name(c)}", 1_000_000, (512, 1024, 1536), search_many, c) for c in many]
    return found


def _name(codec: Codec) -> str:
    return f"{codec.dim} dims, {codec.bits} bits{', prod' * (codec.kind == 'prod')}"
