"""`HostRuntime`: what `tqindex.gpu.runtime.Runtime` asks for, on NumPy arrays."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.gpu.host.build import load_module
from tqindex.gpu.host.call import HostKernel, Schedule
from tqindex.gpu.runtime import Kernel, Launch
from tqindex.gpu.sources import define_options, read_source

#: What CuPy's allocator aligns arrays to.
_ALIGNMENT = 512


class HostRuntime:
    """Runs kernels on the CPU, one CUDA thread after the other, in an order that the caller chooses.

    Parameters
    ----------
    schedule : {"forward", "reverse", "shuffled"}
        Order of blocks, warps and lanes. A result that differs between two of them has a race.
    seed : int
        Of the shuffled order.
    """

    name = "host"
    xp: Any = np

    def __init__(self, schedule: Schedule = "forward", seed: int = 0) -> None:
        self._schedule, self._seed = schedule, seed

    def function(self, kernel: Kernel) -> Launch:
        """Return what launches a kernel; see `Runtime`."""
        library = load_module(read_source(kernel.source), define_options(kernel))
        return HostKernel(library, kernel.name, self._schedule, self._seed)

    def upload(self, array: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return a C-contiguous copy, aligned as device memory is."""
        given = np.asarray(array)
        room = np.empty(given.nbytes + _ALIGNMENT, np.uint8)
        start = -room.__array_interface__["data"][0] % _ALIGNMENT
        copy = room[start : start + given.nbytes].view(given.dtype).reshape(given.shape)
        copy[...] = given
        return copy

    def download(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a copy."""
        return np.array(array)

    @contextmanager
    def stream(self, number: int) -> Iterator[None]:
        """Return a context in which everything still runs at once.

        Raises
        ------
        ValueError
            There is no such stream.
        """
        if number not in (0, 1):
            raise ValueError(f"stream must be 0 or 1, got {number}")
        yield

    def free_bytes(self) -> int:
        """Return more than any array takes."""
        return sys.maxsize

    def guard(self) -> AbstractContextManager[None]:
        """Return a context that changes nothing: errors here are ours."""
        return nullcontext()
