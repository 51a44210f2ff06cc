"""Blocks for one row: expanding its code planes, and comparing its scores with thresholds."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tqindex.kernels.simd import (
    BYTE,
    BYTES,
    INT,
    INTS,
    LONG,
    Operations,
    address,
    call,
    cgutils,
    constant,
    load,
)
from tqindex.kernels.simd_layout import load_pieces, piece


class _Row:
    """One row's planes where they are kept: the leading ones in blocks of 8 rows, `plane_bytes` apart."""

    def __init__(self, context: Any, builder: Any, types_: Any, values: Any) -> None:
        lead, at, self.plane_bytes, self.lane, self.leading, rest, rest_at, self.others, self.width = values
        self.builder = builder
        self.block = address(context, builder, types_[0], lead, at, BYTE)
        self.rest = address(context, builder, types_[5], rest, rest_at, BYTE)

    def read(self, i: Any, left: Any, leading: int, others: int) -> list[Any]:
        """Return bytes i..i + 8 of so many planes, or the `left` < 8 that are left, as words."""
        builder = self.builder
        blocks = [builder.gep(self.block, [builder.mul(self.plane_bytes, LONG(plane))]) for plane in range(leading)]
        if left is None:
            words = [load(builder, piece(builder, block, self.lane, i, 8)) for block in blocks]
            ends = [builder.mul(self.width, LONG(plane)) for plane in range(others)]
            return words + [_load(builder, self.rest, builder.add(end, i)) for end in ends]
        words = [load_pieces(builder, block, self.lane, i, left) for block in blocks]
        # The last word of another plane is read so that it ends with the plane, and shifted into place.
        shift = builder.mul(builder.sub(LONG(8), left), LONG(8))
        ends = [builder.mul(self.width, LONG(plane)) for plane in range(1, others + 1)]
        return words + [builder.lshr(_load(builder, self.rest, builder.sub(end, LONG(8))), shift) for end in ends]

    def codes(self, i: Any, left: Any, leading: int, others: int, operations: Operations) -> Any:
        """Return the codes of the same bytes' 64 coordinates, of which so many planes are the bits."""
        builder, count, codes = self.builder, leading + others, ir.Constant(BYTES, None)
        for plane, bits in enumerate(self.read(i, left, leading, others)):
            heavier = builder.add(codes, constant(BYTES, 1 << (count - 1 - plane)))
            codes = builder.select(operations.spread(builder, bits), heavier, codes)
        return codes


def _load(builder: Any, pointer: Any, index: Any) -> Any:
    return load(builder, builder.bitcast(builder.gep(pointer, [index]), LONG.as_pointer()))


class CodeLevels:
    """Levels that codes name one by one: in a table of 16 entries, or themselves where they have 8 bits."""

    #: Numbers of leading and other planes that are read together.
    planes = (1, 0), (2, 0), (2, 1), (2, 2), (2, 6), (0, 1)

    def __init__(self, builder: Any, operations: Operations, table: Any) -> None:
        self._builder, self._operations = builder, operations
        self._entries = load(builder, builder.bitcast(table, BYTES.as_pointer()))

    def begin(self, bits: int, start: Any) -> None:
        """Prepare for a row's codes of so many bits, that need no start."""

    def next(self, row: Any, i: Any, left: Any, leading: int, others: int) -> Any:
        """Return the levels of the 64 coordinates of bytes i..i + 8, or of the `left` < 8 that are left."""
        codes = row.codes(i, left, leading, others, self._operations)
        return codes if leading + others == 8 else self._operations.shuffle(self._builder, self._entries, codes)


