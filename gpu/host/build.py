"""Compiles kernels for the host with g++; modules are kept by a hash of all they are made from."""

import ctypes
import functools
import hashlib
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Literal

from tqindex.errors import DeviceError, MissingPackageError
from tqindex.gpu.sources import kernel_names
from tqindex.kernels.compile import cache_folder

Build = Literal["plain", "asan", "tsan"]
_HERE = Path(__file__).parent
_COMPILER = "g++"
_COMMON = ("-std=c++17", "-g", "-fPIC", "-fvisibility=hidden", f"-I{_HERE}")
#: No contraction: the codec's arithmetic, as NVRTC's --fmad=false.
_KERNEL_OPTIONS = ("-O2", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function")
#: Of each build: options of the kernels, and of the shim, which TSan must not see.
_BUILDS: dict[Build, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "plain": (("-DSHIM_POISON",), ()),
    "asan": (("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"), ()),
    "tsan": (("-fsanitize=thread", "-DSHIM_TSAN"), ("-DSHIM_TSAN",)),
}


@functools.cache
def load_module(source: str, defines: tuple[str, ...], build: Build) -> ctypes.CDLL:
    """Return a library with `shim_launch_NAME` and `shim_signature_NAME` of each kernel in the source.

    Raises
    ------
    MissingPackageError
        There is no g++.
    DeviceError
        The source does not compile; the message is the compiler's.
    """
    kernel_options, shim_options = _BUILDS[build]
    exports = "".join(f"SHIM_EXPORT({name})\n" for name in kernel_names(source))
    shim = _compile("-O2", *_COMMON, *shim_options, "-c", text=(_HERE / "shim.cpp").read_text(), suffix=".o")
    module = _compile(
        *_COMMON, *_KERNEL_OPTIONS, *kernel_options, *defines, "-shared", "-Wl,-Bsymbolic", str(shim), "-lpthread",
        text=f'#include "shim.h"\n{source}\n{exports}', suffix=".so",
    )  # fmt: skip
    return ctypes.CDLL(str(module))


def _compile(*options: str, text: str, suffix: str) -> Path:
    """Return the compiled text, made unless it is there."""
    key = hashlib.sha256(repr((options, text, _headers())).encode()).hexdigest()[:32]
    target = _folder() / f"{key}{suffix}"
    if target.exists():
        return target
    if shutil.which(_COMPILER) is None:
        raise MissingPackageError(f"the host run of GPU kernels needs {_COMPILER}, which is not installed")
    draft = target.with_suffix(f".{secrets.token_hex(8)}")
    # The objects that are linked come after the text, which is read from standard input.
    command = [_COMPILER, "-x", "c++", "-", "-x", "none", *options, "-o", str(draft)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DeviceError(f"{_COMPILER} refused a kernel's source:\n{done.stderr}")
    draft.replace(target)
    return target


@functools.cache
def _headers() -> str:
    return (_HERE / "shim.h").read_text()


@functools.cache
def _folder() -> Path:
    return cache_folder() or Path(tempfile.mkdtemp(prefix="tqindex-gpu-host-"))
