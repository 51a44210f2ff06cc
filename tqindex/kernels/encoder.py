"""Drives the encoding kernels over blocks of rows and threads."""

import numpy as np
import numpy.typing as npt

from tqindex.checks import check_finite, check_nonzero, check_norms
from tqindex.codec import Codec
from tqindex.codec.rotation import HadamardRotation, MatrixProjection
from tqindex.kernels.encode import (
    centre_rows,
    choose_stretches,
    normalise_rows,
    pack_rows,
    quantise_rows,
    scale_rows,
    sketch_rows,
    subtract_levels,
)
from tqindex.kernels.rotate import project_rows, rotate_row, rotate_rows
from tqindex.kernels.rows import EncodedRows, StoredRows, has_offsets
from tqindex.kernels.simd_rotate import LANES
from tqindex.kernels.threads import run_parallel

Float32Array = npt.NDArray[np.float32]
#: Coordinates that one task encodes, and rows at least: few enough to stay in cache, many enough to outweigh the calls,
#: which one thread makes at a time.
_BLOCK_VALUES = 2**17
BLOCK_ROWS = 256
#: Multiply-adds of one task by a matrix, some tens of milliseconds, since Ctrl-C waits for it.
_MATRIX_WORK = 2**27
#: Up to so many rows, one by one is faster than all lanes at once.
_FEW_ROWS = 4


def encode_rows(
    codec: Codec,
    rows: Float32Array,
    metric: str,
    out: EncodedRows | StoredRows,
    threads: int,
    first_row: int = 0,
    at: int = 0,
) -> None:
    """Encode rows, float32 (n, dim), into `out` from row `at` on; equal to `codec.encode` for any number of threads.

    Raises
    ------
    VectorError
        NaN or inf, a zero vector under "cosine", or a norm above 2**60; the message counts rows from `first_row`.
    """
    n = len(rows)
    lengths, norms = np.ones(n), np.empty(n)

    def encode_block(_: int, block: slice) -> None:
        work = rows[block].copy()
        if metric == "cosine":
            normalise_rows(work, lengths[block], np.empty(codec.dim))
        encoded = EncodedRows.allocate(codec, metric, len(work))
        _encode_block(codec, metric, work, norms[block], encoded)
        out.write(at + block.start, encoded)

    run_parallel(_blocks(n, codec.dim, codec.rotate, codec.sketch_projection), threads, encode_block)
    if not np.isfinite(norms).all():  # then some coordinate is not: squares of float32 do not overflow float64
        check_finite(rows, "vectors", first_row)
    check_nonzero(lengths, "vectors", first_row)
    check_norms(norms, "vectors", first_row)


def _encode_block(
    codec: Codec, metric: str, rows: Float32Array, norms: npt.NDArray[np.float64], out: EncodedRows
) -> None:
    """Encode one block; overwrites rows."""
    book, scratch = codec.codebook, np.empty(codec.dim)
    unbiased = codec.scale == "unbiased"
    along = np.empty(len(rows))
    center = np.empty(0, np.float32) if codec.center is None else codec.center
    centre_rows(rows, center, norms, along, scratch)
    if has_offsets(codec, metric):
        with np.errstate(over="ignore"):  # the caller refuses such norms by their own message
            out.offsets[:] = -0.5 * (norms * norms) if metric == "l2" else along
    project(codec.rotate, rows)
    codes = np.empty((len(rows), 8 * (out.planes.shape[1] // codec.bits)), np.uint8)
    boundaries, choices = book.boundaries[np.newaxis], np.zeros(len(rows), np.int64)
    if codec.stretched is not None:
        boundaries = codec.stretched.boundaries
        choose_stretches(rows, norms, codec.stretched.edges, codec.stretched.levels, choices)
    quantise_rows(rows, norms, boundaries, choices, book.step if book.offset else 0.0, codes)
    if codec.sketch_projection is None:
        scale_rows(rows, norms, codes, book.levels, book.step, book.offset, unbiased, out.scales, scratch)
    else:
        squares = np.empty(len(rows))
        subtract_levels(rows, norms, codes, book.levels, book.step, unbiased, out.scales, squares, scratch)
        project(codec.sketch_projection, rows)
        gaussian = codec.sketch == "gaussian"
        sketch_rows(rows, norms, squares, gaussian, codes, out.sketch_scales, scratch)
    pack_rows(codes, codec.bits, out.planes)


def _blocks(n: int, dim: int, *projections: HadamardRotation | MatrixProjection | None) -> list[slice]:
    """Cut n rows into what one task takes through the projections."""
    work = sum(projection.columns.size for projection in projections if isinstance(projection, MatrixProjection))
    step = max(BLOCK_ROWS, _BLOCK_VALUES // dim)
    if work:
        step = min(step, max(1, _MATRIX_WORK // work))
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def project(projection: HadamardRotation | MatrixProjection, rows: Float32Array) -> None:
    """Apply a projection to rows in place."""
    for block in _blocks(*rows.shape, projection):
        _project_block(projection, rows[block])


def _project_block(projection: HadamardRotation | MatrixProjection, rows: Float32Array) -> None:
    dim = rows.shape[1]
    if isinstance(projection, HadamardRotation) and len(rows) <= _FEW_ROWS:
        for row in rows:
            rotate_row(row, projection.permutations, projection.signs, np.empty(dim, np.float32))
    elif isinstance(projection, HadamardRotation):
        work, spare = _make_lanes(dim), _make_lanes(dim)
        rotate_rows(rows, projection.permutations, projection.signs, work, spare)
    else:
        project_rows(rows, projection.columns, np.empty(dim, np.float32))


def _make_lanes(dim: int) -> Float32Array:
    """Return room for LANES rows, zeroed, from the start of a cache line: a vector across two takes twice as long."""
    size = dim * LANES
    room = np.zeros(size + LANES, np.float32)
    start = -room.ctypes.data % (4 * LANES) // 4
    return room[start : start + size]
