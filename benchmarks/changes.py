"""Removing, filtering and compacting: how long they take, and what a filter costs or saves a search.

`python -m tqindex.bench.changes`. Random vectors, which decide none of these times but the single queries' cascade.
Medians of several runs with the range; a filter's times are ratios to the search without one, taken in turns with it.
"""

import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np
import numpy.typing as npt

import tqindex as tq

_K = 10
_BLOCK = 100_000
_SHARES = (0.01, 0.1, 0.5)
_REMOVED, _COMPACTED = 0.1, 0.3


@click.command()
@click.option("--n", default=1_000_000, show_default=True, help="Vectors.")
@click.option("--dim", default=128, show_default=True)
@click.option("--bits", default=4, show_default=True)
@click.option("--batch", default=500, show_default=True, help="Queries of a batch.")
@click.option("--threads", type=int, help="Default: all CPUs.")
@click.option("--repeats", default=5, show_default=True)
def main(n: int, dim: int, bits: int, batch: int, threads: int | None, repeats: int) -> None:
    """Print three tables."""
    rng = np.random.default_rng(0)
    print(f"{n:,} x {dim}, {bits} bits, k = {_K}, {threads or 'all'} threads\n", flush=True)
    generated = _fill(tq.Index(dim, bits, "ip"), n, None)
    given = _fill(tq.Index(dim, bits, "ip"), n, rng.permutation(10 * n)[:n])
    queries = rng.standard_normal((batch, dim), dtype=np.float32)
    _filters(generated, queries, threads, repeats, rng)
    _removals({"generated": generated, "given": given}, repeats, rng)
    _compactions({"generated": generated, "given": given}, rng)


def _fill(index: tq.Index, n: int, ids: npt.NDArray[np.int64] | None) -> tq.Index:
    rng = np.random.default_rng(1)
    for start in range(0, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        index.add(
            rng.standard_normal((stop - start, index.dim), dtype=np.float32), None if ids is None else ids[start:stop]
        )
    return index


def _filters(index: tq.Index, queries: Any, threads: int | None, repeats: int, rng: np.random.Generator) -> None:
    print("| filter | share | batch, ratio | single, ratio |\n|---|---|---|---|")
    for share in _SHARES:
        allowed = rng.random(len(index)) < share
        wanted = index.ids[allowed]
        flags = np.zeros(int(index.ids.max()) + 1, np.bool_)
        flags[wanted] = True
        forms = {"ids": wanted, "mask": allowed, "callable": lambda ids, flags=flags: flags[ids]}
        for name, form in forms.items():
            ratios = [_ratio(index, part, form, threads, repeats) for part in (queries, queries[:1])]
            print(f"| {name} | {share:.0%} | {ratios[0]} | {ratios[1]} |", flush=True)


def _ratio(index: tq.Index, queries: Any, form: Any, threads: int | None, repeats: int) -> str:
    """Time of the filtered search over that of the other, as text."""
    plain, filtered = [], []
    for turn in range(repeats + 1):  # the first compiles kernels and builds what look-ups need
        times = [_time(lambda f=f: index.search(queries, _K, threads, filter=f)) for f in (None, form)]  # type: ignore[misc]
        if turn:
            plain.append(times[0])
            filtered.append(times[1])
    ratios = np.array(filtered) / np.median(plain)
    return _spread(ratios, "")


def _removals(indexes: dict[str, tq.Index], repeats: int, rng: np.random.Generator) -> None:
    print(f"\n| ids | remove {_REMOVED:.0%}, first time | after that |\n|---|---|---|")
    for name, index in indexes.items():
        held, times = index._rows, []
        index._id_map = None  # what a freshly loaded index has
        for _ in range(repeats + 1):
            wanted = rng.permutation(index.ids)[: int(_REMOVED * len(index))]
            times.append(_time(lambda wanted=wanted, index=index: index.remove(wanted)))  # type: ignore[misc]
            index._commit(held)
        print(f"| {name} | {times[0]:.3f} s | {_spread(np.array(times[1:]), ' s')} |", flush=True)


def _compactions(indexes: dict[str, tq.Index], rng: np.random.Generator) -> None:
    print(f"\n| ids | compact, {_COMPACTED:.0%} removed | MB before | after |\n|---|---|---|---|")
    small = _fill(tq.Index(next(iter(indexes.values())).dim, 4, "ip"), 100, None)
    small.remove([5])
    small.compact()  # compiles the kernel
    for name, index in indexes.items():
        index.remove(rng.permutation(index.ids)[: int(_COMPACTED * len(index))])
        before = index.info()["total_bytes"]
        seconds = _time(index.compact)
        print(
            f"| {name} | {seconds:.2f} s | {before / 1e6:.0f} | {index.info()['total_bytes'] / 1e6:.0f} |", flush=True
        )


def _time(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _spread(values: npt.NDArray[np.float64], unit: str) -> str:
    return f"{np.median(values):.3f}{unit} ({values.min():.3f}-{values.max():.3f})"


if __name__ == "__main__":
    main()
