"""Blocks that compare the scores of a tile's rows with the thresholds of queries."""

import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tqindex.kernels.simd import BIT, FLOATS, INT, INTS, LONG, VOID, address, call, cgutils, constant, load, splat

#: Queries that `next_reached` scores at once.
STRIP = 32
#: Rows of `sides`, float32 (6, columns); the last two hold int32.
STEPS, BIASES, THRESHOLDS, SKETCH_STEPS, SHIFTS, SKETCH_SHIFTS = range(6)
#: Rows of which `seed` takes the best score only: of the k best of a thousand rows few share a group.
SEED_ROWS = 8
_HALVES = range(0, STRIP, 16)
_LANES = ir.VectorType(INT, STRIP)


@intrinsic
def lowest_bit(typing_context: Any, bits: Any) -> Any:
    """Return the place of the lowest set bit of a u32 other than 0."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return call(builder, "llvm.cttz.i32", INT, [arguments[0], BIT(1)])

    return types.uint32(types.uint32), codegen


#: The most results that `insert` keeps: as many as there are lanes.
INSERTED = 16


@intrinsic
def insert(typing_context: Any, scores: Any, ids: Any, at: Any, k: Any, score: Any, row_id: Any) -> Any:
    """Put a score and its id among the k <= INSERTED from `at` on, worst first, in place of the worst.

    scores: f32; ids: i64, of any shape. The new worst's score is returned. What is put in is better than the worst: by
    its score, then by the smaller id. All comparisons are made at once, since a heap's branches are unpredictable.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v_scores, v_ids, v_at, v_k, v_score, v_id = arguments
        lanes, mask_type = ir.VectorType(LONG, INSERTED), ir.VectorType(BIT, INSERTED)
        zeros = ir.Constant(lanes, None)
        mask = builder.icmp_unsigned("<", ir.Constant(lanes, list(range(INSERTED))), splat(builder, v_k, lanes))
        used = []
        for number, array, vector in ((0, v_scores, FLOATS), (1, v_ids, lanes)):
            pointer = address(context, builder, signature.args[number], array, v_at, vector)
            name = "f32" if vector is FLOATS else "i64"
            operands = [pointer, INT(4), mask, ir.Constant(vector, None)]
            used.append((pointer, name, call(builder, f"llvm.masked.load.v16{name}.p0", vector, operands)))
        old, old_ids = used[0][2], used[1][2]
        new, new_ids = splat(builder, v_score, FLOATS), splat(builder, v_id, lanes)
        equal = builder.and_(builder.fcmp_ordered("==", new, old), builder.icmp_signed("<", new_ids, old_ids))
        better = builder.and_(mask, builder.or_(builder.fcmp_ordered(">", new, old), equal))
        # The better ones move down by one place, over the worst.
        places = ir.Constant(ir.VectorType(INT, INSERTED), [*range(1, INSERTED), INSERTED])
        moves = builder.shuffle_vector(better, ir.Constant(mask_type, None), places)
        first = None
        for (pointer, name, values), fresh, empty in zip(
            used, (new, new_ids), (ir.Constant(FLOATS, None), zeros), strict=True
        ):
            stay = builder.select(better, fresh, values)
            result = builder.select(moves, builder.shuffle_vector(values, empty, places), stay)
            call(builder, f"llvm.masked.store.v16{name}.p0", VOID, [result, pointer, INT(4), mask])
            first = first or builder.extract_element(result, INT(0))
        return first

    index = types.intp
    return types.float32(scores, ids, index, index, types.float32, types.int64), codegen


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
        """scale * (step * P) for 16 queries; their products are doubled so many times, an i32."""
        return self._term(self.products, self.scales, row, doublings, half, self.steps, self.shifts)

    def score(self, row: Any, half: int, doublings: Any, with_sketch: bool) -> Any:
        """All of it, for 16 queries."""
        score = self.levels(row, half, doublings)
        if with_sketch:
            score = self.builder.fadd(score, self._sketch(row, half))
        offset = self._of_row(self.offsets, row)
        return self.builder.fadd(self.builder.fadd(score, offset), self.biases[half])

    def _sketch(self, row: Any, half: int) -> Any:
        """sketch_scale * (sketch_step * J)."""
        terms = self.sketch_products, self.sketch_scales
        return self._term(*terms, row, INT(1), half, self.sketch_steps, self.sketch_shifts)

    def _term(self, products: Any, scales: Any, row: Any, doublings: Any, half: int, steps: Any, shifts: Any) -> Any:
        builder = self.builder
        index = builder.add(builder.mul(row, LONG(STRIP)), LONG(_HALVES[half]))
        product = load(builder, builder.bitcast(builder.gep(products, [index]), INTS.as_pointer()))
        product = builder.shl(product, splat(builder, doublings, INTS))
        wanted = builder.sitofp(builder.add(product, shifts[half]), FLOATS)
        return builder.fmul(self._of_row(scales, row), builder.fmul(steps[half], wanted))

    def _of_row(self, numbers: Any, row: Any) -> Any:
        return splat(self.builder, load(self.builder, self.builder.gep(numbers, [row])), FLOATS)


