"""Operations on interleaved planes: counting their bits under a coarse query, comparing bounds, taking out a row."""

from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tqindex.kernels.simd import BYTE, FLOATS, INT, INTS, LONG, VOID, address, call, cgutils, load, splat

#: Bits of a coarse query's coordinate, two's complement.
SLICES = 4
#: Rows of a block, one per lane.
_LANES = 8
_WORD_BYTES = 8
#: Bytes of the pieces in which `tqindex.codec.packing.interleave_rows` keeps what is less than a word.
_PIECES = (4, 2, 1)
_WORDS = ir.VectorType(LONG, _LANES)
_COUNTS = ir.VectorType(INT, _LANES)
_REALS = ir.VectorType(ir.FloatType(), _LANES)
#: Blocks that are counted at once, far apart: one stream of reads alone does not fill the memory's bandwidth.
STREAMS = 2
#: Bytes by which reads are asked for ahead.
_AHEAD = 2048


@intrinsic
def count_blocks(
    typing_context: Any,
    plane: Any,
    first: Any,
    second: Any,
    step: Any,
    pairs: Any,
    width: Any,
    slices: Any,
    counts: Any,
    at: Any,
) -> Any:
    """Sum a coarse query over the set bits of the 8 rows of each of two runs of blocks.

    count_blocks(plane, first, second, step, pairs, width, slices, counts, at): plane u8, blocks of 8 rows of `width`
    bytes, `pairs` of them from byte `first` and as many from byte `second` on, `step` bytes apart; slices u8
    [ceil(width / 8)][SLICES][8]: bit s of the coordinates of a word, two's complement; counts i32, written from `at`
    on, 16 for each pair: those of the first run's block and those of the second's.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v_plane, v_first, v_second, v_step, v_pairs, v_width, v_slices, v_counts, v_at = arguments
        t_plane, t_slices, t_counts = signature.args[0], signature.args[6], signature.args[7]
        runs = [address(context, builder, t_plane, v_plane, start, BYTE) for start in (v_first, v_second)]
        slices = address(context, builder, t_slices, v_slices, LONG(0), LONG)
        counts = address(context, builder, t_counts, v_counts, v_at, INT)
        # Ahead is where the run goes: its blocks need not be neighbours.
        one_step = builder.select(builder.icmp_signed("==", v_step, LONG(0)), LONG(1), v_step)
        steps = builder.udiv(builder.add(one_step, LONG(_AHEAD - 1)), one_step)
        ahead = builder.mul(steps, one_step)
        whole, tail = builder.lshr(v_width, LONG(3)), builder.and_(v_width, LONG(7))

        def each_pair(sum_pair: Callable[[list[Any]], list[Any]]) -> None:
            """Emit the loop over the pairs; sum_pair(blocks) returns the slices' totals of either."""
            with cgutils.for_range_slice(builder, LONG(0), v_pairs, LONG(1), LONG) as (j, _):
                blocks = [builder.gep(run, [builder.mul(j, v_step)]) for run in runs]
                for stream, total in enumerate(sum_pair(blocks)):
                    index = builder.add(builder.mul(j, LONG(_LANES * STREAMS)), LONG(_LANES * stream))
                    pointer = builder.bitcast(builder.gep(counts, [index]), _COUNTS.as_pointer())
                    builder.store(builder.trunc(_join_slices(builder, total), _COUNTS), pointer).align = 4

        def sum_any(blocks: list[Any]) -> list[Any]:
            return _sum_pair(builder, blocks, slices, whole, tail, ahead)

        # Rows of one word and a tail: without a loop for each block, and without asking for each how long the tail is.
        with builder.if_else(builder.icmp_unsigned("==", whole, LONG(1))) as (short, long):
            with short:
                for size in range(_WORD_BYTES):
                    with builder.if_then(builder.icmp_unsigned("==", tail, LONG(size))):
                        queries = [_query(builder, slices, LONG(i)) for i in range(1 + (size > 0))]
                        each_pair(partial(_sum_short_pair, builder, queries, size, ahead))
            with long:
                each_pair(sum_any)
        return context.get_dummy_value()

    index = types.intp
    return types.void(plane, index, index, index, index, index, slices, counts, index), codegen


