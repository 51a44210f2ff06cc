"""Blocks for rotations: butterflies on vectors of one coordinate of many rows."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tqindex.kernels.simd import FLOATS, INT, LONG, address, load, splat

#: Rows that are rotated together, one per lane.
LANES = 16


@intrinsic
def butterfly4(typing_context: Any, x: Any, i: Any, distance: Any) -> Any:
    """Two steps of a Walsh-Hadamard transform on coordinates i, i + distance, i + 2 distance, i + 3 distance.

    x: float32, flat, LANES per coordinate.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v_x, v_i, v_distance = arguments
        places = [builder.add(v_i, builder.mul(v_distance, LONG(step))) for step in range(4)]
        pointers = [
            address(context, builder, signature.args[0], v_x, builder.mul(place, LONG(LANES)), FLOATS)
            for place in places
        ]
        a, b, c, d = (load(builder, pointer) for pointer in pointers)
        a, b, c, d = builder.fadd(a, b), builder.fsub(a, b), builder.fadd(c, d), builder.fsub(c, d)
        results = (builder.fadd(a, c), builder.fadd(b, d), builder.fsub(a, c), builder.fsub(b, d))
        for pointer, value in zip(pointers, results, strict=True):
            builder.store(value, pointer).align = 4
        return context.get_dummy_value()

    return types.void(x, types.intp, types.intp), codegen


@intrinsic
def butterfly2(typing_context: Any, x: Any, i: Any, distance: Any) -> Any:
    """One step on coordinates i and i + distance."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v_x, v_i, v_distance = arguments
        pointers = [
            address(context, builder, signature.args[0], v_x, builder.mul(place, LONG(LANES)), FLOATS)
            for place in (v_i, builder.add(v_i, v_distance))
        ]
        a, b = (load(builder, pointer) for pointer in pointers)
        builder.store(builder.fadd(a, b), pointers[0]).align = 4
        builder.store(builder.fsub(a, b), pointers[1]).align = 4
        return context.get_dummy_value()

    return types.void(x, types.intp, types.intp), codegen


@intrinsic
def move_scaled(typing_context: Any, target: Any, i: Any, source: Any, j: Any, factor: Any) -> Any:
    """Write coordinate j of source, times a factor, to coordinate i of target."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v_target, v_i, v_source, v_j, v_factor = arguments
        source_at = address(context, builder, signature.args[2], v_source, builder.mul(v_j, LONG(LANES)), FLOATS)
        target_at = address(context, builder, signature.args[0], v_target, builder.mul(v_i, LONG(LANES)), FLOATS)
        value = builder.fmul(load(builder, source_at), splat(builder, v_factor, FLOATS))
        builder.store(value, target_at).align = 4
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp, types.float32), codegen


@intrinsic
def transpose_square(
    typing_context: Any, source: Any, at: Any, stride: Any, target: Any, target_at: Any, target_stride: Any
) -> Any:
    """Transpose LANES x LANES float32 values between flat arrays; strides are those of rows, in elements."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v_source, v_at, v_stride, v_target, v_target_at, v_target_stride = arguments

        def pointer(array_type: Any, array: Any, first: Any, step: Any, row: int) -> Any:
            index = builder.add(first, builder.mul(step, LONG(row)))
            return address(context, builder, array_type, array, index, FLOATS)

        rows = [load(builder, pointer(signature.args[0], v_source, v_at, v_stride, row)) for row in range(LANES)]
        half = LANES // 2
        # Four perfect shuffles of all 256 values: row r meets row r + 8, lane by lane.
        halves = [
            [lane + LANES * other for lane in range(start, start + half) for other in (0, 1)] for start in (0, half)
        ]
        masks = [ir.Constant(ir.VectorType(INT, LANES), mask) for mask in halves]
        for _ in range(4):
            rows = [builder.shuffle_vector(rows[r], rows[r + half], mask) for r in range(half) for mask in masks]
        for row, value in enumerate(rows):
            place = pointer(signature.args[3], v_target, v_target_at, v_target_stride, row)
            builder.store(value, place).align = 4
        return context.get_dummy_value()

    index = types.intp
    return types.void(source, index, index, target, index, index), codegen
