"""Blocks that multiply rows of levels with many queries in registers: from vectors, and from AMX tiles."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tqindex.kernels.simd import (
    BIT,
    BYTE,
    BYTES,
    INT,
    INTS,
    LONG,
    VOID,
    Operations,
    address,
    call,
    cgutils,
    constant,
    load,
    splat,
)

#: Rows whose products are compared with bounds at once, and queries of such a strip.
ROWS, STRIP = 16, 32


def make_multiply_block(operations: Operations, rows: int, groups: int) -> Any:
    """Return an operation that multiplies `rows` rows with `groups` groups of 16 queries, all in registers.

    multiply_block(levels, at, stride, queries, query_at, query_stride, depth, products, product_at, product_stride)
    with levels u8 [row][depth], queries i8 [group][depth / 4][16][4], products i32 [row][16 * group].
    """

    @intrinsic
    def multiply_block(
        typing_context: Any,
        levels: Any,
        at: Any,
        stride: Any,
        queries: Any,
        query_at: Any,
        query_stride: Any,
        depth: Any,
        products: Any,
        product_at: Any,
        product_stride: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            (v_levels, v_at, v_stride, v_queries, v_query_at, v_query_stride, v_depth) = arguments[:7]
            v_products, v_product_at, v_product_stride = arguments[7:]
            t_levels, t_queries, t_products = signature.args[0], signature.args[3], signature.args[7]
            totals = [
                [cgutils.alloca_once_value(builder, ir.Constant(INTS, None)) for _ in range(groups)]
                for _ in range(rows)
            ]
            for row in totals:
                for total in row:
                    builder.store(ir.Constant(INTS, None), total)
            row_at = [builder.add(v_at, builder.mul(v_stride, LONG(r))) for r in range(rows)]
            group_at = [builder.add(v_query_at, builder.mul(v_query_stride, LONG(g))) for g in range(groups)]
            with cgutils.for_range_slice(builder, LONG(0), v_depth, LONG(4), LONG) as (j, _):
                lanes = builder.mul(j, LONG(16))
                columns = [
                    load(builder, address(context, builder, t_queries, v_queries, builder.add(g, lanes), BYTES))
                    for g in group_at
                ]
                for r in range(rows):
                    word = load(builder, address(context, builder, t_levels, v_levels, builder.add(row_at[r], j), INT))
                    row = builder.bitcast(splat(builder, word, INTS), BYTES)
                    for g in range(groups):
                        total = builder.load(totals[r][g])
                        builder.store(operations.dot4(builder, total, row, columns[g]), totals[r][g])
            for r in range(rows):
                for g in range(groups):
                    index = builder.add(v_product_at, builder.add(builder.mul(v_product_stride, LONG(r)), LONG(16 * g)))
                    pointer = address(context, builder, t_products, v_products, index, INTS)
                    builder.store(builder.load(totals[r][g]), pointer).align = 4
            return context.get_dummy_value()

        index = types.intp
        arguments = (levels, index, index, queries, index, index, index, products, index, index)
        return types.void(*arguments), codegen

    return multiply_block


def _reaching(builder: Any, products: Any, bounds: list[Any]) -> Any:
    """Return as bits which of 16 rows' products, i32 [16][STRIP], reach any query's bound."""
    bits = INT(0)
    for row in range(ROWS):
        reached = constant(ir.VectorType(BIT, 16), 0)
        for half, bound in enumerate(bounds):
            pointer = builder.bitcast(builder.gep(products, [LONG(STRIP * row + 16 * half)]), INTS.as_pointer())
            reached = builder.or_(reached, builder.icmp_signed(">=", load(builder, pointer), bound))
        any_query = builder.icmp_unsigned("!=", builder.bitcast(reached, ir.IntType(16)), ir.IntType(16)(0))
        bits = builder.or_(bits, builder.shl(builder.zext(any_query, INT), INT(row)))
    return bits


def _bounds(context: Any, builder: Any, array_type: Any, array: Any) -> list[Any]:
    return [
        load(builder, address(context, builder, array_type, array, LONG(half), INTS)) for half in range(0, STRIP, 16)
    ]


@intrinsic
def reaching_rows(typing_context: Any, products: Any, row: Any, bounds: Any) -> Any:
    """Return as bits which of the rows row..row + 16 have a product that reaches its query's bound.

    products: i32 [row][STRIP]; bounds: i32 (STRIP,)
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v_products, v_row, v_bounds = arguments
        pointer = address(context, builder, signature.args[0], v_products, builder.mul(v_row, LONG(STRIP)), INT)
        return _reaching(builder, pointer, _bounds(context, builder, signature.args[2], v_bounds))

    return types.uint32(products, types.intp, bounds), codegen


