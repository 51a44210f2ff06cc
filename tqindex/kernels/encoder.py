"""Drives the encoding kernels over blocks of rows and threads."""

from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.checks import check_finite, check_nonzero, check_norms
from tqindex.codec import Codec
from tqindex.codec.rotation import HadamardRotation, MatrixProjection
from tqindex.kernels.encode import (
    arrange_tables,
    choose_stretches,
    prepare_rows,
    quantise_rows,
    quantise_to_residuals,
    sketch_rows,
)
from tqindex.kernels.rotate import project_rows, rotate_row, rotate_rows
from tqindex.kernels.rows import EncodedRows, StoredRows, has_offsets
from tqindex.kernels.simd_quantise import ENTRIES
from tqindex.kernels.simd_rotate import LANES
from tqindex.kernels.simd_sums import CHUNK
from tqindex.kernels.threads import run_parallel

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
#: Coordinates that one task encodes, and rows at least: few enough to stay in cache, many enough to outweigh the calls,
#: which one thread makes at a time.
_BLOCK_VALUES = 2**17
BLOCK_ROWS = 128
#: Multiply-adds of one task by a matrix, some tens of milliseconds, since Ctrl-C waits for it.
_MATRIX_WORK = 2**27
#: Up to so many rows, one by one is faster than all lanes at once.
_FEW_ROWS = 4
_LINE = 64
#: The quantiser of a sketch: its boundary and its levels.
_SIGNS = np.zeros((1, 1), np.float32), np.array([-1, 1], np.float32)


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
        encoded = EncodedRows.allocate(codec, metric, block.stop - block.start)
        # Kernels are compiled for arrays that are aligned and can be written.
        given = np.require(rows[block], requirements=["C", "A", "W"])
        _encode_block(codec, metric, given, lengths[block], norms[block], encoded)
        out.write(at + block.start, encoded)

    run_parallel(_blocks(n, codec.dim, codec.rotate, codec.sketch_projection), threads, encode_block)
    if not np.isfinite(norms).all():  # then some coordinate is not: squares of float32 do not overflow float64
        check_finite(rows, "vectors", first_row)
    check_nonzero(lengths, "vectors", first_row)
    check_norms(norms, "vectors", first_row)


def _encode_block(
    codec: Codec,
    metric: str,
    rows: Float32Array,
    lengths: Float64Array,
    norms: Float64Array,
    out: EncodedRows,
) -> None:
    """Encode one block; writes the rows' norms, before normalising if the metric does, and after centring."""
    dim, book = codec.dim, codec.codebook
    levels, terms = _make_room(dim), _make_room(dim + CHUNK, np.float64)
    y, along = _make_room(rows.size).reshape(rows.shape), np.empty(len(rows))
    center = np.empty(0, np.float32) if codec.center is None else codec.center
    prepare_rows(rows, center, metric == "cosine", y, lengths, norms, along, terms)
    if has_offsets(codec, metric):
        with np.errstate(over="ignore"):  # the caller refuses such norms by their own message
            out.offsets[:] = -0.5 * (norms * norms) if metric == "l2" else along
    project(codec.rotate, y)
    boundaries, choices = book.boundaries[np.newaxis], np.zeros(len(rows), np.int64)
    if codec.stretched is not None:
        boundaries = codec.stretched.boundaries
        choose_stretches(y, norms, codec.stretched.edges, codec.stretched.levels, choices)
    if book.offset:
        tables = np.array([book.step]).view(np.float32)
    else:
        tables = _arrange_tables(boundaries, book.levels.astype(np.float32))
    unbiased = codec.scale == "unbiased"
    common = (y, norms, book.bits, tables, choices, book.step, unbiased, out.planes, out.scales)
    if codec.sketch_projection is None:
        quantise_rows(*common, levels, terms)
    else:
        squares = np.empty(len(rows))
        quantise_to_residuals(*common, squares, levels, terms)
        project(codec.sketch_projection, y)
        gaussian, planes, signs = codec.sketch == "gaussian", out.planes, _arrange_tables(*_SIGNS)
        sketch_rows(y, norms, squares, gaussian, signs, planes, codec.bits, out.sketch_scales, levels, terms)


def _arrange_tables(boundaries: Float32Array, levels: Float32Array) -> Float32Array:
    """Return the boundaries (stretches, 2**bits - 1) and levels (2**bits,) as the quantiser searches them."""
    tables = np.zeros((len(boundaries), len(levels).bit_length(), ENTRIES), np.float32)
    arrange_tables(boundaries, levels, tables)
    return tables.reshape(-1)


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
        work, spare = _make_room(dim * LANES), _make_room(dim * LANES)
        work[:] = 0  # lanes without a row
        rotate_rows(rows, projection.permutations, projection.signs, work, spare)
    else:
        project_rows(rows, projection.columns, np.empty(dim, np.float32))


def _make_room(size: int, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """Return room for `size` numbers that starts a cache line: vectors that lie across two take twice as long."""
    room = np.empty(size * np.dtype(dtype).itemsize + _LINE, np.uint8)
    start = -room.ctypes.data % _LINE
    return room[start : start + room.size - _LINE].view(dtype)
