"""What CuPy and CUDA say when something fails, as one line that names a remedy."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqindex.errors import DeviceError, TQIndexError

INSTALL = "pip install 'tqindex[gpu]' for CUDA 12, or 'cupy-cuda13x[ctk]' for CUDA 13"
#: What an error holds, in the words of CuPy 14 and CUDA 12, and what is to be done; the first that fits counts.
_REMEDIES = (
    (
        ("OutOfMemoryError", "cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY"),
        "search fewer queries or a smaller k at a time, end what else takes the GPU's memory, or use the CPU",
    ),
    (("cudaErrorNoDevice",), "no GPU is visible: see nvidia-smi and CUDA_VISIBLE_DEVICES, or use the CPU"),
    (("cudaErrorInvalidDevice",), "there is no GPU of that number: see nvidia-smi and CUDA_VISIBLE_DEVICES"),
    (
        ("cudaErrorNoKernelImageForDevice", "CUDA_ERROR_NO_BINARY_FOR_GPU", "gpu-architecture", "INVALID_OPTION"),
        "CuPy's CUDA does not know this GPU's architecture: install a newer CuPy and driver, or use the CPU",
    ),
    (
        ("cudaErrorUnsupportedPtxVersion", "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "cudaErrorSystemDriverMismatch"),
        "the NVIDIA driver does not fit CuPy's CUDA: update it, or use the CPU",
    ),
    (("cudaErrorDevicesUnavailable",), "another process has the GPU to itself: see nvidia-smi, or use the CPU"),
    (
        ("DynamicLibNotFoundError", "failed to load", "libnvrtc"),
        f"a library of CUDA is missing: {INSTALL}",
    ),
    (("CompileException",), "a kernel does not compile: update CuPy, or use the CPU"),
)
#: After a failed kernel CUDA refuses all that the process asks for.
_OTHER = "use the CPU, or restart the process before the GPU is used again"


@contextmanager
def translated(cupy: Any, where: str) -> Iterator[None]:
    """Turn errors of CuPy into `DeviceError`s; `where` is what messages call the device."""
    cuda = cupy.cuda
    try:
        yield
    except TQIndexError:
        raise
    # CUDA's own errors, and those of libraries that cannot be loaded, are RuntimeErrors.
    except (cuda.memory.OutOfMemoryError, cuda.compiler.CompileException, RuntimeError) as error:
        raise DeviceError(f"{where}: {_first_line(error)}; {_remedy(cupy, error)}") from error


def _first_line(error: Exception) -> str:
    """Return what is wrong; a compiler's log begins with warnings."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return next((line for line in lines if "error" in line), lines[0]).strip().rstrip(".")


def _remedy(cupy: Any, error: Exception) -> str:
    said = f"{type(error).__name__}: {error}"
    if "cudaErrorInsufficientDriver" in said:
        return _driver_remedy(cupy)
    return next((remedy for marks, remedy in _REMEDIES if any(mark in said for mark in marks)), _OTHER)


def _driver_remedy(cupy: Any) -> str:
    """CUDA says the same where there is no driver and where it is old."""
    driver, needed = cupy.cuda.runtime.driverGetVersion(), cupy.cuda.runtime.runtimeGetVersion()
    if not driver:
        return "there is no NVIDIA driver: install it, or use the CPU"
    found, wanted = version_text(driver), version_text(needed)
    return f"the NVIDIA driver is for CUDA {found}, CuPy for {wanted}: update the driver, or use the CPU"


def version_text(number: int) -> str:
    """Return a version as CUDA numbers it, 12090, in the usual form, 12.9."""
    return f"{number // 1000}.{number % 1000 // 10}"
