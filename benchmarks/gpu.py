"""Searches on a GPU beside exact products in torch: `python -m tqindex.bench.gpu`, for README's table.

Times are a caller's, medians of 15 calls: ours from queries in host memory to results there, and from device memory to
device memory; torch's on the device alone.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np

import tqindex as tq
from tqindex.errors import DeviceError, MissingPackageError
from tqindex.gpu.command import errors_in_one_line
from tqindex.gpu.cuda import import_cupy, open_device

_ROWS, _DIMS, _QUERIES, _RESULTS = 1_000_000, (1536, 100), (1, 128, 1024), 10
_PIECE, _REPEATS = 100_000, 15


def _median_ms(search: Callable[[], Any], wait: Callable[[], None]) -> float:
    """Return the median time of a call; the first two do not count."""
    times = []
    for _ in range(_REPEATS + 2):
        wait()
        start = time.perf_counter()
        search()
        wait()
        times.append(time.perf_counter() - start)
    return float(np.median(times[2:]) * 1e3)


def _tell(name: str, dim: int, queries: int, ms: float) -> None:
    click.echo(f"{name}, {_ROWS:,} x {dim}, {queries} queries: {ms:.2f} ms")


def _measure_ours(dim: int) -> None:
    cupy = import_cupy()
    rng, index = cupy.random.default_rng(0), tq.Index(dim, bits=4, metric="ip", device="gpu")
    for _ in range(0, _ROWS, _PIECE):
        index.add(rng.standard_normal((_PIECE, dim), np.float32))
    wait = cupy.cuda.Device().synchronize
    for count in _QUERIES:
        queries = rng.standard_normal((count, dim), np.float32)
        host = functools.partial(index.search, cupy.asnumpy(queries), _RESULTS)
        _tell("tqindex, NumPy to NumPy", dim, count, _median_ms(host, wait))
        there = functools.partial(index.search, queries, _RESULTS, output="device")
        _tell("tqindex, device to device", dim, count, _median_ms(there, wait))
    del index, host, there
    cupy.get_default_memory_pool().free_all_blocks()


def _measure_torch(dim: int) -> None:
    import torch

    def search(rows: Any, queries: Any) -> Any:
        return torch.topk(queries @ rows.T, _RESULTS, dim=1)

    for dtype in (torch.float16, torch.float32):
        rows = torch.randn(_ROWS, dim, device="cuda", dtype=dtype)
        for count in _QUERIES:
            queries = torch.randn(count, dim, device="cuda", dtype=dtype)
            found = _median_ms(functools.partial(search, rows, queries), torch.cuda.synchronize)
            _tell(f"{dtype}, exact", dim, count, found)
        del rows
        torch.cuda.empty_cache()


def _check() -> None:
    """Refuse at the start what would fail after minutes."""
    open_device()
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError("exact products need torch, which cannot be imported: pip install torch") from error
    if not torch.cuda.is_available():
        raise DeviceError("torch sees no GPU: install a build of it for CUDA, see https://pytorch.org/get-started")


@click.command()
def main() -> None:
    """Time searches of a million random vectors on the first GPU, by tqindex and exactly by torch; writes no file.

    Some minutes and 10 GB of its memory. tqindex is timed from NumPy's queries to NumPy's results and from device to
    device.
    """
    with errors_in_one_line():
        _check()
        for dim in _DIMS:
            _measure_ours(dim)
            _measure_torch(dim)


if __name__ == "__main__":
    main()
