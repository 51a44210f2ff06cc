"""What the scans need of a codec and of queries, in the form that the kernels take."""

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.codec import Codec
from tqindex.codec.codes import QueryCodes
from tqindex.codec.packing import LEADING
from tqindex.codec.refinement import Refinement, refinement
from tqindex.kernels.product import LANES, TILE_CONFIGURATION, pack_queries
from tqindex.kernels.scan import BIASES, SHIFTS, SKETCH_SHIFTS, SKETCH_STEPS, STEPS
from tqindex.kernels.simd_count import SLICES

Float32Array = npt.NDArray[np.float32]
Int8Array = npt.NDArray[np.int8]

#: Probability over the rotation that a search loses any of its k best to the cascade.
EPS = 1e-6
#: Below this many dimensions a row's share of the margin varies too much for constants (and rows are small).
_LEAST_DIM = 64
#: Step of a coarse query's levels in units of its root mean square: the best uniform step of 15 levels for N(0, 1).
_COARSE_STEP = 0.335
_MOST_COARSE = 2 ** (SLICES - 1) - 1
#: What float32 scores may differ by, relative to the largest that a row could reach.
_SLACK = 2.0**-20


class ScanPlan:
    """The constants of a codec's scans.

    Attributes
    ----------
    tables : (bits, table, sketch_table) of the kernels
    refinements : the cascade's stages, none where every row is scored in full
    """

    def __init__(self, codec: Codec) -> None:
        book = codec.codebook
        self.codec = codec
        # One level per combined code; the sketch's sign is the lowest bit.
        levels = np.repeat(book.levels, 2) if codec.kind == "prod" else book.levels
        biased = (levels.astype(np.int16) + 128).astype(np.uint8)
        table = np.tile(np.resize(biased, 16), 4) if codec.bits < 8 else np.zeros(64, np.uint8)
        sketch_table = np.tile(np.resize(np.array([0, 1], np.uint8), 16), 4)
        self.tables: tuple[Any, ...] = (codec.bits, table, sketch_table)
        # 8 bits: 2 * sum((code - 128) * q) + sum(q) = 2 P - 255 sum(q); else sum(level * q) = P - 128 sum(q).
        self.multiplier, self._shift = (2, -255) if book.offset else (1, -128)
        counts = range(1, min(book.bits, LEADING) + 1) if codec.dim >= _LEAST_DIM else ()
        self.refinements: list[Refinement] = [refinement(codec, planes) for planes in counts]

    def shifts(self, queries: QueryCodes) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Return what kernels add to the products with levels and with sketch signs."""
        sketch = queries.sketch_levels
        sums = np.zeros(len(queries), np.int32) if sketch is None else sketch.sum(axis=1, dtype=np.int32)
        return queries.sums * np.int32(self._shift), -sums


@dataclass(frozen=True, eq=False)
class BatchQueries:
    """Many queries as `tqindex.kernels.scan.scan_rows` takes them."""

    tables: tuple[Any, ...]
    queries: tuple[Any, ...]
    sides: Float32Array

    @classmethod
    def of(cls, plan: ScanPlan, queries: QueryCodes) -> "BatchQueries":
        """Pack the queries."""
        nq = len(queries)
        packed = pack_queries(queries.levels)
        sides = np.zeros((6, LANES * len(packed)), np.float32)
        shifts, sketch_shifts = plan.shifts(queries)
        sides[STEPS, :nq], sides[BIASES, :nq] = queries.steps, queries.biases
        sides[SHIFTS, :nq], sides[SKETCH_SHIFTS, :nq] = shifts.view(np.float32), sketch_shifts.view(np.float32)
        sketch_packed = np.empty((0, 0, LANES, 4), np.int8)
        if queries.sketch_levels is not None and queries.sketch_steps is not None:
            sketch_packed = pack_queries(queries.sketch_levels)
            sides[SKETCH_STEPS, :nq] = queries.sketch_steps
        return cls((*plan.tables, TILE_CONFIGURATION), (nq, packed, sketch_packed, plan.multiplier), sides)


def single_queries(plan: ScanPlan, queries: QueryCodes, k: int, exact_scan: bool, eps: float) -> list[tuple[Any, Any]]:
    """Return `query` and `stages` of `tqindex.kernels.cascade.scan_rows_single` for every query.

    eps: see `EPS`; half of it for each stage's error, one k-th of that for each of the k best rows.
    """
    levels, sketch_levels = _padded(queries.levels), _padded(queries.sketch_levels)
    shifts, sketch_shifts = plan.shifts(queries)
    none = np.zeros(len(queries), np.float32)
    sketch_steps = none if queries.sketch_steps is None else queries.sketch_steps
    stages: list[Any] = [(np.empty(0, np.uint64), np.empty((0, 4), np.float32))] * len(queries)
    if plan.refinements and not exact_scan:
        stages = _stages(plan, queries, levels, k, eps)
    return [
        (
            (
                levels[q],
                sketch_levels[q] if len(sketch_levels) else np.empty(0, np.int8),
                plan.multiplier,
                int(shifts[q]),
                int(sketch_shifts[q]),
                queries.steps[q],
                sketch_steps[q],
                queries.biases[q],
            ),
            stages[q],
        )
        for q in range(len(queries))
    ]


def _stages(plan: ScanPlan, queries: QueryCodes, levels: Int8Array, k: int, eps: float) -> list[Any]:
    """Coarse queries as bit slices, and the weights of the stages' bounds.

    The coarse query c times `unit` stands for the query's levels l; the unit makes the rest l - unit c orthogonal to
    l, so that it adds to the variance of the bounds but not to their mean.
    """
    exact = levels.astype(np.float64)
    squares = np.einsum("qj,qj->q", exact, exact)
    dim = plan.codec.dim
    step = _COARSE_STEP * np.sqrt(np.maximum(squares, 1.0) / dim)
    coarse = np.rint(exact / step[:, np.newaxis]).clip(-_MOST_COARSE, _MOST_COARSE)
    along = np.einsum("qj,qj->q", exact, coarse)
    unit = np.divide(squares, along, out=np.zeros_like(along), where=along > 0)
    rest = np.maximum(unit**2 * np.einsum("qj,qj->q", coarse, coarse) - squares, 0.0)
    book = plan.codec.codebook
    # From levels to |q'|: a query's step counts the codebook's step too.
    scales = queries.steps / (book.step * (0.5 if book.offset else 1.0))
    t = -NormalDist().inv_cdf(min(0.5, eps / (2 * k)))
    sums = coarse.sum(axis=1)
    weights = np.zeros((len(queries), len(plan.refinements), 4), np.float32)
    for stage, known in enumerate(plan.refinements):
        v = known.values
        factor = scales * known.kappa * unit
        variance = known.sigma**2 * squares + known.kappa**2 * known.power * rest
        margin = scales * (t * np.sqrt(variance * dim / (dim - 1)) + _SLACK * np.sqrt(squares * dim))
        weights[:, stage, 0] = factor * (v[len(v) // 2] - v[0])
        weights[:, stage, 1] = factor * (v[1] - v[0]) if known.planes > 1 else 0.0
        weights[:, stage, 2] = factor * v[0] * sums + margin
        weights[:, stage, 3] = _SLACK
    return list(zip(_slices(coarse.astype(np.int8)), weights, strict=True))


def _slices(coarse: Int8Array) -> npt.NDArray[np.uint64]:
    """Return the bits of coarse queries (nq, depth), two's complement, as uint64 (nq, depth / 64 * SLICES)."""
    nq, depth = coarse.shape
    bits = (coarse.reshape(nq, depth // 64, 1, 64) >> np.arange(SLICES).reshape(-1, 1).astype(np.int8)) & 1
    return np.packbits(bits.astype(np.uint8), axis=-1, bitorder="little").reshape(nq, -1).view(np.uint64)


def _padded(levels: Int8Array | None) -> Int8Array:
    """Pad queries with zeros to whole words of planes."""
    if levels is None:
        return np.empty((0, 0), np.int8)
    return np.pad(levels, ((0, 0), (0, -levels.shape[1] % 64)))
