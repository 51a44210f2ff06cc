"""What a second thread, or all of them, are worth."""

import time
from collections import defaultdict
from typing import Any

from tqindex.bench.config import Config
from tqindex.bench.peers import Method
from tqindex.bench.sets import Source
from tqindex.bench.suites.base import Group, Job, Suite, build, row_of
from tqindex.bench.timing import ratio, spread, timed


class Threads(Suite):
    """Adding and batches with one thread and with all, in turns, so that a slow moment meets both."""

    name = "threads"
    pinned = False

    def groups(self, config: Config, methods: list[Method], source: Source | None) -> list[Group]:
        """One method at one width each, for packages whose threads can be set while they run."""
        del source
        return [
            Group((method,), bits)
            for bits in config.bits
            for method in methods
            if bits in method.widths and method.sets_threads
        ]

    def measure(self, job: Job, group: Group) -> list[dict[str, Any]]:
        """Build and search with each number of threads."""
        (method,) = group.methods
        start = time.perf_counter()
        counts = sorted({1, job.threads})
        batch: dict[int, list[float]] = defaultdict(list)
        add: dict[int, list[float]] = defaultdict(list)
        for turn in range(job.config.repeats + 1):  # the first is a warm-up
            for count in counts:
                peer = method.make(job.setup(group.bits, threads=count))
                added = build(peer, job.data.base).add
                queries = peer.prepare(job.data.queries)
                searched = timed(lambda: peer.search(queries, job.config.k))  # noqa: B023
                if turn:
                    add[count].append(added)
                    batch[count].append(len(queries) / searched)
        seconds = round(time.perf_counter() - start, 3)
        adds, batches = ({count: spread(each[count]) for count in counts} for each in (add, batch))
        return [
            row_of(method, group.bits)
            | {
                "seconds": seconds,
                "threads": count,
                "batch": batches[count],
                "add": adds[count],
                "batch_speedup": ratio(batches[count]["median"], batches[1]["median"]),
                "add_speedup": ratio(adds[1]["median"], adds[count]["median"]),
            }
            for count in counts
        ]
