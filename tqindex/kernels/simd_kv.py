"""Multiplying packed strips of a KV cache with a few queries.

A strip is 16 lanes of `depth` codes each: 16 tokens and their channels for keys, 16 channels and the tokens of a page
for values. Step s of a lane is its codes 4 s .. 4 s + 3, one in each byte of a 32-bit word, so that one instruction
multiplies four codes of 16 lanes. A code is kept in fields of 4, 2 or 1 bits (8: of the whole byte); a word holds
8 / f steps of a field of f bits, the first step lowest. `tqindex.kernels.kv_layout` makes strips.

Codes are looked up as they are, in tables of 16 levels, or as a trellis code's windows, in tables of 256: pass
`LaneWindows` or `StripWindows` (`tqindex.kernels.simd_kv_trellis`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

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
    cgutils,
    constant,
    load,
    splat,
)
from tqindex.kernels.simd_kv_trellis import LaneWindows, StripWindows, window_lookup

#: How windows of trellis codes are made; None for codes that are looked up as they are.
Windows = type[LaneWindows] | type[StripWindows] | None
LANES = 16
#: Codes of a step.
STEP = 4
#: The fields of a code by its bits, most significant first.
FIELDS = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 8: (8,)}


class Unit(NamedTuple):
    """The fewest steps that fill whole words of all fields, and these words."""

    steps: int
    words: int

    @classmethod
    def of(cls, bits: int) -> "Unit":
        """Return the unit of codes of so many bits."""
        steps = max(8 // width for width in FIELDS[bits])
        return cls(steps, sum(steps * width // 8 for width in FIELDS[bits]))


class _Strip:
    """A strip's words and the levels that codes stand for, from the arguments (words, at, units, table, before)."""

    def __init__(
        self,
        context: Any,
        builder: Any,
        types_: Any,
        values: Any,
        operations: Operations,
        bits: int,
        windows: Windows,
    ) -> None:
        self.t_words, _, _, t_table, t_before = types_
        self.words, self.at, self.units, table, before = values
        self.context, self.builder, self.bits = context, builder, bits
        self._look_up: Callable[[Any], Any]
        self._windows = None
        if windows is None:
            entries = load(builder, address(context, builder, t_table, table, LONG(0), BYTES))
            self._look_up = lambda codes: _shuffle(builder, operations, entries, codes, 1 << bits)
        else:
            self._look_up = window_lookup(builder, operations, address(context, builder, t_table, table, LONG(0), BYTE))
            self._windows = windows(builder, bits, address(context, builder, t_before, before, LONG(0), BYTE))

    def for_steps(self, use: Callable[[Any, Any, int], None]) -> None:
        """Emit a loop over the units that calls use(levels, unit, step) for every step of one."""
        builder, unit = self.builder, Unit.of(self.bits)
        with cgutils.for_range_slice(builder, LONG(0), self.units, LONG(1), LONG) as (i, _):
            first = builder.add(self.at, builder.mul(i, LONG(unit.words * LANES)))
            places = [builder.add(first, LONG(word * LANES)) for word in range(unit.words)]
            vectors = [
                load(builder, address(self.context, builder, self.t_words, self.words, place, INTS)) for place in places
            ]
            for step in range(unit.steps):
                codes = _codes(builder, vectors, self.bits, step)
                if self._windows is not None:
                    number = builder.add(builder.mul(i, LONG(unit.steps)), LONG(step))
                    codes = self._windows.of(codes, number)
                use(self._look_up(codes) if self.bits < 8 else codes, i, step)


