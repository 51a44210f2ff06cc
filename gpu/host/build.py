"""Compiles kernels for the host with g++; what is made is kept by a hash of all it is made from."""

import ctypes
import functools
import hashlib
import re
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Literal

from tqindex.errors import DeviceError, MissingPackageError
from tqindex.gpu.sources import kernel_names
from tqindex.kernels.compile import cache_folder

Sanitizer = Literal["address", "thread"]
Counting = Literal["traffic", "instructions"]
_HERE = Path(__file__).parent
_COMPILER = "g++"
_COMMON = ("-std=c++17", "-g", "-fvisibility=hidden", f"-I{_HERE}")
#: No contraction: the codec's arithmetic, as NVRTC's --fmad=false.
_KERNEL = (*_COMMON, "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function")
#: Options of the kernels, and of the shim, which TSan must not see.
_SANITIZERS: dict[Sanitizer, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "address": (("-fsanitize=address,undefined", "-fno-sanitize-recover=all"), ("-DSHIM_LARGE_STACKS",)),
    "thread": (("-fsanitize=thread", "-DSHIM_TSAN"), ("-DSHIM_TSAN", "-DSHIM_LARGE_STACKS")),
}
#: GCC calls us before each load and store, or in each basic block; loops are unrolled where NVRTC is asked to.
_COUNTING: dict[Counting, tuple[str, ...]] = {
    "traffic": ("-fsanitize=thread",),
    "instructions": ("-fsanitize-coverage=trace-pc", "-fno-optimize-sibling-calls"),
}
_COUNTED = ("-DSHIM_COUNT", "-fno-tree-vectorize")
#: As many turns of a loop as GCC unrolls at most.
_MOST_UNROLLED = 64
_UNROLL = re.compile(r"#pragma unroll *(\d*)")
_LIBRARY = ("-O2", "-fPIC", "-DSHIM_POISON")


@functools.cache
def load_module(source: str, defines: tuple[str, ...] = (), counting: Counting | None = None) -> ctypes.CDLL:
    """Return a library with `shim_launch_NAME` and `shim_signature_NAME` of each kernel in the source.

    With `counting`, it also has the functions of count.cpp.

    Raises
    ------
    MissingPackageError
        There is no g++.
    DeviceError
        The source does not compile; the message is the compiler's.
    """
    if counting is None:
        shim = _compile_part("shim.cpp", "-fPIC")
        library = _compile(_wrapped(source), *_KERNEL, *_LIBRARY, *defines, "-shared", "-Wl,-Bsymbolic", str(shim))
    else:
        parts = [_compile_part(name, "-fPIC", "-DSHIM_COUNT") for name in ("shim.cpp", "count.cpp")]
        unrolled = _UNROLL.sub(lambda found: f"#pragma GCC unroll {found[1] or _MOST_UNROLLED}", _wrapped(source))
        parts.append(_compile(unrolled, *_KERNEL, *_LIBRARY, *_COUNTING[counting], *_COUNTED, *defines, "-c"))
        library = _compile("", "-shared", "-Wl,-Bsymbolic", *map(str, parts))  # without the sanitizer's own library
    return ctypes.CDLL(str(library))


@functools.cache
def compile_program(source: str, defines: tuple[str, ...], sanitizer: Sanitizer) -> Path:
    """Return a program that runs one launch, KERNEL FILE, under a sanitizer. Raises as `load_module`."""
    kernel_options, shim_options = _SANITIZERS[sanitizer]
    objects = str(_compile_part("shim.cpp", *shim_options)), str(_compile_part("run_launch.cpp"))
    # Optimised, encoding takes six times as long to compile, and sanitizers see less.
    return _compile(_wrapped(source), "-O0", *_KERNEL, *kernel_options, *defines, "-rdynamic", *objects, "-ldl")


def _wrapped(source: str) -> str:
    exports = "".join(f"SHIM_EXPORT({name})\n" for name in kernel_names(source))
    return f'#include "shim.h"\n{source}\n{exports}'


def _compile_part(name: str, *options: str) -> Path:
    return _compile((_HERE / name).read_text(), "-O2", *_COMMON, *options, "-c")


def _compile(text: str, *options: str) -> Path:
    """Return the compiled text, made unless it is there."""
    target = _folder() / hashlib.sha256(repr((options, text, _headers())).encode()).hexdigest()[:32]
    if target.exists():
        return target
    if shutil.which(_COMPILER) is None:
        raise MissingPackageError(f"the host run of GPU kernels needs {_COMPILER}, which is not installed")
    draft = target.with_suffix(f".{secrets.token_hex(8)}")
    # The text is read from standard input; objects follow, in no language.
    command = [_COMPILER, "-x", "c++", "-", "-x", "none", *options, "-pthread", "-o", str(draft)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DeviceError(f"{_COMPILER} refused a kernel's source:\n{done.stderr}")
    draft.replace(target)
    return target


@functools.cache
def _headers() -> str:
    return "".join(path.read_text() for path in sorted(_HERE.glob("*.h")))


@functools.cache
def _folder() -> Path:
    return cache_folder() or Path(tempfile.mkdtemp(prefix="tqindex-gpu-host-"))
