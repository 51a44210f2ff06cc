"""Blocks of trellis encoding behind the Viterbi algorithm: following the best paths back, and turning bits to rows.

A word has one bit of each of ROWS rows. States and windows are lists of such words, most significant bit first, so that
choosing between words, bit by bit, is all that following ROWS paths at once takes.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tqindex.codec.trellis import WINDOW
from tqindex.kernels.simd import BIT, INT, INTS, LONG, address, call, cgutils, constant, load, splat
from tqindex.kernels.simd_viterbi import ROWS, SHORTS

_SQUARE = ir.VectorType(INT, ROWS)


def make_trace_back(bits: int) -> Any:
    """Return the operation that follows the best path of each row back.

    trace_back(costs, n, choices, codes, stride, starts): costs and choices as `make_find_paths` leaves them; codes u32,
    bits times `stride` words of which the first n are written: planes of the codes, the most significant first; starts
    u32, written: the words of the states before the first coordinate. Of equally good states at the end the smallest
    is taken.
    """

    @intrinsic
    def trace_back(typing_context: Any, costs: Any, n: Any, choices: Any, codes: Any, stride: Any, starts: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            v_costs, v_n, v_choices, v_codes, v_stride, v_starts = arguments
            t_costs, _, t_choices, t_codes, _, t_starts = signature.args
            first = builder.mul(builder.and_(v_n, LONG(1)), LONG(ROWS << (WINDOW - bits)))
            state = _best_states(builder, bits, address(context, builder, t_costs, v_costs, first, SHORTS))
            choices_pointer = address(context, builder, t_choices, v_choices, LONG(0), INTS)
            codes_pointer = address(context, builder, t_codes, v_codes, LONG(0), INT)
            with cgutils.for_range(builder, v_n) as loop:
                place = builder.sub(builder.sub(v_n, LONG(1)), loop.index)
                words = [builder.load(word) for word in state]
                step = builder.gep(choices_pointer, [builder.mul(place, LONG(2**WINDOW // INTS.count))])
                window = _choices_of(builder, bits, step, words) + words
                for word, value in zip(state, window, strict=False):
                    builder.store(value, word)
                for plane, value in enumerate(window[-bits:]):
                    at = builder.add(place, builder.mul(v_stride, LONG(plane)))
                    builder.store(value, builder.gep(codes_pointer, [at])).align = 4
            for i, word in enumerate(state):
                place = address(context, builder, t_starts, v_starts, LONG(i), INT)
                builder.store(builder.load(word), place).align = 4
            return context.get_dummy_value()

        index = types.intp
        return types.void(costs, index, choices, codes, index, starts), codegen

    return trace_back


def _best_states(builder: Any, bits: int, costs: Any) -> list[Any]:
    """Return variables of the words of each row's cheapest state."""
    state_bits = WINDOW - bits
    state = [cgutils.alloca_once(builder, INT) for _ in range(state_bits)]
    for word in state:
        builder.store(INT(0), word)
    least = cgutils.alloca_once(builder, SHORTS)
    builder.store(constant(SHORTS, -1), least)
    with cgutils.for_range(builder, LONG(2**state_bits)) as loop:
        cost, before = load(builder, builder.gep(costs, [loop.index])), builder.load(least)
        better = builder.bitcast(builder.icmp_unsigned("<", cost, before), INT)
        builder.store(call(builder, f"llvm.umin.v{ROWS}i16", SHORTS, [cost, before]), least)
        for place, word in enumerate(state):
            number = builder.shl(loop.index, LONG(64 - state_bits + place))
            own = builder.trunc(builder.ashr(number, LONG(63)), INT)  # this state's bit for all rows
            builder.store(_choose(builder, better, own, builder.load(word)), word)
    return state


def _choices_of(builder: Any, bits: int, step: Any, state: list[Any]) -> list[Any]:
    """Return the words of the choices that led to each row's state, of one coordinate's choices."""
    words = [load(builder, builder.gep(step, [LONG(i)])) for i in range(2**WINDOW // INTS.count)]
    for word in state:
        if len(words) > 1:
            lower, upper = words[: len(words) // 2], words[len(words) // 2 :]
        else:  # what is left of the choice between states is one within a vector
            half = words[0].type.count // 2
            lanes = (ir.Constant(ir.VectorType(INT, half), list(range(at, at + half))) for at in (0, half))
            lower, upper = ([builder.shuffle_vector(words[0], words[0], of_half)] for of_half in lanes)
        mask = splat(builder, word, upper[0].type)
        words = [_choose(builder, mask, *pair) for pair in zip(upper, lower, strict=True)]
    rounds = [builder.extract_element(words[0], INT(i)) for i in range(2**bits - 1)]
    chosen = list[Any]()
    for place in range(bits):
        candidates = rounds[2**place - 1 : 2 ** (place + 1) - 1]
        for word in chosen:
            half = len(candidates) // 2
            pairs = zip(candidates[half:], candidates[:half], strict=True)
            candidates = [_choose(builder, word, *pair) for pair in pairs]
        chosen.append(candidates[0])
    return chosen


def _choose(builder: Any, mask: Any, one: Any, other: Any) -> Any:
    """Return the bits of `one` where the mask's are set, those of `other` elsewhere."""
    return builder.xor(other, builder.and_(builder.xor(one, other), mask))


@intrinsic
def transpose_bits(typing_context: Any, words: Any, at: Any, out: Any) -> Any:
    """Write ROWS words, u32, so that bit i of word j is bit j of the word i that stands, from `at` on, in `words`."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v_words, v_at, v_out = arguments
        square = load(builder, address(context, builder, signature.args[0], v_words, v_at, _SQUARE))
        step = ROWS // 2
        while step:
            # Blocks of `step` rows and columns above and below the diagonal change places.
            lanes = ir.Constant(_SQUARE, [lane ^ step for lane in range(ROWS)])
            other = builder.shuffle_vector(square, square, lanes)
            left = constant(_SQUARE, sum(1 << bit for bit in range(ROWS) if not bit & step))
            right = builder.xor(left, constant(_SQUARE, -1))
            shift = constant(_SQUARE, step)
            lower = builder.or_(builder.and_(square, right), builder.and_(builder.lshr(other, shift), left))
            upper = builder.or_(builder.and_(square, left), builder.and_(builder.shl(other, shift), right))
            is_lower = ir.Constant(ir.VectorType(BIT, ROWS), [int(bool(lane & step)) for lane in range(ROWS)])
            square = builder.select(is_lower, lower, upper)
            step //= 2
        builder.store(square, address(context, builder, signature.args[2], v_out, LONG(0), _SQUARE)).align = 4
        return context.get_dummy_value()

    return types.void(words, types.intp, out), codegen
