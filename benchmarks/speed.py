"""Batch search, single queries and adding beside turbovec and faiss, on one core, at equal bits.

`python -m tqindex.bench.speed --glove FILE --openai FILE` (files in ann-benchmarks form). All packages run in turns
within one process that is pinned to one core; figures are medians with the range, and ratios to turbovec. turbovec
may use a shortlist that is not exact, so every row shows the share of the package's own full-scan top 10 that was
lost, and turbovec is also timed at the smallest k at which it loses nothing.
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]

_K = 10
_BATCH = 500
#: Queries that are timed one by one, spread over all: the first ones may be easy.
_SINGLES = 60
_WIDE_K = 1000
_NOISE = 0.02


@click.command()
@click.option("--glove", type=click.Path(path_type=Path, exists=True), help="GloVe-100 file.")
@click.option("--openai", type=click.Path(path_type=Path, exists=True), help="OpenAI file; widened by small noise.")
@click.option("--gaussian/--no-gaussian", default=True, show_default=True, help="Also random vectors, 1536-d.")
@click.option("--n", default=100_000, show_default=True, help="Vectors of the 1536-d sets.")
@click.option("--bits", multiple=True, type=int, default=(4, 3, 2), show_default=True)
@click.option("--repeats", default=5, show_default=True)
def main(glove: Path | None, openai: Path | None, gaussian: bool, n: int, bits: tuple[int, ...], repeats: int) -> None:
    """Print one table per data set."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ.update(RAYON_NUM_THREADS="1", OMP_NUM_THREADS="1")
    for name, base, queries in _sets(glove, openai, gaussian, n):
        print(f"\n{name}: {len(base):,} x {base.shape[1]}, {len(queries)} queries, k = {_K}, one core\n", flush=True)
        print("| bits | package | add, vectors/s | batch, queries/s | ratio | single, ms | ratio | recall@10 | lost |")
        print("|---|---|---|---|---|---|---|---|---|")
        exact = _exact(base, queries)
        for width in bits:
            _compare(width, base, queries, exact, repeats)


def _sets(
    glove: Path | None, openai: Path | None, gaussian: bool, n: int
) -> Iterator[tuple[str, Float32Array, Float32Array]]:
    from tqindex.readers import open_vectors

    rng = np.random.default_rng(0)
    if glove is not None:
        with open_vectors(glove) as base, open_vectors(glove, role="queries") as queries:
            yield "GloVe-100", _unit(base[:]), _unit(queries[:_BATCH])
    if openai is not None:
        with open_vectors(openai) as base, open_vectors(openai, role="queries") as queries:
            rows, few = base[:], queries[:]
        yield "OpenAI rows + noise", noisy_rows(rng, rows, n), _unit(np.resize(few, (_BATCH, rows.shape[1])))
    if gaussian:
        shape = (n + _BATCH, 1536)
        rows = _unit(rng.standard_normal(shape, dtype=np.float32))
        yield "Gaussian", rows[:n], rows[n:]


def noisy_rows(rng: np.random.Generator, rows: Float32Array, n: int) -> Float32Array:
    """Return n of the rows with small noise, scaled to length 1."""
    dim = rows.shape[1]
    picks = rng.integers(0, len(rows), n)
    return _unit(rows[picks] + rng.standard_normal((n, dim), dtype=np.float32) * np.float32(_NOISE / np.sqrt(dim) * 10))


def _unit(rows: npt.NDArray[Any]) -> Float32Array:
    rows = rows.astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def _exact(base: Float32Array, queries: Float32Array) -> npt.NDArray[np.int64]:
    from tqindex.bench.exact import exact_neighbors

    return exact_neighbors(base, queries, _K, "ip")[0]


class _Package:
    """One package's index: `search(queries, k)` returns ids (nq, k)."""

    def __init__(self, name: str, add: Callable[[Float32Array], Callable[[Float32Array, int], Any]]) -> None:
        self.name, self.add = name, add


