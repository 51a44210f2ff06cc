"""Calls a compiled kernel with arguments checked against its C++ types."""

import ctypes
import threading
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from tqindex.errors import ArgumentError, DeviceError

Schedule = Literal["forward", "reverse", "shuffled"]
SCHEDULES = get_args(Schedule)
#: Kernels keep shared memory in static variables: one launch at a time.
_lock = threading.Lock()


class HostKernel:
    """A kernel of a compiled module; calling it is CuPy's call."""

    def __init__(self, library: ctypes.CDLL, name: str, schedule: Schedule = "forward", seed: int = 0) -> None:
        if schedule not in SCHEDULES:
            raise ArgumentError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
        try:
            self._launch, signature = library[f"shim_launch_{name}"], library[f"shim_signature_{name}"]
        except AttributeError:
            raise ArgumentError(f"kernel must be in the source, got {name!r}") from None
        self._launch.restype = signature.restype = ctypes.c_char_p
        self._name, self._order, self._seed = name, SCHEDULES.index(schedule), seed
        self._types = signature().decode().split()

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], shared_mem: int = 0) -> None:
        """Run the kernel to its end.

        Raises
        ------
        ArgumentError
            An argument is not of the parameter's type, or shared memory is asked for at launch.
        DeviceError
            The kernel broke a rule of CUDA: a barrier or a warp's operation that not all threads reach, for one.
        """
        if shared_mem:
            raise ArgumentError(f"{self._name}: shared_mem must be 0 (arrays are sized by defines), got {shared_mem}")
        if len(args) != len(self._types):
            raise ArgumentError(f"{self._name}: takes {len(self._types)} arguments, got {len(args)}")
        buffers = [
            self._buffer(place, wanted, given)
            for place, (wanted, given) in enumerate(zip(self._types, args, strict=True))
        ]
        pointers = (ctypes.c_void_p * len(args))(*(ctypes.addressof(buffer) for buffer in buffers))
        with _lock:
            error = self._launch(dim3(grid), dim3(block), pointers, self._order, self._seed)
        if error:
            raise DeviceError(f"{self._name}: {error.decode()}")

    def _buffer(self, place: int, wanted: str, given: Any) -> Any:
        """Return one argument's bytes; types are written as the shim's `type_code` writes them."""
        what = f"{self._name}: argument {place}"
        if isinstance(given, np.ndarray):
            if not given.flags.c_contiguous:
                raise ArgumentError(f"{what} must be C-contiguous")
            got = f"*{given.dtype.kind}{given.itemsize}"
            if wanted.startswith("w*") and not given.flags.writeable:
                raise ArgumentError(f"{what} is written by the kernel, got a read-only array")
            self._check(what, wanted.removeprefix("w"), got)
            return ctypes.c_void_p(given.ctypes.data)
        if not isinstance(given, np.generic):
            raise ArgumentError(f"{what} must be an array or a NumPy scalar ({wanted}), got {type(given).__name__}")
        self._check(what, wanted, f"{given.dtype.kind}{given.itemsize}")
        return ctypes.create_string_buffer(given.tobytes(), given.itemsize)

    @staticmethod
    def _check(what: str, wanted: str, got: str) -> None:
        if wanted != got:
            raise ArgumentError(f"{what} must be of type {wanted}, got {got}")


def dim3(size: tuple[int, ...]) -> Any:
    """Return a grid's or block's three sizes, unsigned."""
    return (ctypes.c_uint * 3)(*(*size, 1, 1)[:3])
