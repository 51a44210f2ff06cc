"""Bytes that a cache holds, and how much a process grows while something runs."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tqindex.kv.cache import TurboQuantCache

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
#: Written to clear_refs it sets the peak of resident memory to what is resident now.
_RESET_PEAK = "5"


def held_bytes(cache: Any) -> int:
    """Return the bytes of all storages that a cache's layers hold, each counted once."""
    if isinstance(cache, TurboQuantCache):
        return sum(cache.memory().values())
    storages: dict[int, int] = {}
    for layer in cache.layers:
        for value in vars(layer).values():
            _collect(value, storages)
    return sum(storages.values())


def _collect(value: Any, storages: dict[int, int]) -> None:
    """Note the storages of a tensor, of what one of a derived class is made of, or of what a container holds."""
    if isinstance(value, torch.Tensor) and type(value) is not torch.Tensor and hasattr(value, "__tensor_flatten__"):
        names, _ = value.__tensor_flatten__()
        for name in names:
            _collect(getattr(value, name), storages)
    elif isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    elif isinstance(value, dict):
        for part in value.values():
            _collect(part, storages)
    elif isinstance(value, list | tuple):
        for part in value:
            _collect(part, storages)


class Peak:
    """What `peak_rise` found.

    Attributes
    ----------
    bytes : int or None
        None where the system does not tell.
    """

    bytes: int | None = None


@contextmanager
def peak_rise(device: torch.device) -> Iterator[Peak]:
    """Measure how far memory rises above where it is: of the device, or on the CPU the process's resident memory.

    Memory that was freed before is given back first, so that what is used again counts; Linux only.
    """
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
    elif sys.platform == "linux":
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text(_RESET_PEAK)
        before = _status("VmRSS")
        yield peak
        peak.bytes = _status("VmHWM") - before
    else:
        yield peak


def _status(field: str) -> int:
    """Return a size that the kernel tells of this process."""
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(None, f"no {field}", str(_STATUS))
