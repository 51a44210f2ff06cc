"""Drives the encoding kernels over blocks of rows and threads."""

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.checks import check_finite, check_nonzero, check_norms
from tqindex.codec import Codec
from tqindex.codec.codebook import Codebook
from tqindex.codec.packing import plane_bytes
from tqindex.codec.rotation import HadamardRotation, MatrixProjection
from tqindex.codec.trellis import TrellisCodebook
from tqindex.kernels.encode import (
    choose_stretches,
    prepare_rows,
    quantise_rows,
    quantise_to_residuals,
    sketch_rows,
)
from tqindex.kernels.layout import store_rows
from tqindex.kernels.room import make_room
from tqindex.kernels.rotate import project_rows, rotate_row, rotate_rows
from tqindex.kernels.rows import EncodedRows, StoredRows, has_offsets
from tqindex.kernels.simd_quantise import ENTRIES
from tqindex.kernels.simd_rotate import LANES
from tqindex.kernels.simd_sums import CHUNK
from tqindex.kernels.threads import run_parallel
from tqindex.kernels.trellis_encode import TrellisQuantiser

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
#: Coordinates that one task encodes, and rows at least: few enough to stay in cache, many enough to outweigh the calls,
#: which one thread makes at a time.
_BLOCK_VALUES = 2**18
BLOCK_ROWS = 128
#: Multiply-adds of one task by a matrix, some tens of milliseconds, since Ctrl-C waits for it.
_MATRIX_WORK = 2**27
#: Up to so many rows, one by one is faster than all lanes at once.
_FEW_ROWS = 4
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
    blocks = _blocks(n, codec.dim, codec.rotate, codec.sketch_projection)
    encoders = [_Encoder(codec, metric, blocks[0].stop, out) for _ in range(min(threads, len(blocks)))]
    ready = rows.flags.carray  # kernels are compiled for arrays that are aligned and can be written

    def encode_block(worker: int, block: slice) -> None:
        given = rows[block] if ready else np.require(rows[block], requirements=["C", "A", "W"])
        encoders[worker].encode(given, lengths[block], norms[block], at + block.start)

    run_parallel(blocks, threads, encode_block)
    if not np.isfinite(norms).all():  # then some coordinate is not: squares of float32 do not overflow float64
        check_finite(rows, "vectors", first_row)
    check_nonzero(lengths, "vectors", first_row)
    check_norms(norms, "vectors", first_row)


class _Encoder:
    """What one worker keeps from block to block: constants, and room for `rows` rows.

    Memory is not asked for anew: for wide rows, to be given the pages took a fifth of the time.
    """

    def __init__(self, codec: Codec, metric: str, rows: int, out: EncodedRows | StoredRows) -> None:
        dim, book = codec.dim, codec.codebook
        self._codec, self._metric, self._out, self._offsets = codec, metric, out, has_offsets(codec, metric)
        self._center = np.empty(0, np.float32) if codec.center is None else codec.center
        self._y = make_room(rows * dim).reshape(rows, dim)
        self._planes = np.empty((rows, codec.bits * plane_bytes(dim)), np.uint8)
        self._along, self._terms = np.empty(rows), make_room(dim + CHUNK, np.float64)
        self._project = _Projector(dim, rows)
        self._trellis = TrellisQuantiser(dim, book) if isinstance(book, TrellisCodebook) else None
        self._scalar = None if isinstance(book, TrellisCodebook) else _ScalarQuantiser(codec, book, rows, self._project)

    def encode(self, rows: Float32Array, lengths: Float64Array, norms: Float64Array, at: int) -> None:
        """Encode one block to the rows from `at` on; writes norms before normalising if the metric does, and after."""
        codec, out, n = self._codec, self._out, len(rows)
        end, y, planes = at + n, self._y[:n], self._planes[:n]
        prepare_rows(rows, self._center, self._metric == "cosine", y, lengths, norms, self._along, self._terms)
        if self._offsets:
            with np.errstate(over="ignore"):  # the caller refuses such norms by their own message
                out.offsets[at:end] = -0.5 * (norms * norms) if self._metric == "l2" else self._along[:n]
        self._project(codec.rotate, y)
        if self._trellis is not None:
            self._trellis(y, norms, codec.scale == "unbiased", planes, out.scales[at:end])
        if self._scalar is not None:
            self._scalar(y, norms, planes, out.scales[at:end], out.sketch_scales[at:end])
        store_rows(planes, out.lead, out.rest, at)


