"""The block of scalar quantisation."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tqindex.kernels.simd import BYTE, FLOATS, INTS, LONG, address, cgutils, load, splat

#: Coordinates that `count_boundaries` takes at once.
QUANTISED = 64
_LANES = 16


@intrinsic
def count_boundaries(
    typing_context: Any, y: Any, at: Any, boundaries: Any, first: Any, count: Any, codes: Any, out_at: Any
) -> Any:
    """Count the boundaries <= y for QUANTISED coordinates.

    count_boundaries(y, at, boundaries, first, count, codes, out_at): y f32, from element `at` on; boundaries f32,
    `count` of them from `first` on; codes u8, written from `out_at` on.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v_y, v_at, v_boundaries, v_first, v_count, v_codes, v_out_at = arguments
        t_y, t_boundaries, t_codes = signature.args[0], signature.args[2], signature.args[5]
        starts = [LONG(first) for first in range(0, QUANTISED, _LANES)]
        values = [load(builder, address(context, builder, t_y, v_y, builder.add(v_at, j), FLOATS)) for j in starts]
        counts = [cgutils.alloca_once_value(builder, ir.Constant(INTS, None)) for _ in starts]
        for number in counts:
            builder.store(ir.Constant(INTS, None), number)
        with cgutils.for_range_slice(builder, LONG(0), v_count, LONG(1), LONG) as (i, _):
            index = builder.add(v_first, i)
            boundary = load(builder, address(context, builder, t_boundaries, v_boundaries, index, ir.FloatType()))
            boundary = splat(builder, boundary, FLOATS)
            for value, number in zip(values, counts, strict=True):
                beyond = builder.sext(builder.fcmp_ordered(">=", value, boundary), INTS)
                builder.store(builder.sub(builder.load(number), beyond), number)
        narrow = ir.VectorType(BYTE, _LANES)
        for j, number in zip(starts, counts, strict=True):
            pointer = address(context, builder, t_codes, v_codes, builder.add(v_out_at, j), narrow)
            builder.store(builder.trunc(builder.load(number), narrow), pointer).align = 1
        return context.get_dummy_value()

    index = types.intp
    return types.void(y, index, boundaries, index, index, codes, index), codegen
