"""`CudaRuntime`: what `tqindex.gpu.runtime.Runtime` asks for, through CuPy."""

import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy.typing as npt

from tqindex.errors import DeviceError
from tqindex.gpu.failures import INSTALL, translated, version_text
from tqindex.gpu.runtime import Kernel, Launch
from tqindex.gpu.sources import OPTIONS, define_options, read_source

#: Compute capability from which on the kernels are compiled in the tests.
LEAST_CAPABILITY = (7, 5)


def import_cupy() -> Any:
    """Return CuPy.

    Raises
    ------
    DeviceError
        It is not installed, or a library that it needs is missing; another module has its name.
    """
    try:
        cupy = importlib.import_module("cupy")
    except Exception as error:  # its own start reads files and settings, and may raise anything
        raise _not_imported(error) from error
    if not hasattr(cupy, "RawModule"):
        where = getattr(cupy, "__file__", None) or ", ".join(getattr(cupy, "__path__", ()))
        raise DeviceError(f"what `import cupy` finds is not CuPy but {where}: rename that; {INSTALL}")
    return cupy


def _not_imported(error: Exception) -> DeviceError:
    if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
        return DeviceError(f"the GPU needs CuPy, which is not installed: {INSTALL}")
    is_missing = isinstance(error, ImportError)
    remedy = INSTALL if is_missing else "its settings are the environment's CUPY_* variables, CUPY_CACHE_DIR for one"
    said = " ".join(str(error).split()) or type(error).__name__
    return DeviceError(f"CuPy cannot be imported: {said}; {remedy}")


@functools.cache
def open_device(number: int = 0) -> "CudaRuntime":
    """Return the runtime of a device, always the same one.

    Raises
    ------
    DeviceError
        CuPy is not installed; there is no driver, or an old one; no device of that number, or one that is too old.
    """
    cupy = import_cupy()
    where = f"gpu:{number}"
    with translated(cupy, where):
        count = cupy.cuda.runtime.getDeviceCount()
        if not count:
            raise DeviceError("no GPU is visible: see nvidia-smi and CUDA_VISIBLE_DEVICES, or use the CPU")
        if not 0 <= number < count:
            there = ", ".join(f"gpu:{each}" for each in range(count))
            raise DeviceError(f"device must be one of those here, {there}, got {where}; see CUDA_VISIBLE_DEVICES too")
        properties = cupy.cuda.runtime.getDeviceProperties(number)
        capability = properties["major"], properties["minor"]
        if capability < LEAST_CAPABILITY:
            wanted, got = (".".join(map(str, version)) for version in (LEAST_CAPABILITY, capability))
            raise DeviceError(f"{where} must have compute capability {wanted} or more, it has {got}: use the CPU")
        return CudaRuntime(cupy, number)


def describe(number: int = 0) -> dict[str, Any]:
    """Return what a device is and what it runs with, as JSON types; raises as `open_device`."""
    runtime = open_device(number)
    with runtime.guard():
        cuda = runtime.xp.cuda.runtime
        properties = cuda.getDeviceProperties(number)
        return {
            "device": f"gpu:{number}",
            "name": properties["name"].decode(),
            "capability": f"{properties['major']}.{properties['minor']}",
            "bytes": int(properties["totalGlobalMem"]),
            "driver": version_text(cuda.driverGetVersion()),
            "cuda": version_text(cuda.runtimeGetVersion()),
            "cupy": str(runtime.xp.__version__),
        }


class CudaRuntime:
    """Runs kernels on one CUDA device. `open_device` makes it; methods are described in `Runtime`."""

    def __init__(self, cupy: Any, number: int) -> None:
        self.name, self.xp = f"cuda:{number}", cupy
        self._device = cupy.cuda.Device(number)
        self._launches: dict[Kernel, Launch] = {}
        with self._device:
            # They wait for the default stream and it for them: work outside of `stream` is in order with both.
            self._streams = cupy.cuda.Stream(), cupy.cuda.Stream()

    def function(self, kernel: Kernel) -> Launch:
        """Return what launches a kernel."""
        known = self._launches.get(kernel)
        if known is None:
            known = self._launches[kernel] = self._load(kernel)
        return known

    def _load(self, kernel: Kernel) -> Launch:
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

    def free_bytes(self) -> int:
        """Return what the driver has left, and what CuPy's pool keeps ready, as far as the pool's limit allows."""
        with self._device:
            free, _ = self.xp.cuda.runtime.memGetInfo()
            pool = self.xp.get_default_memory_pool()
            room, limit = int(free) + int(pool.free_bytes()), int(pool.get_limit())
            return min(room, limit - int(pool.used_bytes())) if limit else room

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Return a context on this device that turns CuPy's errors into `DeviceError`s that name a remedy.

        What the caller's stream has queued for its arrays is done when it begins, and all work is done when it ends,
        by an error too: the caller's stream need not be one that waits for ours, and memory that kernels write may be
        others' right after.
        """
        with translated(self.xp, self.name.replace("cuda", "gpu")), self._device:
            self.xp.cuda.get_current_stream().synchronize()
            with self.xp.cuda.Stream.null as ours:
                try:
                    yield
                finally:
                    for stream in (*self._streams, ours):
                        stream.synchronize()


@functools.cache
def _load_module(cupy: Any, device: str, source: str, defines: tuple[str, ...]) -> Any:  # noqa: ARG001 - part of the key
    """Return a module of the current device, `device`; it is compiled when a function is first taken from it."""
    return cupy.RawModule(code=read_source(source), options=(*OPTIONS, *defines))
