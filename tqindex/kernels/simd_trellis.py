"""Levels of trellis codes, 64 coordinates at a time.

A trellis code is a stream to which every coordinate adds its `bits` bits. A coordinate's level is the one that its
window names: the last WINDOW bits of the stream (`tqindex.codec.trellis`).
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tqindex.codec.trellis import START_BITS, WINDOW
from tqindex.kernels.simd import (
    BIT,
    BYTE,
    BYTES,
    INT,
    LONG,
    Operations,
    address,
    call,
    cgutils,
    constant,
    load,
    splat,
)

#: Windows that there are, and entries of a table of their levels.
WINDOWS = 2**WINDOW
_WORDS = ir.VectorType(LONG, WINDOW)


class WindowLevels:
    """Levels of windows, u8 from a table of WINDOWS entries: what `CodeLevels` is for single codes."""

    planes = (2, 0), (2, 1), (2, 2)

    def __init__(self, builder: Any, operations: Operations, table: Any) -> None:
        self._builder, self._operations, self._look_up = builder, operations, operations.windows(builder, table)
        self._before: list[Any] = []

    def begin(self, bits: int, start: Any) -> None:
        """Prepare for a row's codes of so many bits, before which stand those of its start."""
        lags = (1,) if 2 * bits >= WINDOW else (1, 2)
        self._before = [(lag, cgutils.alloca_once(self._builder, BYTES)) for lag in lags]
        # Windows of what comes before are known whole: the last one is the start, the one before it lacks its code.
        lanes = ir.Constant(BYTES, [0] * 62 + [bits, 0])
        given = splat(self._builder, self._builder.trunc(start, BYTE), BYTES)
        known = self._builder.lshr(given, lanes)
        for _, place in self._before:
            self._builder.store(known, place)

    def next(self, row: Any, i: Any, left: Any, leading: int, others: int) -> Any:
        """Return the levels of the 64 coordinates of bytes i..i + 8, or of the `left` < 8 that are left.

        What is known of each window doubles: codes of one coordinate, of two, of four. Bits beyond a byte are lost.
        """
        builder, known = self._builder, row.codes(i, left, leading, others, self._operations)
        for lag, place in self._before:
            lanes = ir.Constant(ir.VectorType(INT, 64), list(range(64 - lag, 128 - lag)))
            earlier = builder.shuffle_vector(builder.load(place), known, lanes)
            builder.store(known, place)
            known = builder.or_(known, builder.shl(earlier, constant(BYTES, lag * (leading + others))))
        return self._look_up(known)


class MatrixWindowLevels:
    """The same by AVX-512 VBMI, VBMI2 and GFNI: windows are the transpose of words that hold one bit of each."""

    planes = WindowLevels.planes

    def __init__(self, builder: Any, operations: Operations, table: Any) -> None:
        self._builder, self._before = builder, cgutils.alloca_once(builder, _WORDS)
        places = [builder.bitcast(builder.gep(table, [LONG(i)]), BYTES.as_pointer()) for i in range(0, WINDOWS, 64)]
        self._parts = [load(builder, place) for place in places]

    def begin(self, bits: int, start: Any) -> None:
        """Prepare for a row's codes, before which stand those of its start."""
        builder, given, words = self._builder, splat(self._builder, start, _WORDS), ir.Constant(_WORDS, None)
        for coordinate in range(-(-WINDOW // bits) - 1):  # the last ones before the row, the last first
            # Window bits from the highest on come from the planes from the highest on, in turns that end at the lowest.
            places = [coordinate * bits + place % bits for place in reversed(range(WINDOW))]
            bit = builder.and_(builder.lshr(given, ir.Constant(_WORDS, places)), constant(_WORDS, 1))
            words = builder.or_(words, builder.shl(bit, constant(_WORDS, 63 - coordinate)))
        builder.store(words, self._before)

    def next(self, row: Any, i: Any, left: Any, leading: int, others: int) -> Any:
        """Return the levels of the 64 coordinates of bytes i..i + 8, or of the `left` < 8 that are left."""
        builder, bits = self._builder, leading + others
        # Of a window's bits from the highest on: which plane they are of, how many coordinates earlier.
        planes = [bits - 1 - place % bits for place in reversed(range(WINDOW))]
        lags = [place // bits for place in reversed(range(WINDOW))]
        first, *rest = row.read(i, left, leading, others)
        words = splat(builder, first, _WORDS)
        for plane, word in enumerate(rest, start=1):
            chosen = ir.Constant(ir.VectorType(BIT, WINDOW), [int(of == plane) for of in planes])
            words = builder.select(chosen, splat(builder, word, _WORDS), words)
        before = builder.load(self._before)
        builder.store(words, self._before)
        shifted = call(builder, "llvm.fshl.v8i64", _WORDS, [words, before, ir.Constant(_WORDS, lags)])
        return self._look_up(self._transposed(shifted))

    def _transposed(self, words: Any) -> Any:
        """Return the 64 windows of which each word has one bit: bytes to their eight coordinates, then their bits."""
        builder, words = self._builder, self._builder.bitcast(words, BYTES)
        order = ir.Constant(ir.VectorType(INT, 64), [8 * (i % 8) + i // 8 for i in range(64)])
        matrices = builder.shuffle_vector(words, words, order)
        unit = ir.Constant(BYTES, [1 << i % 8 for i in range(64)])
        return call(builder, "llvm.x86.vgf2p8affineqb.512", BYTES, [unit, matrices, BYTE(0)])

    def _look_up(self, windows: Any) -> Any:
        """Return the entries of the table's two halves by the lower seven bits, then one of each two."""
        name, builder = "llvm.x86.avx512.vpermi2var.qi.512", self._builder
        lower, upper = (call(builder, name, BYTES, [self._parts[i], windows, self._parts[i + 1]]) for i in (0, 2))
        return builder.select(builder.icmp_signed("<", windows, ir.Constant(BYTES, None)), upper, lower)


@intrinsic
def start_of(typing_context: Any, scales: Any, row: Any) -> Any:
    """Return a row's start, intp: the lowest byte of its scale; scales: f32."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v_scales, v_row = arguments
        scale = load(builder, address(context, builder, signature.args[0], v_scales, v_row, INT))
        return builder.zext(builder.trunc(scale, BYTE), LONG)

    return types.intp(scales, types.intp), codegen


@intrinsic
def with_start(typing_context: Any, scale: Any, start: Any) -> Any:
    """Return a scale, f32, that holds a start, intp, as `tqindex.codec.trellis.with_starts` does."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.zext(builder.bitcast(arguments[0], INT), LONG)
        magnitude = builder.and_(bits, LONG(2**31 - 1))
        raised = builder.add(builder.sub(magnitude, arguments[1]), LONG(2 ** (START_BITS - 1)))
        whole = builder.ashr(raised, LONG(START_BITS))
        kept = builder.select(builder.icmp_signed("<", whole, LONG(0)), LONG(0), whole)
        held = builder.or_(builder.shl(kept, LONG(START_BITS)), arguments[1])
        held = builder.or_(held, builder.and_(bits, LONG(2**31)))
        return builder.bitcast(builder.trunc(held, INT), arguments[0].type)

    return types.float32(types.float32, types.intp), codegen
