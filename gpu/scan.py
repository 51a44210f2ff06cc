"""Many queries against many rows on the device; the launches of `scan.cu`.

Blocks keep the best of their rows in shared memory for k up to 128, so that no matrix of scores exists. For more the
scores of as many rows as fit in a stated room are written out and selected from: 4 bytes for each query and row, read
about six times, where the codes are read once for 128 queries.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tqindex.codec import Codec
from tqindex.codec.codes import Codes, QueryCodes
from tqindex.codec.packing import BLOCK, pad_planes, plane_bytes, unpack_codes
from tqindex.errors import ArgumentError
from tqindex.gpu.best import Best, Candidates, keep_best
from tqindex.gpu.codes import DeviceQueries, code_defines, every_defines, list_live, row_arguments
from tqindex.gpu.rows import DeviceCodes, DeviceSegment
from tqindex.gpu.runtime import Kernel, Runtime
from tqindex.index.segments import ALL_LIVE, NO_IDS

#: Results that blocks keep of each query at most: KEEP of scan.cu.
_KEPT = 0, 16, 128
_TILE_ROWS, _THREADS = 128, 256
#: Blocks of a launch in which each keeps the best of its rows, at most, unless there are more tiles of queries; and the
#: rows that such a block has at least for each that it keeps: most of the first rows are put among the best, at the
#: cost of about ten others.
_BLOCKS, _ROWS_PER_RESULT = 512, 16
#: Of many rows this share comes first, at most so many, and their scores are written out: what the best of them reach
#: spares the blocks that scan the others most of the work of keeping their own.
_LEAST_SHARED, _FIRST_SHARE, _MOST_FIRST = 65_536, 32, 32_768
#: The key of -inf: score_key of common.cuh.
_NO_KEY = 0xFF800000
#: Bytes of a matrix of scores.
MATRIX_BYTES = 2**28


class Grid(NamedTuple):
    """A launch of `scan_tiles`: parts of the rows, tiles of queries, and rows of a part."""

    parts: int
    tiles: int
    rows_per_part: int


class Part(NamedTuple):
    """Rows start..start + n, or as many that `numbers` lists, uint32 of the device."""

    start: int
    n: int
    numbers: Any = None


class Kept(NamedTuple):
    """What `scan_tiles` writes."""

    scores: Any
    rows: Any


def scan_kernel(defines: tuple[tuple[str, int], ...], keep: int) -> Kernel:
    """Return a specialisation; defines: as `tqindex.gpu.codes.code_defines`; keep: as `room_kept`."""
    return Kernel("scan.cu", "scan_tiles", tuple(sorted((*defines, ("KEEP", keep)))))


def specialisations() -> Iterator[Kernel]:
    """Yield every kernel that some codec runs."""
    for defines in every_defines():
        yield from (scan_kernel(defines, keep) for keep in _KEPT)


def room_kept(k: int) -> int:
    """Return how many results blocks have room for where k are wanted; 0: scores are written out instead."""
    return next((room for room in _KEPT if 0 < k <= room), 0)


def tile_queries(codec: Codec, keep: int) -> int:
    """Return the queries of a block: TILE_QUERIES of scan.cu."""
    return 32 if keep > 16 else 64 if codec.kind != "mse" or codec.bits == 8 else 128


def plan_grid(rows: int, nq: int, per_tile: int, k: int) -> Grid:
    """Return the launch for so many rows and queries, where blocks keep the k best, or none with k 0."""
    tiles, row_tiles = -(-nq // per_tile), -(-rows // _TILE_ROWS)
    per_part = 1
    if k:
        per_part = max(-(-row_tiles // max(1, _BLOCKS // tiles)), -(-_ROWS_PER_RESULT * k // _TILE_ROWS))
    return Grid(-(-row_tiles // per_part), tiles, per_part * _TILE_ROWS)


def matrix_rows(nq: int, k: int) -> int:
    """Return of how many rows scores are written out at a time.

    At least twice k, since the best so far are selected from anew with each part.
    """
    return max(MATRIX_BYTES // (4 * nq), 2 * k)


def scan_rows(runtime: Runtime, codec: Codec, queries: DeviceQueries, segment: DeviceSegment, best: Best) -> Best:
    """Score the live rows against all queries and return the best of them and of those so far."""
    k, count = best.scores.shape[1], segment.n_live
    if not k or not count or not len(queries):
        return best
    numbers = list_live(runtime, segment) if segment.live.size else None
    keep, step = room_kept(k), matrix_rows(len(queries), k)
    written = min(count_first(count), step) if keep else count
    for start in range(0, written, step):
        part = _part(start, min(start + step, written), numbers)
        best = keep_best(runtime, best, _write_scores(runtime, codec, queries, segment, part))
    if written < count:
        part = _part(written, count, numbers)
        best = keep_best(runtime, best, _scan_kept(runtime, codec, queries, segment, part, best, keep))
    return best


def count_first(count: int) -> int:
    """Return how many of so many rows are scanned before the others."""
    return min(count // _FIRST_SHARE, _MOST_FIRST) if count >= _LEAST_SHARED else 0


def _part(start: int, stop: int, numbers: Any) -> Part:
    """Return live rows from the start-th on; numbers: their numbers, None where all are live."""
    return Part(start, stop - start, None if numbers is None else numbers[start:stop])


def _write_scores(
    runtime: Runtime, codec: Codec, queries: DeviceQueries, segment: DeviceSegment, part: Part
) -> Candidates:
    """Return all scores of some rows."""
    scores, first = _score(runtime, codec, queries, segment, part), 0 if part.numbers is not None else part.start
    return Candidates(scores, part.numbers, ids=segment.ids[first:], first_id=segment.first_id + first)


def score_rows(runtime: Runtime, codec: Codec, queries: DeviceQueries, segment: DeviceSegment) -> Any:
    """Return the scores of all rows, live or not, float32 (nq, n) of the device; larger is better."""
    return _score(runtime, codec, queries, segment, Part(0, segment.n))


def inner_product(runtime: Runtime, codec: Codec, queries: QueryCodes, codes: Codes) -> Any:
    """Estimate <q, x> of every query and encoded vector, float32 (nq, n) of the device.

    Bit for bit `tqindex.codec.Codec.inner_product`.

    Parameters
    ----------
    queries : QueryCodes of the device, encoded for metric "ip"
    codes : Codes

    Raises
    ------
    ArgumentError
        Codes of another width, or made for metric "l2": they do not hold <c, u>.
    """
    codec.check_codes(codes)
    if codes.metric == "l2":
        raise ArgumentError("codes must be encoded with metric 'ip' or 'cosine', got 'l2'")
    segment = upload_codes(runtime, codec, codes)
    return score_rows(runtime, codec, DeviceQueries.of(runtime, codec, queries), segment)


def upload_codes(runtime: Runtime, codec: Codec, codes: Codes) -> DeviceSegment:
    """Return what `Codec.encode` returns as rows of the device, all planes row by row."""
    n, planes = len(codes), codes.packed
    if codec.dim % 8:
        planes = pad_planes(unpack_codes(planes, codec.dim, codec.bits), codec.bits)
    rest = np.zeros((-(-n // BLOCK) * BLOCK, codec.bits * plane_bytes(codec.dim)), np.uint8)
    rest[:n] = planes
    sides = (codes.scales, codes.sketch_scales, codes.offsets)
    given = (np.empty(0, np.float32) if side is None else side for side in sides)
    arrays: list[npt.NDArray[Any]] = [np.empty((0, 0, 0), np.uint8), rest, *given]
    uploaded = DeviceCodes(*(runtime.upload(array) for array in arrays))
    return DeviceSegment(uploaded, runtime.upload(NO_IDS), runtime.upload(ALL_LIVE), 0, n, n)


def _scan_kept(
    runtime: Runtime, codec: Codec, queries: DeviceQueries, segment: DeviceSegment, part: Part, best: Best, keep: int
) -> Candidates:
    """Return the k best of each block of some rows, without those that cannot be among the best so far."""
    xp, (nq, k) = runtime.xp, best.scores.shape
    grid = plan_grid(part.n, nq, tile_queries(codec, keep), k)
    shape = nq, grid.parts * k
    found = Kept(xp.empty(shape, np.float32), xp.empty(shape, np.uint32))
    _launch(runtime, codec, queries, segment, part, grid, best.scores, keep, found)
    return Candidates(found.scores, found.rows, ids=segment.ids, first_id=segment.first_id)


def _score(runtime: Runtime, codec: Codec, queries: DeviceQueries, segment: DeviceSegment, part: Part) -> Any:
    """Return the scores of some rows, (nq, part.n)."""
    scores = runtime.xp.empty((len(queries), part.n), np.float32)
    if scores.size:
        grid = plan_grid(part.n, len(queries), tile_queries(codec, 0), 0)
        before, rows = runtime.xp.empty((len(queries), 0), np.float32), runtime.xp.empty(0, np.uint32)
        _launch(runtime, codec, queries, segment, part, grid, before, 0, Kept(scores, rows))
    return scores


def _launch(
    runtime: Runtime,
    codec: Codec,
    queries: DeviceQueries,
    segment: DeviceSegment,
    part: Part,
    grid: Grid,
    before: Any,
    keep: int,
    found: Kept,
) -> None:
    xp, has_numbers = runtime.xp, part.numbers is not None
    arguments = (
        *row_arguments(codec, segment.codes),
        segment.ids,
        np.int32(segment.ids.size > 0),
        part.numbers if has_numbers else xp.empty(0, np.uint32),
        np.int32(has_numbers),
        np.int64(part.start),
        np.int64(part.n),
        np.int64(grid.rows_per_part),
        *queries.arguments(),
        np.int32(len(queries)),
        np.int32(queries.depth),
        np.int32(before.shape[1]),
        before,
        xp.full(len(queries) if keep else 0, _NO_KEY, np.uint32),
        *found,
    )
    kernel = scan_kernel(code_defines(codec), keep)
    runtime.function(kernel)((grid.parts * grid.tiles,), (_THREADS,), arguments)
