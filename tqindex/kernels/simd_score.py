"""Blocks that compare the scores of a tile's rows with the thresholds of queries."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tqindex.kernels.simd import BIT, FLOATS, INT, INTS, LONG, address, call, cgutils, load, splat

#: Queries that `next_reached` scores at once.
STRIP = 32
#: Rows of `sides`, float32 (6, columns); the last two hold int32.
STEPS, BIASES, THRESHOLDS, SKETCH_STEPS, SHIFTS, SKETCH_SHIFTS = range(6)
_HALVES = range(0, STRIP, 16)
_LANES = ir.VectorType(INT, STRIP)


@intrinsic
def lowest_bit(typing_context: Any, bits: Any) -> Any:
    """Return the place of the lowest set bit of a u32 other than 0."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return call(builder, "llvm.cttz.i32", INT, [arguments[0], BIT(1)])

    return types.uint32(types.uint32), codegen


class _Scores:
    """The scores of a tile's rows against STRIP queries, whose side numbers stay in registers."""

    def __init__(self, context: Any, builder: Any, types_: Any, values: Any) -> None:
        products, sketch_products, sides, columns, first, scales, sketch_scales, offsets = range(8)
        self.builder = builder

        def pointer(number: int, index: Any, target: Any) -> Any:
            return address(context, builder, types_[number], values[number], index, target)

        def side(number: int, vector: Any) -> list[Any]:
            start = builder.add(builder.mul(values[columns], LONG(number)), values[first])
            return [load(builder, pointer(sides, builder.add(start, LONG(half)), vector)) for half in _HALVES]

        self.products, self.sketch_products = (pointer(i, LONG(0), INT) for i in (products, sketch_products))
        self.scales, self.sketch_scales, self.offsets = (
            pointer(i, LONG(0), ir.FloatType()) for i in (scales, sketch_scales, offsets)
        )
        self.steps, self.biases, self.thresholds = (side(i, FLOATS) for i in (STEPS, BIASES, THRESHOLDS))
        self.sketch_steps = side(SKETCH_STEPS, FLOATS)
        self.shifts, self.sketch_shifts = side(SHIFTS, INTS), side(SKETCH_SHIFTS, INTS)

    def levels(self, row: Any, half: int, doublings: Any) -> Any:
        """scale * (step * P) for 16 queries; their products are doubled so many times, an i32 or None."""
        return self._term(self.products, self.scales, row, doublings, half, self.steps, self.shifts)

    def sketch(self, row: Any, half: int) -> Any:
        """sketch_scale * (sketch_step * J)."""
        terms = self.sketch_products, self.sketch_scales
        return self._term(*terms, row, INT(1), half, self.sketch_steps, self.sketch_shifts)

    def offset(self, row: Any) -> Any:
        """The row's offset in every lane."""
        return self._of_row(self.offsets, row)

    def _term(self, products: Any, scales: Any, row: Any, doublings: Any, half: int, steps: Any, shifts: Any) -> Any:
        builder = self.builder
        index = builder.add(builder.mul(row, LONG(STRIP)), LONG(_HALVES[half]))
        product = load(builder, builder.bitcast(builder.gep(products, [index]), INTS.as_pointer()))
        if doublings is not None:
            product = builder.shl(product, splat(builder, doublings, INTS))
        wanted = builder.sitofp(builder.add(product, shifts[half]), FLOATS)
        return builder.fmul(self._of_row(scales, row), builder.fmul(steps[half], wanted))

    def _of_row(self, numbers: Any, row: Any) -> Any:
        return splat(self.builder, load(self.builder, self.builder.gep(numbers, [row])), FLOATS)


def make_next_reached(with_sketch: bool) -> Any:
    """Return an operation that finds the next row of a tile with a score that reaches its query's threshold.

    next_reached(products, sketch_products, sides, columns, first, scales, sketch_scales, offsets, row, rows,
    has_offsets, multiplier, scores) -> 2**32 * r + bits of the STRIP queries from `first` on, for the first row r of
    row..rows that has any; 2**32 * rows if none has. products i32 [row][STRIP]; sides f32 [6][columns]; scales,
    sketch scales and offsets f32, those of the tile's rows; has_offsets: False if they are zero and so are all biases;
    multiplier 1 or 2; scores f32 (STRIP,), written if a row is found.

    score = ((scale * (step * P) [+ sketch_scale * (sketch_step * J)]) + offset) + bias, each step rounded to f32.
    """

    @intrinsic
    def next_reached(
        typing_context: Any,
        products: Any,
        sketch_products: Any,
        sides: Any,
        columns: Any,
        first: Any,
        scales: Any,
        sketch_scales: Any,
        offsets: Any,
        row: Any,
        rows: Any,
        has_offsets: Any,
        multiplier: Any,
        scores: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            v_row, v_rows, v_has_offsets, v_multiplier, v_scores = arguments[8:]
            tile = _Scores(context, builder, signature.args, arguments[:8])
            target = address(context, builder, signature.args[12], v_scores, LONG(0), FLOATS)
            found = cgutils.alloca_once_value(builder, builder.shl(v_rows, LONG(32)))
            doublings = builder.trunc(builder.sub(v_multiplier, LONG(1)), INT)

            def find(score: Callable[[Any, int], Any]) -> None:
                _find(builder, v_row, v_rows, score, tile.thresholds, target, found)

            def any_score(row: Any, half: int) -> Any:
                score = tile.levels(row, half, doublings)
                if with_sketch:
                    score = builder.fadd(score, tile.sketch(row, half))
                return builder.fadd(builder.fadd(score, tile.offset(row)), tile.biases[half])

            if with_sketch:
                find(any_score)
            else:
                # Most indexes' scores are a product and nothing else.
                is_plain = builder.and_(builder.not_(v_has_offsets), builder.icmp_signed("==", doublings, INT(0)))
                with builder.if_else(is_plain) as (plain, general):
                    with plain:
                        find(lambda row, half: tile.levels(row, half, None))
                    with general:
                        find(any_score)
            return builder.load(found)

        index = types.intp
        arrays = (products, sketch_products, sides, index, index, scales, sketch_scales, offsets)
        return types.int64(*arrays, index, index, types.boolean, index, scores), codegen

    return next_reached


def _find(
    builder: Any,
    row: Any,
    rows: Any,
    score: Callable[[Any, int], Any],
    thresholds: list[Any],
    target: Any,
    found: Any,
) -> None:
    """Emit a loop over rows that stops where score(row, half) reaches a threshold."""
    with cgutils.for_range(builder, rows, start=row) as loop:
        scores = [score(loop.index, half) for half in range(len(_HALVES))]
        reached = [builder.fcmp_ordered(">=", *pair) for pair in zip(scores, thresholds, strict=True)]
        bits = builder.bitcast(builder.shuffle_vector(*reached, ir.Constant(_LANES, list(range(STRIP)))), INT)
        with builder.if_then(builder.icmp_unsigned("!=", bits, INT(0)), likely=False):
            for half, vector in enumerate(scores):
                builder.store(vector, builder.gep(target, [LONG(half)])).align = 4
            place = builder.shl(loop.index, LONG(32))
            builder.store(builder.or_(place, builder.zext(bits, LONG)), found)
            loop.do_break()