def make_next_reached(with_sketch: bool) -> Any:
    """Return an operation that finds the next row of a tile with a score that reaches its query's threshold.

    next_reached(products, sketch_products, sides, columns, first, scales, sketch_scales, offsets, row, rows,
    multiplier, scores) -> 2**32 * r + bits of the STRIP queries from `first` on, for the first row r of
    row..rows that has any; 2**32 * rows if none has. products i32 [row][STRIP]; sides f32 [6][columns]; scales,
    sketch scales and offsets f32, those of the tile's rows;
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
        multiplier: Any,
        scores: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            v_row, v_rows, v_multiplier, v_scores = arguments[8:]
            tile = _Scores(context, builder, signature.args, arguments[:8])
            target = address(context, builder, signature.args[11], v_scores, LONG(0), FLOATS)
            found = cgutils.alloca_once_value(builder, builder.shl(v_rows, LONG(32)))
            doublings = builder.trunc(builder.sub(v_multiplier, LONG(1)), INT)

            _find(
                builder,
                v_row,
                v_rows,
                lambda row, half: tile.score(row, half, doublings, with_sketch),
                tile.thresholds,
                target,
                found,
            )
            return builder.load(found)

        index = types.intp
        arrays = (products, sketch_products, sides, index, index, scales, sketch_scales, offsets)
        return types.int64(*arrays, index, index, index, scores), codegen

    return next_reached


def make_seed(with_sketch: bool) -> Any:
    """Return an operation that keeps, for STRIP queries at once, the k best of the scores of groups of SEED_ROWS rows.

    seed(products, sketch_products, sides, columns, first, scales, sketch_scales, offsets, rows, multiplier, seeds, k)
    with arguments as `make_next_reached`'s; of each whole group of rows only the best score counts. seeds: f32
    (columns / STRIP, k, STRIP), flat, in falling order.
    """

    @intrinsic
    def seed(
        typing_context: Any,
        products: Any,
        sketch_products: Any,
        sides: Any,
        columns: Any,
        first: Any,
        scales: Any,
        sketch_scales: Any,
        offsets: Any,
        rows: Any,
        multiplier: Any,
        seeds: Any,
        k: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            v_rows, v_multiplier, v_seeds, v_k = arguments[8:]
            tile = _Scores(context, builder, signature.args, arguments[:8])
            doublings = builder.trunc(builder.sub(v_multiplier, LONG(1)), INT)
            at = builder.mul(arguments[4], v_k)

            def greater(a: Any, b: Any) -> tuple[Any, Any]:
                order = builder.fcmp_ordered(">", a, b)
                return builder.select(order, a, b), builder.select(order, b, a)

            groups = builder.lshr(v_rows, LONG(SEED_ROWS.bit_length() - 1))
            with cgutils.for_range(builder, groups) as loop:
                row = builder.mul(loop.index, LONG(SEED_ROWS))
                lefts = [cgutils.alloca_once(builder, FLOATS) for _ in _HALVES]
                for left in lefts:
                    builder.store(constant(FLOATS, -math.inf), left)
                with cgutils.for_range(builder, LONG(SEED_ROWS)) as of_group:
                    for half, left in enumerate(lefts):
                        score = tile.score(builder.add(row, of_group.index), half, doublings, with_sketch)
                        builder.store(greater(builder.load(left), score)[0], left)
                with cgutils.for_range(builder, v_k) as level:
                    for half, left in zip(_HALVES, lefts, strict=True):
                        index = builder.add(at, builder.add(builder.mul(level.index, LONG(STRIP)), LONG(half)))
                        pointer = address(context, builder, signature.args[10], v_seeds, index, FLOATS)
                        upper, lower = greater(load(builder, pointer), builder.load(left))
                        builder.store(upper, pointer).align = 4
                        builder.store(lower, left)
            return context.get_dummy_value()

        index = types.intp
        arrays = (products, sketch_products, sides, index, index, scales, sketch_scales, offsets)
        return types.void(*arrays, index, index, seeds, index), codegen

    return seed


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
