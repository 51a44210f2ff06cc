"""Batches and single queries, on one core: rates, recall, and what shortcuts lose."""

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.bench.config import Config
from tqindex.bench.peers import Method, Peer
from tqindex.bench.sets import Float32Array, Source
from tqindex.bench.suites.base import REFERENCE, Group, Job, Suite, blaming, build, by_width, row_of
from tqindex.bench.timing import ratio, spread, timed
from tqindex.bench.truth import DEPTH

Int64Array = npt.NDArray[np.int64]

#: Queries that are timed one by one, spread over all: the first ones may be easy.
_SINGLES = 60
#: From so many queries the time of a batch is foretold.
_FEW = 20
#: The method that is run wider too, where its shortlist loses more than tqindex does, and how wide.
_WIDENED = "turbovec"
_WIDER = (20, 50, 100, 200, 300, 500, 1000)


@dataclass
class _Contender:
    """A filled index with its queries, and its times so far."""

    method: Method
    peer: Peer
    queries: Float32Array
    k: int
    sizes: dict[str, float]
    exact: Int64Array | None
    singles: list[int]
    batch: list[float] = field(default_factory=list)
    single: list[float] = field(default_factory=list)
    ids: Int64Array = field(default_factory=lambda: np.empty((0, 0), np.int64))
    single_ids: dict[int, Int64Array] = field(default_factory=dict)

    def run_batch(self) -> None:
        start = time.perf_counter()
        self.ids = self.peer.search(self.queries, self.k)
        self.batch.append(time.perf_counter() - start)

    def run_singles(self) -> None:
        for q in self.singles:
            query = self.queries[q : q + 1]
            start = time.perf_counter()
            ids = self.peer.search(query, self.k)
            self.single.append(time.perf_counter() - start)
            self.single_ids[q] = ids[0]

    @property
    def lost(self) -> float | None:
        """The share of the full scan's best that a batch, or single queries, do not find: the larger one."""
        if self.exact is None:
            return None
        singles = list(self.single_ids)
        single = _lost(np.array([self.single_ids[q] for q in singles]), self.exact[singles])
        return max(_lost(self.ids, self.exact), single)


def _lost(ids: Int64Array, exact: Int64Array) -> float:
    ids = ids[:, : exact.shape[1]]
    return 1.0 - float((exact[:, :, np.newaxis] == ids[:, np.newaxis, :]).any(axis=2).mean())


class Search(Suite):
    """Queries per second in a batch, milliseconds of single queries, and their ratios to tqindex's at the same bits."""

    name = "search"

    def groups(self, config: Config, methods: list[Method], source: Source | None) -> list[Group]:
        """All methods of a width take turns."""
        del source
        return by_width(methods, config.bits)

    def measure(self, job: Job, group: Group) -> list[dict[str, Any]]:
        """Fill every method's index, then search them in turns."""
        contenders = []
        for method in group.methods:
            with blaming(method):
                contenders.append(_contender(job, method, group.bits))
        for contender in contenders:
            contender.run_singles()  # tells what is lost; the times are those of a warm-up
            contender.run_batch()
        contenders += _widened(contenders)
        for contender in contenders:
            contender.batch.clear()
            contender.single.clear()
        for _ in range(job.config.repeats):
            for contender in contenders:
                contender.run_batch()
                contender.run_singles()
        reference = next((each for each in contenders if each.method.key == REFERENCE), None)
        return [_row(job, group, contender, reference) for contender in contenders]


def _contender(job: Job, method: Method, bits: int | None) -> _Contender:
    """Fill an index, and cut batch and single queries to what the repeats can do within the budget."""
    peer = method.make(job.setup(bits))
    built = build(peer, job.data.base)
    queries, k = peer.prepare(job.data.queries), job.config.k
    few = queries[:_FEW]
    peer.search(few, k), peer.search(few[:1], k)  # the first ones compile kernels and build tables
    share = job.config.budget / (2 * job.config.repeats)
    fit = int(share / timed(lambda: peer.search(few, k)) * len(few))
    queries = queries[: max(_FEW, fit)]
    singles = min(_SINGLES, len(queries), max(5, int(share / timed(lambda: peer.search(few[:1], k)))))
    picks = np.unique(np.linspace(0, len(queries) - 1, singles).astype(int)).tolist()
    return _Contender(method, peer, queries, k, built.sizes, peer.full_scan(queries, k), picks)


def _widened(contenders: list[_Contender]) -> list[_Contender]:
    """Return turbovec at the smallest k at which it loses no more than tqindex, where that is not the k of all."""
    by_key = {contender.method.key: contender for contender in contenders}
    theirs, ours = by_key.get(_WIDENED), by_key.get(REFERENCE)
    if theirs is None or ours is None or (theirs.lost or 0.0) <= (ours.lost or 0.0):
        return []
    for k in _WIDER:
        wide = _Contender(theirs.method, theirs.peer, theirs.queries, k, theirs.sizes, theirs.exact, theirs.singles)
        wide.run_singles()
        wide.run_batch()
        if (wide.lost or 0.0) <= (ours.lost or 0.0):
            break
    return [wide]


def _row(job: Job, group: Group, contender: _Contender, reference: _Contender | None) -> dict[str, Any]:
    nq, k = len(contender.queries), job.config.k
    method, row = contender.method, row_of(contender.method, group.bits)
    if contender.k > k:
        row |= {"method": f"{method.key}-wide", "label": f"{method.label}, k = {contender.k}"}
    batch, single = spread(nq / t for t in contender.batch), spread(1e3 * t for t in contender.single)
    batch_reference = len(reference.queries) / float(np.median(reference.batch)) if reference else None
    single_reference = 1e3 * float(np.median(reference.single)) if reference else None
    lost = contender.lost
    return row | {
        "seconds": round(sum(contender.batch) + sum(contender.single), 3),
        "k": contender.k,
        "batch": batch,
        "batch_queries": nq,
        "single": single,
        "single_queries": len(contender.singles),
        "batch_ratio": ratio(batch["median"], batch_reference),
        "single_ratio": ratio(single["median"], single_reference),
        "recall_10": job.truth.recall(contender.ids[:, :DEPTH]),
        **contender.sizes,
        "lost": None if lost is None else round(lost, 6),
    }
