"""Codes and queries as the scans' kernels take them; the twin of `codes.cuh`."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.codec import Codec
from tqindex.codec.codes import QueryCodes
from tqindex.codec.packing import BLOCK, plane_bytes
from tqindex.gpu.runtime import Runtime

#: Coordinates of a half, from which a step takes every eighth; queries are padded to whole chunks of them.
_HALF, _STEPS, _CHUNK = 32, 8, 128
#: Queries are padded to a whole tile.
_TILE_QUERIES = 64
_LEVELS = 16


@dataclass(frozen=True, eq=False)
class DeviceRows:
    """Rows in the device's memory, in the stored layout; arrays of size 0 stand for what there is not.

    Attributes
    ----------
    lead, rest, scales, sketch_scales, offsets : as `tqindex.kernels.rows.StoredRows`
        Each begins at a multiple of 8 bytes, and rest is a whole number of ints.
    ids, live : as `tqindex.index.segments.Segment`
    first_id, n, n_live : int
    """

    lead: Any
    rest: Any
    scales: Any
    sketch_scales: Any
    offsets: Any
    ids: Any
    live: Any
    first_id: int
    n: int
    n_live: int

    def arguments(self, codec: Codec) -> tuple[Any, ...]:
        """Return what kernels take of all rows: codes, their layout, and side numbers."""
        leading, blocks = self.lead.shape[:2]
        sides = self.scales, self.sketch_scales, self.offsets, np.int32(self.offsets.size > 0)
        return self.lead, self.rest, np.int64(blocks), np.int32(leading), np.int32(plane_bytes(codec.dim)), *sides


@dataclass(frozen=True, eq=False)
class DeviceQueries:
    """Queries in the device's memory.

    Attributes
    ----------
    levels, sketch_levels : int8 (nq padded, depth), the coordinates of each 32 in the order in which codes are expanded
    reals : float32 (nq, 3), step, sketch step and bias
    integers : int32 (nq, 2), sums of levels and of sketch levels
    table : uint32 (4,), the codebook's levels, int8
    codes : QueryCodes, what they were made from
    """

    levels: Any
    sketch_levels: Any
    reals: Any
    integers: Any
    table: Any
    codes: QueryCodes

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def depth(self) -> int:
        """Coordinates, padded."""
        return int(self.levels.shape[1])

    @classmethod
    def of(cls, runtime: Runtime, codec: Codec, queries: QueryCodes) -> "DeviceQueries":
        """Upload queries."""
        nq, sketch = len(queries), queries.sketch_levels
        reals, integers = np.zeros((nq, 3), np.float32), np.zeros((nq, 2), np.int32)
        reals[:, 0], reals[:, 2], integers[:, 0] = queries.steps, queries.biases, queries.sums
        if sketch is not None and queries.sketch_steps is not None:
            reals[:, 1], integers[:, 1] = queries.sketch_steps, sketch.sum(axis=1, dtype=np.int32)
        table = np.zeros(_LEVELS, np.int8)
        if codec.codebook.bits < 8:
            table[: len(codec.codebook.levels)] = codec.codebook.levels
        arrays = order_by_steps(queries.levels), order_by_steps(queries.levels[:0] if sketch is None else sketch)
        uploaded = (runtime.upload(array) for array in (*arrays, reals, integers, table.view(np.uint32)))
        return cls(*uploaded, queries)

    def arguments(self) -> tuple[Any, ...]:
        """Return what kernels take of them."""
        return self.levels, self.sketch_levels, self.reals, self.integers, self.table


def order_by_steps(levels: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """Return levels (nq, dim) padded with zeros, of every 32 coordinates 0, 8, 16, 24, 1, 9, ... in this order."""
    nq, dim = levels.shape
    padded = np.zeros((-(-nq // _TILE_QUERIES) * _TILE_QUERIES, -(-dim // _CHUNK) * _CHUNK), np.int8)
    padded[:nq, :dim] = levels
    halves = padded.reshape(len(padded), -1, _HALF // _STEPS, _STEPS)
    return np.ascontiguousarray(halves.swapaxes(2, 3)).reshape(padded.shape)


def code_defines(codec: Codec) -> tuple[tuple[str, int], ...]:
    """Return the macros of `codes.cuh` for a codec."""
    return ("CODE_BITS", codec.codebook.bits), ("SKETCH", int(codec.kind == "prod"))


def whole_blocks(n: int) -> int:
    """Return n rounded up to whole blocks of rows."""
    return -(-n // BLOCK) * BLOCK
