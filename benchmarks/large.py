"""Single queries of an index that no cache holds, beside turbovec: 2.8 million x 1536 at 4 bits are 2.2 GB of codes.

`python -m tqindex.bench.large --openai FILE` (a file in ann-benchmarks form). Vectors are made and added in blocks, so
that memory holds the two indexes and little else. Packages answer the same queries in turns, on one core.
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

import tqindex as tq
from tqindex.bench.sets import Float32Array, noisy_rows
from tqindex.readers import open_vectors

_K = 10
_BLOCK = 50_000


@click.command()
@click.option("--openai", type=click.Path(path_type=Path, exists=True), required=True, help="Widened by small noise.")
@click.option("--n", default=2_800_000, show_default=True, help="Vectors.")
@click.option("--bits", default=4, show_default=True)
@click.option("--queries", "nq", default=50, show_default=True)
def main(openai: Path, n: int, bits: int, nq: int) -> None:
    """Print one table."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ.update(RAYON_NUM_THREADS="1")
    import turbovec

    with open_vectors(openai) as base, open_vectors(openai, role="queries") as file:
        rows, queries = base[:], file[:]
    queries = noisy_rows(np.random.default_rng(1), queries, nq)
    ours = {
        "tqindex": tq.Index(rows.shape[1], bits, "ip"),
        "tqindex, centred": tq.Index(rows.shape[1], bits, "ip", center=rows.mean(axis=0)),
    }
    theirs = turbovec.TurboQuantIndex(rows.shape[1], bits)
    seconds = _fill([*ours.values(), theirs], rows, n)
    searches = {name: _search_of(index) for name, index in ours.items()}
    searches["turbovec"] = lambda query: theirs.search(query, _K)[1]
    exact = {name: index.search(queries, _K, exact_scan=True).ids for name, index in ours.items()}
    exact["turbovec"] = theirs.search(queries, 1000)[1][:, :_K]
    print("| package | add, vectors/s | single, ms | ratio | GB of codes | lost |\n|---|---|---|---|---|---|")
    _print_singles(searches, queries, exact, [n / s for s in seconds], ours["tqindex"].info()["code_bytes"])


def _search_of(index: tq.Index) -> Callable[[Float32Array], Any]:
    return lambda query: index.search(query, _K, threads=1).ids


def _fill(indexes: list[Any], rows: Float32Array, n: int) -> list[float]:
    """Add n noisy rows to every index; returns the seconds that each took."""
    seconds = [0.0] * len(indexes)
    for block in _blocks(rows, n):
        for i, index in enumerate(indexes):
            start = time.perf_counter()
            index.add(block)
            seconds[i] += time.perf_counter() - start
    return seconds


def _blocks(rows: Float32Array, n: int) -> Iterator[Float32Array]:
    rng = np.random.default_rng(0)
    for start in range(0, n, _BLOCK):
        yield noisy_rows(rng, rows, min(_BLOCK, n - start))


def _print_singles(
    searches: dict[str, Callable[[Float32Array], Any]],
    queries: Float32Array,
    exact: dict[str, Any],
    added: list[float],
    code_bytes: int,
) -> None:
    times: dict[str, list[float]] = {name: [] for name in searches}
    found: dict[str, list[Any]] = {name: [] for name in searches}
    for search in searches.values():
        search(queries[:1])
    for q in range(len(queries)):
        for name, search in searches.items():
            start = time.perf_counter()
            ids = search(queries[q : q + 1])
            times[name].append(time.perf_counter() - start)
            found[name].append(ids[0])
    reference = np.median(times["turbovec"])
    for (name, seconds), rate in zip(times.items(), added, strict=True):
        lost = 1 - np.mean([len(set(a) & set(b)) / _K for a, b in zip(found[name], exact[name], strict=True)])
        middle, low, high = np.median(seconds) * 1e3, min(seconds) * 1e3, max(seconds) * 1e3
        print(
            f"| {name} | {rate:,.0f} | {middle:.1f} ({low:.1f}-{high:.1f}) | {middle / reference / 1e3:.2f} | "
            f"{code_bytes / 1e9:.2f} | {lost:.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
