"""Arm: every kernel is compiled for it and its dot instructions looked for; nothing here runs on it.

Numba compiles for the machine that it runs on. A child process tells it of another one and takes the assembly, and
has nothing executed.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numpy as np
import pytest
from llvmlite import ir

from tqindex.codec.packing import BLOCK, interleave_rows
from tqindex.codec.trellis import windows_of
from tqindex.kernels import product, simd
from tqindex.kernels.simd_product import make_multiply_block
from tqindex.kernels.simd_rows import CodeLevels, make_dot_row, make_expand_row
from tqindex.kernels.simd_trellis import WindowLevels

# Prints (module, kernel, signature) of what adding and searching compiled.
SIGNATURES = """
import base64, pickle, sys
from numba.core.dispatcher import Dispatcher
from tqindex.cli.warmup import compile_kernels
compile_kernels()
modules = [m for name, m in sorted(sys.modules.items()) if name.startswith("tqindex.kernels")]
found = {(d.__module__, d.__name__, s) for m in modules for d in vars(m).values() if isinstance(d, Dispatcher)
         for s in d.signatures}
print(base64.b64encode(pickle.dumps(found)).decode())
"""
# Compiles those of the MODULES for LEVEL on CPU, prints {kernel: {instruction: count}}.
CROSS = """
import base64, collections, importlib, json, pickle, re, sys
level, modules, signatures = sys.argv[1:]
import llvmlite.binding as llvm
llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
llvm.get_process_triple = lambda: "aarch64-unknown-linux-gnu"
from numba.core import codegen
codegen.JITCPUCodegen._add_module = codegen.JITCPUCodegen.set_env = lambda *_: None
codegen.JITCodeLibrary._finalize_specific = lambda *_: None
codegen.JITCodeLibrary.get_pointer_to_function = lambda *_: 0
from tqindex.kernels import cpu
cpu.available_levels = lambda: (level,)
from numba.core.dispatcher import Dispatcher
for module, name, signature in pickle.loads(base64.b64decode(signatures)):
    if re.fullmatch(modules, module):
        getattr(importlib.import_module(module), name).compile(signature)
counts = {}
for module in [m for name, m in sys.modules.items() if name.startswith("tqindex.kernels")]:
    for name, value in vars(module).items():
        for result in value.overloads.values() if isinstance(value, Dispatcher) else ():
            words = re.findall(r"^\\t([a-z]\\w*(?:\\.\\w+)?)", result.library.get_asm_str(), re.MULTILINE)
            counts.setdefault(name, collections.Counter()).update(words)
