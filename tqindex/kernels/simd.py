"""A small SIMD vocabulary: functions that emit LLVM vectors and, where the CPU has one, call its instruction.

`simd_product` and `simd_rows` build blocks of it that kernels call like functions. Each block is an `@intrinsic`; what
must be unrolled is emitted by ordinary Python loops over rows and columns. Arrays are C-contiguous, indices count
elements, and nothing is checked.
"""

from typing import Any, NamedTuple

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


def constant(vector: Any, value: float) -> Any:
    """Return a vector with the number `value` in every lane."""
    return ir.Constant(vector, [value] * vector.count)


def in_parts(builder: Any, name: str, parts: int, operands: list[Any]) -> Any:
    """Call the LLVM intrinsic `name` on each of `parts` equal parts of the operands; its result is as the first."""
    results = []
    for part in range(parts):
        pieces = []
        for operand in operands:
            count = operand.type.count // parts
            lanes = ir.Constant(ir.VectorType(INT, count), list(range(part * count, (part + 1) * count)))
            pieces.append(builder.shuffle_vector(operand, operand, lanes))
        results.append(call(builder, name, pieces[0].type, pieces))
    while len(results) > 1:
        count = 2 * results[0].type.count
        lanes = ir.Constant(ir.VectorType(INT, count), list(range(count)))
        results = [builder.shuffle_vector(*results[i : i + 2], lanes) for i in range(0, len(results), 2)]
    return results[0]


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


def dot4_i8mm(builder: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    """The same from Arm's usdot."""
    return in_parts(builder, "llvm.aarch64.neon.usdot.v4i32.v16i8", 4, [total, unsigned, signed])


def dot4_dotprod(builder: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    """The same from Arm's sdot, whose operands are both signed: u s = (u - 128) s - (-128) s."""
    sdot, low = "llvm.aarch64.neon.sdot.v4i32.v16i8", constant(BYTES, -128)
    products = in_parts(builder, sdot, 4, [total, builder.xor(unsigned, low), signed])
    return builder.sub(products, in_parts(builder, sdot, 4, [ir.Constant(INTS, None), low, signed]))


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
    return in_parts(builder, "llvm.x86.avx2.pshuf.b", 2, [table, codes])


def shuffle_neon(builder: Any, table: Any, codes: Any) -> Any:
    """The same in four quarters."""
    return in_parts(builder, "llvm.aarch64.neon.tbl1.v16i8", 4, [table, codes])


def spread(builder: Any, word: Any) -> Any:
    """Return the 64 bits of an i64 as a vector, lowest first."""
    return builder.bitcast(word, ir.VectorType(BIT, 64))


def spread_neon(builder: Any, word: Any) -> Any:
    """The same from a copy of its byte in every lane, of which one bit is tested; a bitcast would take bit by bit."""
    copies = builder.bitcast(splat(builder, word, ir.VectorType(LONG, 8)), BYTES)
    lanes = ir.Constant(ir.VectorType(INT, 64), [lane // 8 for lane in range(64)])
    bits = ir.Constant(BYTES, [1 << lane % 8 for lane in range(64)])
    tested = builder.and_(builder.shuffle_vector(copies, copies, lanes), bits)
    return builder.icmp_unsigned("!=", tested, ir.Constant(BYTES, None))


def lookup_avx512(builder: Any, table: Any, masks: list[Any], bits: int) -> Any:
    """table[code] for 16 codes of so many bits, of which masks tell the uppermost and the others are 0."""
    index = ir.Constant(INTS, None)
    for place, mask in enumerate(masks):
        index = builder.or_(
            index, builder.select(mask, constant(INTS, 1 << (bits - 1 - place)), ir.Constant(INTS, None))
        )
    return call(builder, "llvm.x86.avx512.permvar.sf.512", FLOATS, [table, index])


def lookup_portable(builder: Any, table: Any, masks: list[Any], bits: int, code: int = 0) -> Any:
    """The same by choices between all entries that can be meant."""
    if not masks:
        return builder.shuffle_vector(table, table, constant(INTS, code))
    upper, lower = (
        lookup_portable(builder, table, masks[1:], bits - 1, entry) for entry in (code + (1 << (bits - 1)), code)
    )
    return builder.select(masks[0], upper, lower)


class Operations(NamedTuple):
    """What SIMD levels do in different ways."""

    dot4: Any
    shuffle: Any
    spread: Any
    lookup: Any


#: By level. "portable" has no way to take rows straight from their planes.
OPERATIONS = {
    "amx": Operations(dot4_avx512, shuffle_avx512, spread, lookup_avx512),
    "avx512": Operations(dot4_avx512, shuffle_avx512, spread, lookup_avx512),
    "avx2": Operations(dot4_avx2, shuffle_avx2, spread, lookup_portable),
    "i8mm": Operations(dot4_i8mm, shuffle_neon, spread_neon, lookup_portable),
    "dotprod": Operations(dot4_dotprod, shuffle_neon, spread_neon, lookup_portable),
    "portable": Operations(dot4_portable, None, None, lookup_portable),
}
