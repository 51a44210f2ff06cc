"""What the scans need of a codec and of queries, in the form that the kernels take."""

from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.checks import check_finite
from tqindex.codec import Codec
from tqindex.codec.codes import QueryCodes
from tqindex.codec.packing import LEADING
from tqindex.codec.refinement import Refinement, refinement
from tqindex.kernels.coarse import COARSE_BYTES, WEIGHTS
from tqindex.kernels.product import LANES, TILE_CONFIGURATION, pack_queries
from tqindex.kernels.queries import encode_few, encode_queries, matrices
from tqindex.kernels.simd_score import BIASES, SHIFTS, SKETCH_SHIFTS, SKETCH_STEPS, STEPS, THRESHOLDS

Float32Array = npt.NDArray[np.float32]

#: Probability over the rotation that a search loses any of its k best to the cascade.
EPS = 1e-6
#: Below this many dimensions a row's share of the margin varies too much for constants (and rows are small).
_LEAST_DIM = 64
# Its arguments come as tuples, whose lengths mypy cannot follow.
_encode_few: Any = encode_few


class ScanPlan:
    """The constants of the scans for a codec and a metric.

    Attributes
    ----------
    tables : (bits, table, sketch_table) of the kernels
    depth : int
        Coordinates padded to whole words of planes.
    form, exact_form : as `tqindex.kernels.queries.encode_few` takes it, with and without the cascade's stages
    stages : float64 (stages, 7), the cascade's stages as `tqindex.kernels.coarse` names the columns; none where every
        row is scored in full
    """

    def __init__(self, codec: Codec, metric: str = "ip") -> None:
        book = codec.codebook
        self.codec, self.metric = codec, metric
        self.depth = -(-codec.dim // 64) * 64
        # One level per combined code; the sketch's sign is the lowest bit.
        levels = np.repeat(book.levels, 2) if codec.kind == "prod" else book.levels
        biased = (levels.astype(np.int16) + 128).astype(np.uint8)
        if codec.kind == "trellis":
            table = biased  # by window, not by code
        else:
            table = np.tile(np.resize(biased, 16), 4) if codec.bits < 8 else np.zeros(64, np.uint8)
        sketch_table = np.tile(np.resize(np.array([0, 1], np.uint8), 16), 4)
        # 8 bits: 2 * sum((code - 128) * q) + sum(q) = 2 P - 255 sum(q); else sum(level * q) = P - 128 sum(q).
        self.multiplier, self._shift = (2, -255) if book.offset else (1, -128)
        self.tables: tuple[Any, ...] = (codec.bits, table, sketch_table)
        # The constants are those of plain scalar codes: with effort "search" a scale depends on the stretch of its row,
        # and the leading planes of a trellis code say next to nothing of its levels.
        has_stages = codec.dim >= _LEAST_DIM and codec.effort == "plain" and codec.kind != "trellis"
        counts = range(1, min(book.bits, LEADING) + 1) if has_stages else ()
        self.stages = np.array([_stage(refinement(codec, planes)) for planes in counts]).reshape(-1, 7)
        self.form, self.exact_form = self._form(self.stages), self._form(self.stages[:0])

    def _form(self, stages: npt.NDArray[np.float64]) -> tuple[Any, ...]:
        codec, metric = self.codec, self.metric
        center = np.empty(0, np.float32) if codec.center is None else codec.center
        rotation, sketch = matrices(codec.rotate), matrices(codec.sketch_projection)
        return metric == "cosine", metric == "l2", center, rotation, sketch, codec.product_step, self._shift, stages

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

    def sides_from(self, thresholds: Float32Array | float) -> Float32Array:
        """Return a call's own sides: only scores that reach the thresholds, of each query or of all, are kept."""
        sides = self.sides.copy()
        sides[THRESHOLDS] = np.inf
        sides[THRESHOLDS, : self.queries[0]] = thresholds
        return sides


def encode_few_queries(
    plan: ScanPlan, rows: Float32Array, margins: tuple[float, float] | None, first_row: int = 0
) -> tuple[npt.NDArray[Any], ...]:
    """Return few queries, float32 (nq, dim), as `tqindex.kernels.cascade.scan_rows_few` takes them.

    margins: as `deviations` gives them, or None for an exact scan.

    Raises
    ------
    VectorError
        NaN or inf, and what `encode_queries` refuses.
    """
    nq, form = len(rows), plan.form if margins is not None else plan.exact_form
    levels, sketch_levels = np.zeros((nq, plan.depth), np.int8), np.zeros((nq, plan.depth), np.int8)
    coarse = np.zeros((nq, plan.depth // 64 * COARSE_BYTES), np.uint8)
    weights = np.zeros((nq, WEIGHTS * LEADING), np.float32)
    out = levels, sketch_levels, coarse, weights, np.zeros((nq, 3), np.float32), np.zeros((nq, 3), np.int32)
    if not _encode_few(rows.copy(), form, margins or (0.0, 0.0), out):
        check_finite(rows, "queries", first_row)
        encode_queries(plan.codec, rows, plan.metric, first_row)  # refuses them too, and says why
    return out


def deviations(plan: ScanPlan, k: int, n: int, eps: float) -> tuple[float, float]:
    """Return the margins, in standard deviations, with which any of the k best of n rows is lost with probability eps.

    Each of the k best may be lost in either of two stages. With a sketch half of eps goes to its error in any row.
    """
    if plan.codec.kind != "prod":
        return _quantile(eps / (2 * k)), 0.0
    return _quantile(eps / (4 * k)), _quantile(eps / (2 * n))


@lru_cache(maxsize=256)
def _quantile(probability: float) -> float:
    """Where the normal law's upper tail has a probability."""
    return -NormalDist().inv_cdf(min(0.5, probability))
