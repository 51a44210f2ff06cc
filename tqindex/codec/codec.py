"""The codec: what a code is, in plain NumPy. Every kernel is tested against this module.

Notation: x a vector, c the centre, u = x - c, r = |u|, R a random rotation, y = sqrt(dim) R u / r, so that each
y_i has the sphere's coordinate law with variance 1; z the quantised y. q' = q - c for a query q.
"""

from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from tqindex.checks import (
    MAX_DIM,
    as_array,
    as_rows,
    check_choice,
    check_integer,
    check_nonzero,
    check_norms,
)
from tqindex.codec.codebook import WIDTHS, Codebook, make_codebook
from tqindex.codec.codes import Codes, QueryCodes
from tqindex.codec.effort import EFFORTS, SEARCHED_WIDTHS, Effort, StretchedCodebook
from tqindex.codec.packing import pack_codes, unpack_codes
from tqindex.codec.rotation import (
    DENSE_BELOW,
    ROTATIONS,
    HadamardRotation,
    MatrixProjection,
    gaussian_projection,
    make_rotation,
)
from tqindex.codec.rounding import divide, integer_products, round_to_int8, side, to_length
from tqindex.codec.sums import dot, tree_sum
from tqindex.codec.trellis import TRELLIS_BITS, TrellisCodebook, starts_of, trellis_codebook, with_starts
from tqindex.errors import ArgumentError

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Kind = Literal["mse", "prod", "trellis"]
Sketch = Literal["gaussian", "orthogonal"]
Scale = Literal["unbiased", "paper"]

KINDS = ("mse", "prod", "trellis")
SKETCHES = ("orthogonal", "gaussian")
SCALES = ("unbiased", "paper")
METRICS = ("ip", "cosine", "l2")
PROD_BITS = (2, 3, 4)
#: Widths of the kinds that do not have all.
_BITS = {"prod": PROD_BITS, "trellis": TRELLIS_BITS}
_MAX_SEED = 2**63 - 1
_ROTATION_KEY, _SKETCH_KEY = 0, 1


