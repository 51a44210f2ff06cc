"""CuPy's `cuda`: devices, streams and errors."""

from types import SimpleNamespace

import cupy

#: As the real runtime says them.
_TEXTS = {
    2: "cudaErrorMemoryAllocation: out of memory",
    35: "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version",
    46: "cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy or unavailable",
    100: "cudaErrorNoDevice: no CUDA-capable device is detected",
    101: "cudaErrorInvalidDevice: invalid device ordinal",
    209: "cudaErrorNoKernelImageForDevice: no kernel image is available for execution on the device",
    222: "cudaErrorUnsupportedPtxVersion: the provided PTX was compiled with an unsupported toolchain.",
    700: "cudaErrorIllegalAddress: an illegal memory access was encountered",
    803: "cudaErrorSystemDriverMismatch: system has unsupported display driver / cuda driver combination",
}


class CUDARuntimeError(RuntimeError):
    def __init__(self, status):
        super().__init__(_TEXTS[status])
        self.status = status


class CUDADriverError(RuntimeError):
    pass


class OutOfMemoryError(MemoryError):
    pass


class CompileException(Exception):  # noqa: N818
    def __init__(self, message):
        super().__init__()
        self._message = message

    def __str__(self):
        return self._message


def _device_count():
    if cupy.fake.count_error is not None:
        raise CUDARuntimeError(cupy.fake.count_error)
    return cupy.fake.devices


def _properties(number):
    major, minor = cupy.fake.capability
    return {"major": major, "minor": minor, "name": b"Fake", "totalGlobalMem": 2**34}


class Device:
    """Current inside its context, in this thread."""

    def __init__(self, number=0):
        self.id = number
        self._before = []

    def __enter__(self):
        self._before.append(cupy._current())
        cupy._here.device = self.id
        return self

    def __exit__(self, *_):
        cupy._here.device = self._before.pop()


class Stream:
    """Current inside its context, in this thread; everything runs at once."""

    def __init__(self):
        self._before = []

    def __enter__(self):
        self._before.append(get_current_stream())
        cupy._here.stream = self
        return self

    def __exit__(self, *_):
        cupy._here.stream = self._before.pop()

    def synchronize(self):
        """Fail as kernels do, after their start."""
        cupy.fake.waits.append(self)
        cupy._fail("synchronize")


Stream.null = Stream()


def get_current_stream():
    """Return this thread's stream."""
    return getattr(cupy._here, "stream", Stream.null)


runtime = SimpleNamespace(
    CUDARuntimeError=CUDARuntimeError,
    getDeviceCount=_device_count,
    getDeviceProperties=_properties,
    driverGetVersion=lambda: cupy.fake.driver,
    runtimeGetVersion=lambda: 12090,
    memGetInfo=lambda: (cupy.fake.free_bytes, 2**40),
)
driver = SimpleNamespace(CUDADriverError=CUDADriverError)
memory = SimpleNamespace(OutOfMemoryError=OutOfMemoryError)
compiler = SimpleNamespace(CompileException=CompileException)
