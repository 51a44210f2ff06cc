"""Rows and queries as the scans' kernels take them; the launches of `codes.cu`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tqindex.codec import Codec
from tqindex.codec.codebook import WIDTHS
from tqindex.codec.codec import PROD_BITS
from tqindex.codec.codes import QueryCodes
from tqindex.codec.packing import plane_bytes
from tqindex.codec.trellis import TRELLIS_BITS
from tqindex.gpu.rows import DeviceCodes, DeviceSegment
from tqindex.gpu.runtime import Kernel, Runtime

_THREADS = 256
#: Coordinates are padded with zeros to what is in shared memory at a time.
_CHUNK = 128
_LEVELS, _UNIFORM_BITS = 16, 8
_ORDER_QUERIES, _LIST_LIVE = Kernel("codes.cu", "order_queries"), Kernel("codes.cu", "list_live")


@dataclass(frozen=True, eq=False)
class DeviceQueries:
    """Queries on the device, in the form of the scans.

    Attributes
    ----------
    levels, sketch_levels : int8 (nq, depth), sketch levels of kind "prod" only
        Of every 32 coordinates 0, 4, 8, 12, then 16, 20, 24, 28, then 1, 5, ...: as `codes.cuh` expands codes.
    reals : float32 (nq, 3), step, sketch step and bias
    integers : int32 (nq, 3), sum, sketch sum and sum of squares of the levels
    table : uint32, the codebook's int8 levels as `level_table` has them
    """

    levels: Any
    sketch_levels: Any
    reals: Any
    integers: Any
    table: Any

    def __len__(self) -> int:
        return len(self.reals)

    @property
    def depth(self) -> int:
        """Coordinates, padded."""
        return int(self.levels.shape[1])

    @classmethod
    def of(cls, runtime: Runtime, codec: Codec, queries: QueryCodes) -> "DeviceQueries":
        """Bring queries, whose arrays are the device's, to the form of the scans."""
        xp, (nq, columns), sketch = runtime.xp, queries.levels.shape, queries.sketch_levels is not None
        depth = -(-columns // _CHUNK) * _CHUNK
        levels, sketch_levels = xp.empty((nq, depth), np.int8), xp.empty((nq * sketch, depth), np.int8)
        reals, integers = xp.empty((nq, 3), np.float32), xp.empty((nq, 3), np.int32)
        given = (
            queries.levels,
            queries.steps,
            queries.sums,
            queries.biases,
            queries.sketch_levels if sketch else sketch_levels,
            queries.sketch_steps if sketch else xp.empty(0, np.float32),
        )
        if nq:
            sizes = np.int32(sketch), np.int32(columns), np.int32(depth)
            arguments = *given, *sizes, levels, sketch_levels, reals, integers
            runtime.function(_ORDER_QUERIES)((nq,), (_THREADS,), arguments)
        return cls(levels, sketch_levels, reals, integers, runtime.upload(level_table(codec)))

    def arguments(self) -> tuple[Any, ...]:
        """Return what kernels take of them."""
        return self.levels, self.sketch_levels, self.reals, self.integers, self.table


def level_table(codec: Codec) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Return a codebook's levels as the kernels look them up, uint32 (4,), of a trellis (64,); 8 bits need none."""
    levels = codec.codebook.levels if codec.codebook.bits < _UNIFORM_BITS else np.empty(0, np.int8)
    table = np.zeros(max(_LEVELS, len(levels)), np.int8)
    table[: len(levels)] = levels
    return table.view(np.uint32)


def row_arguments(codec: Codec, codes: DeviceCodes) -> tuple[Any, ...]:
    """Return what kernels take of all rows: codes, their layout, and side numbers."""
    leading, blocks = codes.lead.shape[:2]
    layout = np.int64(blocks), np.int32(leading), np.int32(plane_bytes(codec.dim))
    has_offsets = np.int32(codes.offsets.size > 0)
    return codes.lead, codes.rest, *layout, codes.scales, codes.sketch_scales, codes.offsets, has_offsets


def code_defines(codec: Codec) -> tuple[tuple[str, int], ...]:
    """Return the macros of `codes.cuh` for a codec."""
    defines = ("CODE_BITS", codec.codebook.bits), ("SKETCH", int(codec.kind == "prod"))
    return (*defines, ("TRELLIS", 1)) if codec.kind == "trellis" else defines


def every_defines() -> Iterator[tuple[tuple[str, int], ...]]:
    """Yield what `code_defines` may return."""
    for bits, sketch in (*((bits, 0) for bits in WIDTHS), *((bits - 1, 1) for bits in PROD_BITS)):
        yield ("CODE_BITS", bits), ("SKETCH", sketch)
    for bits in TRELLIS_BITS:
        yield ("CODE_BITS", bits), ("SKETCH", 0), ("TRELLIS", 1)


def specialisations() -> Iterator[Kernel]:
    """Yield every kernel that some codec runs."""
    yield from (_ORDER_QUERIES, _LIST_LIVE)


def list_live(runtime: Runtime, segment: DeviceSegment) -> Any:
    """Return the numbers of the live rows, uint32 (n_live,), in an order that may differ from call to call."""
    xp = runtime.xp
    numbers, count = xp.empty(segment.n_live, np.uint32), xp.zeros(1, np.uint32)
    launch = runtime.function(_LIST_LIVE)
    launch((-(-segment.n // _THREADS),), (_THREADS,), (segment.live, np.int64(segment.n), numbers, count))
    return numbers
