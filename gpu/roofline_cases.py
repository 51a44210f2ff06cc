"""What the roofline page counts: encoding, one query, many queries; each run at any number of rows."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tqindex.codec import Codec
from tqindex.codec.packing import BLOCK, plane_bytes
from tqindex.gpu.best import no_best
from tqindex.gpu.codes import DeviceQueries
from tqindex.gpu.encode import Encoder
from tqindex.gpu.few import scan_rows_few
from tqindex.gpu.host.count import CountingRuntime, Counts
from tqindex.gpu.rows import SIDES, DeviceCodes, DeviceSegment
from tqindex.gpu.runtime import Runtime
from tqindex.gpu.scan import scan_rows
from tqindex.index.plan import EPS, ScanPlan, deviations
from tqindex.index.segments import ALL_LIVE, NO_IDS
from tqindex.kernels.encoder import encode_rows
from tqindex.kernels.rows import StoredRows

Float32Array = npt.NDArray[np.float32]
METRIC = "ip"
RESULTS = 10
MANY_QUERIES = 128
#: Rows near to a query, by a noise of this length relative to the query's: a cosine of 0.8.
NEAR_ROWS, DISTANCE = 20, np.float32(0.75)


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
    task : function that runs it and returns its least bytes
    codec : Codec
    """

    name: str
    rows: int
    counted_rows: tuple[int, int, int]
    task: Callable[[CountingRuntime, Codec, int], float]
    codec: Codec

    def sample(self, rows: int) -> Sample:
        """Count it at so many rows."""
        runtime = CountingRuntime()
        least = self.task(runtime, self.codec, rows)
        return Sample(rows, runtime.counts, least)


def encode(runtime: CountingRuntime, codec: Codec, rows: int) -> float:
    """Encode vectors."""
    encoder, vectors = Encoder(runtime, codec, METRIC), _gaussian(rows, codec.dim)
    stored = StoredRows.allocate(codec, METRIC, -(-rows // BLOCK) * BLOCK)
    encoder.encode_rows(runtime.upload(vectors), _on_device(runtime, stored))
    return vectors.nbytes + rows * (stored.code_bytes + stored.side_bytes)


def search_one(runtime: CountingRuntime, codec: Codec, rows: int) -> float:
    """Answer one query, to which some rows are near."""
    return _search_one(runtime, codec, rows, NEAR_ROWS)


def search_one_far(runtime: CountingRuntime, codec: Codec, rows: int) -> float:
    """Answer one query to which all rows are alike: the worst for a shortlist."""
    return _search_one(runtime, codec, rows, 0)


def _search_one(runtime: CountingRuntime, codec: Codec, rows: int, near: int) -> float:
    query, vectors = _gaussian(1, codec.dim, seed=1), _gaussian(rows, codec.dim)
    places = np.random.default_rng(2).choice(rows, near, replace=False)
    vectors[places] = query + DISTANCE * vectors[places]
    plan, segment = ScanPlan(codec, METRIC), _segment(runtime, codec, vectors)
    queries = _queries(runtime, codec, query)
    margins = deviations(plan, RESULTS, rows, EPS)
    _, scored = scan_rows_few(runtime, plan, queries, segment, no_best(runtime, 1, RESULTS), margins)
    plane, side = plane_bytes(codec.dim), np.dtype(np.float32).itemsize
    sketch_side = side * (codec.kind == "prod")
    return float(rows * (plane + side) + int(scored.sum()) * ((codec.bits - 1) * plane + sketch_side))


def search_many(runtime: CountingRuntime, codec: Codec, rows: int) -> float:
    """Answer many queries."""
    segment = _segment(runtime, codec, _gaussian(rows, codec.dim))
    queries = _queries(runtime, codec, _gaussian(MANY_QUERIES, codec.dim, seed=1))
    scan_rows(runtime, codec, queries, segment, no_best(runtime, MANY_QUERIES, RESULTS))
    codes = segment.codes
    arrays = codes.lead, codes.rest, codes.scales, codes.sketch_scales, queries.levels
    return float(sum(array.nbytes for array in arrays))


def _segment(runtime: Runtime, codec: Codec, vectors: Float32Array) -> DeviceSegment:
    """Return encoded vectors on the device."""
    rows = len(vectors)
    stored = StoredRows.allocate(codec, METRIC, -(-rows // BLOCK) * BLOCK)
    encode_rows(codec, vectors, METRIC, stored, threads=1)
    no_ids, all_live = runtime.upload(NO_IDS), runtime.upload(ALL_LIVE)
    return DeviceSegment(_on_device(runtime, stored), no_ids, all_live, 0, rows, rows)


def _on_device(runtime: Runtime, stored: StoredRows) -> DeviceCodes:
    return DeviceCodes(*(runtime.upload(getattr(stored, name)) for name in ("lead", "rest", *SIDES)))


def _queries(runtime: CountingRuntime, codec: Codec, queries: Float32Array) -> DeviceQueries:
    encoder = Encoder(runtime, codec, METRIC)
    return DeviceQueries.of(runtime, codec, encoder.encode_queries(runtime.upload(queries)))


def _gaussian(rows: int, dim: int, seed: int = 0) -> Float32Array:
    return np.random.default_rng(seed).standard_normal((rows, dim), np.float32)


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
    name = f"{MANY_QUERIES} queries"
    found += [Case(f"{name}, {_name(c)}", 1_000_000, (512, 1024, 1536), search_many, c) for c in many]
    return found


def _name(codec: Codec) -> str:
    return f"{codec.dim} dims, {codec.bits} bits{', prod' * (codec.kind == 'prod')}"
