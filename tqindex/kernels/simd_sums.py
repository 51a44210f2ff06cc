"""Blocks of rows in chunks of 16 coordinates: float64 products and sums in the oracle's order, and scaling."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tqindex.kernels.simd import FLOATS, INT, INTS, LONG, VOID, address, call, cgutils, load, splat

#: Coordinates of a chunk.
CHUNK = 16
DOUBLE = ir.DoubleType()
DOUBLES = ir.VectorType(DOUBLE, CHUNK)


def for_chunks(builder: Any, n: Any, body: Callable[[Any, Any], None]) -> None:
    """Emit body(j, inside) for j = 0, 16, ... below n; inside: which lanes are below n, or None for all."""
    whole = builder.and_(n, LONG(-CHUNK))
    with cgutils.for_range_slice(builder, LONG(0), whole, LONG(CHUNK), LONG) as (j, _):
        body(j, None)
    tail = builder.sub(n, whole)
    with builder.if_then(builder.icmp_signed("!=", tail, LONG(0))):
        lanes = ir.Constant(INTS, list(range(CHUNK)))
        body(whole, builder.icmp_unsigned("<", lanes, splat(builder, builder.trunc(tail, INT), INTS)))


def load_chunk(builder: Any, pointer: Any, inside: Any) -> Any:
    """Load 16 float32, zeros outside."""
    if inside is None:
        return load(builder, pointer)
    return call(builder, "llvm.masked.load.v16f32.p0", FLOATS, [pointer, INT(4), inside, ir.Constant(FLOATS, None)])


def store_chunk(builder: Any, value: Any, pointer: Any, inside: Any) -> None:
    """Store 16 float32, none outside."""
    if inside is None:
        builder.store(value, pointer).align = 4
    else:
        call(builder, "llvm.masked.store.v16f32.p0", VOID, [value, pointer, INT(4), inside])


@intrinsic
def multiply_terms(typing_context: Any, a: Any, a_at: Any, b: Any, b_at: Any, n: Any, terms: Any) -> Any:
    """Write the products of n coordinates of a and b to `terms`, float64, up to a multiple of 16.

    multiply_terms(a, a_at, b, b_at, n, terms): a, b float32. Behind the end stand -0, which change no sum.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v_a, v_a_at, v_b, v_b_at, v_n, v_terms = arguments
        t_a, t_b, t_terms = signature.args[0], signature.args[2], signature.args[5]

        def multiply(j: Any, inside: Any) -> None:
            factors = []
            for array_type, array, at in ((t_a, v_a, v_a_at), (t_b, v_b, v_b_at)):
                pointer = address(context, builder, array_type, array, builder.add(at, j), FLOATS)
                factors.append(builder.fpext(load_chunk(builder, pointer, inside), DOUBLES))
            product = builder.fmul(*factors)
            if inside is not None:
                product = builder.select(inside, product, ir.Constant(DOUBLES, [-0.0] * CHUNK))
            builder.store(product, address(context, builder, t_terms, v_terms, j, DOUBLES)).align = 8

        for_chunks(builder, v_n, multiply)
        return context.get_dummy_value()

    index = types.intp
    return types.void(a, index, b, index, index, terms), codegen


@intrinsic
def add_terms(typing_context: Any, terms: Any, at: Any, other: Any) -> Any:
    """Add the 16 terms from `other` on to those from `at` on."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v_terms, *places = arguments
        pointers = [address(context, builder, signature.args[0], v_terms, place, DOUBLES) for place in places]
        total = builder.fadd(*(load(builder, pointer) for pointer in pointers))
        builder.store(total, pointers[0]).align = 8
        return context.get_dummy_value()

    return types.void(terms, types.intp, types.intp), codegen


@intrinsic
def sum_chunk(typing_context: Any, terms: Any) -> Any:
    """Sum the first 16 terms: the upper half is added to the lower until one is left."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        total = load(builder, address(context, builder, signature.args[0], arguments[0], LONG(0), DOUBLES))
        while total.type.count > 1:
            half = total.type.count // 2
            lower, upper = (
                builder.shuffle_vector(total, total, ir.Constant(ir.VectorType(INT, half), list(range(at, at + half))))
                for at in (0, half)
            )
            total = builder.fadd(lower, upper)
        return builder.extract_element(total, INT(0))

    return types.float64(terms), codegen


@intrinsic
def scale_chunks(typing_context: Any, source: Any, at: Any, factor: Any, target: Any, target_at: Any, n: Any) -> Any:
    """Write n coordinates of source, float32, times a float64 factor, rounded once, to target."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v_source, v_at, v_factor, v_target, v_target_at, v_n = arguments
        t_source, t_target = signature.args[0], signature.args[3]
        factors = splat(builder, v_factor, DOUBLES)

        def scale(j: Any, inside: Any) -> None:
            pointer = address(context, builder, t_source, v_source, builder.add(v_at, j), FLOATS)
            wide = builder.fpext(load_chunk(builder, pointer, inside), DOUBLES)
            value = builder.fptrunc(builder.fmul(wide, factors), FLOATS)
            pointer = address(context, builder, t_target, v_target, builder.add(v_target_at, j), FLOATS)
            store_chunk(builder, value, pointer, inside)

        for_chunks(builder, v_n, scale)
        return context.get_dummy_value()

    index = types.intp
    return types.void(source, index, types.float64, target, index, index), codegen
