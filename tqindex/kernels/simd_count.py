"""Blocks for the cascade: counting a plane's bits under a coarse query, and comparing bounds with a threshold."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tqindex.kernels.simd import BYTE, INT, LONG, VOID, address, call, cgutils, constant, load, splat

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
def count_blocks(typing_context: Any, plane: Any, first: Any, second: Any, width: Any, slices: Any, counts: Any) -> Any:
    """Sum a coarse query over the set bits of the 8 rows of two blocks.

    count_blocks(plane, first, second, width, slices, counts): plane u8, blocks of 8 rows of `width` bytes that start
    at bytes `first` and `second`; slices u64 [ceil(width / 8)][SLICES]: bit s of the coordinates of a word, two's
    complement; counts i32 (16,), written.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v_plane, v_first, v_second, v_width, v_slices, v_counts = arguments
        t_plane, t_slices, t_counts = signature.args[0], signature.args[4], signature.args[5]
        blocks = [address(context, builder, t_plane, v_plane, at, BYTE) for at in (v_first, v_second)]
        zero = ir.Constant(_WORDS, None)
        totals = [[cgutils.alloca_once_value(builder, zero) for _ in range(SLICES)] for _ in blocks]
        for total in sum(totals, []):
            builder.store(zero, total)

        def count(words: list[Any], i: Any) -> None:
            for s in range(SLICES):
                index = builder.add(builder.mul(i, LONG(SLICES)), LONG(s))
                query = splat(builder, load(builder, address(context, builder, t_slices, v_slices, index, LONG)), _WORDS)
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
            pointer = address(context, builder, t_counts, v_counts, LONG(_LANES * stream), _COUNTS)
            builder.store(builder.trunc(value, _COUNTS), pointer).align = 4
        return context.get_dummy_value()

    index = types.intp
    return types.void(plane, index, index, index, slices, counts), codegen


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


def make_reach_block(with_offsets: bool) -> Any:
    """Return an operation that compares the bounds of a block's 8 rows with a threshold.

    reach_block(first, second, at, scales, offsets, row, weights, stage, threshold) -> bits of the rows whose bound
    reaches it. first, second: i32 counts of the two leading planes, 8 from `at` on; scales, offsets: f32, 8 from
    `row` on; weights: f32 [stages][4]: of the first and second counts, constant, and slack per unit of offset.

    bound = scale * (w0 first + w1 second + w2) + offset + w3 |offset|
    """

    @intrinsic
    def reach_block(
        typing_context: Any,
        first: Any,
        second: Any,
        at: Any,
        scales: Any,
        offsets: Any,
        row: Any,
        weights: Any,
        stage: Any,
        threshold: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            v_first, v_second, v_at, v_scales, v_offsets, v_row, v_weights, v_stage, v_threshold = arguments
            t_first, t_second, t_scales, t_offsets, t_weights = (signature.args[i] for i in (0, 1, 3, 4, 6))

            def weight(number: int) -> Any:
                index = builder.add(builder.mul(v_stage, LONG(4)), LONG(number))
                return splat(
                    builder, load(builder, address(context, builder, t_weights, v_weights, index, ir.FloatType())), _REALS
                )

            def lanes(array_type: Any, array: Any, index: Any, vector: Any) -> Any:
                return load(builder, address(context, builder, array_type, array, index, vector))

            bound = weight(2)
            for number, t_counts, v_counts in ((0, t_first, v_first), (1, t_second, v_second)):
                counts = builder.sitofp(lanes(t_counts, v_counts, v_at, _COUNTS), _REALS)
                bound = builder.fadd(bound, builder.fmul(weight(number), counts))
            bound = builder.fmul(bound, lanes(t_scales, v_scales, v_row, _REALS))
            if with_offsets:
                offset = lanes(t_offsets, v_offsets, v_row, _REALS)
                size = call(builder, "llvm.fabs.v8f32", _REALS, [offset])
                bound = builder.fadd(bound, builder.fadd(offset, builder.fmul(weight(3), size)))
            reached = builder.fcmp_ordered(">=", bound, splat(builder, v_threshold, _REALS))
            return builder.zext(builder.bitcast(reached, BYTE), INT)

        index = types.intp
        arguments = (first, second, index, scales, offsets, index, weights, index, types.float32)
        return types.uint32(*arguments), codegen

    return reach_block
