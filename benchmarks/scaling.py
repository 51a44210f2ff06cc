"""How time and memory grow: with the number of vectors, with threads, and in a fresh process.

`python -m tqindex.bench.scaling` needs no data: vectors are random. Figures are medians with the range.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

import tqindex as tq

Float32Array = npt.NDArray[np.float32]

_BATCH = 500
_K = 10
#: Ends as a user's process does: with an answer.
_FRESH = "import sys, numpy as np, tqindex as tq; tq.load(sys.argv[1]).search(np.load(sys.argv[2]))"


@click.command()
@click.option("--sizes", multiple=True, type=int, default=(10_000, 100_000, 500_000, 2_000_000), show_default=True)
@click.option("--repeats", default=5, show_default=True)
def main(sizes: tuple[int, ...], repeats: int) -> None:
    """Print three tables: growth at d = 100, two threads against one, and a fresh process."""
    rng = np.random.default_rng(0)
    _growth(rng, sizes, repeats)
    _threads(rng, repeats)
    _fresh_process(rng, repeats)


def _growth(rng: np.random.Generator, sizes: tuple[int, ...], repeats: int) -> None:
    print("| n (d = 100, 4 bits) | batch, queries/s x n / 1e6 | single, ns per vector | bytes, counted | resident |")
    print("|---|---|---|---|---|")
    queries = _vectors(rng, _BATCH, 100)
    kept = [tq.Index(100, 4, "ip")]  # memory that one index frees would count for the next
    kept[0].add(queries)
    kept[0].search(queries), kept[0].search(queries[0])  # compiles
    for n in sizes:
        before = _resident_bytes()
        index = tq.Index(100, 4, "ip")
        kept.append(index)
        for start in range(0, n, 100_000):
            index.add(_vectors(rng, min(100_000, n - start), 100))
        resident = (_resident_bytes() - before) / n
        batch = _times(lambda: index.search(queries, _K, threads=1), repeats)  # noqa: B023
        single = _times(lambda: index.search(queries[0], _K, threads=1), 4 * repeats)  # noqa: B023
        rates = _BATCH * n / batch / 1e6
        counted = index.info()["bytes_per_vector"]
        print(
            f"| {n:,} | {_range(rates, 0)} | {_range(single / n * 1e9, 2)} | {counted:.1f} | {resident:.1f} |",
            flush=True,
        )


def _threads(rng: np.random.Generator, repeats: int) -> None:
    print("\n| d | work | one thread, s | two threads, s | ratio |\n|---|---|---|---|---|")
    for n, dim in ((400_000, 100), (60_000, 1536)):
        vectors, queries = _vectors(rng, n, dim), _vectors(rng, _BATCH, dim)
        index = tq.Index(dim, 4, "ip")
        index.add(vectors)

        def add(threads: int) -> None:
            tq.Index(dim, 4, "ip").add(vectors, threads=threads)  # noqa: B023

        def search(threads: int) -> None:
            index.search(queries, _K, threads=threads)  # noqa: B023

        for name, work in (("add", add), ("batch", search)):
            one, two = np.empty(repeats), np.empty(repeats)
            for i in range(repeats):  # in turns, so that a slow moment meets both
                one[i], two[i] = _times(lambda: work(1), 1)[0], _times(lambda: work(2), 1)[0]  # noqa: B023
            ratio = np.median(one) / np.median(two)
            print(f"| {dim} | {name} | {_range(one, 3)} | {_range(two, 3)} | {ratio:.2f} |", flush=True)


def _fresh_process(rng: np.random.Generator, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        index, query = Path(folder) / "index.tq", Path(folder) / "query.npy"
        made = tq.Index(100, 4, "ip")
        made.add(_vectors(rng, 100_000, 100))
        made.save(index)
        np.save(query, _vectors(rng, 1, 100)[0])
        command = [sys.executable, "-c", _FRESH, str(index), str(query)]
        cold = {**os.environ, "TQINDEX_CACHE_DIR": str(Path(folder) / "cache")}
        first = _times(lambda: subprocess.run(command, check=True, env=cold), 1)
        later = _times(lambda: subprocess.run(command, check=True, env=cold), repeats)
    print("\n| a fresh process loads 100,000 x 100 and answers one query | s |\n|---|---|")
    print(f"| first run ever, kernels compiled | {first[0]:.1f} |\n| later runs | {_range(later, 2)} |")


def _vectors(rng: np.random.Generator, n: int, dim: int) -> Float32Array:
    return rng.standard_normal((n, dim), dtype=np.float32)


def _times(work: Callable[[], Any], repeats: int) -> npt.NDArray[np.float64]:
    """Seconds of each repeat; one more goes before them unmeasured, unless there is only one."""
    if repeats > 1:
        work()
    times = np.empty(repeats)
    for i in range(repeats):
        start = time.perf_counter()
        work()
        times[i] = time.perf_counter() - start
    return times


def _range(values: npt.NDArray[np.float64], digits: int) -> str:
    return f"{np.median(values):,.{digits}f} ({values.min():,.{digits}f}-{values.max():,.{digits}f})"


def _resident_bytes() -> int:
    """Resident memory of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