print(json.dumps(counts))
"""
FEATURES = {"i8mm": "+dotprod,+i8mm", "dotprod": "+dotprod", "portable": "-dotprod"}
DOTS = {"i8mm": {"usdot"}, "dotprod": {"sdot"}}


def compile_for_arm(
    run_python: Callable[..., str], level: str, modules: str, signatures: str
) -> dict[str, dict[str, int]]:
    # No folder for a cache: the entries could not be loaded.
    environment = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": FEATURES[level], "TQINDEX_CACHE_DIR": __file__}
    counts: dict[str, dict[str, int]] = json.loads(run_python("-c", CROSS, level, modules, signatures, **environment))
    return counts


def test_every_portable_kernel_compiles(run_python: Any) -> None:
    signatures = run_python("-c", SIGNATURES, TQINDEX_SIMD="portable")
    counts = compile_for_arm(run_python, "portable", ".*", signatures)
    assert {"scan_rows", "multiply_tile", "expand_tile", "rotate_rows", "quantise_rows"} <= set(counts)
    for name, instructions in counts.items():
        assert instructions["ret"], name
        assert not set(instructions) & {"sdot", "udot", "usdot"}, name


@pytest.mark.parametrize("level", DOTS)
def test_products_are_dot_instructions(level: str, run_python: Any) -> None:
    signatures = run_python("-c", SIGNATURES)
    counts = compile_for_arm(run_python, level, ".*[.](scan|cascade)", signatures)
    # Two rows, two groups of four vectors; five numbers of planes, four vectors.
    for name, least in {"multiply_tile": 2 * 2 * 4, "multiply_row": 5 * 4}.items():
        found = {word: count for word, count in counts[name].items() if word.endswith("dot")}
        assert set(found) == DOTS[level], name
        assert sum(found.values()) >= least, name
    assert counts["expand_tile"]["tbl"]
    assert not counts["expand_tile"].get("sbfx"), "bits are spread one by one"


# -- the arithmetic of the Arm blocks, their instructions spelled out for whatever machine this is


def spelled_out(builder: Any, name: str, result: Any, operands: list[Any], other: Any) -> Any:
    """As `simd.call`; Arm's instructions as the architecture's manual defines them."""
    if not name.startswith("llvm.aarch64.neon"):
        return other(builder, name, result, operands)
    if name.split(".")[3] in ("tbl1", "tbl4", "tbx4"):
        found = operands.pop(0) if "tbx" in name else ir.Constant(result, None)
        table, places = simd.joined(builder, operands[:-1]), operands[-1]
        last = simd.BYTE(table.type.count - 1)
        for lane in range(16):
            index = ir.Constant(simd.INT, lane)
            place = builder.extract_element(places, index)
            entry = builder.extract_element(table, builder.and_(place, last))
            beyond = builder.icmp_unsigned(">", place, last)
            entry = builder.select(beyond, builder.extract_element(found, index), entry)
            found = builder.insert_element(found, entry, index)
        return found
    total, a, b = operands
    unsigned = {"sdot": False, "usdot": True}[name.split(".")[3]]
    products = builder.mul((builder.zext if unsigned else builder.sext)(a, simd.INTS), builder.sext(b, simd.INTS))
    for byte in range(4):
        lanes = ir.Constant(ir.VectorType(simd.INT, 4), list(range(byte, 16, 4)))
        total = builder.add(total, builder.shuffle_vector(products, products, lanes))
    return total


@pytest.fixture(params=DOTS)
def operations(request: Any, monkeypatch: pytest.MonkeyPatch) -> simd.Operations:
    monkeypatch.setattr(simd, "call", partial(spelled_out, other=simd.call))
    return simd.OPERATIONS[request.param]


def test_blocks_of_products(operations: simd.Operations) -> None:
    multiply_block = make_multiply_block(operations, 2, 2)

    @numba.njit
    def multiply(levels: Any, queries: Any, products: Any) -> None:
        multiply_block(levels, 0, 64, queries, 0, 1024, 64, products, 0, 32)

    rng = np.random.default_rng(0)
    levels = rng.choice(np.array([0, 1, 127, 128, 200, 255], np.uint8), (2, 64))
    queries = rng.choice(np.array([-128, -127, -1, 0, 1, 127], np.int8), (32, 64))
    products = np.empty((2, 32), np.int32)
    assert product.BLOCK_GROUPS == 2
    multiply(levels.ravel(), product.pack_queries(queries).ravel(), products.ravel())
    np.testing.assert_array_equal(products, levels.astype(np.int32) @ queries.astype(np.int32).T)


@pytest.mark.parametrize(("levels_of", "widths"), [(CodeLevels, (1, 2, 3, 4, 8)), (WindowLevels, (2, 3, 4))])
def test_rows_from_their_planes(levels_of: Any, widths: tuple[int, ...], operations: simd.Operations) -> None:
    dot_row, expand_row = make_dot_row(operations, levels_of), make_expand_row(operations, levels_of)

    @numba.njit
    def both(
        block: Any, leading: int, rest: Any, others: int, width: int, table: Any, query: Any, levels: Any, start: int
    ) -> int:
        size = BLOCK * width
        expand_row(block, 0, size, 3, leading, rest, 0, others, width, table, levels, 0, 64, start)
        return dot_row(block, 0, size, 3, leading, rest, 0, others, width, table, query, start)  # type: ignore[no-any-return]

    rng = np.random.default_rng(0)
    dim, depth = 104, 128  # the last step of 64 is not a whole one
    for bits in widths:
        codes = rng.integers(0, 1 << bits, dim).astype(np.uint8)
        planes = np.packbits(codes >> np.arange(bits)[::-1, None] & 1, axis=1, bitorder="little")
        query, levels = np.zeros(depth, np.int8), np.empty(depth, np.uint8)
        query[:dim] = rng.integers(-128, 128, dim)
        start = 2 ** (8 - bits) - 2 if levels_of is WindowLevels else 0
        if levels_of is WindowLevels:
            table = rng.permutation(256).astype(np.uint8)
            wanted = table[windows_of(codes[np.newaxis], np.array([start], np.uint8), bits)[0]]
        else:
            table = np.tile(rng.integers(0, 256, 16).astype(np.uint8), 4)
            wanted = codes if bits == 8 else table[codes]
        leading = min(bits, 2)
        rows = rng.integers(0, 256, (leading, BLOCK, dim // 8), np.uint8)
        rows[:, 3] = planes[:leading]
        block = np.concatenate([interleave_rows(plane).ravel() for plane in rows])
        rest = planes[leading:].ravel()
        dot = both(block, leading, rest, bits - leading, dim // 8, table, query, levels, start)
        np.testing.assert_array_equal(levels[:dim], wanted)
        assert dot == wanted.astype(np.int32) @ query[:dim].astype(np.int32)
