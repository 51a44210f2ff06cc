"""How long it takes to train and to add, on one core."""

import time
from typing import Any

from tqindex.bench.config import Config
from tqindex.bench.peers import Method
from tqindex.bench.sets import Source
from tqindex.bench.suites.base import REFERENCE, Group, Job, Suite, blaming, build, by_width, row_of
from tqindex.bench.timing import ratio, spread, timed

_WARM_ROWS = 1000


class Indexing(Suite):
    """Seconds to build, and their ratio to tqindex's at the same bits."""

    name = "indexing"

    def groups(self, config: Config, methods: list[Method], source: Source | None) -> list[Group]:
        """All methods of a width take turns."""
        del source
        return by_width(methods, config.bits)

    def measure(self, job: Job, group: Group) -> list[dict[str, Any]]:
        """Build every method's index in turns, until it has its repeats or has used up its budget."""
        times: dict[str, list[tuple[float, float]]] = {method.key: [] for method in group.methods}
        spent = dict.fromkeys(times, 0.0)
        sizes: dict[str, dict[str, float]] = {}
        for method in group.methods:
            with blaming(method):
                _warm_up(job, method, group.bits)
        for _ in range(job.config.repeats):
            for method in group.methods:
                if times[method.key] and spent[method.key] > job.config.budget:
                    continue
                start = time.perf_counter()
                with blaming(method):
                    built = build(method.make(job.setup(group.bits)), job.data.base)
                times[method.key].append((built.train, built.add))
                sizes[method.key] = built.sizes
                spent[method.key] += time.perf_counter() - start
        read_once = spread(timed(job.data.base.max) for _ in range(job.config.repeats))["median"]
        sums = {key: spread(train + add for train, add in values)["median"] for key, values in times.items()}
        return [
            row_of(method, group.bits)
            | sizes[method.key]
            | {
                "seconds": round(spent[method.key], 3),
                "repeats": len(times[method.key]),
                "train": spread(train for train, _ in times[method.key]),
                "add": spread(add for _, add in times[method.key]),
                "ratio": ratio(sums[method.key], sums.get(REFERENCE)),
                "read_once": read_once,
            }
            for method in group.methods
        ]


def _warm_up(job: Job, method: Method, bits: int | None) -> None:
    """Have kernels compiled and threads started."""
    peer = method.make(job.setup(bits))
    if peer.warms_up:
        few = peer.prepare(job.data.base[:_WARM_ROWS])
        peer.train(few)
        peer.add(few)
