"""Levels of trellis codes in a KV cache's strips, a step of 64 codes at a time.

What a code stands for is named by its window: the last WINDOW bits of its row's stream (`tqindex.codec.trellis`). Rows
are tokens. Where a strip's lanes are tokens (keys), codes of a row follow each other in a lane, four in each word;
where they are channels of a page (values), neighbours of a row are in neighbouring lanes, and in the strip before.

A row's start, what stands before its first code, is in the lowest WINDOW - bits bits of its norm
(`tqindex.kernels.kv_norms`).
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from tqindex.codec.trellis import WINDOW
from tqindex.kernels.cpu import has_byte_tables
from tqindex.kernels.simd import BYTES, INT, INTS, LONG, Operations, call, cgutils, constant, load

#: Bytes of a word: the codes that a lane has in one step.
_WORD = 4
_COUNT = BYTES.count
_HAS_BYTE_TABLES = has_byte_tables()


class LaneWindows:
    """Windows of strips whose lanes are rows.

    `before` points to 16 words: each row's start in the highest byte, else zeros.
    """

    def __init__(self, builder: Any, bits: int, before: Any) -> None:
        self._builder, self._bits = builder, bits
        self._before = [(lag, cgutils.alloca_once(builder, INTS)) for lag in _lags(bits)]
        known = load(builder, builder.bitcast(before, INTS.as_pointer()))
        for _, place in self._before:
            builder.store(known, place)

    def of(self, codes: Any, step: Any) -> Any:
        """Return the windows of the next step's codes. What is known of each doubles; bits beyond a byte are lost."""
        builder, known = self._builder, codes
        for lag, place in self._before:
            words = builder.bitcast(known, INTS)
            operands = [words, builder.load(place), constant(INTS, 8 * lag)]
            earlier = builder.bitcast(call(builder, "llvm.fshl.v16i32", INTS, operands), BYTES)
            builder.store(words, place)
            known = builder.or_(known, builder.shl(earlier, constant(BYTES, lag * self._bits)))
        return known


class StripWindows:
    """Windows of strips whose lanes are neighbours in their rows.

    `before` points to 64 bytes for each step, [step][lane][row], of which the last two lanes count: windows of the
    strip before; before the first one, zeros and then the rows' starts. This strip's windows take their places.
    """

    def __init__(self, builder: Any, bits: int, before: Any) -> None:
        self._builder, self._bits, self._before = builder, bits, before

    def of(self, codes: Any, step: Any) -> Any:
        """Return the windows of the codes of step `step`."""
        builder, known = self._builder, codes
        place = builder.gep(self._before, [builder.mul(step, LONG(_COUNT))])
        place = builder.bitcast(place, BYTES.as_pointer())
        before = load(builder, place)
        for lag in _lags(self._bits):
            first = _COUNT - lag * _WORD
            lanes = ir.Constant(ir.VectorType(INT, _COUNT), list(range(first, first + _COUNT)))
            earlier = builder.shuffle_vector(before, known, lanes)
            known = builder.or_(known, builder.shl(earlier, constant(BYTES, lag * self._bits)))
        builder.store(known, place).align = 1
        return known


def _lags(bits: int) -> tuple[int, ...]:
    """Return how many codes earlier is looked up in each round: windows of one code, of two, of four."""
    return (1,) if 2 * bits >= WINDOW else (1, 2)


def window_lookup(builder: Any, operations: Operations, table: Any) -> Callable[[Any], Any]:
    """Return what looks 64 windows up in the table of levels, u8, that a pointer names."""
    if _HAS_BYTE_TABLES:
        return _wide_lookup(builder, table)
    if operations.windows is None:
        return _plain_lookup(builder, table)
    found: Callable[[Any], Any] = operations.windows(builder, table)
    return found


def _wide_lookup(builder: Any, table: Any) -> Callable[[Any], Any]:
    """By AVX-512 VBMI: the entries of the table's two halves by the lower seven bits, then one of each two."""
    places = [builder.bitcast(builder.gep(table, [LONG(i)]), BYTES.as_pointer()) for i in range(0, 2**WINDOW, _COUNT)]
    parts = [load(builder, place) for place in places]

    def look_up(windows: Any) -> Any:
        name = "llvm.x86.avx512.vpermi2var.qi.512"
        lower, upper = (call(builder, name, BYTES, [parts[i], windows, parts[i + 1]]) for i in (0, 2))
        return builder.select(builder.icmp_signed("<", windows, ir.Constant(BYTES, None)), upper, lower)

    return look_up


def _plain_lookup(builder: Any, table: Any) -> Callable[[Any], Any]:
    """One by one."""

    def look_up(windows: Any) -> Any:
        levels = ir.Constant(BYTES, ir.Undefined)
        for lane in range(_COUNT):
            window = builder.zext(builder.extract_element(windows, INT(lane)), LONG)
            levels = builder.insert_element(levels, builder.load(builder.gep(table, [window])), INT(lane))
        return levels

    return look_up
