"""Blocks for one row: expanding its code planes, and comparing its scores with thresholds."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tqindex.kernels.simd import (
    BYTE,
    BYTES,
    FLOATS,
    INT,
    INTS,
    LONG,
    Operations,
    address,
    call,
    cgutils,
    constant,
    load,
    splat,
)


def _for_levels(
    builder: Any, row: Any, width: Any, bits: Any, entries: Any, operations: Operations, use: Callable[..., None]
) -> None:
    """Emit a loop over a row's planes that calls use(levels, i) for the 64 coordinates of bytes i..i + 8."""
    last = builder.sub(width, LONG(8))
    for count in (1, 2, 3, 4, 8):
        wanted = builder.icmp_signed("==", bits, LONG(count))
        with builder.if_then(wanted), cgutils.for_range_slice(builder, LONG(0), width, LONG(8), LONG) as (i, _):
            # The last word of a plane is read so that it ends with the plane, and shifted into place.
            start = builder.select(builder.icmp_signed("<", i, last), i, last)
            shift = builder.mul(builder.sub(i, start), LONG(8))
            codes = ir.Constant(BYTES, None)
            for plane in range(count):
                index = builder.add(builder.mul(width, LONG(plane)), start)
                word = load(builder, builder.bitcast(builder.gep(row, [index]), LONG.as_pointer()))
                mask = operations.spread(builder, builder.lshr(word, shift))
                heavier = builder.add(codes, constant(BYTES, 1 << (count - 1 - plane)))
                codes = builder.select(mask, heavier, codes)
            use(codes if count == 8 else operations.shuffle(builder, entries, codes), i)


