"""Blocks for one row: expanding its code planes, and comparing its scores with thresholds."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tqindex.kernels.simd import (
    BIT,
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

#: Numbers of leading and other planes that are read together.
_PLANES = ((1, 0), (2, 0), (2, 1), (2, 2), (2, 6), (0, 1))


class _Row:
    """One row's planes: the leading ones padded to whole words, the others of `width` bytes each."""

    def __init__(self, context: Any, builder: Any, types_: Any, values: Any) -> None:
        lead, lead_at, leading, rest, rest_at, others, self.width = values
        self.lead = address(context, builder, types_[0], lead, lead_at, BYTE)
        self.rest = address(context, builder, types_[3], rest, rest_at, BYTE)
        self.leading, self.others = leading, others
        self.padded = builder.and_(builder.add(self.width, LONG(7)), LONG(-8))


def _for_levels(builder: Any, row: _Row, entries: Any, operations: Operations, use: Callable[[Any, Any], None]) -> None:
    """Emit a loop over a row's planes that calls use(levels, i) for the 64 coordinates of bytes i..i + 8."""
    last = builder.sub(row.width, LONG(8))

    def word(pointer: Any, index: Any) -> Any:
        return load(builder, builder.bitcast(builder.gep(pointer, [index]), LONG.as_pointer()))

    for leading, others in _PLANES:
        count = leading + others
        wanted = builder.and_(
            builder.icmp_signed("==", row.leading, LONG(leading)), builder.icmp_signed("==", row.others, LONG(others))
        )
        with builder.if_then(wanted), cgutils.for_range_slice(builder, LONG(0), row.width, LONG(8), LONG) as (i, _):
            words = [word(row.lead, builder.add(builder.mul(row.padded, LONG(plane)), i)) for plane in range(leading)]
            # The last word of another plane is read so that it ends with the plane, and shifted into place.
            start = builder.select(builder.icmp_signed("<", i, last), i, last)
            shift = builder.mul(builder.sub(i, start), LONG(8))
            for plane in range(others):
                index = builder.add(builder.mul(row.width, LONG(plane)), start)
                words.append(builder.lshr(word(row.rest, index), shift))
            codes = ir.Constant(BYTES, None)
            for plane, bits in enumerate(words):
                heavier = builder.add(codes, constant(BYTES, 1 << (count - 1 - plane)))
                codes = builder.select(operations.spread(builder, bits), heavier, codes)
            use(codes if count == 8 else operations.shuffle(builder, entries, codes), i)


