"""What the scans need of a codec and of queries, in the form that the kernels take."""

from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.codec import Codec
from tqindex.codec.codes import QueryCodes
from tqindex.codec.packing import LEADING
from tqindex.codec.refinement import Refinement, refinement
from tqindex.kernels.coarse import coarsen_query
from tqindex.kernels.product import LANES, TILE_CONFIGURATION, pack_queries
from tqindex.kernels.simd_count import SLICES
from tqindex.kernels.simd_score import BIASES, SHIFTS, SKETCH_SHIFTS, SKETCH_STEPS, STEPS

Float32Array = npt.NDArray[np.float32]
Int8Array = npt.NDArray[np.int8]

#: Probability over the rotation that a search loses any of its k best to the cascade.
EPS = 1e-6
#: Below this many dimensions a row's share of the margin varies too much for constants (and rows are small).
_LEAST_DIM = 64
#: Below this step of a query float32 loses digits of its products, by which bounds could miss scores.
_LEAST_STEP = 2.0**-110


class ScanPlan:
    """The constants of a codec's scans.

    Attributes
    ----------
    tables : (bits, table, sketch_table) of the kernels
    stages : float64 (stages, 7), the cascade's stages as `tqindex.kernels.coarse` names the columns; none where every
        row is scored in full
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
        # The constants are those of plain codes: with effort "search" a scale depends on the stretch of its row.
        has_stages = codec.dim >= _LEAST_DIM and codec.effort == "plain"
        counts = range(1, min(book.bits, LEADING) + 1) if has_stages else ()
        self.stages = np.array([_stage(refinement(codec, planes)) for planes in counts]).reshape(-1, 7)

    @property
    def name(self) -> str:
        """How few queries are answered: "cascade" or "full"."""
        return "cascade" if len(self.stages) else "full"

    def shifts(self, queries: QueryCodes) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Return what kernels add to the products with levels and with sketch signs."""
        sketch = queries.sketch_levels
        sums = np.zeros(len(queries), np.int32) if sketch is None else sketch.sum(axis=1, dtype=np.int32)
        return queries.sums * np.int32(self._shift), -sums


def _stage(known: Refinement) -> list[float]:
    """Return a stage's constants in the order of `tqindex.kernels.coarse`."""
    v = known.values
    second_gap = v[1] - v[0] if known.planes > 1 else 0.0
    return [v[0], v[len(v) // 2] - v[0], second_gap, known.kappa, known.sigma**2, known.power, known.sketch]


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


def single_queries(plan: ScanPlan, queries: QueryCodes, margins: tuple[float, float] | None) -> list[tuple[Any, Any]]:
    """Return `query` and `stages` of `tqindex.kernels.cascade.scan_rows_single` for every query.

    margins: as `deviations` gives them, or None for an exact scan.
    """
    levels, sketch_levels = _padded(queries.levels), _padded(queries.sketch_levels)
    shifts, sketch_shifts = plan.shifts(queries)
    sketch_steps = queries.steps if queries.sketch_steps is None else queries.sketch_steps
    return [
        (
            (
                levels[q],
                sketch_levels[q] if len(sketch_levels) else sketch_levels.reshape(0),
                plan.multiplier,
                int(shifts[q]),
                int(sketch_shifts[q]),
                queries.steps[q],
                sketch_steps[q],
                queries.biases[q],
            ),
            _stages(plan, levels[q], float(queries.steps[q]), margins),
        )
        for q in range(len(queries))
    ]


def _stages(plan: ScanPlan, levels: Int8Array, step: float, margins: tuple[float, float] | None) -> tuple[Any, Any]:
    """Return a query's bit slices and the weights of its bounds; empty ones for an exact scan."""
    if margins is None or step < _LEAST_STEP or not len(plan.stages):
        return np.empty(0, np.uint64), np.empty(0, np.float32)
    slices, weights = np.zeros(len(levels) // 64 * SLICES, np.uint64), np.zeros(4 * len(plan.stages), np.float32)
    book = plan.codec.codebook
    # A query's step counts the codebook's step too.
    scale = step / (book.step * (0.5 if book.offset else 1.0))
    coarsen_query(levels, plan.codec.dim, scale, *margins, plan.stages, slices, weights)
    return slices, weights


def deviations(plan: ScanPlan, k: int, n: int, eps: float) -> tuple[float, float]:
    """Return the margins, in standard deviations, with which any of the k best of n rows is lost with probability eps.

    Each of the k best may be lost in either of two stages. With a sketch half of eps goes to its error in any row.
    """
    if plan.codec.kind == "mse":
        return _quantile(eps / (2 * k)), 0.0
    return _quantile(eps / (4 * k)), _quantile(eps / (2 * n))


@lru_cache(maxsize=256)
def _quantile(probability: float) -> float:
    """Where the normal law's upper tail has a probability."""
    return -NormalDist().inv_cdf(min(0.5, probability))


def _padded(levels: Int8Array | None) -> Int8Array:
    """Pad queries with zeros to whole words of planes."""
    if levels is None:
        return np.empty((0, 0), np.int8)
    nq, dim = levels.shape
    padded = np.zeros((nq, -(-dim // 64) * 64), np.int8)
    padded[:, :dim] = levels
    return padded