def make_expand_row(operations: Operations) -> Any:
    """Return an operation that turns one row's planes into bytes, 64 coordinates at a time.

    expand_row(planes, at, width, bits, table, levels, out_at): planes u8, `bits` planes of `width` >= 8 bytes from
    `at` on, most significant first; table u8 (64,), four copies of 16 entries, or of any content for 8 bits, whose
    codes stay as they are; levels u8, written in whole steps of 64.
    """

    @intrinsic
    def expand_row(
        typing_context: Any, planes: Any, at: Any, width: Any, bits: Any, table: Any, levels: Any, out_at: Any
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            v_planes, v_at, v_width, v_bits, v_table, v_levels, v_out_at = arguments
            t_planes, t_table, t_levels = signature.args[0], signature.args[4], signature.args[5]
            entries = load(builder, address(context, builder, t_table, v_table, LONG(0), BYTES))
            row = address(context, builder, t_planes, v_planes, v_at, BYTE)

            def write(levels: Any, i: Any) -> None:
                index = builder.add(v_out_at, builder.mul(i, LONG(8)))
                builder.store(levels, address(context, builder, t_levels, v_levels, index, BYTES)).align = 1

            _for_levels(builder, row, v_width, v_bits, entries, operations, write)
            return context.get_dummy_value()

        index = types.intp
        return types.void(planes, index, index, index, table, levels, index), codegen

    return expand_row


# --- scores ---------------------------------------------------------------------------------------------------------


def make_dot_row(operations: Operations) -> Any:
    """Return an operation that multiplies one row's levels with one query, straight from the planes.

    dot_row(planes, at, width, bits, table, query) -> i32; planes and table as `make_expand_row`, query i8 (depth,).
    """

    @intrinsic
    def dot_row(typing_context: Any, planes: Any, at: Any, width: Any, bits: Any, table: Any, query: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            v_planes, v_at, v_width, v_bits, v_table, v_query = arguments
            t_query = signature.args[5]
            total = cgutils.alloca_once_value(builder, ir.Constant(INTS, None))
            builder.store(ir.Constant(INTS, None), total)

            def add(levels: Any, i: Any) -> None:
                index = builder.mul(i, LONG(8))
                part = load(builder, address(context, builder, t_query, v_query, index, BYTES))
                builder.store(operations.dot4(builder, builder.load(total), levels, part), total)

            entries = load(builder, address(context, builder, signature.args[4], v_table, LONG(0), BYTES))
            row = address(context, builder, signature.args[0], v_planes, v_at, BYTE)
            _for_levels(builder, row, v_width, v_bits, entries, operations, add)
            return call(builder, "llvm.vector.reduce.add.v16i32", INT, [builder.load(total)])

        index = types.intp
        return types.int32(planes, index, index, index, table, query), codegen

    return dot_row


#: Queries that `score_strip` scores at once.
STRIP = 32


def make_score_strip(with_sketch: bool) -> Any:
    """Return an operation that scores one row against STRIP queries and compares with their thresholds.

    score_strip(products, at, sketch_products, sketch_at, sides, columns, first, scale, sketch_scale, offset,
    multiplier, scores) -> bits of the queries whose score reaches the threshold. products i32, from element `at`;
    sides f32 [6][columns]: steps, biases, thresholds, sketch steps, and, as i32, shifts and sketch shifts; scores
    f32 (STRIP,), written.

    score = ((scale * (step * P) [+ sketch_scale * (sketch_step * J)]) + offset) + bias, each step rounded to f32.
    """

    @intrinsic
    def score_strip(
        typing_context: Any,
        products: Any,
        at: Any,
        sketch_products: Any,
        sketch_at: Any,
        sides: Any,
        columns: Any,
        first: Any,
        scale: Any,
        sketch_scale: Any,
        offset: Any,
        multiplier: Any,
        scores: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            v_products, v_at, v_sketch, v_sketch_at, v_sides, v_columns, v_first = arguments[:7]
            v_scale, v_sketch_scale, v_offset, v_multiplier, v_scores = arguments[7:]
            t_products, t_sketch, t_sides, t_scores = (signature.args[i] for i in (0, 2, 4, 11))

            def side(number: int, lane: int, vector: Any) -> Any:
                index = builder.add(builder.mul(v_columns, LONG(number)), builder.add(v_first, LONG(lane)))
                return load(builder, address(context, builder, t_sides, v_sides, index, vector))

            def term(t_array: Any, array: Any, index: Any, factor: Any, step: Any, shift: Any, weight: Any) -> Any:
                product = load(builder, address(context, builder, t_array, array, index, INTS))
                wanted = builder.add(builder.mul(product, splat(builder, factor, INTS)), shift)
                scaled = builder.fmul(step, builder.sitofp(wanted, FLOATS))
                return builder.fmul(splat(builder, weight, FLOATS), scaled)

            multiplier_int = builder.trunc(v_multiplier, INT)
            reached: Any = INT(0)
            for lane in range(0, STRIP, 16):
                index = builder.add(v_at, LONG(lane))
                score = term(
                    t_products, v_products, index, multiplier_int, side(0, lane, FLOATS), side(4, lane, INTS), v_scale
                )
                if with_sketch:
                    index = builder.add(v_sketch_at, LONG(lane))
                    steps, shifts = side(3, lane, FLOATS), side(5, lane, INTS)
                    sketch = term(t_sketch, v_sketch, index, INT(2), steps, shifts, v_sketch_scale)
                    score = builder.fadd(score, sketch)
                score = builder.fadd(score, splat(builder, v_offset, FLOATS))
                score = builder.fadd(score, side(1, lane, FLOATS))
                builder.store(score, address(context, builder, t_scores, v_scores, LONG(lane), FLOATS)).align = 4
                hits = builder.bitcast(builder.fcmp_ordered(">=", score, side(2, lane, FLOATS)), ir.IntType(16))
                reached = builder.or_(reached, builder.shl(builder.zext(hits, INT), INT(lane)))
            return reached

        index, real = types.intp, types.float32
        arguments = (products, index, sketch_products, index, sides, index, index, real, real, real, index, scores)
        return types.uint32(*arguments), codegen

    return score_strip
