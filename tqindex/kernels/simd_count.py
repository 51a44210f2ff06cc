"""Operations on interleaved planes: counting their bits under a coarse query, comparing bounds, taking out a row."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tqindex.kernels.simd import BYTE, FLOATS, INT, INTS, LONG, VOID, address, call, cgutils, constant, load, splat

#: Bits of a coarse query's coordinate, two's complement.
SLICES = 4
#: Rows of a block, one per lane.
_LANES = 8
_WORDS = ir.VectorType(LONG, _LANES)
_COUNTS = ir.VectorType(INT, _LANES)
_REALS = ir.VectorType(ir.FloatType(), _LANES)
#: Blocks that are counted at once, far apart: one stream of reads alone does not fill the memory's bandwidth.
STREAMS = 2
#: Bytes by which reads are asked for ahead.
_AHEAD = 2048


@intrinsic
def count_blocks(
    typing_context: Any, plane: Any, first: Any, second: Any, width: Any, slices: Any, counts: Any, at: Any
) -> Any:
    """Sum a coarse query over the set bits of the 8 rows of two blocks.

    count_blocks(plane, first, second, width, slices, counts, at): plane u8, blocks of 8 rows of `width` bytes that
    start at bytes `first` and `second`; slices u64 [ceil(width / 8)][SLICES]: bit s of the coordinates of a word,
    two's complement; counts i32, 16 written from `at` on.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v_plane, v_first, v_second, v_width, v_slices, v_counts, v_at = arguments
        t_plane, t_slices, t_counts = signature.args[0], signature.args[4], signature.args[5]
        blocks = [address(context, builder, t_plane, v_plane, at, BYTE) for at in (v_first, v_second)]
        zero = ir.Constant(_WORDS, None)
        totals = [[cgutils.alloca_once_value(builder, zero) for _ in range(SLICES)] for _ in blocks]
        for total in (one for stream in totals for one in stream):
            builder.store(zero, total)

        def count(words: list[Any], i: Any) -> None:
            for s in range(SLICES):
                index = builder.add(builder.mul(i, LONG(SLICES)), LONG(s))
                query = splat(
                    builder, load(builder, address(context, builder, t_slices, v_slices, index, LONG)), _WORDS
                )
                for word, total in zip(words, totals, strict=True):
                    found = call(builder, "llvm.ctpop.v8i64", _WORDS, [builder.and_(word, query)])
                    builder.store(builder.add(builder.load(total[s]), found), total[s])

        whole = builder.lshr(v_width, LONG(3))
        with cgutils.for_range_slice(builder, LONG(0), whole, LONG(1), LONG) as (i, _):
            words = []
            for block in blocks:
                pointer = builder.gep(block, [builder.mul(i, LONG(64))])
                ahead = builder.gep(pointer, [LONG(_AHEAD)])
                call(builder, "llvm.prefetch.p0", VOID, [ahead, INT(0), INT(3), INT(1)])
                words.append(load(builder, builder.bitcast(pointer, _WORDS.as_pointer())))
            count(words, i)
        _for_tail(builder, blocks, whole, builder.and_(v_width, LONG(7)), count)
        for stream, total in enumerate(totals):
            # Two's complement: the highest slice counts against the others.
            value = builder.neg(builder.shl(builder.load(total[-1]), constant(_WORDS, SLICES - 1)))
            for s in range(SLICES - 1):
                value = builder.add(value, builder.shl(builder.load(total[s]), constant(_WORDS, s)))
            index = builder.add(v_at, LONG(_LANES * stream))
            pointer = address(context, builder, t_counts, v_counts, index, _COUNTS)
            builder.store(builder.trunc(value, _COUNTS), pointer).align = 4
        return context.get_dummy_value()

    index = types.intp
    return types.void(plane, index, index, index, slices, counts, index), codegen


def _for_tail(builder: Any, blocks: list[Any], whole: Any, tail: Any, count: Any) -> None:
    """Emit count(words, whole) for the `tail` bytes behind the whole words, in pieces of 4, 2 and 1 bytes."""
    with builder.if_then(builder.icmp_signed("!=", tail, LONG(0))):
        words = [cgutils.alloca_once_value(builder, ir.Constant(_WORDS, None)) for _ in blocks]
        for word in words:
            builder.store(ir.Constant(_WORDS, None), word)
        done = cgutils.alloca_once_value(builder, LONG(0))
        builder.store(LONG(0), done)
        for size in (4, 2, 1):
            with builder.if_then(builder.icmp_signed("!=", builder.and_(tail, LONG(size)), LONG(0))):
                at = builder.mul(builder.add(builder.mul(whole, LONG(8)), builder.load(done)), LONG(_LANES))
                shift = splat(builder, builder.mul(builder.load(done), LONG(8)), _WORDS)
                pieces = ir.VectorType(ir.IntType(8 * size), _LANES)
                for block, word in zip(blocks, words, strict=True):
                    piece = load(builder, builder.bitcast(builder.gep(block, [at]), pieces.as_pointer()))
                    piece = builder.shl(builder.zext(piece, _WORDS), shift)
                    builder.store(builder.or_(builder.load(word), piece), word)
                builder.store(builder.add(builder.load(done), LONG(size)), done)
        count([builder.load(word) for word in words], whole)