# --- AMX ------------------------------------------------------------------------------------------------------------

_TILE_BYTES, _LINE = 1024, 64
#: Tiles are asked for so many steps before they are loaded: 1.15 (128 dimensions) to 1.36 times (1536) as fast, since
#: either side's tiles come from the second cache.
_AHEAD = 2
#: Coordinates of which two groups of queries fit into half of the tiles.
HELD_DEPTH = 128
#: Palette 1, eight tiles of 16 rows of 64 bytes.
TILE_CONFIG = bytes([1]) + bytes(15) + bytes([64, 0] * 8) + bytes(16) + bytes([16] * 8) + bytes(8)


@intrinsic
def configure_tiles(typing_context: Any, config: Any) -> Any:
    """Load the tile configuration, uint8 (64,); needed in every thread before its first tile operation."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = address(context, builder, signature.args[0], arguments[0], LONG(0), BYTE)
        call(builder, "llvm.x86.ldtilecfg", VOID, [pointer])
        return context.get_dummy_value()

    return types.void(config), codegen


@intrinsic
def release_tiles(typing_context: Any) -> Any:
    """Give the tile registers back, so that the system need not save them."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        call(builder, "llvm.x86.tilerelease", VOID, [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def multiply_block_amx(
    typing_context: Any,
    levels: Any,
    at: Any,
    stride: Any,
    queries: Any,
    query_at: Any,
    query_stride: Any,
    depth: Any,
    products: Any,
    product_at: Any,
    product_stride: Any,
) -> Any:
    """As `make_multiply_block` for 32 rows and 2 groups, depth a multiple of 64, but for the levels' order.

    levels u8 [2][depth / 64][16][64], halves `stride` apart. Tiles 0-3 hold totals, 4-5 rows, 6-7 queries.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, v_at, v_stride, _, v_query_at, v_query_stride, v_depth = arguments[:7]
        v_products, v_product_at, v_product_stride = arguments[7:]

        def tile(operation: str, number: int, array_type: Any, array: Any, index: Any, row_bytes: Any) -> None:
            pointer = builder.bitcast(address(context, builder, array_type, array, index, BYTE), BYTE.as_pointer())
            call(builder, f"llvm.x86.{operation}", VOID, [BYTE(number), pointer, row_bytes])

        def load_tile(number: int, array: int, index: Any) -> None:
            tile("tileloadd64", number, signature.args[array], arguments[array], index, LONG(_LINE))
            for line in range(0, _TILE_BYTES, _LINE):
                later = builder.add(index, LONG(_AHEAD * _TILE_BYTES + line))
                pointer = address(context, builder, signature.args[array], arguments[array], later, BYTE)
                call(builder, "llvm.prefetch.p0", VOID, [pointer, INT(0), INT(3), INT(1)])

        for number in range(4):
            call(builder, "llvm.x86.tilezero", VOID, [BYTE(number)])
        with cgutils.for_range_slice(builder, LONG(0), v_depth, LONG(64), LONG) as (j, _):
            step = builder.mul(j, LONG(16))
            for half in range(2):
                load_tile(4 + half, 0, builder.add(builder.add(v_at, builder.mul(v_stride, LONG(half))), step))
                group_at = builder.add(v_query_at, builder.mul(v_query_stride, LONG(half)))
                load_tile(6 + half, 3, builder.add(group_at, step))
            for row in range(2):
                for group in range(2):
                    numbers = [BYTE(2 * row + group), BYTE(4 + row), BYTE(6 + group)]
                    call(builder, "llvm.x86.tdpbusd", VOID, numbers)
        row_bytes = builder.mul(v_product_stride, LONG(4))
        for row in range(2):
            for group in range(2):
                index = builder.add(v_product_at, builder.mul(v_product_stride, LONG(16 * row)))
                index = builder.add(index, LONG(16 * group))
                tile("tilestored64", 2 * row + group, signature.args[7], v_products, index, row_bytes)
        return context.get_dummy_value()

    index = types.intp
    arguments = (levels, index, index, queries, index, index, index, products, index, index)
    return types.void(*arguments), codegen


@intrinsic
def multiply_held_amx(
    typing_context: Any,
    levels: Any,
    blocks: Any,
    queries: Any,
    query_at: Any,
    products: Any,
    bounds: Any,
    reaching: Any,
) -> Any:
    """Multiply `blocks` times 16 rows of 128 coordinates with 2 groups of queries, and compare with their bounds.

    levels u8 [block][2][16][64], products i32 [row][STRIP], bounds i32 (STRIP,), reaching u32 (blocks,): as
    `reaching_rows`. Tiles 4-7 hold the queries throughout, so that the rows' and the products' are all that moves;
    16 rows are compared while the next ones are multiplied.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v_blocks, v_query_at = arguments[1], arguments[3]

        def pointer(array: int, index: Any, target: Any) -> Any:
            return address(context, builder, signature.args[array], arguments[array], index, target)

        def load_tile(number: int, array: int, index: Any) -> None:
            call(builder, "llvm.x86.tileloadd64", VOID, [BYTE(number), pointer(array, index, BYTE), LONG(_LINE)])

        def compare(block: Any) -> None:
            first = pointer(4, builder.mul(block, LONG(ROWS * STRIP)), INT)
            builder.store(_reaching(builder, first, values), pointer(6, block, INT))

        values = _bounds(context, builder, signature.args[5], arguments[5])
        for number in range(4):
            load_tile(4 + number, 2, builder.add(v_query_at, LONG(_TILE_BYTES * number)))
        with cgutils.for_range(builder, v_blocks) as loop:
            level_at = builder.mul(loop.index, LONG(2 * _TILE_BYTES))
            for number in range(2):
                call(builder, "llvm.x86.tilezero", VOID, [BYTE(number)])
                load_tile(2 + number, 0, builder.add(level_at, LONG(_TILE_BYTES * number)))
            for step in range(2):
                for group in range(2):
                    call(builder, "llvm.x86.tdpbusd", VOID, [BYTE(group), BYTE(2 + step), BYTE(4 + 2 * group + step)])
            for group in range(2):
                index = builder.add(builder.mul(loop.index, LONG(ROWS * STRIP)), LONG(16 * group))
                target = builder.bitcast(pointer(4, index, INT), BYTE.as_pointer())
                call(builder, "llvm.x86.tilestored64", VOID, [BYTE(group), target, LONG(4 * STRIP)])
            # The next queries come from the second cache.
            later = builder.add(v_query_at, LONG(4 * _TILE_BYTES))
            for line in range(0, _TILE_BYTES, _LINE):
                index = builder.add(later, builder.add(builder.mul(loop.index, LONG(_TILE_BYTES)), LONG(line)))
                call(builder, "llvm.prefetch.p0", VOID, [pointer(2, index, BYTE), INT(0), INT(3), INT(1)])
            is_first = builder.icmp_signed("==", loop.index, LONG(0))
            compare(builder.select(is_first, LONG(0), builder.sub(loop.index, LONG(1))))
        compare(builder.sub(v_blocks, LONG(1)))
        return context.get_dummy_value()

    index = types.intp
    return types.void(levels, index, queries, index, products, bounds, reaching), codegen
