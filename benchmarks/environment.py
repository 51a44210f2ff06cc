"""What figures depend on besides the data: machine, versions, sources."""

import datetime as dt
import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tqindex
from tqindex.bench.peers import PACKAGES

_PACKAGES = ("numpy", "numba", *(package.distribution for package in PACKAGES.values()))
#: CPU features that decide which kernels run, here or in a peer.
_FEATURES = (
    "avx2",
    "avx512f",
    "avx512vbmi",
    "avx512vnni",
    "avx512vpopcntdq",
    "gfni",
    "amx-int8",
    "dotprod",
    "i8mm",
    "sve",
)
#: What a run writes itself is no change of what it measures.
_RESULTS = ":(exclude,top)benchmarks/results"
#: Sources whose change may change a figure of tqindex.
_MEASURED_SOURCES = ("codec", "kernels", "index")


def describe_environment(device: str = "cpu") -> dict[str, Any]:
    """Return what a result file says of the machine and the software, and of the GPU that was measured."""
    from tqindex.kernels.cpu import _features, simd_level

    features = _features()
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "commit": _git("rev-parse", "--short", "HEAD") or None,
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no", "--", ":/", _RESULTS)),
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "features": [name for name in _FEATURES if name in features],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "simd": simd_level(),
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := installed_version(name)) is not None},
    } | ({} if device == "cpu" else {"gpu": describe_device(device)})


def describe_device(device: str) -> dict[str, Any]:
    """Return what figures of a GPU depend on."""
    from tqindex.gpu.cuda import describe
    from tqindex.index.engine import check_device

    return describe(check_device(device) or 0)


def installed_version(distribution: str) -> str | None:
    """Return the version of a distribution; None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


@cache
def cpu_name() -> str:
    """Return the CPU's name as the system has it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@cache
def sources_hash() -> str:
    """Return a hash of all sources that codes, kernels and searches are made of."""
    root = Path(tqindex.__file__).parent
    digest = hashlib.sha256()
    for source in sorted(path for name in _MEASURED_SOURCES for path in (root / name).glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()


@cache
def gpu_sources_hash() -> str:
    """Return a hash of all sources of what runs on a GPU."""
    import tqindex.gpu

    root = Path(tqindex.gpu.__file__).parent
    digest = hashlib.sha256()
    for source in sorted(path for ending in ("py", "cu", "cuh") for path in root.glob(f"*.{ending}")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()


def _git(*arguments: str) -> str:
    """Return what git says of the checkout that this is part of; nothing where there is none."""
    folder = Path(__file__).parent
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
