"""Blocks that move a row's bytes into and out of blocks of 8 rows."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tqindex.codec.packing import BLOCK
from tqindex.kernels.simd import BYTE, LONG, address, cgutils, load

#: Bytes of a row's pieces: words, then what is left.
_WORD, _PIECES = 8, (4, 2, 1)


def piece(builder: Any, block: Any, lane: Any, first: Any, size: int) -> Any:
    """Point to the `size` bytes of a block's row behind its `first` ones, as one number."""
    index = builder.add(builder.mul(first, LONG(BLOCK)), builder.mul(lane, LONG(size)))
    return builder.bitcast(builder.gep(block, [index]), ir.IntType(8 * size).as_pointer())


def load_pieces(builder: Any, block: Any, lane: Any, first: Any, size: Any) -> Any:
    """Return the last `size` < 8 bytes of a block's row, those behind its `first` ones, as the lowest of a word."""
    word, done = (cgutils.alloca_once(builder, LONG) for _ in range(2))
    builder.store(LONG(0), word)
    builder.store(LONG(0), done)
    for part_size in _PIECES:
        with builder.if_then(builder.icmp_signed("!=", builder.and_(size, LONG(part_size)), LONG(0))):
            at = builder.load(done)
            part = builder.zext(load(builder, piece(builder, block, lane, builder.add(first, at), part_size)), LONG)
            builder.store(builder.or_(builder.load(word), builder.shl(part, builder.mul(at, LONG(8)))), word)
            builder.store(builder.add(at, LONG(part_size)), done)
    return builder.load(word)


@intrinsic
def gather_row(typing_context: Any, lead: Any, at: Any, lane: Any, width: Any, out: Any, out_at: Any) -> Any:
    """Copy one row's plane out of the block of 8 rows that starts at byte `at` of `lead`, u8.

    out: u8, whole words written from `out_at` on; zeros beyond the plane's `width` bytes.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v_lead, v_at, v_lane, v_width, v_out, v_out_at = arguments
        block = address(context, builder, signature.args[0], v_lead, v_at, BYTE)
        target = address(context, builder, signature.args[4], v_out, v_out_at, BYTE)

        def write(first: Any, word: Any) -> None:
            builder.store(word, builder.bitcast(builder.gep(target, [first]), LONG.as_pointer())).align = 1

        whole = builder.and_(v_width, LONG(-_WORD))
        with cgutils.for_range_slice(builder, LONG(0), whole, LONG(_WORD), LONG) as (i, _):
            write(i, load(builder, piece(builder, block, v_lane, i, _WORD)))
        tail = builder.and_(v_width, LONG(_WORD - 1))
        with builder.if_then(builder.icmp_signed("!=", tail, LONG(0))):
            write(whole, load_pieces(builder, block, v_lane, whole, tail))
        return context.get_dummy_value()

    index = types.intp
    return types.void(lead, index, index, index, out, index), codegen


@intrinsic
def scatter_row(typing_context: Any, plane: Any, plane_at: Any, width: Any, lead: Any, at: Any, lane: Any) -> Any:
    """Copy the `width` bytes of one row's plane, u8, into the block of 8 rows that starts at byte `at` of `lead`."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v_plane, v_plane_at, v_width, v_lead, v_at, v_lane = arguments
        source = address(context, builder, signature.args[0], v_plane, v_plane_at, BYTE)
        block = address(context, builder, signature.args[3], v_lead, v_at, BYTE)

        def move(first: Any, size: int) -> None:
            target = piece(builder, block, v_lane, first, size)
            part = load(builder, builder.bitcast(builder.gep(source, [first]), target.type))
            builder.store(part, target).align = 1

        whole = builder.and_(v_width, LONG(-_WORD))
        with cgutils.for_range_slice(builder, LONG(0), whole, LONG(_WORD), LONG) as (i, _):
            move(i, _WORD)
        done = cgutils.alloca_once_value(builder, whole)
        builder.store(whole, done)
        for size in _PIECES:
            with builder.if_then(builder.icmp_signed("!=", builder.and_(v_width, LONG(size)), LONG(0))):
                move(builder.load(done), size)
                builder.store(builder.add(builder.load(done), LONG(size)), done)
        return context.get_dummy_value()

    index = types.intp
    return types.void(plane, index, index, lead, index, index), codegen


@intrinsic
def copy_bytes(typing_context: Any, source: Any, at: Any, target: Any, target_at: Any, n: Any) -> Any:
    """Copy n bytes of one u8 array to another."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v_source, v_at, v_target, v_target_at, v_n = arguments
        pointer = address(context, builder, signature.args[0], v_source, v_at, BYTE)
        target_pointer = address(context, builder, signature.args[2], v_target, v_target_at, BYTE)
        cgutils.raw_memcpy(builder, target_pointer, pointer, v_n, 1)
        return context.get_dummy_value()

    index = types.intp
    return types.void(source, index, target, index, index), codegen
