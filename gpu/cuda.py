"""`CudaRuntime`: what `tqindex.gpu.runtime.Runtime` asks for, through CuPy. Nothing here has run on a device yet."""

import functools
import importlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy.typing as npt

from tqindex.errors import DeviceError, MissingPackageError
from tqindex.gpu.runtime import Kernel, Launch
from tqindex.gpu.sources import OPTIONS, define_options, read_source

#: Compute capability from which on the kernels are compiled in the tests.
LEAST_CAPABILITY = (7, 5)
_INSTALL = "pip install 'tqindex[gpu]' (CUDA 12) or pip install cupy-cuda13x (CUDA 13)"
_NO_DEVICE, _OLD_DRIVER = "cudaErrorNoDevice", "cudaErrorInsufficientDriver"


def import_cupy() -> Any:
    """Return CuPy.

    Raises
    ------
    MissingPackageError
        It is not installed, or a library that it needs is missing.
    """
    try:
        return importlib.import_module("cupy")
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise MissingPackageError(f"CuPy cannot be imported: {error}; {_INSTALL}") from error
        raise MissingPackageError(f"the GPU needs CuPy, which is not installed: {_INSTALL}") from error
    except ImportError as error:
        raise MissingPackageError(f"CuPy cannot be imported: {error}; {_INSTALL}") from error


@functools.cache
def open_device(number: int = 0) -> "CudaRuntime":
    """Return the runtime of a device, always the same one.

    Raises
    ------
    MissingPackageError
        CuPy is not installed.
    DeviceError
        There is no driver, or an old one; no device of that number, or one that is too old.
    """
    cupy = import_cupy()
    with _translated(cupy):
        count = cupy.cuda.runtime.getDeviceCount()
        if not 0 <= number < count:
            raise DeviceError(f"device must be 0 to {count - 1} on this machine, got {number}")
        properties = cupy.cuda.runtime.getDeviceProperties(number)
    capability = properties["major"], properties["minor"]
    if capability < LEAST_CAPABILITY:
        wanted, got = (".".join(map(str, version)) for version in (LEAST_CAPABILITY, capability))
        raise DeviceError(f"device {number} must have compute capability {wanted} or more, it has {got}: use the CPU")
    return CudaRuntime(cupy, number)


class CudaRuntime:
    """Runs kernels on one CUDA device. `open_device` makes it; methods are described in `Runtime`."""

    def __init__(self, cupy: Any, number: int) -> None:
        self.name, self.xp = f"cuda:{number}", cupy
        self._device = cupy.cuda.Device(number)
        with self._device:
            # They wait for the default stream and it for them: work outside of `stream` is in order with both.
            self._streams = cupy.cuda.Stream(), cupy.cuda.Stream()

    def function(self, kernel: Kernel) -> Launch:
        """Return what launches a kernel."""
        with self._device:
            function = _load_module(self.xp, self.name, kernel.source, define_options(kernel)).get_function(kernel.name)

        def launch(grid: tuple[int, ...], block: tuple[int, ...], args: Any, shared_mem: int = 0) -> None:
            with self._device:
                function(grid, block, tuple(args), shared_mem=shared_mem)

        return launch

    def upload(self, array: npt.ArrayLike) -> Any:
        """Return a copy on the device; CuPy copies through pinned memory and does not wait."""
        with self._device:
            return self.xp.array(array, order="C")

    def download(self, array: Any) -> npt.NDArray[Any]:
        """Return a copy on the host."""
        with self._device:
            copy: npt.NDArray[Any] = self.xp.asnumpy(array)
        return copy

    @contextmanager
    def stream(self, number: int) -> Iterator[None]:
        """Return a context in which work is queued on stream 0 or 1."""
        with self._device, self._streams[number]:
            yield

    def synchronize(self) -> None:
        """Wait for both streams."""
        with self._device:
            for stream in self._streams:
                stream.synchronize()

    def free_bytes(self) -> int:
        """Return what the driver has left, and what CuPy's pool keeps ready."""
        with self._device:
            free, _ = self.xp.cuda.runtime.memGetInfo()
            return int(free) + int(self.xp.get_default_memory_pool().free_bytes())

    def guard(self) -> AbstractContextManager[None]:
        """Return a context that turns CuPy's errors into `DeviceError`s that name a remedy."""
        return _translated(self.xp, self.name)


@functools.cache
def _load_module(cupy: Any, device: str, source: str, defines: tuple[str, ...]) -> Any:  # noqa: ARG001 - part of the key
    """Return a module of the current device, `device`; it is compiled when a function is first taken from it."""
    return cupy.RawModule(code=read_source(source), options=(*OPTIONS, *defines))


@contextmanager
def _translated(cupy: Any, where: str = "CUDA") -> Iterator[None]:
    """Turn CuPy's errors into ours."""
    cuda = cupy.cuda
    try:
        yield
    except cuda.memory.OutOfMemoryError as error:
        remedy = "pass fewer vectors or queries at a time, free other users' memory, or use the CPU"
        raise DeviceError(f"{where}: out of memory ({error}); {remedy}") from error
    except cuda.compiler.CompileException as error:
        raise DeviceError(f"{where}: a kernel does not compile; update CuPy, or use the CPU\n{error}") from error
    except cuda.runtime.CUDARuntimeError as error:
        raise DeviceError(f"{where}: {error}; {_remedy(str(error))}") from error
    except cuda.driver.CUDADriverError as error:
        raise DeviceError(f"{where}: {error}; {_remedy(str(error))}") from error


def _remedy(message: str) -> str:
    if _NO_DEVICE in message:
        return "no GPU is visible: see nvidia-smi and CUDA_VISIBLE_DEVICES, or use the CPU"
    if _OLD_DRIVER in message:
        return "there is no NVIDIA driver, or it is older than CuPy's CUDA: update it, or use the CPU"
    return "use the CPU, and restart the process before the GPU is used again"
