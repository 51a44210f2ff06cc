"""Encoded vectors and queries."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tqindex.errors import ArgumentError

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Codes:
    """Vectors as a `Codec` stores them: packed codes and the side numbers of each row.

    Attributes
    ----------
    packed : uint8 (n, code_size), code_size = ceil(dim * bits / 8)
    scales : float32 (n,), s: the estimate is s <R q', z> + ..., q' the centred query, z the levels
    sketch_scales : float32 (n,) or None, g; kind "prod" only
    offsets : float32 (n,) or None, b_x: the part of the score that is stored exactly
    metric : {"ip", "cosine", "l2"}, what `offsets` are for and whether vectors were normalised
    """

    packed: npt.NDArray[np.uint8]
    scales: Float32Array
    sketch_scales: Float32Array | None = None
    offsets: Float32Array | None = None
    metric: str = "ip"

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, rows: slice | npt.NDArray[np.int64]) -> "Codes":
        """Return the rows that a slice or an int64 array names."""
        return Codes(
            self.packed[rows],
            self.scales[rows],
            None if self.sketch_scales is None else self.sketch_scales[rows],
            None if self.offsets is None else self.offsets[rows],
            self.metric,
        )

    @property
    def code_size(self) -> int:
        """Bytes of one row's packed codes."""
        return int(self.packed.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of codes and side numbers."""
        sides = (self.scales, self.sketch_scales, self.offsets)
        return self.packed.nbytes + sum(side.nbytes for side in sides if side is not None)

    @classmethod
    def concatenate(cls, parts: Sequence["Codes"]) -> "Codes":
        """Join codes of one codec and metric.

        Raises
        ------
        ArgumentError
            No parts, or parts that differ in width, metric or side numbers.
        """
        if not parts:
            raise ArgumentError("parts must hold at least one Codes, got none")
        forms = {(part.code_size, part.metric, part.sketch_scales is None, part.offsets is None) for part in parts}
        if len(forms) > 1:
            raise ArgumentError(f"parts must come from one codec and metric, got {len(forms)} forms")
        return cls(
            np.concatenate([part.packed for part in parts]),
            np.concatenate([part.scales for part in parts]),
            _join([part.sketch_scales for part in parts]),
            _join([part.offsets for part in parts]),
            parts[0].metric,
        )


@dataclass(frozen=True, eq=False)
class QueryCodes:
    """Rotated queries as int8, ready to be multiplied with levels.

    The estimate for a row is ``scales * (steps * I) + sketch_scales * (sketch_steps * J) + offsets + biases``
    with I the product with the row's levels (2 I + sums for 8 bits) and J that with its sketch signs.

    Attributes
    ----------
    levels : int8 (nq, dim)
    steps : float32 (nq,), the query's scale times the codebook's step
    sums : int32 (nq,), of levels
    biases : float32 (nq,), the part of the score that the query alone decides
    sketch_levels, sketch_steps : the same for S R q', or None
    """

    levels: npt.NDArray[np.int8]
    steps: Float32Array
    sums: npt.NDArray[np.int32]
    biases: Float32Array
    sketch_levels: npt.NDArray[np.int8] | None
    sketch_steps: Float32Array | None

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, block: slice) -> "QueryCodes":
        """Return the queries that a slice names."""
        return QueryCodes(
            self.levels[block],
            self.steps[block],
            self.sums[block],
            self.biases[block],
            None if self.sketch_levels is None else self.sketch_levels[block],
            None if self.sketch_steps is None else self.sketch_steps[block],
        )


def _join(sides: Sequence[Float32Array | None]) -> Float32Array | None:
    present = [side for side in sides if side is not None]
    return np.concatenate(present) if present else None
