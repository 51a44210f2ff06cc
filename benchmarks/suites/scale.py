"""How time and memory grow with the number of vectors, on one core."""

import time
from typing import Any

import numpy as np
import psutil

from tqindex.bench.config import Config
from tqindex.bench.peers import Method, Peer
from tqindex.bench.sets import Source
from tqindex.bench.suites.base import Group, Job, Suite, row_of
from tqindex.bench.timing import spread, timed

_ADDED_AT_ONCE = 100_000
_SINGLES = 20


class Scale(Suite):
    """Batch, single queries, adding and resident memory, for the first n vectors of a set."""

    name = "scale"

    def __init__(self) -> None:
        # Memory that one index frees would not count for the next.
        self._kept: list[Peer] = []

    def groups(self, config: Config, methods: list[Method], source: Source | None) -> list[Group]:
        """One method and number of vectors each, small ones first."""
        del source
        return [
            Group((method,), bits, {"n": n})
            for bits in config.bits
            for n in sorted(config.sizes)
            for method in methods
            if bits in method.widths
        ]

    def measure(self, job: Job, group: Group) -> list[dict[str, Any]]:
        """Fill one index and search it."""
        start = time.perf_counter()
        (method,), n, k, repeats = group.methods, group.parameters["n"], job.config.k, job.config.repeats
        warm = method.make(job.setup(group.bits))
        queries = warm.prepare(job.data.queries)
        warm.train(queries)
        warm.add(queries)
        warm.search(queries, k), warm.search(queries[:1], k)
        before = _resident_bytes()
        peer = method.make(job.setup(group.bits))
        self._kept.append(peer)
        seconds = _fill(peer, job, n)
        resident = _resident_bytes() - before
        peer.search(queries, k)
        batch = spread(len(queries) / timed(lambda: peer.search(queries, k)) for _ in range(repeats))
        picks = np.linspace(0, len(queries) - 1, _SINGLES).astype(int)
        single = spread(
            1e3 * timed(lambda q=q: peer.search(queries[q : q + 1], k))  # type: ignore[misc]
            for _ in range(repeats)
            for q in picks
        )
        row = row_of(method, group.bits) | {
            "n": n,
            "seconds": round(time.perf_counter() - start, 3),
            "batch": batch,
            "single": single,
            "add": spread([seconds]),
            "resident_bytes": resident,
            "code_bytes": peer.stored_bytes(),
        }
        return [row]


def _fill(peer: Peer, job: Job, n: int) -> float:
    """Add the first n vectors; returns the seconds that takes."""
    seconds = 0.0
    for start in range(0, n, _ADDED_AT_ONCE):
        rows = peer.prepare(job.data.base[start : min(start + _ADDED_AT_ONCE, n)])
        seconds += timed(lambda rows=rows: peer.add(rows))  # type: ignore[misc]
    return seconds


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)