def _tqindex(bits: int, centred: bool) -> _Package:
    import tqindex as tq

    def add(base: Float32Array) -> Callable[[Float32Array, int], Any]:
        center = base[:: max(1, len(base) // 4096)].mean(axis=0) if centred else None
        index = tq.Index(base.shape[1], bits, "ip", center=center)
        index.add(base, threads=1)
        return lambda queries, k: index.search(queries, k, threads=1).ids

    return _Package("tqindex, centred" if centred else "tqindex", add)


def _turbovec(bits: int) -> _Package:
    import turbovec

    def add(base: Float32Array) -> Callable[[Float32Array, int], Any]:
        index = turbovec.TurboQuantIndex(base.shape[1], bits)
        index.add(base)
        return lambda queries, k: index.search(queries, k)[1]

    return _Package("turbovec", add)


def _faiss(bits: int) -> _Package:
    import faiss

    faiss.omp_set_num_threads(1)

    def add(base: Float32Array) -> Callable[[Float32Array, int], Any]:
        index = faiss.IndexPQFastScan(base.shape[1], base.shape[1] * bits // 4, 4, faiss.METRIC_INNER_PRODUCT)
        index.train(base[:20_000])
        index.add(base)
        return lambda queries, k: index.search(queries, k)[1]

    return _Package("faiss PQ fast-scan", add)


def _compare(bits: int, base: Float32Array, queries: Float32Array, exact: npt.NDArray[np.int64], repeats: int) -> None:
    padded = _pad_columns(base), _pad_columns(queries)
    packages = [_tqindex(bits, False), _tqindex(bits, True), _turbovec(bits)]
    packages += [_faiss(bits)] if bits != 3 else []
    rows = []
    for package in packages:
        vectors, wanted = padded if package.name == "turbovec" else (base, queries)
        package.add(vectors[:1000])(wanted[:2], _K)  # compile and warm up
        start = time.perf_counter()
        search = package.add(vectors)
        rate = len(base) / (time.perf_counter() - start)
        wide = np.asarray(search(wanted, _WIDE_K))[:, :_K]
        ks = [_K, *([_lossless_k(search, wanted, wide)] if package.name == "turbovec" else [])]
        rows += [(package.name, rate, search, wanted, k, wide) for k in dict.fromkeys(ks)]
    batch: list[list[float]] = [[] for _ in rows]
    single: list[list[float]] = [[] for _ in rows]
    for _ in range(repeats):
        for i, (_, _, search, wanted, k, _) in enumerate(rows):
            batch[i].append(_time(lambda search=search, wanted=wanted, k=k: search(wanted, k)) / len(wanted))
            single[i] += [
                _time(lambda q=q, search=search, wanted=wanted, k=k: search(wanted[q : q + 1], k))
                for q in range(0, len(wanted), max(1, len(wanted) // _SINGLES))
            ]
    reference = next(i for i, row in enumerate(rows) if row[0] == "turbovec")
    for i, (name, rate, search, wanted, k, wide) in enumerate(rows):
        ids = np.asarray(search(wanted, k))[:, :_K]
        label = name if k == _K else f"{name}, k = {k}"
        rates, times = 1 / np.array(batch[i]), np.array(single[i]) * 1e3
        batch_ratio = np.median(batch[reference]) / np.median(batch[i])
        single_ratio = np.median(single[i]) / np.median(single[reference])
        print(
            f"| {bits} | {label} | {rate:,.0f} | {np.median(rates):,.0f} ({rates.min():,.0f}-{rates.max():,.0f}) | "
            f"{batch_ratio:.2f} | {np.median(times):.2f} ({times.min():.2f}-{times.max():.2f}) | {single_ratio:.2f} | "
            f"{_overlap(ids, exact):.3f} | {1 - _overlap(ids, wide):.4f} |",
            flush=True,
        )


def _pad_columns(rows: Float32Array) -> Float32Array:
    """turbovec takes widths that are multiples of 8; zeros change no inner product."""
    return np.ascontiguousarray(np.pad(rows, ((0, 0), (0, -rows.shape[1] % 8))))


def _lossless_k(search: Callable[[Float32Array, int], Any], queries: Float32Array, wide: npt.NDArray[np.int64]) -> int:
    for k in (10, 20, 50, 100, 200, 300, 500):
        if _overlap(np.asarray(search(queries, k))[:, :_K], wide) >= 1 - 1e-6:
            return k
    return _WIDE_K


def _overlap(ids: npt.NDArray[Any], reference: npt.NDArray[Any]) -> float:
    return float((ids[:, :, None] == reference[:, None, :]).any(axis=2).mean())


def _time(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
