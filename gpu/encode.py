"""Encoding on the device, equal bit for bit to `tqindex.kernels.encoder` and `tqindex.kernels.queries`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tqindex.checks import check_finite, check_nonzero, check_norms, check_rows
from tqindex.codec import Codec
from tqindex.codec.codebook import WIDTHS, Codebook
from tqindex.codec.codec import PROD_BITS, normalise
from tqindex.codec.codes import QueryCodes
from tqindex.codec.rotation import HadamardRotation, MatrixProjection
from tqindex.codec.sums import dot
from tqindex.errors import ArgumentError
from tqindex.gpu.runtime import Kernel, Runtime

#: The largest dim, and the coordinates that fit in a block's shared memory and its threads' registers.
MAX_DIM = 8192
#: What a block may have without asking the driver for more.
SHARED_BYTES = 48 * 1024
#: A block's rows share the words of the stored layout's blocks of 8 rows. A row of up to so many coordinates has a
#: warp, a longer one a block of its own, with so many for each thread.
_MOST_ROWS, _WARP, _OF_WARP, _OF_THREAD = 8, 32, 2048, 32
#: Levels of a transform that a thread takes at once: so many coordinates, 2**5, of each fit in its registers.
_MOST_LEVELS = 5
#: The width whose codebook is a grid.
_UNIFORM_BITS = 8
_ON_CPU = "encode on the CPU (without --device gpu, or by index.to('cpu'))"
#: As encode.cu numbers them.
_HADAMARD, _MATRIX, _NO_PROJECTION = 0, 1, -1
_NORMALISED, _SQUARED, _CENTRED, _UNBIASED, _GAUSSIAN = 1, 2, 4, 8, 16
_NOT_FINITE, _NO_DIRECTION = 0, 1
_NONE_REFUSED = np.full(3, 2**64 - 1, np.uint64)


class Rows(Protocol):
    """Codes as the index stores them, on the device; `tqindex.kernels.rows.StoredRows` names the arrays."""

    @property
    def lead(self) -> Any:
        """uint8 (leading planes, blocks, 8 * width)."""

    @property
    def rest(self) -> Any:
        """uint8 (rows, other planes * width)."""

    @property
    def scales(self) -> Any:
        """float32 (rows,)."""

    @property
    def sketch_scales(self) -> Any:
        """float32 (rows,), or (0,) for kind "mse"."""

    @property
    def offsets(self) -> Any:
        """float32 (rows,), or (0,) where the metric needs none."""


# -- launch arithmetic: no device is touched


@dataclass(frozen=True)
class Form:
    """What a specialisation of the kernels is made for.

    Attributes
    ----------
    dim : int
    bits : int, of the codebook
    rotation, sketch : kinds of the projections, as encode.cu numbers them
    half : whether vectors are float16
    """

    dim: int
    bits: int
    rotation: int
    sketch: int = _NO_PROJECTION
    half: bool = False

    @classmethod
    def of(cls, codec: Codec, half: bool = False) -> "Form":
        """Return a codec's form.

        Raises
        ------
        ArgumentError
            The dim is too large for a block's shared memory.
        """
        if codec.dim > MAX_DIM:
            raise ArgumentError(f"dim must be at most {MAX_DIM} on a GPU, got {codec.dim}: use the CPU")
        return cls(codec.dim, codec.codebook.bits, _kind_of(codec.rotate), _kind_of(codec.sketch_projection), half)

    @property
    def rows(self) -> int:
        """Rows of a block: a power of two, so that blocks of 8 stored rows hold whole ones."""
        return min(_MOST_ROWS, MAX_DIM >> (self.dim - 1).bit_length()) if self.team == _WARP else 1

    @property
    def team(self) -> int:
        """Threads of a row."""
        return _WARP if self.dim <= _OF_WARP else (1 << (self.dim - 1).bit_length()) // _OF_THREAD

    @property
    def block(self) -> int:
        """Threads of a block."""
        return self.rows * self.team

    @property
    def levels_at_once(self) -> int:
        """Levels of a transform between two visits to shared memory: as many as leave each thread of a row work."""
        return max(1, min(_MOST_LEVELS, self.dim.bit_length() - self.team.bit_length()))

    @property
    def planes(self) -> int:
        """Bits of a coordinate, the sketch included."""
        return self.bits + (self.sketch != _NO_PROJECTION)

    @property
    def shared_bytes(self) -> int:
        """Static shared memory of `encode_rows`, which needs the more of both."""
        coordinates = 4 * self.rows * (self.dim + (self.dim - 1) // 32)
        planes = 4 * self.rows * self.planes * -(-self.dim // 32)
        sums = 8 * (self.block if self.team > _WARP else 1)  # of rows that several warps share
        entries = 1 if self.bits == _UNIFORM_BITS else 2 ** (self.bits + 1)
        return coordinates + planes + sums + 4 * entries

    def grid(self, n: int, at: int = 0) -> tuple[int]:
        """Return the blocks that n rows from row `at` on take; each block's first row is a multiple of `rows`."""
        return (-(-(at % self.rows + n) // self.rows),)

    def kernel(self, name: str) -> Kernel:
        """Return the specialisation of `encode_rows` or `encode_queries`."""
        defines = {
            "BITS": self.bits, "BLOCK": self.block, "DIM": self.dim, "HALF": int(self.half),
            "LEVELS_AT_ONCE": self.levels_at_once, "ROTATION": self.rotation, "ROWS": self.rows, "SKETCH": self.sketch,
        }  # fmt: skip
        return Kernel("encode.cu", name, tuple(sorted(defines.items())))


def specialisations(dims: tuple[int, ...]) -> Iterator[Kernel]:
    """Yield every kernel that some codec of these dims runs."""
    for dim in dims:
        for rotation in (_HADAMARD, _MATRIX):
            pairs = [(bits, _NO_PROJECTION) for bits in WIDTHS]
            pairs += [(bits - 1, sketch) for bits in PROD_BITS for sketch in {rotation, _MATRIX}]
            for bits, sketch in pairs:
                for half in (False, True):
                    yield Form(dim, bits, rotation, sketch, half).kernel("encode_rows")
                yield Form(dim, bits, rotation, sketch).kernel("encode_queries")


def _kind_of(projection: HadamardRotation | MatrixProjection | None) -> int:
    if projection is None:
        return _NO_PROJECTION
    return _HADAMARD if isinstance(projection, HadamardRotation) else _MATRIX


@dataclass(frozen=True, eq=False)
class Tables:
    """A codec's numbers as the kernels read them; the projections of either kind follow each other, rotation first.

    Attributes
    ----------
    sources : uint16 (projections, 3, dim), where rows keep what is permuted, in the order in which rotate.cuh reads it
    signs : uint32 (projections, 3, 2, words), bits of the transforms' signs, 1 for a negative one
    columns : float32 (projections, dim, dim)
    center : float32 (dim,), or (0,)
    book : float32 (2 * 2**bits,), the codebook's boundaries as a tree, then its levels; (0,) for the grid of 8 bits
    """

    sources: npt.NDArray[np.uint16]
    signs: npt.NDArray[np.uint32]
    columns: npt.NDArray[np.float32]
    center: npt.NDArray[np.float32]
    book: npt.NDArray[np.float32]

    @classmethod
    def of(cls, codec: Codec) -> "Tables":
        """Return a codec's tables, on the host; what only rows need is left out where the CPU alone encodes them."""
        book = codec.codebook
        projections = [codec.rotate, codec.sketch_projection]
        rotations = [projection for projection in projections if isinstance(projection, HadamardRotation)]
        matrices = [projection.columns for projection in projections if isinstance(projection, MatrixProjection)]
        group = 1 << Form.of(codec).levels_at_once
        sources = [_place_sources(rotation, group) for rotation in rotations]
        signs = [_pack_signs(rotation.signs) for rotation in rotations]
        return cls(
            np.stack(sources) if rotations else np.empty(0, np.uint16),
            np.stack(signs) if rotations else np.empty(0, np.uint32),
            np.stack(matrices) if matrices else np.empty(0, np.float32),
            np.empty(0, np.float32) if codec.center is None else codec.center,
            _lay_out_book(book) if isinstance(book, Codebook) and not book.offset else np.empty(0, np.float32),
        )

    def on(self, runtime: Runtime) -> tuple[Any, ...]:
        """Return copies on the device: center, book, sources, signs, columns."""
        tables = self.center, self.book, self.sources, self.signs, self.columns
        return tuple(runtime.upload(table) for table in tables)


def _place_sources(rotation: HadamardRotation, group: int) -> npt.NDArray[np.uint16]:
    """Return the permutations, (3, dim), as places in shared memory.

    Of the first transform's coordinates, in groups of neighbours, all first ones come first, then all second ones.
    """
    places = rotation.permutations + rotation.permutations // _WARP
    first = places[:, : rotation.width].reshape(len(places), -1, group).swapaxes(1, 2)
    return np.hstack([first.reshape(len(places), -1), places[:, rotation.width :]]).astype(np.uint16)


def _lay_out_book(book: Codebook) -> npt.NDArray[np.float32]:
    """Return the boundaries as a binary search goes through them, node i before 2 i and 2 i + 1, and the levels."""
    tree = np.zeros(len(book.levels), np.float32)
    for depth in range(book.bits):
        step = len(tree) >> depth
        tree[1 << depth : 2 << depth] = book.boundaries[step // 2 - 1 :: step]
    return np.concatenate([tree, book.levels], dtype=np.float32)


def _pack_signs(signs: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Return the bits of negative signs, (..., width), as whole words (..., words)."""
    padding = [(0, 0)] * (signs.ndim - 1) + [(0, -signs.shape[-1] % 32)]
    bits = np.packbits(np.pad(signs < 0, padding), axis=-1, bitorder="little")
    return bits.view("<u4")


# -- on the device


class Encoder:
    """Encodes for one codec and metric on one device.

    Parameters
    ----------
    runtime : where the kernels run
    codec : Codec
    metric : {"ip", "cosine", "l2"}

    Raises
    ------
    ArgumentError
        The dim is too large for the kernels.
    """

    def __init__(self, runtime: Runtime, codec: Codec, metric: str) -> None:
        self._runtime, self._codec, self._metric = runtime, codec, metric
        self._form = Form.of(codec)
        self._center, self._book, *self._projections = Tables.of(codec).on(runtime)
        rotations = [p for p in (codec.rotate, codec.sketch_projection) if isinstance(p, HadamardRotation)]
        self._sign_scale = np.float32(abs(rotations[0].signs.flat[0]) if rotations else 0.0)
        self._flags = np.int32(
            _NORMALISED * (metric == "cosine")
            | _SQUARED * (metric == "l2")
            | _CENTRED * (codec.center is not None)
            | _UNBIASED * (codec.scale == "unbiased")
            | _GAUSSIAN * (codec.sketch == "gaussian")
        )

    def encode_rows(self, rows: Any, out: Rows, first_row: int = 0, at: int = 0) -> None:
        """Encode rows into `out` from its row `at` on; the same bytes as `tqindex.kernels.encoder.encode_rows`.

        Parameters
        ----------
        rows : device array of float16, float32 or float64, (n, dim)
        out : arrays of the device, with room for at + n rows
        first_row : int
            Added to the row numbers in messages.
        at : int

        Raises
        ------
        ArgumentError
            The codec's effort is "search", or its kind "trellis": the CPU encodes these. (A search for the best path
            keeps 16 to 64 costs of a row, one step after the other; it would leave a GPU's threads waiting.)
        VectorError
            Wrong shape or dtype, NaN or inf, a zero vector under "cosine", or a norm above 2**60.
        """
        codec = self._codec
        if codec.kind == "trellis":
            raise ArgumentError(f"codec must be 'mse' or 'prod' to encode on a GPU, got 'trellis': {_ON_CPU}")
        if codec.effort != "plain":
            raise ArgumentError(f"effort must be 'plain' to encode on a GPU, got {codec.effort!r}: {_ON_CPU}")
        rows = self._contiguous(rows, "vectors")
        n = len(rows)
        if not n:
            return
        half = rows.dtype == np.float16
        form, book = Form.of(codec, half), codec.codebook
        refused = self._runtime.upload(_NONE_REFUSED)
        arguments = (
            rows.view(np.uint16) if half else rows, np.int64(n), np.int64(at), self._center, self._book,
            *self._projections, self._sign_scale, np.float64(book.step), np.float64(np.sqrt(np.pi / 2.0)), self._flags,
            out.lead, np.int64(out.lead.shape[1]), out.rest, out.scales, out.sketch_scales, out.offsets, refused,
        )  # fmt: skip
        self._runtime.function(form.kernel("encode_rows"))(form.grid(n, at), (form.block,), arguments)
        self._check(rows, refused, "vectors", first_row)

    def encode_queries(self, queries: Any, first_row: int = 0) -> QueryCodes:
        """Centre, rotate and round queries to int8; the same numbers as `Codec.encode_queries`, on the device.

        Parameters
        ----------
        queries : device array of float16, float32 or float64, (nq, dim)
        first_row : int
            Added to the row numbers in messages.

        Raises
        ------
        VectorError
            Wrong shape or dtype, NaN or inf, a zero query under "cosine", or a norm above 2**60.
        """
        codec, xp = self._codec, self._runtime.xp
        rows = self._contiguous(queries, "queries").astype(np.float32, copy=False)
        n, dim, sketched = len(rows), codec.dim, codec.kind == "prod"
        levels, steps, sums, biases = self._room(n, dim)
        sketch_levels, sketch_steps = xp.empty((n * sketched, dim), np.int8), xp.empty(n * sketched, np.float32)
        if n:
            refused = self._runtime.upload(_NONE_REFUSED)
            arguments = (
                rows, np.int64(n), self._center, *self._projections, self._sign_scale, np.float64(codec.product_step),
                self._flags, np.int32(dim), levels, steps, sums, biases, sketch_levels, sketch_steps, refused,
            )  # fmt: skip
            self._runtime.function(self._form.kernel("encode_queries"))(
                self._form.grid(n), (self._form.block,), arguments
            )
            self._check(rows, refused, "queries", first_row)
        return QueryCodes(
            levels, steps, sums, biases, sketch_levels if sketched else None, sketch_steps if sketched else None
        )

    def _room(self, n: int, dim: int) -> tuple[Any, Any, Any, Any]:
        xp = self._runtime.xp
        return (
            xp.empty((n, dim), np.int8),
            xp.empty(n, np.float32),
            xp.empty(n, np.int32),
            xp.empty(n, np.float32),
        )

    def _contiguous(self, rows: Any, name: str) -> Any:
        """Return rows as the kernels read them: C-contiguous float16 or float32."""
        rows = check_rows(rows, self._codec.dim, name)
        dtype = np.float16 if rows.dtype == np.float16 else np.float32
        with np.errstate(over="ignore"):  # the kernels refuse what becomes inf
            return self._runtime.xp.ascontiguousarray(rows, dtype=dtype)

    def _check(self, rows: Any, refused: Any, name: str, first_row: int) -> None:
        """Raise what the CPU would raise for the first rows that a kernel refused; its own checks make the message."""
        found = self._runtime.download(refused)
        kinds = np.flatnonzero(found != _NONE_REFUSED)
        if not kinds.size:
            return
        kind, at = int(kinds[0]), int(found[kinds[0]])
        row, number = self._runtime.download(rows[at : at + 1]).astype(np.float32), first_row + at
        if kind == _NOT_FINITE:
            check_finite(row, name, number)
        elif kind == _NO_DIRECTION:
            check_nonzero(np.zeros(1), name, number)
        else:
            row = normalise(row, name) if self._metric == "cosine" else row
            with np.errstate(over="ignore"):
                row = row if self._codec.center is None else row - self._codec.center
            check_norms(np.sqrt(dot(row, row)), name, number)
