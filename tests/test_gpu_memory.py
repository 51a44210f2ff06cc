"""What an index on a GPU sends, keeps and takes of device memory, by the host run.

Results are those of the CPU, whatever fits.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tqindex as tq
from tqindex.gpu import rows, search, transfer
from tqindex.gpu.engine import run_on
from tqindex.gpu.host import HostRuntime
from tqindex.gpu.scan import score_rows
from tqindex.index import segments as index_segments

N, DIM, K = 150, 64, 4


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_segments, "segment_capacity", lambda codec, metric: 64)


@pytest.fixture
def on_host() -> Iterator[HostRuntime]:
    runtime = HostRuntime()
    with run_on(runtime):
        yield runtime


def random_rows(n: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((n, DIM), dtype=np.float32)


def pair() -> tuple[tq.Index, tq.Index]:
    """Return an empty index on the CPU and one on the GPU."""
    return tq.Index(DIM, metric="cosine"), tq.Index(DIM, metric="cosine", device="gpu")


def assert_same(found: Any, expected: Any) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


class Counted(HostRuntime):
    """The host run with little memory, which tells what was sent."""

    def __init__(self, free: int) -> None:
        super().__init__()
        self.free, self.sent, self.turns = free, 0, list[int]()

    def upload(self, array: Any) -> Any:
        self.sent += np.asarray(array).nbytes
        return super().upload(array)

    def stream(self, number: int) -> Any:
        self.turns.append(number)
        return super().stream(number)

    def free_bytes(self) -> int:
        return self.free


@pytest.mark.parametrize("fits", ["all", "none", "some"])
def test_codes_are_sent_once_if_they_fit_and_else_by_every_search(
    fits: str, small_segments: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows.DeviceStore.__init__, "__defaults__", (0,))
    vectors, queries = random_rows(4 * 64), random_rows(10, seed=1)
    here = tq.Index(DIM, bits=4)
    here.add(vectors)
    size = here.info()["code_bytes"] + here.info()["side_bytes"]
    runtime = Counted(2**40)
    with run_on(runtime):
        there = tq.Index.from_bytes(here.to_bytes()).to("gpu")
    if fits == "some":
        store = there._engine._store  # type: ignore[attr-defined]
        one = size // 4 + 64 * 8
        monkeypatch.setattr(runtime, "free_bytes", lambda: 2 * one + 1 - one * len(store._held))
    elif fits == "none":
        runtime.free = 0
    sent = []
    for _ in range(3):
        before = runtime.sent
        assert_same(there.search(queries, K), here.search(queries, K))
        sent.append(runtime.sent - before)
    first, again = {"all": (size, 0), "none": (size, size), "some": (size, size // 2)}[fits]
    others = sent[1] - again
    assert queries.nbytes <= others < queries.nbytes + 128
    assert sent[2] == sent[1]
    tables = sent[0] - first - others  # the codec's, once
    assert 0 < tables < 8 * 1024
    assert set(runtime.turns) == ({0} if fits == "all" else {0, 1})


@pytest.mark.parametrize(("most", "copies"), [(64, 5), (128, 3), (2**22, 2)])
def test_full_segments_that_follow_each_other_have_one_copy(
    most: int, copies: int, on_host: HostRuntime, small_segments: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MOST_GROUPED", most)
    here, there = pair()
    vectors, queries = random_rows(4 * 64 + 20), random_rows(10, seed=1)

    def count_copies() -> int:
        for some in (queries, queries[:2]):
            assert_same(there.search(some, 40), here.search(some, 40))
        return len(set(map(id, there._engine._store._held.values())))  # type: ignore[attr-defined]

    for index in (here, there):
        index.add(vectors)
    assert count_copies() == copies
    for index in (here, there):
        index.remove(np.arange(60, 70))
    assert count_copies() == copies
    for index in (here, there):
        index.compact()  # two segments become others
        index.add(vectors[:100], ids=np.arange(1000, 1100))
    count_copies()
    segments = there._rows.all_segments()
    assert set(there._engine._store._held) == {segment.rows for segment in segments}  # type: ignore[attr-defined]


def test_vectors_are_encoded_by_pieces_on_two_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PIECE_BYTES", 24 * 4 * DIM)
    runtime, vectors = Counted(2**40), random_rows(N)
    with run_on(runtime):
        there = tq.Index(DIM, bits=4, device="gpu")
    here = tq.Index(DIM, bits=4)
    for start, stop in ((0, 5), (5, N)):
        here.add(vectors[start:stop]), there.add(vectors[start:stop])
    assert there.to_bytes() == here.to_bytes()
    assert runtime.turns.count(1) > 2


def test_scores_of_a_range_search_keep_to_their_memory(
    on_host: HostRuntime, small_segments: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many segments are searched as one."""
    monkeypatch.setattr(search, "MATRIX_BYTES", 4 * 20 * 64 * 2)
    here, there = pair()
    vectors, sizes = random_rows(20 * 64), []

    def scored(*args: Any) -> Any:
        scores = score_rows(*args)
        sizes.append(scores.nbytes)
        return scores

    monkeypatch.setattr(search, "score_rows", scored)
    for index in (here, there):
        index.add(vectors)
    assert_same(there.range_search(vectors[:9], 0.3), here.range_search(vectors[:9], 0.3))
    assert max(sizes) == 4 * 20 * 64 * 2
