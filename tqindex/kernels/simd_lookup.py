"""Counting the bits of interleaved planes under a coarse query by table, four coordinates at a time.

A byte shuffle across 64 entries (AVX-512 VBMI) holds a table of 16 sums for each byte of a 32-bit number, so one
shuffle looks up half of the coordinates of 16 rows' numbers; the four sums of a number are then added by vpdpbusd.
"""

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
    VOID,
    address,
    call,
    cgutils,
    constant,
    dot4_avx512,
    load,
)

#: Bytes of the tables of 64 coordinates: for each half of them the sums of lower and of upper halves of bytes.
TABLES = 256
_ENTRIES = 64
_LANES, _WORD_BYTES = 8, 8
#: Bytes by which reads are asked for ahead.
_AHEAD = 2048
#: Where the table of each byte of a 32-bit number begins.
_PLACES = ir.Constant(BYTES, [lane % 4 * 16 for lane in range(64)])
_EVEN = ir.Constant(INTS, list(range(0, 32, 2)))
_ODD = ir.Constant(INTS, list(range(1, 32, 2)))


@intrinsic
def look_up_blocks(
    typing_context: Any,
    plane: Any,
    first: Any,
    second: Any,
    step: Any,
    pairs: Any,
    width: Any,
    tables: Any,
    counts: Any,
    at: Any,
) -> Any:
    """Sum a coarse query over the set bits of the 8 rows of each of two runs of blocks.

    As `tqindex.kernels.simd_count.count_blocks`, but tables: u8 [ceil(width / 8)][TABLES], sums as i8.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v_plane, v_first, v_second, v_step, v_pairs, v_width, v_tables, v_counts, v_at = arguments
        t_plane, t_tables, t_counts = signature.args[0], signature.args[6], signature.args[7]
        runs = [address(context, builder, t_plane, v_plane, start, BYTE) for start in (v_first, v_second)]
        tables = address(context, builder, t_tables, v_tables, LONG(0), BYTE)
        counts = address(context, builder, t_counts, v_counts, v_at, INT)
        whole = builder.and_(v_width, LONG(-_WORD_BYTES))
        with cgutils.for_range_slice(builder, LONG(0), v_pairs, LONG(1), LONG) as (j, _):
            start = builder.mul(j, v_step)
            pair = _Pair(builder, [builder.gep(run, [start]) for run in runs])
            with cgutils.for_range_slice(builder, LONG(0), whole, LONG(_WORD_BYTES), LONG) as (i, _):
                pair.add_words(i, builder.gep(tables, [builder.mul(i, LONG(TABLES // _WORD_BYTES))]))
            pair.add_tail(whole, v_width, builder.gep(tables, [builder.mul(whole, LONG(TABLES // _WORD_BYTES))]))
            target = builder.gep(counts, [builder.mul(j, LONG(2 * _LANES))])
            builder.store(pair.total(), builder.bitcast(target, INTS.as_pointer())).align = 4
        return context.get_dummy_value()

    index = types.intp
    return types.void(plane, index, index, index, index, index, tables, counts, index), codegen


class _Pair:
    """The rows of two blocks, and what has been summed up of them: those of the first block, then the second's."""

    def __init__(self, builder: Any, blocks: list[Any]) -> None:
        self.builder, self.blocks = builder, blocks
        zero = ir.Constant(INTS, None)
        self.totals = [cgutils.alloca_once_value(builder, zero) for _ in range(2)]
        for total in self.totals:
            builder.store(zero, total)

    def add_words(self, i: Any, tables: Any) -> None:
        """Add a whole word of each row, from byte `i` on."""
        builder = self.builder
        words = []
        for block in self.blocks:
            pointer = builder.gep(block, [builder.mul(i, LONG(_LANES))])
            ahead = builder.gep(pointer, [LONG(_AHEAD)])
            call(builder, "llvm.prefetch.p0", VOID, [ahead, INT(0), INT(3), INT(1)])
            words.append(load(builder, builder.bitcast(pointer, INTS.as_pointer())))
        self._add(0, builder.shuffle_vector(*words, _EVEN), tables)
        self._add(1, builder.shuffle_vector(*words, _ODD), tables)

    def add_tail(self, whole: Any, width: Any, tables: Any) -> None:
        """Add what is left of the rows' widths: pieces of 4, 2 and 1 bytes."""
        builder = self.builder
        has = [builder.icmp_unsigned("!=", builder.and_(width, LONG(size)), LONG(0)) for size in (4, 2, 1)]
        done = cgutils.alloca_once_value(builder, whole)
        builder.store(whole, done)
        with builder.if_then(has[0]):
            self._add(0, self._piece(whole, 4), tables)
            builder.store(builder.add(whole, LONG(4)), done)
        with builder.if_then(builder.or_(has[1], has[2])):
            rest = cgutils.alloca_once_value(builder, ir.Constant(INTS, None))
            builder.store(ir.Constant(INTS, None), rest)
            with builder.if_then(has[1]):
                builder.store(self._piece(builder.load(done), 2), rest)
            with builder.if_then(has[2]):
                first = builder.add(builder.load(done), builder.and_(width, LONG(2)))
                shift = builder.select(has[1], constant(INTS, 16), ir.Constant(INTS, None))
                piece = builder.shl(self._piece(first, 1), shift)
                builder.store(builder.or_(builder.load(rest), piece), rest)
            half = builder.select(has[0], LONG(TABLES // 2), LONG(0))
            self._add(1, builder.load(rest), builder.gep(tables, [half]), half=0)

    def _piece(self, first: Any, size: int) -> Any:
        """Return `size` bytes of each row, from byte `first` on."""
        builder, vector = self.builder, ir.VectorType(ir.IntType(8 * size), _LANES)
        pieces = []
        for block in self.blocks:
            pointer = builder.gep(block, [builder.mul(first, LONG(_LANES))])
            pieces.append(load(builder, builder.bitcast(pointer, vector.as_pointer())))
        joined = builder.shuffle_vector(*pieces, ir.Constant(INTS, list(range(16))))
        return joined if size == 4 else builder.zext(joined, INTS)

    def _add(self, total: int, numbers: Any, tables: Any, half: int | None = None) -> None:
        """Add to one of the totals what 32 bits of each row stand for: of the words' lower or upper half."""
        builder, low = self.builder, constant(BYTES, 15)
        first = (total if half is None else half) * 2 * _ENTRIES
        upper = builder.bitcast(builder.lshr(numbers, constant(INTS, 4)), BYTES)
        for i, nibbles in enumerate((builder.bitcast(numbers, BYTES), upper)):
            pointer = builder.gep(tables, [LONG(first + i * _ENTRIES)])
            table = load(builder, builder.bitcast(pointer, BYTES.as_pointer()))
            index = builder.or_(builder.and_(nibbles, low), _PLACES)
            sums = call(builder, "llvm.x86.avx512.permvar.qi.512", BYTES, [table, index])
            target = self.totals[total]
            builder.store(dot4_avx512(builder, builder.load(target), constant(BYTES, 1), sums), target)

    def total(self) -> Any:
        """Return the sums of all 16 rows."""
        return self.builder.add(*(self.builder.load(total) for total in self.totals))