def make_reach_blocks(with_offsets: bool) -> Any:
    """Return an operation that compares the bounds of two blocks' 16 rows with a threshold.

    reach_blocks(first, first_at, other_at, second, second_at, scales, offsets, row, other_row, w0, w1, w2, w3,
    threshold) -> bits of the rows whose bound reaches it, those of the other block above. first, second: i32 counts of
    the two leading planes, `first` at two places, `second` 16 from `second_at` on; scales, offsets: f32.

    bound = scale * (w0 first + w1 second + w2) + offset + w3 |offset|
    """

    @intrinsic
    def reach_blocks(
        typing_context: Any,
        first: Any,
        first_at: Any,
        other_at: Any,
        second: Any,
        second_at: Any,
        scales: Any,
        offsets: Any,
        row: Any,
        other_row: Any,
        w0: Any,
        w1: Any,
        w2: Any,
        w3: Any,
        threshold: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            v_first, v_first_at, v_other_at, v_second, v_second_at, v_scales, v_offsets, v_row, v_other_row = arguments[
                :9
            ]
            t_first, t_second, t_scales, t_offsets = (signature.args[i] for i in (0, 3, 5, 6))
            weights = [splat(builder, weight, FLOATS) for weight in arguments[9:13]]
            both = ir.Constant(ir.VectorType(INT, 16), list(range(16)))

            def lanes(array_type: Any, array: Any, places: tuple[Any, Any], vector: Any) -> Any:
                halves = [load(builder, address(context, builder, array_type, array, at, vector)) for at in places]
                return builder.shuffle_vector(*halves, both)

            first_counts = lanes(t_first, v_first, (v_first_at, v_other_at), _COUNTS)
            second_counts = load(builder, address(context, builder, t_second, v_second, v_second_at, INTS))
            bound = builder.fadd(weights[2], builder.fmul(weights[0], builder.sitofp(first_counts, FLOATS)))
            bound = builder.fadd(bound, builder.fmul(weights[1], builder.sitofp(second_counts, FLOATS)))
            bound = builder.fmul(bound, lanes(t_scales, v_scales, (v_row, v_other_row), _REALS))
            if with_offsets:
                offset = lanes(t_offsets, v_offsets, (v_row, v_other_row), _REALS)
                size = call(builder, "llvm.fabs.v16f32", FLOATS, [offset])
                bound = builder.fadd(bound, builder.fadd(offset, builder.fmul(weights[3], size)))
            reached = builder.fcmp_ordered(">=", bound, splat(builder, arguments[13], FLOATS))
            return builder.zext(builder.bitcast(reached, ir.IntType(16)), INT)

        index, real = types.intp, types.float32
        arguments = (first, index, index, second, index, scales, offsets, index, index, real, real, real, real, real)
        return types.uint32(*arguments), codegen

    return reach_blocks


@intrinsic
def prefetch(typing_context: Any, array: Any, at: Any, size: Any) -> Any:
    """Ask for `size` bytes of a u8 array, from `at` on, before they are read."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, at, size = arguments
        first = address(context, builder, signature.args[0], array, at, BYTE)
        with cgutils.for_range_slice(builder, LONG(0), size, LONG(64), LONG) as (i, _):
            call(builder, "llvm.prefetch.p0", VOID, [builder.gep(first, [i]), INT(0), INT(3), INT(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), codegen


@intrinsic
def gather_row(typing_context: Any, lead: Any, at: Any, lane: Any, width: Any, out: Any, out_at: Any) -> Any:
    """Copy one row's plane out of the block of 8 rows that starts at byte `at` of `lead`, u8.

    out: u8, whole words written from `out_at` on; zeros beyond the plane's `width` bytes.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v_lead, v_at, v_lane, v_width, v_out, v_out_at = arguments
        block = address(context, builder, signature.args[0], v_lead, v_at, BYTE)
        target = address(context, builder, signature.args[4], v_out, v_out_at, BYTE)

        def piece(first: Any, size: int) -> Any:
            """The row's `size` bytes behind its first ones."""
            index = builder.add(builder.mul(first, LONG(_LANES)), builder.mul(v_lane, LONG(size)))
            pointer = builder.bitcast(builder.gep(block, [index]), ir.IntType(8 * size).as_pointer())
            return load(builder, pointer)

        def write(first: Any, word: Any) -> None:
            builder.store(word, builder.bitcast(builder.gep(target, [first]), LONG.as_pointer())).align = 1

        whole = builder.and_(v_width, LONG(-8))
        with cgutils.for_range_slice(builder, LONG(0), whole, LONG(8), LONG) as (i, _):
            write(i, piece(i, 8))
        tail = builder.and_(v_width, LONG(7))
        with builder.if_then(builder.icmp_signed("!=", tail, LONG(0))):
            word, done = (cgutils.alloca_once_value(builder, LONG(0)) for _ in range(2))
            builder.store(LONG(0), word)
            builder.store(LONG(0), done)
            for size in (4, 2, 1):
                with builder.if_then(builder.icmp_signed("!=", builder.and_(tail, LONG(size)), LONG(0))):
                    part = builder.zext(piece(builder.add(whole, builder.load(done)), size), LONG)
                    part = builder.shl(part, builder.mul(builder.load(done), LONG(8)))
                    builder.store(builder.or_(builder.load(word), part), word)
                    builder.store(builder.add(builder.load(done), LONG(size)), done)
            write(whole, builder.load(word))
        return context.get_dummy_value()

    index = types.intp
    return types.void(lead, index, index, index, out, index), codegen