def _for_levels(builder: Any, row: Any, levels: Any, start: Any, use: Callable[[Any, Any], None]) -> None:
    """Emit a loop over a row's planes that calls use(levels, i) for the 64 coordinates of bytes i..i + 8."""
    for leading, others in levels.planes:
        wanted = builder.and_(
            builder.icmp_signed("==", row.leading, LONG(leading)), builder.icmp_signed("==", row.others, LONG(others))
        )
        with builder.if_then(wanted):
            levels.begin(leading + others, start)
            # What is left stands by itself: joined with whole words, each would go through a register for numbers.
            left = builder.and_(row.width, LONG(7))
            end = builder.sub(row.width, left)
            with cgutils.for_range_slice(builder, LONG(0), end, LONG(8), LONG) as (i, _):
                use(levels.next(row, i, None, leading, others), i)
            with builder.if_then(builder.icmp_signed("!=", left, LONG(0))):
                use(levels.next(row, end, left, leading, others), end)


def make_expand_row(operations: Operations, levels_of: Any = CodeLevels) -> Any:
    """Return an operation that turns one row's planes into bytes, 64 coordinates at a time.

    expand_row(lead, at, plane_bytes, lane, leading, rest, rest_at, others, width, table, levels, out_at, step, start):
    lead u8, where the row is number `lane` of a block that starts at byte `at` of the first of `leading` planes,
    `plane_bytes` apart; rest u8, `others` further planes of `width` >= 8 bytes (any, if there are none); most
    significant first; table u8 (64,), four copies of 16 entries, or of any content for 8 bits, whose codes stay as they
    are; levels u8, written from `out_at` on, 64 at a time, `step` bytes apart. `levels_of` may say otherwise what codes
    mean, and what the table is; start is what it may need to know of the row.
    """

    @intrinsic
    def expand_row(
        typing_context: Any,
        lead: Any,
        at: Any,
        plane_bytes: Any,
        lane: Any,
        leading: Any,
        rest: Any,
        rest_at: Any,
        others: Any,
        width: Any,
        table: Any,
        levels: Any,
        out_at: Any,
        step: Any,
        start: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            v_table, v_levels, v_out_at, v_step, v_start = arguments[9:]
            t_table, t_levels = signature.args[9:11]
            of_codes = levels_of(builder, operations, address(context, builder, t_table, v_table, LONG(0), BYTE))

            def write(levels: Any, i: Any) -> None:
                index = builder.add(v_out_at, builder.mul(builder.lshr(i, LONG(3)), v_step))
                builder.store(levels, address(context, builder, t_levels, v_levels, index, BYTES)).align = 1

            row = _Row(context, builder, signature.args, arguments[:9])
            _for_levels(builder, row, of_codes, v_start, write)
            return context.get_dummy_value()

        i = types.intp
        return types.void(lead, i, i, i, i, rest, i, i, i, table, levels, i, i, i), codegen

    return expand_row


def make_dot_row(operations: Operations, levels_of: Any = CodeLevels) -> Any:
    """Return an operation that multiplies one row's levels with one query, straight from the planes.

    dot_row(lead, at, plane_bytes, lane, leading, rest, rest_at, others, width, table, query, start) -> i32; planes,
    table and start as `make_expand_row`, query i8 (depth,).
    """

    @intrinsic
    def dot_row(
        typing_context: Any,
        lead: Any,
        at: Any,
        plane_bytes: Any,
        lane: Any,
        leading: Any,
        rest: Any,
        rest_at: Any,
        others: Any,
        width: Any,
        table: Any,
        query: Any,
        start: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            v_table, v_query, v_start = arguments[9:]
            t_table, t_query = signature.args[9:11]
            total = cgutils.alloca_once_value(builder, ir.Constant(INTS, None))
            builder.store(ir.Constant(INTS, None), total)

            def add(levels: Any, i: Any) -> None:
                index = builder.mul(i, LONG(8))
                part = load(builder, address(context, builder, t_query, v_query, index, BYTES))
                builder.store(operations.dot4(builder, builder.load(total), levels, part), total)

            of_codes = levels_of(builder, operations, address(context, builder, t_table, v_table, LONG(0), BYTE))
            row = _Row(context, builder, signature.args, arguments[:9])
            _for_levels(builder, row, of_codes, v_start, add)
            return call(builder, "llvm.vector.reduce.add.v16i32", INT, [builder.load(total)])

        index = types.intp
        args = lead, index, index, index, index, rest, index, index, index, table, query, index
        return types.int32(*args), codegen

    return dot_row