def make_expand_row(operations: Operations) -> Any:
    """Return an operation that turns one row's planes into bytes, 64 coordinates at a time.

    expand_row(lead, lead_at, leading, rest, rest_at, others, width, table, levels, out_at, step): lead u8, `leading`
    planes padded to whole words; rest u8, `others` further planes of `width` >= 8 bytes (any, if there are none); most
    significant first; table u8 (64,), four copies of 16 entries, or of any content for 8 bits, whose codes stay as
    they are; levels u8, written from `out_at` on, 64 at a time, `step` bytes apart.
    """

    @intrinsic
    def expand_row(
        typing_context: Any,
        lead: Any,
        lead_at: Any,
        leading: Any,
        rest: Any,
        rest_at: Any,
        others: Any,
        width: Any,
        table: Any,
        levels: Any,
        out_at: Any,
        step: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            v_table, v_levels, v_out_at, v_step = arguments[7:]
            t_table, t_levels = signature.args[7:9]
            entries = load(builder, address(context, builder, t_table, v_table, LONG(0), BYTES))

            def write(levels: Any, i: Any) -> None:
                index = builder.add(v_out_at, builder.mul(builder.lshr(i, LONG(3)), v_step))
                builder.store(levels, address(context, builder, t_levels, v_levels, index, BYTES)).align = 1

            _for_levels(builder, _Row(context, builder, signature.args, arguments[:7]), entries, operations, write)
            return context.get_dummy_value()

        index = types.intp
        return types.void(lead, index, index, rest, index, index, index, table, levels, index, index), codegen

    return expand_row


def make_dot_row(operations: Operations) -> Any:
    """Return an operation that multiplies one row's levels with one query, straight from the planes.

    dot_row(lead, lead_at, leading, rest, rest_at, others, width, table, query) -> i32; planes and table as
    `make_expand_row`, query i8 (depth,).
    """

    @intrinsic
    def dot_row(
        typing_context: Any,
        lead: Any,
        lead_at: Any,
        leading: Any,
        rest: Any,
        rest_at: Any,
        others: Any,
        width: Any,
        table: Any,
        query: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            v_table, v_query = arguments[7:]
            t_table, t_query = signature.args[7:]
            total = cgutils.alloca_once_value(builder, ir.Constant(INTS, None))
            builder.store(ir.Constant(INTS, None), total)

            def add(levels: Any, i: Any) -> None:
                index = builder.mul(i, LONG(8))
                part = load(builder, address(context, builder, t_query, v_query, index, BYTES))
                builder.store(operations.dot4(builder, builder.load(total), levels, part), total)

            entries = load(builder, address(context, builder, t_table, v_table, LONG(0), BYTES))
            _for_levels(builder, _Row(context, builder, signature.args, arguments[:7]), entries, operations, add)
            return call(builder, "llvm.vector.reduce.add.v16i32", INT, [builder.load(total)])

        index = types.intp
        return types.int32(lead, index, index, rest, index, index, index, table, query), codegen

    return dot_row


# --- scores ---------------------------------------------------------------------------------------------------------


@intrinsic
def lowest_bit(typing_context: Any, bits: Any) -> Any:
    """Return the place of the lowest set bit of a u32 other than 0."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return call(builder, "llvm.cttz.i32", INT, [arguments[0], BIT(1)])

    return types.uint32(types.uint32), codegen


#: Queries that `score_strip` scores at once.
STRIP = 32


def make_score_strip(with_sketch: bool) -> Any:
    """Return an operation that scores one row against STRIP queries and compares with their thresholds.

    score_strip(products, sketch_products, at, sides, columns, first, scale, sketch_scale, offset, multiplier, scores)
    -> bits of the queries whose score reaches the threshold. products i32, from element `at`; sides f32 [6][columns]:
    steps, biases, thresholds, sketch steps, and, as i32, shifts and sketch shifts; multiplier 1 or 2; scores f32
    (STRIP,), written if any threshold is reached.

    score = ((scale * (step * P) [+ sketch_scale * (sketch_step * J)]) + offset) + bias, each step rounded to f32.
    """

    @intrinsic
    def score_strip(
        typing_context: Any,
        products: Any,
        sketch_products: Any,
        at: Any,
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
            v_products, v_sketch, v_at, v_sides, v_columns, v_first = arguments[:6]
            v_scale, v_sketch_scale, v_offset, v_multiplier, v_scores = arguments[6:]
            t_products, t_sketch, t_sides, t_scores = (signature.args[i] for i in (0, 1, 3, 10))

            def side(number: int, lane: int, vector: Any) -> Any:
                index = builder.add(builder.mul(v_columns, LONG(number)), builder.add(v_first, LONG(lane)))
                return load(builder, address(context, builder, t_sides, v_sides, index, vector))

            def term(t_array: Any, array: Any, lane: int, doubled: Any, step: Any, shift: Any, weight: Any) -> Any:
                index = builder.add(v_at, LONG(lane))
                product = load(builder, address(context, builder, t_array, array, index, INTS))
                wanted = builder.add(builder.shl(product, splat(builder, doubled, INTS)), shift)
                scaled = builder.fmul(step, builder.sitofp(wanted, FLOATS))
                return builder.fmul(splat(builder, weight, FLOATS), scaled)

            doubled = builder.trunc(builder.sub(v_multiplier, LONG(1)), INT)
            reached, halves = INT(0), []
            for lane in range(0, STRIP, 16):
                steps, shifts = side(0, lane, FLOATS), side(4, lane, INTS)
                score = term(t_products, v_products, lane, doubled, steps, shifts, v_scale)
                if with_sketch:
                    steps, shifts = side(3, lane, FLOATS), side(5, lane, INTS)
                    sketch = term(t_sketch, v_sketch, lane, INT(1), steps, shifts, v_sketch_scale)
                    score = builder.fadd(score, sketch)
                score = builder.fadd(score, splat(builder, v_offset, FLOATS))
                score = builder.fadd(score, side(1, lane, FLOATS))
                halves.append(score)
                hits = builder.bitcast(builder.fcmp_ordered(">=", score, side(2, lane, FLOATS)), ir.IntType(16))
                reached = builder.or_(reached, builder.shl(builder.zext(hits, INT), INT(lane)))
            with builder.if_then(builder.icmp_unsigned("!=", reached, INT(0)), likely=False):
                for half, score in enumerate(halves):
                    target = address(context, builder, t_scores, v_scores, LONG(16 * half), FLOATS)
                    builder.store(score, target).align = 4
            return reached

        index, real = types.intp, types.float32
        arguments = (products, sketch_products, index, sides, index, index, real, real, real, index, scores)
        return types.uint32(*arguments), codegen

    return score_strip
