"""A small SIMD vocabulary: functions that emit LLVM vectors and, where the CPU has one, call its instruction.

`simd_product` and `simd_rows` build blocks of it that kernels call like functions. Each block is an `@intrinsic`; what
must be unrolled is emitted by ordinary Python loops over rows and columns. Arrays are C-contiguous, indices count
elements, and nothing is checked.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils as _cgutils

cgutils: Any = _cgutils  # untyped in Numba

BIT, BYTE, INT, LONG = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64)
BYTES, INTS = ir.VectorType(BYTE, 64), ir.VectorType(INT, 16)
FLOATS = ir.VectorType(ir.FloatType(), 16)
VOID = ir.VoidType()


def address(context: Any, builder: Any, array_type: Any, array: Any, index: Any, target: Any) -> Any:
    """Return a pointer to the array's element `index`, cast to `target`."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), target.as_pointer())


def load(builder: Any, pointer: Any) -> Any:
    """Load without any promise of alignment."""
    value = builder.load(pointer)
    value.align = 1
    return value


def call(builder: Any, name: str, result: Any, operands: list[Any]) -> Any:
    """Call the LLVM intrinsic `name`."""
    function = ir.FunctionType(result, [operand.type for operand in operands])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), operands)


def splat(builder: Any, value: Any, vector: Any) -> Any:
    """Return a vector with `value` in every lane."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(INT, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(INT, vector.count), [0] * vector.count))


def constant(vector: Any, value: int) -> Any:
    """Return a vector with the number `value` in every lane."""
    return ir.Constant(vector, [value] * vector.count)


def dot4_avx512(builder: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    """total[lane] += sum of four u8 * i8 products: vpdpbusd."""
    operands = [total, builder.bitcast(unsigned, INTS), builder.bitcast(signed, INTS)]
    return call(builder, "llvm.x86.avx512.vpdpbusd.512", INTS, operands)


def dot4_avx2(builder: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    """The same from vpmaddwd on even and odd bytes; vpmaddubsw would saturate."""
    short = ir.VectorType(ir.IntType(16), 32)
    u, s, eight = builder.bitcast(unsigned, short), builder.bitcast(signed, short), constant(short, 8)
    even = builder.and_(u, constant(short, 255)), builder.ashr(builder.shl(s, eight), eight)
    odd = builder.lshr(u, eight), builder.ashr(s, eight)
    halves = []
    for first in (0, 16):
        lanes = ir.Constant(ir.VectorType(INT, 16), list(range(first, first + 16)))
        products = [
            call(
                builder,
                "llvm.x86.avx2.pmadd.wd",
                ir.VectorType(INT, 8),
                [builder.shuffle_vector(operand, operand, lanes) for operand in pair],
            )
            for pair in (even, odd)
        ]
        halves.append(builder.add(*products))
    joined = builder.shuffle_vector(halves[0], halves[1], ir.Constant(INTS, list(range(16))))
    return builder.add(total, joined)


def dot4_portable(builder: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    """The same from 32-bit multiplications, which every target has."""
    u, s = builder.bitcast(unsigned, INTS), builder.bitcast(signed, INTS)
    for byte in range(4):
        a = builder.and_(builder.lshr(u, constant(INTS, 8 * byte)), constant(INTS, 255))
        b = builder.ashr(builder.shl(s, constant(INTS, 24 - 8 * byte)), constant(INTS, 24))
        total = builder.add(total, builder.mul(a, b))
    return total


def shuffle_avx512(builder: Any, table: Any, codes: Any) -> Any:
    """table[code] for 64 codes below 16; the table stands in every 16 bytes."""
    return call(builder, "llvm.x86.avx512.pshuf.b.512", BYTES, [table, codes])


def shuffle_avx2(builder: Any, table: Any, codes: Any) -> Any:
    """The same in two halves."""
    halves = []
    for first in (0, 32):
        lanes = ir.Constant(ir.VectorType(INT, 32), list(range(first, first + 32)))
        operands = [builder.shuffle_vector(operand, operand, lanes) for operand in (table, codes)]
        halves.append(call(builder, "llvm.x86.avx2.pshuf.b", ir.VectorType(BYTE, 32), operands))
    return builder.shuffle_vector(halves[0], halves[1], ir.Constant(ir.VectorType(INT, 64), list(range(64))))