class _ScalarQuantiser:
    """The same of scalar codes, and of their sketch if the codec has one: tables, and room for `rows` rows."""

    def __init__(self, codec: Codec, book: Codebook, rows: int, project: "_Projector") -> None:
        self._codec, self._book, self._project, stretched = codec, book, project, codec.stretched
        if book.offset:
            self._tables = np.array([book.step]).view(np.float32)
        else:
            boundaries = book.boundaries[np.newaxis] if stretched is None else stretched.boundaries
            self._tables = _arrange_tables(boundaries, book.levels)
        self._signs = None if codec.sketch_projection is None else _arrange_tables(*_SIGNS)
        self._choices, self._squares = np.zeros(rows, np.int64), np.empty(rows)
        self._levels, self._terms = make_room(codec.dim), make_room(codec.dim + CHUNK, np.float64)

    def __call__(
        self, y: Float32Array, norms: Float64Array, planes: Any, scales: Float32Array, sketch_scales: Float32Array
    ) -> None:
        """Write planes and scales of rotated rows; overwrites y."""
        codec, book, choices = self._codec, self._book, self._choices[: len(y)]
        if codec.stretched is not None:
            choose_stretches(y, norms, codec.stretched.edges, codec.stretched.levels, choices)
        common = y, norms, book.bits, self._tables, choices, book.step, codec.scale == "unbiased", planes, scales
        if codec.sketch_projection is None:
            quantise_rows(*common, self._levels, self._terms)
        else:
            quantise_to_residuals(*common, self._squares, self._levels, self._terms)
            self._project(codec.sketch_projection, y)
            sketch = norms, self._squares, codec.sketch == "gaussian", self._signs, planes, codec.bits
            sketch_rows(y, *sketch, sketch_scales, self._levels, self._terms)


def _arrange_tables(boundaries: npt.NDArray[Any], levels: npt.NDArray[Any]) -> Float32Array:
    """Return boundaries, (stretches, 2**bits - 1), and levels, (2**bits,), as `make_quantise_row` searches them."""
    return _arranged(boundaries.astype(np.float32).tobytes(), levels.astype(np.float32).tobytes())


@functools.lru_cache(maxsize=16)  # else a tenth of the time to add one vector
def _arranged(boundary_bytes: bytes, level_bytes: bytes) -> Float32Array:
    levels = np.frombuffer(level_bytes, np.float32)
    boundaries = np.frombuffer(boundary_bytes, np.float32).reshape(-1, len(levels) - 1)
    bits = len(levels).bit_length() - 1
    tables = np.zeros((len(boundaries), bits + 1, ENTRIES), np.float32)
    for place in range(bits):
        half = 1 << (bits - 1 - place)
        codes = np.arange(0, len(levels), 2 * half)
        tables[:, place, codes] = boundaries[:, codes + half - 1]
    tables[:, bits, : len(levels)] = levels
    return tables.reshape(-1)


def _blocks(n: int, dim: int, *projections: HadamardRotation | MatrixProjection | None) -> list[slice]:
    """Cut n rows into what one task takes through the projections."""
    work = sum(projection.columns.size for projection in projections if isinstance(projection, MatrixProjection))
    step = max(BLOCK_ROWS, _BLOCK_VALUES // dim // LANES * LANES)
    if work:
        step = min(step, max(1, _MATRIX_WORK // work))
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def project(projection: HadamardRotation | MatrixProjection, rows: Float32Array) -> None:
    """Apply a projection to rows in place."""
    projector = _Projector(rows.shape[1], len(rows))
    for block in _blocks(*rows.shape, projection):
        projector(projection, rows[block])


class _Projector:
    """Applies projections of R^dim to blocks of up to so many rows in place, always in the same room."""

    def __init__(self, dim: int, rows: int) -> None:
        self._row = np.empty(dim, np.float32)
        if rows > _FEW_ROWS:
            self._work, self._spare = make_room(dim * LANES), make_room(dim * LANES)
            self._work[:] = 0  # lanes without a row

    def __call__(self, projection: HadamardRotation | MatrixProjection, rows: Float32Array) -> None:
        if isinstance(projection, MatrixProjection):
            project_rows(rows, projection.columns, self._row)
        elif len(rows) <= _FEW_ROWS:
            for row in rows:
                rotate_row(row, projection.permutations, projection.signs, self._row)
        else:
            rotate_rows(rows, projection.permutations, projection.signs, self._work, self._spare)
