"""Compiles kernels for real GPUs with NVRTC, which needs neither a GPU nor a driver nor CuPy.

From the wheels nvidia-cuda-nvrtc-cu12 or nvidia-cuda-nvrtc (CUDA 13). NVRTC User Guide, "Basic Usage".
"""

import ctypes
import functools
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from tqindex.errors import DeviceError, MissingPackageError
from tqindex.gpu.sources import OPTIONS

#: Compute capabilities of the chips that the kernels are compiled for: Turing, Ampere (2), Ada, Hopper, Blackwell (2).
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class Resources:
    """What a kernel takes of a multiprocessor, as the assembler reports it.

    Attributes
    ----------
    registers : int, of a thread
    shared_bytes : int, of a block
    stack_bytes, spilled_bytes : int, of a thread
    """

    registers: int
    shared_bytes: int
    stack_bytes: int
    spilled_bytes: int


@dataclass(frozen=True)
class Compiled:
    """What NVRTC made of a source.

    Attributes
    ----------
    ptx : str
    cubin : bytes
    resources : dict of Resources by kernel name
    """

    ptx: str
    cubin: bytes
    resources: dict[str, Resources]


@functools.cache
def nvrtc_version() -> str:
    """Return NVRTC's version.

    Raises
    ------
    MissingPackageError
        There is no NVRTC.
    """
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return f"{major.value}.{minor.value}"


def compile_source(source: str, defines: tuple[str, ...], architecture: int) -> Compiled:
    """Compile for one architecture, 80 for compute capability 8.0.

    Raises
    ------
    DeviceError
        The source does not compile; the message is the compiler's.
    MissingPackageError
        There is no NVRTC.
    """
    library, program = _library(), ctypes.c_void_p()
    options = [f"-arch=sm_{architecture}", *OPTIONS, "--ptxas-options=-v", *defines]
    texts = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    _check(library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None))
    try:
        status = library.nvrtcCompileProgram(program, len(options), texts)
        log = _read(program, "ProgramLog").rstrip(b"\0").decode()
        if status:
            raise DeviceError(f"NVRTC refused a kernel's source for sm_{architecture}:\n{log}")
        return Compiled(_read(program, "PTX").rstrip(b"\0").decode(), _read(program, "CUBIN"), _resources(log))
    finally:
        _check(library.nvrtcDestroyProgram(ctypes.byref(program)))


def _resources(log: str) -> dict[str, Resources]:
    """Read the assembler's report; each kernel's part starts with its name."""
    parts = _ENTRY.split(log)
    found = {}
    for name, report in zip(parts[1::2], parts[2::2], strict=True):
        spills, used, shared = _SPILLS.search(report), _USED.search(report), _SHARED.search(report)
        if spills is None or used is None:
            raise DeviceError(f"NVRTC's report on {name} is not understood: {report!r}")
        stack, stores, loads = map(int, spills.groups())
        found[name] = Resources(int(used[1]), int(shared[1]) if shared else 0, stack, stores + loads)
    return found


@functools.cache
def _library() -> ctypes.CDLL:
    package = importlib.util.find_spec("nvidia")
    for folder in package.submodule_search_locations or () if package else ():
        # CUDA 12 and 13 lay their wheels out differently; the library for another CUDA runtime is named "alt".
        for pattern in ("cuda_nvrtc/lib/libnvrtc.so.*", "cu*/lib/libnvrtc.so.*"):
            for path in sorted(Path(folder).glob(pattern)):
                return ctypes.CDLL(str(path))
    raise MissingPackageError(
        "to compile kernels needs NVRTC, which is not installed: pip install nvidia-cuda-nvrtc-cu12"
    )


def _check(status: int) -> None:
    if status:
        describe = _library().nvrtcGetErrorString
        describe.restype = ctypes.c_char_p
        raise DeviceError(f"NVRTC: {describe(status).decode()}")


def _read(program: ctypes.c_void_p, what: str) -> bytes:
    library, size = _library(), ctypes.c_size_t()
    _check(getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    room = ctypes.create_string_buffer(size.value)
    _check(getattr(library, f"nvrtcGet{what}")(program, room))
    return room.raw
