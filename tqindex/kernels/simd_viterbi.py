"""The block of trellis encoding: the Viterbi algorithm over many rows at once, one in each lane."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tqindex.codec.trellis import FARTHEST, METRIC_SHIFT, WINDOW
from tqindex.kernels.simd import BIT, INT, LONG, address, call, cgutils, constant, load

#: Rows that are encoded at once.
ROWS = 32
_SHORT = ir.IntType(16)
SHORTS = ir.VectorType(_SHORT, ROWS)


def make_find_paths(bits: int) -> Any:
    """Return the operation that finds the cheapest path to every state, coordinate by coordinate.

    find_paths(targets, n, levels, costs, choices): targets i16, flat [n][ROWS]; levels i16, flat [windows][ROWS], each
    in all lanes; costs u16, flat [2][states][ROWS], the first half the costs to begin with, in turns overwritten;
    choices u32, flat [n][states][2**bits], written but for each last one.

    A state is a window without its first `bits` bits, which are a path's choice. It is found in rounds, whose results
    are the words of `choices`: bit r tells for row r whether the upper half of the choices was better, then for either
    half which half of that, and so on. All costs are lowered by their least after every coordinate, in passing.
    """

    @intrinsic
    def find_paths(typing_context: Any, targets: Any, n: Any, levels: Any, costs: Any, choices: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            values = [
                address(context, builder, signature.args[i], arguments[i], LONG(0), target)
                for i, target in ((0, SHORTS), (2, SHORTS), (3, SHORTS), (4, INT))
            ]
            _Paths(builder, bits, *values).emit(arguments[1])
            return context.get_dummy_value()

        return types.void(targets, types.intp, levels, costs, choices), codegen

    return find_paths


class _Paths:
    """Emits the loops of one width over pointers to vectors, and to the words of choices."""

    def __init__(self, builder: Any, bits: int, targets: Any, levels: Any, costs: Any, choices: Any) -> None:
        self.builder, self.bits = builder, bits
        self.targets, self.levels, self.costs, self.choices = targets, levels, costs, choices
        self.states, self.branches = 2 ** (WINDOW - bits), 2**bits
        #: States come in groups of as many as branches, which share the states before them.
        self.groups = self.states // self.branches

    def emit(self, n: Any) -> None:
        """Emit the loop over n coordinates."""
        builder = self.builder
        least = cgutils.alloca_once(builder, SHORTS)
        builder.store(ir.Constant(SHORTS, None), least)
        with cgutils.for_range(builder, n) as loop:
            turn = builder.and_(loop.index, LONG(1))
            source, target = (
                builder.gep(self.costs, [builder.mul(half, LONG(self.states))])
                for half in (turn, builder.sub(LONG(1), turn))
            )
            value = self._at(self.targets, loop.index)
            lowered = builder.load(least)
            builder.store(constant(SHORTS, -1), least)
            words = builder.gep(self.choices, [builder.mul(loop.index, LONG(self.states * self.branches))])
            with cgutils.for_range(builder, LONG(self.groups)) as group:
                before = [
                    builder.sub(self._at(source, builder.add(group.index, LONG(self.groups * branch))), lowered)
                    for branch in range(self.branches)
                ]
                with cgutils.for_range(builder, LONG(self.branches)) as place:
                    state = builder.add(builder.mul(group.index, LONG(self.branches)), place.index)
                    cost = self._reach(state, value, before, words)
                    builder.store(cost, builder.gep(target, [state])).align = 2
                    builder.store(self._min(builder.load(least), cost), least)

    def _reach(self, state: Any, value: Any, before: list[Any], words: Any) -> Any:
        """Return the least cost of a state; writes the words that tell by which branch."""
        builder = self.builder
        sums = []
        for branch, cost in enumerate(before):
            level = self._at(self.levels, builder.add(state, LONG(self.states * branch)))
            sums.append(builder.add(cost, self._metric(value, level)))
        return self._choose(sums, builder.gep(words, [builder.mul(state, LONG(self.branches))]))

    def _metric(self, value: Any, level: Any) -> Any:
        """Return the squared difference, clipped and without its last bits."""
        builder = self.builder
        difference = call(builder, f"llvm.abs.v{ROWS}i16", SHORTS, [builder.sub(value, level), BIT(0)])
        difference = self._min(difference, constant(SHORTS, FARTHEST))
        return builder.lshr(builder.mul(difference, difference), constant(SHORTS, METRIC_SHIFT))

    def _choose(self, sums: list[Any], words: Any, number: int = 0) -> Any:
        """Return the least of the sums; writes where it is as words, this round's as the given number."""
        if len(sums) == 1:
            return sums[0]
        builder, half = self.builder, len(sums) // 2
        lower = self._choose(sums[:half], words, 2 * number + 1)
        upper = self._choose(sums[half:], words, 2 * number + 2)
        word = builder.bitcast(builder.icmp_unsigned("<", upper, lower), INT)
        builder.store(word, builder.gep(words, [LONG(number)])).align = 4
        return self._min(lower, upper)

    def _min(self, a: Any, b: Any) -> Any:
        return call(self.builder, f"llvm.umin.v{ROWS}i16", SHORTS, [a, b])

    def _at(self, vectors: Any, index: Any) -> Any:
        value = load(self.builder, self.builder.gep(vectors, [index]))
        value.align = 2
        return value
