"""Many queries against many rows on the device; the launches of `scan.cu`.

Blocks keep the best of their rows in shared memory for k up to 128, so that no matrix of scores exists. For more the
scores of as many rows as fit in a stated room are written out and selected from: 4 bytes for each query and row, read
about six times, where the codes are read once for 64 queries.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tqindex.codec import Codec
from tqindex.codec.codes import Codes
from tqindex.codec.packing import pad_planes, plane_bytes, unpack_codes
from tqindex.errors import ArgumentError
from tqindex.gpu.best import Best, Candidates, keep_best
from tqindex.gpu.codes import DeviceQueries, DeviceRows, code_defines, whole_blocks
from tqindex.gpu.runtime import Kernel, Runtime
from tqindex.kernels.queries import encode_queries

Float32Array = npt.NDArray[np.float32]

#: Results that blocks keep of each query, and the queries of their tiles, by KEEP of scan.cu.
_TILE_QUERIES = {0: 64, 32: 64, 128: 32}
_TILE_ROWS, _THREADS = 64, 256
#: Blocks that keep any device busy, and tiles of rows that a block has at least, where it keeps the best of them.
_BLOCKS, _LEAST_TILES = 512, 4
#: Bytes of a matrix of scores.
_MATRIX_BYTES = 2**28
_MOST_GRID_ROWS = 65_535


class Grid(NamedTuple):
    """A launch of `scan_tiles`: blocks of rows, tiles of queries, and rows of a block."""

    blocks: int
    tiles: int
    rows_per_block: int


class Part(NamedTuple):
    """Rows start..start + count, or as many that `numbers` lists, uint32 of the device."""

    start: int
    count: int
    numbers: Any = None


class Found(NamedTuple):
    """What `scan_tiles` writes."""

    scores: Any
    rows: Any


def room_kept(k: int) -> int:
    """Return how many results blocks have room for where k are wanted; 0: scores are written out instead."""
    return next((room for room in (32, 128) if k <= room), 0)


def plan_grid(rows: int, nq: int, keep: int) -> Grid:
    """Return the launch for so many rows and queries."""
    tiles = -(-nq // _TILE_QUERIES[keep])
    row_tiles = -(-rows // _TILE_ROWS)
    wanted = max(1, _BLOCKS // tiles) if keep else row_tiles
    per_block = max(-(-row_tiles // wanted), min(_LEAST_TILES, row_tiles) if keep else 1)
    return Grid(-(-row_tiles // per_block), tiles, per_block * _TILE_ROWS)


def matrix_rows(nq: int, k: int) -> int:
    """Return of how many rows scores are written out at a time, a multiple of 8: at least twice k, since the best so
    far are selected from anew with each part."""
    return whole_blocks(max(_MATRIX_BYTES // (4 * nq), 2 * k))


def scan_rows(runtime: Runtime, codec: Codec, queries: DeviceQueries, rows: DeviceRows, best: Best) -> Best:
    """Score the live rows against all queries and return the best of them and of those so far.

    Queries: at most 65,535 tiles of 32.
    """
    k, count = best.scores.shape[1], rows.n_live
    if not k or not count or not len(queries):
        return best
    numbers = list_live(runtime, rows) if rows.live.size else None
    keep = room_kept(k)
    if keep:
        found = _scan_kept(runtime, codec, queries, rows, Part(0, count, numbers), k, keep)
        return keep_best(runtime, best, found)
    step = matrix_rows(len(queries), k)
    for start in range(0, count, step):
        part = Part(start, min(step, count - start), None if numbers is None else numbers[start : start + step])
        scores = _score(runtime, codec, queries, rows, part)
        first = 0 if numbers is not None else start
        best = keep_best(runtime, best, Candidates(scores, part.numbers, ids=rows.ids[first:], first_id=rows.first_id + first))
    return best


def list_live(runtime: Runtime, rows: DeviceRows) -> Any:
    """Return the numbers of the live rows, uint32 (n_live,), in an order that may differ from call to call."""
    xp = runtime.xp
    numbers, count = xp.empty(rows.n_live, np.uint32), xp.zeros(1, np.uint32)
    launch = runtime.function(Kernel("scan.cu", "list_live"))
    launch((-(-rows.n // _THREADS),), (_THREADS,), (rows.live, np.int64(rows.n), numbers, count))
    return numbers


def score_rows(runtime: Runtime, codec: Codec, queries: DeviceQueries, rows: DeviceRows) -> Any:
    """Return the scores of all rows, live or not, float32 (nq, n) of the device; larger is better."""
    return _score(runtime, codec, queries, rows, Part(0, rows.n))


def inner_product(runtime: Runtime, codec: Codec, queries: Float32Array, codes: Codes) -> Any:
    """Estimate <q, x> of every query, float32 (nq, dim), and encoded vector, float32 (nq, n) of the device.

    Bit for bit `tqindex.codec.Codec.inner_product`.

    Raises
    ------
    ArgumentError
        Codes of another width, or made for metric "l2": they do not hold <c, u>.
    """
    codec.check_codes(codes)
    if codes.metric == "l2":
        raise ArgumentError("codes must be encoded with metric 'ip' or 'cosine', got 'l2'")
    encoded = encode_queries(codec, queries, "ip")
    rows = rows_of_codes(runtime, codec, codes)
    return score_rows(runtime, codec, DeviceQueries.of(runtime, codec, encoded), rows)


def rows_of_codes(runtime: Runtime, codec: Codec, codes: Codes) -> DeviceRows:
    """Upload what `Codec.encode` returns; all planes row by row."""
    n, planes = len(codes), codes.packed
    if codec.dim % 8:
        planes = pad_planes(unpack_codes(planes, codec.dim, codec.bits), codec.bits)
    padded = np.zeros((whole_blocks(n), codec.bits * plane_bytes(codec.dim)), np.uint8)
    padded[:n] = planes
    nothing = np.empty(0, np.float32)
    sides = (nothing if side is None else side for side in (codes.scales, codes.sketch_scales, codes.offsets))
    arrays = np.empty((0, 0, 0), np.uint8), padded, *sides, np.empty(0, np.int64), np.empty(0, np.uint8)
    return DeviceRows(*(runtime.upload(array) for array in arrays), 0, n, n)


def _scan_kept(
    runtime: Runtime, codec: Codec, queries: DeviceQueries, rows: DeviceRows, part: Part, k: int, keep: int
) -> Candidates:
    """Return the k best of each block of some rows."""
    xp, nq = runtime.xp, len(queries)
    grid = plan_grid(part.count, nq, keep)
    shape = nq, grid.blocks * k
    found = Found(xp.empty(shape, np.float32), xp.empty(shape, np.uint32))
    _launch(runtime, codec, queries, rows, part, grid, k, keep, found)
    return Candidates(found.scores, found.rows, ids=rows.ids, first_id=rows.first_id)


def _score(runtime: Runtime, codec: Codec, queries: DeviceQueries, rows: DeviceRows, part: Part) -> Any:
    """Return the scores of some rows, (nq, part.count)."""
    scores = runtime.xp.empty((len(queries), part.count), np.float32)
    if scores.size:
        grid = plan_grid(part.count, len(queries), 0)
        _launch(runtime, codec, queries, rows, part, grid, 0, 0, Found(scores, runtime.xp.empty(0, np.uint32)))
    return scores


def _launch(
    runtime: Runtime,
    codec: Codec,
    queries: DeviceQueries,
    rows: DeviceRows,
    part: Part,
    grid: Grid,
    k: int,
    keep: int,
    found: Found,
) -> None:
    defines = *code_defines(codec), ("KEEP", keep)
    has_numbers = part.numbers is not None
    arguments = (
        *rows.arguments(codec),
        rows.ids,
        np.int32(rows.ids.size > 0),
        part.numbers if has_numbers else runtime.xp.empty(0, np.uint32),
        np.int32(has_numbers),
        np.int64(part.start),
        np.int64(part.count),
        np.int64(grid.rows_per_block),
        *queries.arguments(),
        np.int32(len(queries)),
        np.int32(queries.depth),
        np.int32(k),
        *found,
    )
    runtime.function(Kernel("scan.cu", "scan_tiles", tuple(sorted(defines))))(
        (grid.blocks, grid.tiles), (_THREADS,), arguments
    )
