"""Blocks for rotations: butterflies on vectors of one coordinate of many rows."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tqindex.kernels.cpu import simd_level
from tqindex.kernels.simd import FLOATS, INT, LONG, address, load, splat

#: Rows that are rotated together, one per lane.
LANES = 16
FLOAT = ir.FloatType()
#: Lanes of a register: sixteen vectors at once must stay in registers.
_PIECE = {"amx": 16, "avx512": 16, "avx2": 8}.get(simd_level(), 4)
_PIECES = ir.VectorType(FLOAT, _PIECE)


def make_butterflies(steps: int) -> Any:
    """Return an operation that takes several steps of Walsh-Hadamard transforms at once, in registers.

    butterflies(x, i, distance): steps at distance, 2 distance, 4 distance, ... on the 2**steps coordinates i,
    i + distance, i + 2 distance, ... x: float32, flat, LANES per coordinate.
    """

    @intrinsic
    def butterflies(typing_context: Any, x: Any, i: Any, distance: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            v_x, v_i, v_distance = arguments
            places = [builder.add(v_i, builder.mul(v_distance, LONG(step))) for step in range(1 << steps)]
            for lane in range(0, LANES, _PIECE):
                pointers = [_pointer(context, builder, signature.args[0], v_x, place, lane) for place in places]
                _transform(builder, [load(builder, pointer) for pointer in pointers], pointers)
            return context.get_dummy_value()

        return types.void(x, types.intp, types.intp), codegen

    return butterflies


def make_first_butterflies(steps: int) -> Any:
    """Return an operation that multiplies coordinates by signs and takes the first steps of their transform.

    first_butterflies(x, i, signs, at): in place, on the 2**steps coordinates from i on; signs: float32, flat, those
    from `at` on.
    """

    @intrinsic
    def first_butterflies(typing_context: Any, x: Any, i: Any, signs: Any, at: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            v_x, v_i, v_signs, v_at = arguments
            t_x, t_signs = signature.args[0], signature.args[2]
            places = [builder.add(v_i, LONG(step)) for step in range(1 << steps)]
            for lane in range(0, LANES, _PIECE):
                pointers = [_pointer(context, builder, t_x, v_x, place, lane) for place in places]
                factors = _splats(context, builder, t_signs, v_signs, v_at, len(places))
                values = [builder.fmul(load(builder, p), factor) for p, factor in zip(pointers, factors, strict=True)]
                _transform(builder, values, pointers)
            return context.get_dummy_value()

        return types.void(x, types.intp, signs, types.intp), codegen

    return first_butterflies


def make_permuted_butterflies(steps: int) -> Any:
    """Return the same operation on coordinates from elsewhere.

    permuted_butterflies(target, i, source, permutation, from_at, signs, at): coordinate i + k of target is made from
    coordinate permutation[from_at + k] of source; permutation: int32, flat.
    """

    @intrinsic
    def permuted_butterflies(
        typing_context: Any, target: Any, i: Any, source: Any, permutation: Any, from_at: Any, signs: Any, at: Any
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            v_target, v_i, v_source, v_permutation, v_from_at, v_signs, v_at = arguments
            t_target, _, t_source, t_permutation, _, t_signs, _ = signature.args
            steps_at = [LONG(step) for step in range(1 << steps)]
            indices = [builder.add(v_from_at, step) for step in steps_at]
            numbers = [load(builder, address(context, builder, t_permutation, v_permutation, i, INT)) for i in indices]
            origins = [builder.sext(number, LONG) for number in numbers]
            places = [builder.add(v_i, step) for step in steps_at]
            for lane in range(0, LANES, _PIECE):
                sources = [_pointer(context, builder, t_source, v_source, origin, lane) for origin in origins]
                factors = _splats(context, builder, t_signs, v_signs, v_at, len(places))
                values = [builder.fmul(load(builder, p), factor) for p, factor in zip(sources, factors, strict=True)]
                _transform(builder, values, [_pointer(context, builder, t_target, v_target, p, lane) for p in places])
            return context.get_dummy_value()

        index = types.intp
        return types.void(target, index, source, permutation, index, signs, index), codegen

    return permuted_butterflies


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, coordinate: Any, lane: int) -> Any:
    """Return a pointer to a coordinate's lanes, from `lane` on."""
    index = builder.add(builder.mul(coordinate, LONG(LANES)), LONG(lane))
    return address(context, builder, array_type, array, index, _PIECES)


def _splats(context: Any, builder: Any, array_type: Any, array: Any, at: Any, count: int) -> list[Any]:
    """Return vectors of array[at], array[at + 1], ..."""
    places = [address(context, builder, array_type, array, builder.add(at, LONG(i)), FLOAT) for i in range(count)]
    return [splat(builder, load(builder, place), _PIECES) for place in places]


def _transform(builder: Any, values: list[Any], pointers: list[Any]) -> None:
    """Emit the butterflies at distance 1, 2, 4, ... in the list of values, and store the results."""
    distance = 1
    while distance < len(values):
        for i in range(len(values)):
            if not i & distance:
                a, b = values[i], values[i + distance]
                values[i], values[i + distance] = builder.fadd(a, b), builder.fsub(a, b)
        distance *= 2
    for pointer, value in zip(pointers, values, strict=True):
        builder.store(value, pointer).align = 4


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