def _query(builder: Any, slices: Any, word: Any) -> list[Any]:
    """Return the slices of a word of the query, in every lane."""
    first = builder.mul(word, LONG(SLICES))
    return [
        splat(builder, load(builder, builder.gep(slices, [builder.add(first, LONG(s))])), _WORDS) for s in range(SLICES)
    ]


def _count(builder: Any, word: Any, query: list[Any]) -> list[Any]:
    """Return for each slice how many bits of it are set in 8 rows' words."""
    return [call(builder, "llvm.ctpop.v8i64", _WORDS, [builder.and_(word, one)]) for one in query]


def _join_slices(builder: Any, totals: list[Any]) -> Any:
    """Return what the slices' counts stand for: two's complement, the highest one counts against the others."""
    value = builder.neg(totals[-1])
    for total in totals[-2::-1]:
        value = builder.add(builder.add(value, value), total)
    return value


def _load_word(builder: Any, block: Any, i: Any, ahead: Any) -> Any:
    """Return word i of a block's rows; asks for the one that is `ahead` bytes behind it."""
    pointer = builder.gep(block, [builder.mul(i, LONG(_LANES * _WORD_BYTES))])
    call(builder, "llvm.prefetch.p0", VOID, [builder.gep(pointer, [ahead]), INT(0), INT(3), INT(1)])
    return load(builder, builder.bitcast(pointer, _WORDS.as_pointer()))


def _load_piece(builder: Any, block: Any, at: Any, size: int, shift: Any) -> Any:
    """Return `size` bytes of each row, from byte `at` of the block on, shifted to their place in a word."""
    pointer = builder.bitcast(builder.gep(block, [at]), ir.VectorType(ir.IntType(8 * size), _LANES).as_pointer())
    return builder.shl(builder.zext(load(builder, pointer), _WORDS), splat(builder, shift, _WORDS))


def _sum_short_pair(builder: Any, queries: list[list[Any]], size: int, ahead: Any, blocks: list[Any]) -> list[Any]:
    """Return the totals of two blocks whose rows are one word and `size` bytes."""
    totals = []
    for block in blocks:
        total = _count(builder, _load_word(builder, block, LONG(0), ahead), queries[0])
        if size:
            tail, done = ir.Constant(_WORDS, None), 0
            for part in _PIECES:
                if size & part:
                    at = LONG(_LANES * (_WORD_BYTES + done))
                    tail = builder.or_(tail, _load_piece(builder, block, at, part, LONG(8 * done)))
                    done += part
            total = [builder.add(*pair) for pair in zip(total, _count(builder, tail, queries[1]), strict=True)]
        totals.append(total)
    return totals


def _sum_pair(builder: Any, blocks: list[Any], slices: Any, whole: Any, tail: Any, ahead: Any) -> list[Any]:
    """Return the totals of two blocks whose rows are `whole` words and `tail` bytes."""
    totals = [[_variable(builder) for _ in range(SLICES)] for _ in blocks]

    def count(words: list[Any], i: Any) -> None:
        query = _query(builder, slices, i)
        for word, total in zip(words, totals, strict=True):
            for found, variable in zip(_count(builder, word, query), total, strict=True):
                builder.store(builder.add(builder.load(variable), found), variable)

    with cgutils.for_range_slice(builder, LONG(0), whole, LONG(1), LONG) as (i, _):
        count([_load_word(builder, block, i, ahead) for block in blocks], i)
    with builder.if_then(builder.icmp_signed("!=", tail, LONG(0))):
        words = [_variable(builder) for _ in blocks]
        done = cgutils.alloca_once_value(builder, LONG(0))
        builder.store(LONG(0), done)
        for size in _PIECES:
            with builder.if_then(builder.icmp_signed("!=", builder.and_(tail, LONG(size)), LONG(0))):
                at = builder.mul(builder.add(builder.mul(whole, LONG(8)), builder.load(done)), LONG(_LANES))
                shift = builder.mul(builder.load(done), LONG(8))
                for block, word in zip(blocks, words, strict=True):
                    piece = _load_piece(builder, block, at, size, shift)
                    builder.store(builder.or_(builder.load(word), piece), word)
                builder.store(builder.add(builder.load(done), LONG(size)), done)
        count([builder.load(word) for word in words], whole)
    return [[builder.load(variable) for variable in total] for total in totals]


