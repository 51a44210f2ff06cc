"""The one seam between the GPU's operations and where they run: CUDA through CuPy, or the host run of the same sources.

Operations (`encode.py`, `scan.py`, `few.py`, `best.py`, `codes.py`, `rows.py`, `attention.py`) take a `Runtime` and
never name CuPy.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt


@dataclass(frozen=True)
class Kernel:
    """One specialisation of one kernel.

    Attributes
    ----------
    source : the file beside this one, such as "encode.cu"
    name : the `extern "C" __global__` function
    defines : (macro, value) pairs of this specialisation, sorted
    """

    source: str
    name: str
    defines: tuple[tuple[str, int], ...] = ()


class Launch(Protocol):
    """Starts a kernel, in CuPy's call form."""

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], shared_mem: int = 0) -> None:
        """Run on `grid` blocks of `block` threads; args: arrays of the runtime and NumPy scalars of the exact types."""


class Runtime(Protocol):
    """Where kernels run.

    Attributes
    ----------
    name : "cuda:0", "host", ...
    xp : the array module, `cupy` or `numpy`
    """

    name: str
    xp: Any

    def function(self, kernel: Kernel) -> Launch:
        """Return what launches a kernel, compiled on first use and kept."""

    def upload(self, array: npt.ArrayLike) -> Any:
        """Return a C-contiguous copy on the device, queued on the current stream."""

    def download(self, array: Any) -> npt.NDArray[Any]:
        """Return a copy on the host, complete when this returns."""

    def stream(self, number: int) -> AbstractContextManager[None]:
        """Return a context in which work is queued on stream 0 or 1."""

    def free_bytes(self) -> int:
        """Return the memory that arrays may still take on the device."""

    def guard(self) -> AbstractContextManager[None]:
        """Return a context on the device that turns its errors, out of memory for one, into `DeviceError`s.

        Entered once around each public operation; arrays are made in it, on the right one of several devices. When it
        ends, all that was queued in it has been done.
        """
