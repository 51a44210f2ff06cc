"""Every specialisation of every kernel compiles for real GPUs; what the assembler reports of it is within limits.

Here for one architecture each, the principal ones for all; every night all for all. Nothing runs. The report names
registers, spills and shared memory; PTX shows whether dp4a is there.
"""

import itertools
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any
from unittest.mock import ANY as ANY_NUMBER

import pytest

from tqindex.codec import Codec
from tqindex.errors import DeviceError
from tqindex.gpu import attention, best, codes, encode, few, scan
from tqindex.gpu.encode import Form
from tqindex.gpu.nvrtc import ARCHITECTURES, Compiled, Resources, compile_source
from tqindex.gpu.runtime import Kernel
from tqindex.gpu.sources import define_options, kernel_names, read_source

Module = tuple[str, tuple[str, ...]]
#: Registers of a thread, by kernel: what lets as many blocks share a multiprocessor as its __launch_bounds__ wants.
MOST_REGISTERS = {
    "encode_rows": 255,
    "encode_queries": 255,
    "scan_tiles": 128,
    "bound_rows": 80,
    "list_survivors": 64,
    "score_rows": 128,
    "score_survivors": 128,
    "order_queries": 64,
    "list_live": 64,
    "select_best": 64,
    "sort_runs": 64,
    "merge_runs": 64,
    "score_means": 64,
    "score_keys": 128,
    "weigh_values": 128,
    "add_sums": 64,
}
MOST_SHARED_BYTES = 48 * 1024
WITH_DP4A = {"order_queries", "bound_rows", "score_rows", "score_survivors", "score_keys", "weigh_values"}
WITH_MMA = {"scan_tiles"}
#: Bytes that codes of 8 bits spill all the same on Blackwell, by kernel and architecture. `scan_tiles` has all of the
#: registers; for more of them `score_survivors` would give up one of a multiprocessor's two blocks.
SPILLED_BYTES = {("scan_tiles", 100): 288, ("score_survivors", 120): 8}


def modules(*kernels: Kernel) -> list[Module]:
    """What is compiled for some kernels: a source with its defines, once."""
    return sorted({(kernel.source, define_options(kernel)) for kernel in kernels})


def scanning() -> list[Kernel]:
    return [kernel for module in (attention, best, codes, few, scan) for kernel in module.specialisations()]


@cache
def compiled(module: Module, architecture: int) -> Compiled:
    return compile_source(read_source(module[0]), module[1], architecture)


def problems(module: Module, architecture: int) -> list[str]:
    """What is wrong with a module, in words."""
    try:
        made = compiled(module, architecture)
    except DeviceError as error:
        return [f"{module}: {error}"]
    found = (
        [] if sorted(made.resources) == sorted(kernel_names(read_source(module[0]))) else [f"{module}: kernels lack"]
    )
    has_8_bits = "-DCODE_BITS=8" in module[1]
    for name, used in made.resources.items():
        # They meet sm_100's products of int8, which take more registers than those of other chips.
        is_short = name == "scan_tiles" and has_8_bits and architecture >= 100
        rules = {
            "spills": used.spilled_bytes <= SPILLED_BYTES.get((name, architecture), 0) * has_8_bits,
            "registers": used.registers <= (255 if is_short else MOST_REGISTERS[name]),
            "shared memory": used.shared_bytes <= MOST_SHARED_BYTES,
            "dp4a": ("dp4a" in entry(made.ptx, name)) == (name in WITH_DP4A),
            "mma": ("mma.sync" in entry(made.ptx, name)) == (name in WITH_MMA),
        }
        found += [
            f"{rule}: {name} of {module}, sm_{architecture}: {used}" for rule, holds in rules.items() if not holds
        ]
    return found


def entry(ptx: str, name: str) -> str:
    """A kernel's part of the PTX."""
    found = re.search(rf"\.entry {name}\(.*?^}}$", ptx, re.MULTILINE | re.DOTALL)
    assert found is not None, name
    return found[0]


def all_problems(pairs: Iterable[tuple[Module, int]]) -> list[str]:
    with ThreadPoolExecutor() as pool:
        return [problem for found in pool.map(lambda pair: problems(*pair), pairs) for problem in found]


def principal() -> list[Kernel]:
    """What most indexes use."""
    encoding = Form.of(Codec(1536, bits=4)).kernel("encode_rows")
    usual = {"CODE_BITS": 4, "SKETCH": 0, "KEEP": 16, "QUERIES": 4}
    return [encoding, *(kernel for kernel in scanning() if dict(kernel.defines).items() <= usual.items())]


def every() -> list[Module]:
    return modules(*scanning(), *encode.specialisations((100,)))


def of_float32() -> list[Module]:
    """Those that do not encode float16, which only changes how a vector is read; of these, one."""
    halves = modules(*(kernel for kernel in encode.specialisations((100,)) if dict(kernel.defines)["HALF"]))
    return [module for module in every() if module not in halves[1:]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_principal_specialisations_compile_for_every_architecture(architecture: int) -> None:
    assert all_problems((module, architecture) for module in modules(*principal())) == []


def test_every_specialisation_of_float32_compiles_for_some_architecture() -> None:
    assert all_problems(zip(of_float32(), itertools.cycle(ARCHITECTURES), strict=False)) == []


@pytest.mark.nightly
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_specialisation_compiles_for_every_architecture(architecture: int) -> None:
    wide = modules(*encode.specialisations((1536, 3072)))
    assert all_problems((module, architecture) for module in [*every(), *wide]) == []


@pytest.fixture
def one_kernel() -> Any:
    def compile_body(body: str, bounds: str = "") -> Compiled:
        return compile_source(f'extern "C" __global__ void {bounds} one(float* out, int n) {{{body}}}', (), 80)

    return compile_body


def test_spills_and_shared_memory_are_seen(one_kernel: Any) -> None:
    spilling = """
        float kept[300];
        for (int i = 0; i < 300; ++i) kept[i] = out[i];
        for (int i = 0; i < n; ++i) kept[(i * 7) % 300] += kept[i % 300];
        for (int i = 0; i < 300; ++i) out[i] = kept[i];"""
    assert one_kernel(spilling).resources["one"].stack_bytes >= 1200
    shared = one_kernel("__shared__ float kept[1000]; kept[n] = 1; __syncthreads(); out[0] = kept[n + 1];")
    assert shared.resources["one"].shared_bytes == 4000
    assert one_kernel("out[n] = 1;").resources["one"] == Resources(ANY_NUMBER, 0, 0, 0)
    many = """
        float kept[64];
        #pragma unroll
        for (int i = 0; i < 64; ++i) kept[i] = out[i];
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < 64; ++i) out[n + i] = kept[i] - kept[(i + 21) % 64];"""
    assert one_kernel(many).resources["one"].registers >= 64
    assert one_kernel(many, "__launch_bounds__(1024, 2)").resources["one"].spilled_bytes > 0


def test_what_does_not_compile_is_an_error_with_the_compilers_words(one_kernel: Any) -> None:
    with pytest.raises(DeviceError, match=r'(?s)NVRTC refused .* sm_80.*identifier "nothing" is undefined'):
        one_kernel("out[0] = nothing;")


def test_no_multiply_is_fused_with_an_add(one_kernel: Any) -> None:
    ptx = one_kernel("out[0] = out[1] * out[2] + out[3];").ptx
    assert "mul.f32" in ptx or "mul.rn.f32" in ptx
    assert "fma" not in ptx
