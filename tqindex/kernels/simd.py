"""A small SIMD vocabulary: functions that emit LLVM vectors and, where the CPU has one, call its instruction.

`simd_product` and `simd_rows` build blocks of it that kernels call like functions. Each block is an `@intrinsic`; what
must be unrolled is emitted by ordinary Python loops over rows and columns. Arrays are C-contiguous, indices count
elements, and nothing is checked.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils as _cgutils

cgutils: Any = _cgutils  # untyped in Numba

BIT, BYTE, INT, LONG = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64)
BYTES, INTS = ir.VectorType(BYTE, 64), ir.VectorType(INT, 16)
FLOATS = ir.VectorType(ir.FloatType(), 16)
VOID = ir.VoidType()
#: Entries of a table that is shuffled by bytes.
_ENTRIES = 16
_QUARTER = ir.VectorType(BYTE, _ENTRIES)


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
    return joined(builder, results)


def joined(builder: Any, parts: list[Any]) -> Any:
    """Return 1, 2, 4 ... vectors as one."""
    while len(parts) > 1:
        count = 2 * parts[0].type.count
        lanes = ir.Constant(ir.VectorType(INT, count), list(range(count)))
        parts = [builder.shuffle_vector(*parts[i : i + 2], lanes) for i in range(0, len(parts), 2)]
    return parts[0]


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


def make_windows_x86(shuffle: Any) -> Any:
    """Return an operation on a pointer to 256 bytes that gives a lookup of 64 bytes among them.

    shuffle: of 16 entries, which gives 0 where a place's highest bit is set.
    """

    def windows(builder: Any, table: Any) -> Callable[[Any], Any]:
        every = ir.Constant(ir.VectorType(INT, 64), list(range(_ENTRIES)) * 4)
        parts = [builder.shuffle_vector(part, part, every) for part in _table_parts(builder, table)]

        def look_up(places: Any) -> Any:
            found = ir.Constant(BYTES, None)
            for i, part in enumerate(parts):
                # Places of this part become 0x70 to 0x7f, all others have the highest bit.
                inside = builder.sub(places, constant(BYTES, _ENTRIES * i))
                inside = call(builder, "llvm.uadd.sat.v64i8", BYTES, [inside, constant(BYTES, 0x70)])
                found = builder.or_(found, shuffle(builder, part, inside))
            return found

        return look_up

    return windows


def windows_neon(builder: Any, table: Any) -> Callable[[Any], Any]:
    """The same from tables of 64 entries, which give 0, or leave what was found, for places beyond them."""
    parts = _table_parts(builder, table)

    def look_up(places: Any) -> Any:
        found = []
        for first in range(0, 64, _ENTRIES):
            lanes = ir.Constant(ir.VectorType(INT, _ENTRIES), list(range(first, first + _ENTRIES)))
            quarter = builder.shuffle_vector(places, places, lanes)
            level = call(builder, "llvm.aarch64.neon.tbl4.v16i8", _QUARTER, [*parts[:4], quarter])
            for i in range(4, len(parts), 4):
                inside = builder.sub(quarter, constant(_QUARTER, _ENTRIES * i))
                level = call(builder, "llvm.aarch64.neon.tbx4.v16i8", _QUARTER, [level, *parts[i : i + 4], inside])
            found.append(level)
        return joined(builder, found)

    return look_up


def _table_parts(builder: Any, table: Any) -> list[Any]:
    """Load a table of 256 bytes in parts of 16."""
    places = [builder.gep(table, [LONG(first)]) for first in range(0, 256, _ENTRIES)]
    return [load(builder, builder.bitcast(place, _QUARTER.as_pointer())) for place in places]


class Operations(NamedTuple):
    """What SIMD levels do in different ways."""

    dot4: Any
    shuffle: Any
    spread: Any
    lookup: Any
    windows: Any


#: By level. "portable" has no way to take rows straight from their planes.
OPERATIONS = {
    "amx": Operations(dot4_avx512, shuffle_avx512, spread, lookup_avx512, make_windows_x86(shuffle_avx512)),
    "avx512": Operations(dot4_avx512, shuffle_avx512, spread, lookup_avx512, make_windows_x86(shuffle_avx512)),
    "avx2": Operations(dot4_avx2, shuffle_avx2, spread, lookup_portable, make_windows_x86(shuffle_avx2)),
    "i8mm": Operations(dot4_i8mm, shuffle_neon, spread_neon, lookup_portable, windows_neon),
    "dotprod": Operations(dot4_dotprod, shuffle_neon, spread_neon, lookup_portable, windows_neon),
    "portable": Operations(dot4_portable, None, None, lookup_portable, None),
}