def make_dot_strip(operations: Operations, bits: int, columns: int, windows: Windows = None) -> Any:
    """Return an operation that multiplies one strip with so many queries.

    dot_strip(words, at, units, table, before, queries, query_at, products): words u32, read from `at` on,
    [unit][word][lane]; table u8 (64,), four copies of the 16 levels that codes stand for, or of any content for 8 bits,
    or u8 (256,), those of windows; before u8, as `windows` takes it, or of any content; queries i32, read from
    `query_at` on, [step][column], four int8 each; products i32, written: [column][lane].
    """
    steps = Unit.of(bits).steps

    @intrinsic
    def dot_strip(
        typing_context: Any,
        words: Any,
        at: Any,
        units: Any,
        table: Any,
        before: Any,
        queries: Any,
        query_at: Any,
        products: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            strip = _Strip(context, builder, signature.args[:5], arguments[:5], operations, bits, windows)
            (t_queries, _, t_products), (v_queries, v_query_at, v_products) = signature.args[5:], arguments[5:]
            totals = [cgutils.alloca_once(builder, INTS) for _ in range(columns)]
            for total in totals:
                builder.store(ir.Constant(INTS, None), total)

            def multiply(levels: Any, unit: Any, step: int) -> None:
                at_step = builder.add(v_query_at, builder.mul(unit, LONG(steps * columns)))
                for column, total in enumerate(totals):
                    place = builder.add(at_step, LONG(step * columns + column))
                    word = load(builder, address(context, builder, t_queries, v_queries, place, INT))
                    query = builder.bitcast(splat(builder, word, INTS), BYTES)
                    builder.store(operations.dot4(builder, builder.load(total), levels, query), total)

            strip.for_steps(multiply)
            for column, total in enumerate(totals):
                target = address(context, builder, t_products, v_products, LONG(column * LANES), INTS)
                builder.store(builder.load(total), target).align = 4
            return context.get_dummy_value()

        index = types.intp
        return types.void(words, index, index, table, before, queries, index, products), codegen

    return dot_strip


@intrinsic
def add_products(
    typing_context: Any, products: Any, at: Any, shifts: Any, steps: Any, scales: Any, scale_at: Any, out: Any, to: Any
) -> Any:
    """Add one vector's products with 16 lanes to out[to : to + 16]: exact integers until they are scaled in float32.

    add_products(products, at, shifts, steps, scales, scale_at, out, to): products i32, of the vector's coarse part from
    `at` on, of its fine part after these; shifts i32 and steps float32, pairs: what twice the products of each part are
    lowered by and then multiplied with; scales float32, of the lanes, from `scale_at` on; out float32
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v_products, v_at, v_shifts, v_steps, v_scales, v_scale_at, v_out, v_to = arguments
        t_products, _, _, _, t_scales, _, t_out, _ = signature.args
        total = None
        for part in range(2):
            place = builder.add(v_at, LONG(part * LANES))
            numbers = load(builder, address(context, builder, t_products, v_products, place, INTS))
            shift = splat(builder, builder.extract_value(v_shifts, part), INTS)
            exact = builder.sitofp(builder.sub(builder.add(numbers, numbers), shift), FLOATS)
            scaled = builder.fmul(exact, splat(builder, builder.extract_value(v_steps, part), FLOATS))
            total = scaled if total is None else builder.fadd(total, scaled)
        scale = load(builder, address(context, builder, t_scales, v_scales, v_scale_at, FLOATS))
        target = address(context, builder, t_out, v_out, v_to, FLOATS)
        builder.store(builder.fadd(load(builder, target), builder.fmul(scale, total)), target).align = 1
        return context.get_dummy_value()

    pair: Any = types.UniTuple  # untyped in Numba
    index, pairs = types.intp, (pair(types.int32, 2), pair(types.float32, 2))
    return types.void(products, index, *pairs, scales, index, out, index), codegen


def make_expand_strip(operations: Operations, bits: int, windows: Windows = None) -> Any:
    """Return an operation that writes one strip's levels.

    expand_strip(words, at, units, table, before, levels): the first five as for `make_dot_strip`; levels u8, written:
    [step][lane][4].
    """
    steps = Unit.of(bits).steps

    @intrinsic
    def expand_strip(typing_context: Any, words: Any, at: Any, units: Any, table: Any, before: Any, levels: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            strip = _Strip(context, builder, signature.args[:5], arguments[:5], operations, bits, windows)

            def write(found: Any, unit: Any, step: int) -> None:
                place = builder.mul(builder.add(builder.mul(unit, LONG(steps)), LONG(step)), LONG(LANES * STEP))
                target = address(context, builder, signature.args[5], arguments[5], place, BYTES)
                builder.store(found, target).align = 1

            strip.for_steps(write)
            return context.get_dummy_value()

        index = types.intp
        return types.void(words, index, index, table, before, levels), codegen

    return expand_strip


def _codes(builder: Any, vectors: list[Any], bits: int, step: int) -> Any:
    """Return a step's codes, one in each byte, from a unit's words."""
    codes, first = None, 0
    for width in FIELDS[bits]:
        in_word = 8 // width
        part = vectors[first + step // in_word]
        if step % in_word:
            part = builder.lshr(part, constant(INTS, width * (step % in_word)))
        if width < 8:
            part = builder.and_(part, constant(INTS, ((1 << width) - 1) * 0x01010101))
        codes = part if codes is None else builder.or_(builder.shl(codes, constant(INTS, width)), part)
        first += Unit.of(bits).steps // in_word
    return builder.bitcast(codes, BYTES)


def _shuffle(builder: Any, operations: Operations, entries: Any, codes: Any, count: int) -> Any:
    """Look 64 codes up in 16 entries, of which the first `count` can be meant."""
    if operations.shuffle is not None:
        return operations.shuffle(builder, entries, codes)
    levels = ir.Constant(BYTES, None)
    for entry in range(count):
        same = builder.icmp_unsigned("==", codes, constant(BYTES, entry))
        level = builder.shuffle_vector(entries, entries, ir.Constant(ir.VectorType(INT, 64), [entry] * 64))
        levels = builder.select(same, level, levels)
    return levels
