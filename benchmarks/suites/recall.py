"""Recall at equal bytes, for each seed."""

import time
from typing import Any

from tqindex.bench.config import Config
from tqindex.bench.peers import Method
from tqindex.bench.sets import Source
from tqindex.bench.suites.base import Group, Job, Suite, blaming, build, row_of
from tqindex.bench.truth import DEPTH


class Recall(Suite):
    """Recall 1@k and recall@10; on all cores, since no figure is a time."""

    name = "recall"
    pinned = timed = False

    def groups(self, config: Config, methods: list[Method], source: Source | None) -> list[Group]:
        """One method at one width each."""
        del source
        return [
            Group((method,), bits)
            for bits in (*config.bits, None)
            for method in methods
            if bits in method.widths and bits in (*config.bits_of(method.peer), None)
        ]

    def measure(self, job: Job, group: Group) -> list[dict[str, Any]]:
        """Build and search for each seed."""
        (method,) = group.methods
        start = time.perf_counter()
        counts = [2**i for i in range(job.config.k.bit_length())]
        ones: dict[str, list[float]] = {str(count): [] for count in counts}
        tens = []
        for seed in range(job.config.seeds_of(method.key)):
            with blaming(method):
                peer = method.make(job.setup(group.bits, seed))
                sizes = build(peer, job.data.base).sizes
                ids = peer.search(peer.prepare(job.data.queries), min(job.config.k, len(job.data.base)))
            tens.append(job.truth.recall(ids[:, :DEPTH]))
            for count, value in zip(counts, job.truth.recall_1_at(ids, counts), strict=True):
                ones[str(count)].append(value)
        row = (
            row_of(method, group.bits)
            | sizes
            | {
                "seconds": round(time.perf_counter() - start, 3),
                "seeds": len(tens),
                "recall_1_at": ones,
                "recall_10": tens,
            }
        )
        return [row]