def _variable(builder: Any) -> Any:
    """Return room for words, zero."""
    zero = ir.Constant(_WORDS, None)
    variable = cgutils.alloca_once_value(builder, zero)
    builder.store(zero, variable)
    return variable


def make_reach_pairs(with_offsets: bool) -> Any:
    """Return an operation that compares the bounds of pairs of blocks, 16 rows each, with a threshold.

    reach_pairs(first, first_at, other_at, second, second_at, scales, offsets, row, other_row, step, pairs, w0, w1, w2,
    w3, threshold, masks, at): masks u32, written from `at` on: bits of the rows whose bound reaches the threshold,
    those of the other block above. first, second: i32 counts of the two leading planes, 16 of each pair, `first` at
    two places; scales, offsets: f32, those of pair j from `row` + j step and `other_row` + j step on.

    bound = scale * (w0 first + w1 second + w2) + offset + w3 |offset|
    """

    @intrinsic
    def reach_pairs(
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
        step: Any,
        pairs: Any,
        w0: Any,
        w1: Any,
        w2: Any,
        w3: Any,
        threshold: Any,
        masks: Any,
        at: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            v_first_at, v_other_at, v_second_at, v_row, v_other_row = (arguments[i] for i in (1, 2, 4, 7, 8))
            weights = [splat(builder, weight, FLOATS) for weight in arguments[11:16]]
            both = ir.Constant(ir.VectorType(INT, 16), list(range(16)))

            def elements(argument: int, at: Any, target: Any) -> Any:
                return address(context, builder, signature.args[argument], arguments[argument], at, target)

            def lanes(argument: int, places: list[Any], vector: Any) -> Any:
                return builder.shuffle_vector(*(load(builder, elements(argument, at, vector)) for at in places), both)

            with cgutils.for_range_slice(builder, LONG(0), arguments[10], LONG(1), LONG) as (j, _):
                counted, rows = builder.mul(j, LONG(2 * _LANES)), builder.mul(j, arguments[9])
                first_counts = lanes(0, [builder.add(at, counted) for at in (v_first_at, v_other_at)], _COUNTS)
                second_counts = load(builder, elements(3, builder.add(v_second_at, counted), INTS))
                places = [builder.add(at, rows) for at in (v_row, v_other_row)]
                bound = builder.fadd(weights[2], builder.fmul(weights[0], builder.sitofp(first_counts, FLOATS)))
                bound = builder.fadd(bound, builder.fmul(weights[1], builder.sitofp(second_counts, FLOATS)))
                bound = builder.fmul(bound, lanes(5, places, _REALS))
                if with_offsets:
                    offset = lanes(6, places, _REALS)
                    size = call(builder, "llvm.fabs.v16f32", FLOATS, [offset])
                    bound = builder.fadd(bound, builder.fadd(offset, builder.fmul(weights[3], size)))
                reached = builder.bitcast(builder.fcmp_ordered(">=", bound, weights[4]), ir.IntType(16))
                builder.store(builder.zext(reached, INT), elements(16, builder.add(arguments[17], j), INT))
            return context.get_dummy_value()

        i, real = types.intp, types.float32
        arguments = (first, i, i, second, i, scales, offsets, i, i, i, i, real, real, real, real, real, masks, i)
        return types.void(*arguments), codegen

    return reach_pairs


@intrinsic
def prefetch(typing_context: Any, array: Any, at: Any, size: Any) -> Any:
    """Ask for `size` bytes of a u8 array, from `at` on, before they are read."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, at, size = arguments
        first = address(context, builder, signature.args[0], array, at, BYTE)
        last = builder.sub(size, LONG(1))

        def ask(i: Any) -> None:
            call(builder, "llvm.prefetch.p0", VOID, [builder.gep(first, [i]), INT(0), INT(3), INT(1)])

        with cgutils.for_range_slice(builder, LONG(0), last, LONG(64), LONG) as (i, _):
            ask(i)
        ask(last)  # in another line than the one before, where the bytes do not start one
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), codegen