class Codec:
    """Quantises vectors coordinate by coordinate after a random rotation; data-oblivious.

    Kinds (TurboQuant, arXiv 2504.19874): "mse" spends all bits on a Lloyd-Max code (Algorithm 1); "prod" spends
    one of them on the signs of a random projection of the residual (QJL, arXiv 2406.03482; Algorithm 2). "trellis"
    spends all on a code in which the bits before a coordinate's own help to decide its level (`tqindex.codec.trellis`):
    a third less squared error in as many bytes, for an encoder that takes longer.

    Parameters
    ----------
    dim : int, 2 to 65,536
    bits : {1, 2, 3, 4, 8} for kind "mse"; {2, 3, 4} for kinds "prod", sketch included, and "trellis"
    kind : {"mse", "prod", "trellis"}
    sketch : {"orthogonal", "gaussian"}
        The projection of "prod": a rotation, or the paper's Gaussian matrix.
    scale : {"unbiased", "paper"}
        "unbiased" makes the estimated inner product right on average over rotations (EDEN, arXiv 2108.08842,
        section 3); "paper" stores the plain norm, as TurboQuant does.
    center : array-like (dim,), optional
        Subtracted from vectors and queries; any centre keeps estimates unbiased, the data's mean makes them
        more accurate.
    rotation : {"hadamard", "dense"}, optional
        Default: "dense" below 64 dimensions, else "hadamard".
    seed : int, 0 to 2**63 - 1
    effort : {"plain", "search"}
        "plain" rounds every coordinate to its nearest level. "search" tries 21 stretches of the codebook for each
        vector and keeps the codes of the best cosine: 17 % less variance at 100 dimensions and 4 bits, 2 % at 1,536,
        in as many bytes, which are read alike (`tqindex.codec.effort`). It needs a codebook of 2, 3 or 4 bits (bits
        of kind "mse", bits - 1 of "prod"; one bit has no boundary to stretch, and 256 levels are near enough
        without) and scale "unbiased", since the paper's holds only for z of the codebook's own length.

    Raises
    ------
    ArgumentError
        A parameter breaks its rule.
    """

    def __init__(
        self,
        dim: int,
        bits: int = 4,
        kind: Kind = "mse",
        sketch: Sketch = "orthogonal",
        scale: Scale = "unbiased",
        center: npt.ArrayLike | None = None,
        rotation: Literal["hadamard", "dense"] | None = None,
        seed: int = 0,
        effort: Effort = "plain",
    ) -> None:
        self.dim = check_integer("dim", dim, 2, MAX_DIM)
        self.kind: Kind = check_choice("kind", kind, KINDS)
        name = f"bits of kind {kind!r}" if kind in _BITS else "bits"
        self.bits = check_integer("bits", check_choice(name, bits, _BITS.get(kind, WIDTHS)), 1)
        self.sketch: Sketch = check_choice("sketch", sketch, SKETCHES)
        self.scale: Scale = check_choice("scale", scale, SCALES)
        self.center = _check_center(center, self.dim)
        default = "dense" if self.dim < DENSE_BELOW else "hadamard"
        self.rotation: str = check_choice("rotation", default if rotation is None else rotation, ROTATIONS)
        self.seed = check_integer("seed", seed, 0, _MAX_SEED)
        self.effort: Effort = check_choice("effort", effort, EFFORTS)
        self.codebook = self._make_codebook()
        self.stretched = self._stretch_codebook()
        self.rotate = make_rotation(self.rotation, self.dim, self.seed, _ROTATION_KEY)
        self.sketch_projection = self._make_sketch()

    def _make_codebook(self) -> Codebook | TrellisCodebook:
        if self.kind == "trellis":
            return trellis_codebook(self.bits)
        return make_codebook(self.dim, self.bits - 1 if self.kind == "prod" else self.bits)

    def _make_sketch(self) -> HadamardRotation | MatrixProjection | None:
        if self.kind != "prod":
            return None
        if self.sketch == "gaussian":
            return gaussian_projection(self.dim, self.seed, _SKETCH_KEY)
        return make_rotation(self.rotation, self.dim, self.seed, _SKETCH_KEY)

    def _stretch_codebook(self) -> StretchedCodebook | None:
        if self.effort == "plain":
            return None
        book = self.codebook
        if isinstance(book, TrellisCodebook):
            raise ArgumentError(f"effort must be 'plain' for kind 'trellis', got {self.effort!r}")
        if book.bits not in SEARCHED_WIDTHS or self.scale != "unbiased":
            raise ArgumentError(
                f"effort 'search' must go with bits 2, 3 or 4 (for kind 'prod' 3 or 4) and scale 'unbiased', "
                f"got bits={self.bits}, kind={self.kind!r}, scale={self.scale!r}"
            )
        return StretchedCodebook.of(book)

    @property
    def code_size(self) -> int:
        """Bytes of one vector's packed codes, without side numbers."""
        return (self.dim * self.bits + 7) // 8

    def get_config(self) -> dict[str, Any]:
        """Return everything that decides the codes, as JSON types."""
        return {
            "dim": self.dim,
            "bits": self.bits,
            "kind": self.kind,
            "sketch": self.sketch,
            "scale": self.scale,
            "center": None if self.center is None else [float(c) for c in self.center],
            "rotation": self.rotation,
            "seed": self.seed,
            "effort": self.effort,
            "codebook": self.codebook.get_config(),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Codec":
        """Rebuild a codec from `get_config`; the stored codebook is used as it is."""
        parameters = {name: value for name, value in config.items() if name != "codebook"}
        codec = cls(**parameters)
        codec.codebook = type(codec.codebook).from_config(codec.codebook.bits, **config["codebook"])
        codec.stretched = codec._stretch_codebook()
        return codec

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Codec) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash((self.dim, self.bits, self.kind, self.seed))

    def __repr__(self) -> str:
        center = None if self.center is None else f"<{self.dim} values>"
        return (
            f"Codec(dim={self.dim}, bits={self.bits}, kind={self.kind!r}, sketch={self.sketch!r}, "
            f"scale={self.scale!r}, center={center}, rotation={self.rotation!r}, seed={self.seed}, "
            f"effort={self.effort!r})"
        )

    def encode(self, vectors: npt.ArrayLike, metric: str = "ip") -> Codes:
        """Encode vectors of float16/32/64, shape (n, dim) or (dim,).

        `metric` decides what is stored exactly beside the codes: for "ip" <c, u> (only with a centre), for
        "cosine" the same of the normalised vector, for "l2" -|u|^2 / 2.

        Raises
        ------
        VectorError
            Wrong shape or dtype, NaN, inf, a norm above 2**60; zero vectors under "cosine".
        """
        check_choice("metric", metric, METRICS)
        rows = as_rows(vectors, self.dim)
        if metric == "cosine":
            rows = normalise(rows, "vectors")
        centred = rows if self.center is None else rows - self.center
        norms = np.sqrt(dot(centred, centred))
        check_norms(norms, "vectors")
        y = self.rotate.apply(to_length(centred, norms, np.sqrt(self.dim)))
        codes, scales, sketch_scales = self._quantise(y, norms)
        offsets = None
        if metric == "l2":
            offsets = (-0.5 * (norms * norms)).astype(np.float32)
        elif self.center is not None:
            offsets = dot(centred, self.center).astype(np.float32)
        return Codes(pack_codes(codes, self.bits), scales, sketch_scales, offsets, metric)

    def _quantise(
        self, y: Float32Array, norms: Float64Array
    ) -> tuple[npt.NDArray[np.uint8], Float32Array, Float32Array | None]:
        """Return combined codes (n, dim), s and g; rows of norm 0 get zeros."""
        book, starts = self.codebook, None
        if isinstance(book, TrellisCodebook):
            codes, starts = book.quantise(y)
            starts[norms == 0.0] = 0
        else:
            codes = book.quantise(y) if self.stretched is None else self.stretched.quantise(y)
        codes[norms == 0.0] = 0
        levels = self._expand(codes, starts) + book.offset
        along = dot(y, levels) * book.step
        lengths = norms / np.sqrt(self.dim)
        if self.kind != "prod":
            # <y, z> s = r sqrt(dim) makes <R u, s z> = r^2: the estimate is exact along u, unbiased across it.
            factors = np.full_like(norms, 1.0) if self.scale == "paper" else divide(float(self.dim), along)
            scales = side(lengths * factors, norms)
            return codes, scales if starts is None else with_starts(scales, starts), None
        squares = tree_sum(levels * levels) * (book.step * book.step)
        factors = np.full_like(norms, 1.0) if self.scale == "paper" else divide(along, squares)
        residuals = y - (factors * book.step).astype(np.float32)[:, np.newaxis] * levels.astype(np.float32)
        signs, sketch_factors = self._sketch_residuals(residuals)
        signs[norms == 0.0] = 0
        combined = ((codes << 1) | signs).astype(np.uint8)
        return combined, side(lengths * factors, norms), side(lengths * sketch_factors, norms)

    def _expand(self, codes: npt.NDArray[np.uint8], starts: npt.NDArray[np.uint8] | None) -> npt.NDArray[np.int8]:
        """Return the levels of codes without sketch signs, (n, dim); starts of trellis codes only."""
        book = self.codebook
        if isinstance(book, TrellisCodebook) and starts is not None:
            return book.expand(codes, starts)
        return book.levels[codes]

    def _levels_of(self, combined: npt.NDArray[np.uint8], scales: Float32Array) -> npt.NDArray[np.int8]:
        """Return the levels of unpacked codes, int8 (n, dim)."""
        if self.kind == "trellis":
            return self._expand(combined, starts_of(scales))
        return self._expand(combined >> np.uint8(1) if self.kind == "prod" else combined, None)

    def _sketch_residuals(self, residuals: Float32Array) -> tuple[npt.NDArray[np.uint8], Float64Array]:
        """Signs of S e as bits (1 for >= 0), and f with E[f S' sign(S e)] = e.

        gaussian: f = sqrt(pi/2) |e| / dim (QJL, Lemma 3.2). orthogonal: f = |e|^2 / |S e|_1, by the symmetry of
        the part of S' sign(S e) across e.
        """
        projected = cast(MatrixProjection, self.sketch_projection).apply(residuals)
        squares = dot(residuals, residuals)
        if self.sketch == "gaussian":
            factors = np.sqrt(np.pi / 2.0) * np.sqrt(squares) / self.dim
        else:
            factors = divide(squares, tree_sum(np.abs(projected)))
        return (projected >= 0.0).astype(np.uint8), factors

    def check_codes(self, codes: Codes) -> None:
        """Refuse codes that cannot be this codec's; those of another seed or centre look alike."""
        if not isinstance(codes, Codes):
            raise ArgumentError(f"codes must be what encode returns, got {type(codes).__name__}")
        if codes.code_size != self.code_size or (codes.sketch_scales is None) == (self.kind == "prod"):
            raise ArgumentError(
                f"codes must be of a codec like {self!r}, with {self.code_size} bytes each, got {codes.code_size}"
            )

    def decode(self, codes: Codes) -> Float32Array:
        """Return the vectors that the codes stand for, float32 (n, dim).

        Without a sketch and with the unbiased scale, c + (1 - D) s R'z: the unbiased scale is the best for inner
        products, this one has the least squared error (D the codebook's distortion, also under effort "search": a
        factor of its own would save .04 % of the error at 100 dimensions, .2 % at 33, .7 % at 8).

        Raises
        ------
        ArgumentError
            Codes of another width or kind. Codes of another seed or centre cannot be told apart.
        """
        self.check_codes(codes)
        levels, signs = self._levels(codes)
        rows = levels * (self._decode_factor() * codes.scales)[:, np.newaxis]
        if self.sketch_projection is not None and codes.sketch_scales is not None:
            rows = rows + self.sketch_projection.transpose(signs * codes.sketch_scales[:, np.newaxis])
        rows = self.rotate.transpose(rows)
        return rows if self.center is None else rows + self.center

    def _decode_factor(self) -> np.float32:
        shrink = self.kind != "prod" and self.scale == "unbiased"
        return np.float32(1.0 - self.codebook.distortion if shrink else 1.0)

    def _levels(self, codes: Codes) -> tuple[Float32Array, Float32Array]:
        """Quantised values z and sketch signs of every row, float32 (n, dim) each."""
        combined = unpack_codes(codes.packed, self.dim, self.bits)
        signs = (combined & 1).astype(np.float32) * 2 - 1
        levels = self._levels_of(combined, codes.scales).astype(np.float64)
        values = self.codebook.step * (levels + self.codebook.offset)
        return values.astype(np.float32), signs

    @property
    def product_step(self) -> float:
        """What a unit of the integer products of levels and queries is worth, for a query of step 1.

        It is the codebook's step; half of it where levels lie between integers, and the products are of their double.
        """
        return self.codebook.step * (0.5 if self.codebook.offset else 1.0)

    def encode_queries(self, queries: npt.ArrayLike, metric: str = "ip") -> QueryCodes:
        """Centre, rotate and round queries (nq, dim) or (dim,) to int8 with one scale per query."""
        check_choice("metric", metric, METRICS)
        rows = as_rows(queries, self.dim, "queries")
        if metric == "cosine":
            rows = normalise(rows, "queries")
        centred = rows if self.center is None else rows - self.center
        squares = dot(centred, centred)
        check_norms(np.sqrt(squares), "queries")
        if metric == "l2":
            biases = -0.5 * squares
        else:
            biases = np.zeros(len(rows)) if self.center is None else dot(rows, self.center)
        rotated = self.rotate.apply(centred)
        levels, scales = round_to_int8(rotated)
        sketch_levels = sketch_steps = None
        if self.sketch_projection is not None:
            sketch_levels, sketch_scales = round_to_int8(self.sketch_projection.apply(rotated))
            sketch_steps = sketch_scales.astype(np.float32)
        return QueryCodes(
            levels,
            (scales * self.product_step).astype(np.float32),
            levels.sum(axis=1, dtype=np.int32),
            biases.astype(np.float32),
            sketch_levels,
            sketch_steps,
        )

    def inner_product(self, queries: npt.ArrayLike, codes: Codes) -> Float32Array:
        """Estimate <q, x> of every query and encoded vector, float32 (nq, n).

        Raises
        ------
        ArgumentError
            Codes of another width or kind, or made for metric "l2": they do not hold <c, u>.
        """
        self.check_codes(codes)
        if codes.metric == "l2":
            raise ArgumentError("codes must be encoded with metric 'ip' or 'cosine', got 'l2'")
        return self._estimate(self.encode_queries(queries), codes)

    def scores(self, queries: npt.ArrayLike, codes: Codes) -> Float32Array:
        """Score every query and encoded vector under `codes.metric`, float32 (nq, n); larger is better.

        "ip" and "cosine": the estimated similarity. "l2": minus half the estimated squared distance.
        """
        self.check_codes(codes)
        return self._estimate(self.encode_queries(queries, codes.metric), codes)

    def _estimate(self, queries: QueryCodes, codes: Codes) -> Float32Array:
        """float32 scores in the order of operations that kernels keep."""
        combined = unpack_codes(codes.packed, self.dim, self.bits)
        levels = self._levels_of(combined, codes.scales)
        products = integer_products(queries.levels, levels)
        if self.codebook.offset:
            products = 2 * products + queries.sums[:, np.newaxis]
        scores = codes.scales * (queries.steps[:, np.newaxis] * products.astype(np.float32))
        sketch_scales = codes.sketch_scales
        if queries.sketch_levels is not None and queries.sketch_steps is not None and sketch_scales is not None:
            signs = (combined & 1).astype(np.int8) * np.int8(2) - np.int8(1)
            products = integer_products(queries.sketch_levels, signs)
            scores += sketch_scales * (queries.sketch_steps[:, np.newaxis] * products.astype(np.float32))
        if codes.offsets is not None:
            scores += codes.offsets
        return cast(Float32Array, scores + queries.biases[:, np.newaxis])


def normalise(rows: Float32Array, name: str, first_row: int = 0) -> Float32Array:
    """Return rows divided by their norms, rounded to float32; refuses zero rows, counted from `first_row`."""
    norms = np.sqrt(dot(rows, rows))
    check_nonzero(norms, name, first_row)
    return to_length(rows, norms, 1.0)


def _check_center(center: npt.ArrayLike | None, dim: int) -> Float32Array | None:
    if center is None:
        return None
    array = as_array(center, "center")
    if array.dtype.kind in "iu":
        array = array.astype(np.float64)
    if array.shape != (dim,):
        raise ArgumentError(f"center must have shape ({dim},), got {array.shape}")
    row = as_rows(array, dim, "center")
    check_norms(np.sqrt(dot(row, row)), "center")
    first: Float32Array = row[0].copy()
    return first
