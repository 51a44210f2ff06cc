"""Any sequence of changes and searches, beside a plain dict whose exact scores come from the codec."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import tqindex as tq
from tqindex.errors import ArgumentError, UnknownIdError
from tqindex.index import compact as compact_module
from tqindex.index import segments as index_segments

#: So few different vectors that equal scores are common: the smaller id must come first.
POOL = 40
#: So few ids that they come again.
IDS = 400
FORMS = [
    *[("mse", bits, metric) for bits, metric in ((1, "l2"), (2, "ip"), (3, "cosine"), (4, "l2"), (8, "cosine"))],
    *[("prod", bits, metric) for bits, metric in ((2, "ip"), (3, "l2"), (4, "cosine"))],
]
DIM = 33
SIZES = st.sampled_from([0, 1, 2, 7, 40, 90])
SEEDS = st.integers(0, 2**32 - 1)


class Changes(RuleBasedStateMachine):
    """The index, and a dict from its ids, in their order, to the pool's vectors that they stand for."""

    @initialize(form=st.sampled_from(FORMS), centred=st.booleans())
    def begin(self, form: Any, centred: bool) -> None:
        codec, bits, self.metric = form
        self.parameters = {"codec": codec, "bits": bits, "metric": self.metric}
        self.parameters["center"] = np.full(DIM, 0.1) if centred else None
        self.index = tq.Index(DIM, **self.parameters)
        self.pool = np.random.default_rng(1).standard_normal((POOL, DIM), np.float32)
        self.codes = self.index.codec.encode(self.pool, self.metric)
        self.held: dict[int, int] = {}
        self.next_id = 0

    def pick(self, rng: Any, n: int) -> Any:
        """Vectors of the pool by their numbers."""
        return rng.integers(0, POOL, n)

    def put(self, ids: Any, picks: Any) -> None:
        for row_id in ids:
            self.held.pop(int(row_id), None)
        self.held.update(zip(map(int, ids), map(int, picks), strict=True))
        self.next_id = max(self.next_id, *(int(row_id) + 1 for row_id in ids), 0)

    def some_held(self, rng: Any, share: float) -> Any:
        ids = rng.permutation(np.array(list(self.held), np.int64))
        return ids[: int(np.ceil(share * len(ids)))]

    @rule(n=SIZES, seed=SEEDS)
    def add(self, n: int, seed: int) -> None:
        picks = self.pick(np.random.default_rng(seed), n)
        ids = self.index.add(self.pool[picks], threads=1)
        assert ids.tolist() == list(range(self.next_id, self.next_id + n))
        self.put(ids, picks)

    @rule(n=SIZES, seed=SEEDS)
    def add_with_ids(self, n: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        ids, picks = rng.permutation(IDS)[:n], self.pick(rng, n)
        if self.held.keys() & set(ids.tolist()):
            with pytest.raises(ArgumentError, match=r"^ids must be new"):
                self.index.add(self.pool[picks], ids)
            fresh = np.array([row_id not in self.held for row_id in ids], bool)
            ids, picks = ids[fresh], picks[fresh]
        self.index.add(self.pool[picks], ids)
        self.put(ids, picks)

    @rule(share=st.sampled_from([0.01, 0.3, 0.9, 1.0]), seed=SEEDS)
    def remove(self, share: float, seed: int) -> None:
        ids = self.some_held(np.random.default_rng(seed), share)
        self.index.remove(ids)
        for row_id in ids:
            del self.held[int(row_id)]

    @rule(share=st.sampled_from([0.01, 0.3]), seed=SEEDS)
    def refuse_unknown(self, share: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        absent = next(row_id for row_id in rng.permutation(IDS + 10**5) if row_id not in self.held)
        ids = rng.permutation(np.append(self.some_held(rng, share), absent))
        with pytest.raises(UnknownIdError, match=f"got {absent}$"):
            self.index.remove(ids)
        with pytest.raises(UnknownIdError, match=f"got {absent}$"):
            self.index.update(ids, self.pool[self.pick(rng, len(ids))])
        assert absent not in self.index

    @rule(share=st.sampled_from([0.01, 0.3, 1.0]), seed=SEEDS)
    def update(self, share: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        ids = self.some_held(rng, share)
        picks = self.pick(rng, len(ids))
        self.index.update(ids, self.pool[picks])
        self.put(ids, picks)

    @rule(n=SIZES, seed=SEEDS)
    def upsert(self, n: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        ids, picks = rng.permutation(IDS)[:n], self.pick(rng, n)
        self.index.upsert(ids, self.pool[picks])
        self.put(ids, picks)

    @rule()
    def compact(self) -> None:
        self.index.compact()
        assert self.index.info()["removed"] == 0

    @rule(n=SIZES, seed=SEEDS, given=st.booleans())
    def merge(self, n: int, seed: int, given: bool) -> None:
        rng = np.random.default_rng(seed)
        other, picks = tq.Index(DIM, **self.parameters), self.pick(rng, n)
        ids = np.array([row_id for row_id in rng.permutation(IDS) if row_id not in self.held][:n], np.int64)
        other.add(self.pool[picks[: len(ids)]], ids)
        if not given:
            other = tq.Index(DIM, **self.parameters)
            other.add(self.pool[:1], [self.next_id])
            ids = np.append(self.next_id, other.add(self.pool[picks]))
            picks = np.append(0, picks)
        gone = rng.permutation(ids)[: len(ids) // 4]
        other.remove(gone)
        self.index.merge(other)
        stays = ~np.isin(ids, gone)
        self.next_id = max(self.next_id, *(int(row_id) + 1 for row_id in ids), 0)
        self.put(ids[stays], picks[: len(ids)][stays])

    @rule(mmap=st.booleans())
    def save_and_load(self, mmap: bool) -> None:
        with TemporaryDirectory() as folder:
            self.index.save(Path(folder) / "index")
            self.index = tq.load(Path(folder) / "index", mmap=mmap)

    @rule(
        nq=st.sampled_from([1, 2, 8, 9, 20]),
        k=st.sampled_from([1, 3, 64, 1000]),
        exact_scan=st.booleans(),
        form=st.sampled_from(["none", "ids", "mask", "callable"]),
        share=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
        seed=SEEDS,
    )
    def search(self, nq: int, k: int, exact_scan: bool, form: str, share: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        queries = rng.standard_normal((nq, DIM), np.float32)
        ids = np.array(list(self.held), np.int64)
        allowed = np.ones(len(ids), bool) if form == "none" else rng.random(len(ids)) < share
        wanted = ids[allowed]
        filters: dict[str, Any] = {
            "none": None,
            "ids": rng.permutation(np.append(wanted, [10**9, -1, *wanted[:3]])),
            "mask": allowed,
            "callable": lambda asked: np.isin(asked, wanted),
        }
        scores, found = self.index.search(queries, k, exact_scan=exact_scan, filter=filters[form], threads=2)
        expected_scores, expected = self.best(queries, wanted, k)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(scores, expected_scores)

    def best(self, queries: Any, ids: Any, k: int) -> tuple[Any, Any]:
        """The k best of some ids by the codec's own scores; equal ones by the smaller id."""
        worst = np.inf if self.metric == "l2" else -np.inf
        scores, found = np.full((len(queries), k), worst, np.float32), np.full((len(queries), k), -1)
        picks = np.array([self.held[int(row_id)] for row_id in ids], np.int64)
        every = self.index.codec.scores(queries, self.codes)[:, picks]
        for q, row in enumerate(every):
            order = np.lexsort((ids, -row))[:k]
            found[q, : len(order)], scores[q, : len(order)] = ids[order], row[order]
            if self.metric == "l2":
                scores[q, : len(order)] *= np.float32(-2)
        return scores, found

    @precondition(lambda self: self.held)
    @rule(seed=SEEDS)
    def reconstruct(self, seed: int) -> None:
        ids = self.some_held(np.random.default_rng(seed), 0.3)
        picks = np.array([self.held[int(row_id)] for row_id in ids])
        np.testing.assert_array_equal(self.index.reconstruct(ids), self.index.codec.decode(self.codes[picks]))

    @invariant()
    def ids_are_the_same(self) -> None:
        assert self.index.ids.tolist() == list(self.held)
        assert len(self.index) == len(self.held)


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of 64 rows, copied in pieces of 24."""
    monkeypatch.setattr(index_segments, "SEGMENT_BYTES", 1)
    monkeypatch.setattr(compact_module, "_BLOCK_ROWS", 24)


def run(examples: int, steps: int, derandomize: bool) -> None:
    profile = settings(max_examples=examples, stateful_step_count=steps, deadline=None, database=None)
    run_state_machine_as_test(Changes, settings=settings(profile, derandomize=derandomize))


def test_sequences_of_changes() -> None:
    run(examples=120, steps=25, derandomize=True)


@pytest.mark.nightly
def test_many_long_sequences_of_changes() -> None:
    run(examples=1000, steps=60, derandomize=False)
