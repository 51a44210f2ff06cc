"""Which SIMD level the kernels are compiled for, decided once per process.

Levels, best first: on x86-64 "amx" (AVX-512 VNNI and AMX int8 tiles), "avx512" (AVX-512 VNNI), "avx2"; on Arm "i8mm"
(usdot), "dotprod" (sdot); anywhere "portable".
TQINDEX_SIMD names one; a level that the CPU or the system does not allow is refused, not replaced.
"""

import ctypes
import functools
import os
import platform
import sys
from typing import Any

import llvmlite.binding as llvm
import numba

from tqindex.errors import ArgumentError

LEVELS = ("amx", "avx512", "avx2", "i8mm", "dotprod", "portable")
_FEATURES = {
    "amx": {"amx-tile", "amx-int8"},
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512vnni"},
    "avx2": {"avx2"},
    "i8mm": {"i8mm", "dotprod"},
    "dotprod": {"dotprod"},
    "portable": set[str](),
}
_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18


@functools.cache
def available_levels() -> tuple[str, ...]:
    """Return the levels that this CPU and system allow, best first."""
    config: Any = numba.config
    if config.CPU_NAME or config.CPU_FEATURES:  # Numba may be told not to use what is there
        return ("portable",)
    features = _features()
    if sys.platform == "darwin" and platform.machine() == "arm64":
        features.add("dotprod")  # LLVM does not tell features there; every Mac with an Arm CPU has this one
    levels = [level for level in LEVELS[1:] if _FEATURES[level] <= features]
    if "avx512" in levels and _FEATURES["amx"] <= features and _may_use_tiles():
        levels.insert(0, "amx")
    return tuple(levels)


def _features() -> set[str]:
    return {name for name, present in llvm.get_host_cpu_features().items() if present}


def has_byte_tables() -> bool:
    """Whether the level in use has byte shuffles across 64 entries (AVX-512 VBMI): not every CPU of a level has."""
    return simd_level() in ("amx", "avx512") and "avx512vbmi" in _features()


def has_bit_matrices() -> bool:
    """Whether that level has GFNI and AVX-512 VBMI2 too: Intel's CPUs from 2019 on, AMD's from 2022 on."""
    return has_byte_tables() and {"gfni", "avx512vbmi2"} <= _features()


def _may_use_tiles() -> bool:
    """Ask Linux for the tile registers; a process without permission is killed at the first tile instruction."""
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0)


@functools.cache
def simd_level() -> str:
    """Return the level in use: TQINDEX_SIMD, or the best there is.

    Raises
    ------
    ArgumentError
        TQINDEX_SIMD names a level that does not exist or that this machine does not have.
    """
    wanted = os.environ.get("TQINDEX_SIMD")
    levels = available_levels()
    if not wanted:
        return levels[0]
    if wanted not in levels:
        raise ArgumentError(f"TQINDEX_SIMD must be one of {', '.join(levels)} on this machine, got {wanted!r}")
    return wanted
