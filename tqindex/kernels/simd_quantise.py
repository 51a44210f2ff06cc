"""The block of scalar quantisation: codes as bit planes, and the levels that they stand for."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tqindex.kernels.cpu import simd_level
from tqindex.kernels.simd import BYTE, FLOATS, INTS, LONG, OPERATIONS, address, call, constant, load, splat
from tqindex.kernels.simd_sums import CHUNK, DOUBLE, DOUBLES, for_chunks, load_chunk, store_chunk

#: Entries of a table, of which a code names one.
ENTRIES = CHUNK
_SHORT = ir.IntType(16)
_UNIFORM_BITS = 8


def make_quantise_row(bits: int) -> Any:
    """Return the operation that quantises one row to codes of so many bits.

    quantise_row(y, at, n, tables, table_at, planes, plane_at, width, levels): y f32, n coordinates from `at` on;
    planes u8, the code's bits from the most significant on, `width` bytes each, from `plane_at` on; levels f32 (n,),
    written. tables f32, from `table_at` on: for every bit ENTRIES boundaries, of which the bits above it choose one,
    then the levels. For 8 bits instead the grid's step.
    """
    quantise = _quantise_uniformly if bits == _UNIFORM_BITS else _quantise_by_tables

    @intrinsic
    def quantise_row(
        typing_context: Any,
        y: Any,
        at: Any,
        n: Any,
        tables: Any,
        table_at: Any,
        planes: Any,
        plane_at: Any,
        width: Any,
        levels: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            v_y, v_at, v_n, v_tables, v_table_at, v_planes, v_plane_at, v_width, v_levels = arguments
            t_y, _, _, t_tables, _, t_planes, _, _, t_levels = signature.args
            tables_pointer = address(context, builder, t_tables, v_tables, v_table_at, ir.FloatType())
            quantise_chunk = quantise(builder, bits, tables_pointer)

            def body(j: Any, inside: Any) -> None:
                pointer = address(context, builder, t_y, v_y, builder.add(v_at, j), FLOATS)
                masks, level = quantise_chunk(load_chunk(builder, pointer, inside))
                store_chunk(builder, level, address(context, builder, t_levels, v_levels, j, FLOATS), inside)
                first = builder.lshr(j, LONG(3))
                for plane, mask in enumerate(masks):
                    place = builder.add(v_plane_at, builder.add(builder.mul(v_width, LONG(plane)), first))
                    pointer = address(context, builder, t_planes, v_planes, place, BYTE)
                    _store_bits(builder, mask, pointer, inside, builder.sub(v_width, first))

            for_chunks(builder, v_n, body)
            return context.get_dummy_value()

        index = types.intp
        return types.void(y, index, index, tables, index, planes, index, index, levels), codegen

    return quantise_row


def _quantise_by_tables(builder: Any, bits: int, tables: Any) -> Any:
    """Return a function of values that gives their codes' bits and levels: a search by halves."""
    lookup = OPERATIONS[simd_level()].lookup
    entries = [
        load(builder, builder.bitcast(builder.gep(tables, [LONG(ENTRIES * i)]), FLOATS.as_pointer()))
        for i in range(bits + 1)
    ]

    def quantise(values: Any) -> Any:
        masks: list[Any] = []
        for boundaries in entries[:-1]:
            masks.append(builder.fcmp_ordered(">=", values, lookup(builder, boundaries, masks, bits)))
        return masks, lookup(builder, entries[-1], masks, bits)

    return quantise


def _quantise_uniformly(builder: Any, bits: int, step: Any) -> Any:
    """The same for the 8-bit grid, whose boundaries are the multiples of its step."""
    wide_step = load(builder, builder.bitcast(step, DOUBLE.as_pointer()))
    steps, limit = splat(builder, wide_step, DOUBLES), 2**bits - 1.0

    def quantise(values: Any) -> Any:
        code = call(builder, "llvm.floor.v16f64", DOUBLES, [builder.fdiv(builder.fpext(values, DOUBLES), steps)])
        code = builder.fadd(code, constant(DOUBLES, 2.0 ** (bits - 1)))
        for compare, bound in ((">", constant(DOUBLES, 0.0)), ("<", constant(DOUBLES, limit))):
            code = builder.select(builder.fcmp_ordered(compare, code, bound), code, bound)
        level = builder.fptrunc(builder.fsub(code, constant(DOUBLES, limit / 2.0)), FLOATS)
        number = builder.fptosi(code, INTS)
        zero = ir.Constant(INTS, None)
        tests = [builder.and_(number, constant(INTS, 1 << bit)) for bit in reversed(range(bits))]
        return [builder.icmp_signed("!=", test, zero) for test in tests], level

    return quantise


def _store_bits(builder: Any, mask: Any, pointer: Any, inside: Any, room: Any) -> None:
    """Store 16 bits, lowest first; where not all are inside, only the bytes that there is room for."""
    if inside is None:
        pair = builder.bitcast(pointer, _SHORT.as_pointer())
        builder.store(builder.bitcast(mask, _SHORT), pair).align = 1
        return
    bits = builder.bitcast(builder.and_(mask, inside), _SHORT)
    builder.store(builder.trunc(bits, BYTE), pointer)
    with builder.if_then(builder.icmp_signed(">", room, LONG(1))):
        upper = builder.trunc(builder.lshr(bits, ir.Constant(_SHORT, 8)), BYTE)
        builder.store(upper, builder.gep(pointer, [LONG(1)]))
