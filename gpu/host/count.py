"""What launches move and carry out, counted in the host run: bytes by argument, and a warp's instructions by class."""

import ctypes
import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.errors import DeviceError
from tqindex.gpu.host.build import load_module
from tqindex.gpu.host.call import HostKernel
from tqindex.gpu.host.runtime import HostRuntime
from tqindex.gpu.runtime import Kernel, Launch
from tqindex.gpu.sources import define_options, read_source

UInt64Array = npt.NDArray[np.uint64]
#: As count.cpp orders them.
_KINDS = ("loads", "stores", "dp4a", "shuffles", "votes", "barriers", "mma", "blocks")
_ARRAY_COUNTS = 8
SECTOR_BYTES = 32
_INSTRUCTION = re.compile(r"^ +([0-9a-f]+):\t(\S+) *(.*)$", re.MULTILINE)
_ONE = re.compile(r"\S+ <_Z\d+__")  # CUDA's own functions, which intrinsics.h keeps apart for this
_FREE = re.compile("mov|push|pop|nop|ret|endbr|data16|cs")
_EXTENSION = re.compile("mov(z|s[bwl][wlq])")
_ZERO = re.compile(r"p?xor[lq]? +(%\w+),\1")
_START = re.compile(r"^([0-9a-f]+) <shim_count_blocks>:$", re.MULTILINE)


@dataclass(frozen=True)
class ArrayTraffic:
    """Traffic of an argument, of loads or of stores.

    Attributes
    ----------
    asked_bytes : what threads ask for
    request_bytes : in sectors of 32 bytes, each counted once for each instruction of a warp
    block_bytes : the same, each counted anew for a block that comes 64 or more after the last that touched it: what
        does not stay in a cache for the blocks that run beside each other
    distinct_bytes : the same, each counted once
    """

    asked_bytes: int
    request_bytes: int
    block_bytes: int
    distinct_bytes: int


@dataclass(frozen=True)
class Counts:
    """Counts of one launch.

    Attributes
    ----------
    kernel : Kernel
    grid, block : sizes
    array_bytes : tuple of int, sizes of the arguments, 0 for a number
    loads, stores : tuple of ArrayTraffic, by argument
    shared_wavefronts : turns of 128 bytes that shared memory takes, bank conflicts counted
    shared_bytes : what threads ask of it
    global_wavefronts : turns of 128 bytes that the first-level cache takes, which is the same memory
    operations : dict, a warp's loads, stores (of global and shared memory), dp4a, shuffles, votes, barriers, mma
    instructions : dict, a warp's instructions by class: integer, float32, float64; the host compiler's, as an estimate
    """

    kernel: Kernel
    grid: tuple[int, ...]
    block: tuple[int, ...]
    array_bytes: tuple[int, ...]
    loads: tuple[ArrayTraffic, ...]
    stores: tuple[ArrayTraffic, ...]
    shared_wavefronts: int
    shared_bytes: int
    global_wavefronts: int
    operations: dict[str, int]
    instructions: dict[str, int]


class CountingRuntime(HostRuntime):
    """The host run, which also counts every launch.

    Attributes
    ----------
    counts : list of Counts
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[Counts] = []

    def function(self, kernel: Kernel) -> Launch:
        """Return what carries out a launch twice, to count traffic and instructions."""
        source = read_source(kernel.source), define_options(kernel)

        def count(grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], shared_mem: int = 0) -> None:
            copies = [arg.copy() for arg in args]
            instructions = _run(load_module(*source, counting="instructions"), kernel, grid, block, copies, shared_mem)
            traffic = _run(load_module(*source, counting="traffic"), kernel, grid, block, args, shared_mem)
            self.counts.append(_counts(kernel, grid, block, args, traffic, instructions))

        return count


def _run(
    library: ctypes.CDLL, kernel: Kernel, grid: Any, block: Any, args: Sequence[Any], shared_mem: int
) -> ctypes.CDLL:
    """Run a launch with all its counters at zero before; they are kept in the library."""
    arrays = [arg if isinstance(arg, np.ndarray) else np.empty(0) for arg in args]
    begins = (ctypes.c_void_p * len(args))(*(array.ctypes.data for array in arrays))
    sizes = (ctypes.c_uint64 * len(args))(*(array.nbytes for array in arrays))
    library.shim_count_start(len(args), begins, sizes)
    HostKernel(library, kernel.name)(grid, block, args, shared_mem)
    return library


def _counts(
    kernel: Kernel, grid: Any, block: Any, args: Sequence[Any], traffic: ctypes.CDLL, instructions: ctypes.CDLL
) -> Counts:
    numbers = np.zeros(_ARRAY_COUNTS * len(args) + len(_KINDS) + 3, np.uint64)
    traffic.shim_count_read(ctypes.c_void_p(numbers.ctypes.data))
    found = numbers.tolist()
    sectors = np.array([1, SECTOR_BYTES, SECTOR_BYTES, SECTOR_BYTES], np.uint64)
    arrays = [
        ArrayTraffic(*(sectors * numbers[start : start + 4]).tolist())
        for start in range(0, _ARRAY_COUNTS * len(args), _ARRAY_COUNTS // 2)
    ]
    totals = found[_ARRAY_COUNTS * len(args) :]
    return Counts(
        kernel,
        grid,
        block,
        tuple(arg.nbytes if isinstance(arg, np.ndarray) else 0 for arg in args),
        tuple(arrays[0::2]),
        tuple(arrays[1::2]),
        totals[-3],
        totals[-2],
        totals[-1],
        dict(zip(_KINDS[:-1], totals, strict=False)),
        dict(_instructions(instructions)),
    )


def _instructions(library: ctypes.CDLL) -> Counter[str]:
    """Return a warp's instructions by class: those of each basic block, as often as it ran."""
    n = library.shim_count_blocks()
    places, counts = np.zeros(n, np.int64), np.zeros(n, np.uint64)
    library.shim_count_read_blocks(ctypes.c_void_p(places.ctypes.data), ctypes.c_void_p(counts.ctypes.data))
    known, total = _block_classes(library._name), Counter[str]()
    for place, count in zip(places.tolist(), counts.tolist(), strict=True):
        for name, number in known[place].items():
            total[name] += number * count
    return total


@cache
def _block_classes(path: str) -> dict[int, Counter[str]]:
    """Return each basic block's instructions by class, by its place from the function `shim_count_blocks` on."""
    command = ["objdump", "--disassemble", "--no-show-raw-insn", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    start = _START.search(done.stdout)
    if done.returncode or start is None:
        raise DeviceError(f"objdump cannot read a module of the host run: {done.stderr}")
    origin, found = int(start[1], 16), dict[int, Counter[str]]()
    lines = _INSTRUCTION.findall(done.stdout)
    current: Counter[str] = Counter()
    for (_, name, operands), following in zip(lines, [*lines[1:], ("0", "", "")], strict=True):
        if name == "call" and "__sanitizer_cov_trace_pc" in operands:
            current = found.setdefault(int(following[0], 16) - origin, Counter())
        elif kind := _class_of(name, operands):
            current[kind] += 1
        if name in ("ret", "jmp"):
            current = Counter()
    return found


def _class_of(name: str, operands: str) -> str | None:
    """Return an x86 instruction's class; None for what a GPU does without.

    That is: copies, to the stack too, and zeros, since a GPU's instructions name their result and its registers are
    many; calls, since the functions that are called count themselves, but for those that are one instruction there.
    """
    if name == "call":
        return "integer" if _ONE.match(operands) else None
    if (_FREE.match(name) and not _EXTENSION.match(name)) or _ZERO.fullmatch(f"{name} {operands}"):
        return None
    return "float64" if name.endswith("sd") else "float32" if name.endswith("ss") else "integer"
