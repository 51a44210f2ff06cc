"""Merging: one index's vectors appended to another's by their codes."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tqindex as tq
from tqindex.errors import ArgumentError
from tqindex.index import compact as compact_module
from tqindex.index import segments as index_segments
from tqindex.kernels.rows import StoredRows

CODECS = [("mse", 1), ("mse", 2), ("mse", 3), ("mse", 4), ("mse", 8), ("prod", 2), ("prod", 3), ("prod", 4)]
METRICS = ("ip", "cosine", "l2")
DIMS = (7, 33, 64, 65)


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of 64 rows, copied in pieces of 24."""
    monkeypatch.setattr(index_segments, "SEGMENT_BYTES", 1)
    monkeypatch.setattr(compact_module, "_BLOCK_ROWS", 24)


def index_of(rows: Any, ids: Any = None, **parameters: Any) -> tq.Index:
    index = tq.Index(rows.shape[1], **parameters)
    index.add(rows, ids)
    return index


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("codec", "bits"), CODECS)
def test_as_if_all_had_been_added_here(
    codec: Any, bits: int, metric: Any, given: bool, mapped: bool, gaussian_rows: Any, tmp_path: Path, state: Any
) -> None:
    dim = DIMS[(bits + METRICS.index(metric)) % len(DIMS)]
    rows = gaussian_rows(270, dim)
    center = np.full(dim, 0.1) if given else None
    parameters: dict[str, Any] = {"codec": codec, "bits": bits, "metric": metric, "center": center}
    ids = np.random.default_rng(1).permutation(1000)[:270] if given else np.arange(270)
    whole = index_of(rows, ids, **parameters)
    index = index_of(rows[:100], ids[:100] if given else None, **parameters)
    other = index_of(rows[100:], ids[100:], **parameters)
    gone = ids[[3, 99, 100, 163, 164, 165, 269]]
    for each in (index, other, whole):
        each.remove([row_id for row_id in gone if row_id in each])
    if mapped:
        other.compact()  # removed rows are not what this is about
        other.save(tmp_path / "other")
        other = tq.load(tmp_path / "other")
    before = state(other)
    index.merge(other)
    assert state(index) == state(whole)
    assert state(other) == before
    assert len(index) == 263
    assert index.info()["segments"] == 5
    index.compact()
    index.save(tmp_path / "all")
    assert state(tq.load(tmp_path / "all")) == state(whole)


def test_generated_ids_that_follow_cost_nothing(gaussian_rows: Any, state: Any) -> None:
    rows = gaussian_rows(200, 16)
    index, other = index_of(rows[:50]), index_of(rows)
    other.remove(range(50))
    index.merge(other)
    assert index.info()["id_bytes"] == 0
    assert state(index) == state(index_of(rows))


@pytest.mark.parametrize("first", ["index", "other"])
def test_ids_go_on_after_the_larger(first: str, gaussian_rows: Any) -> None:
    rows = gaussian_rows(2, 16)
    index, other = index_of(rows[:1], [5]), index_of(rows[1:], [3])
    (index if first == "index" else other).add(rows[:1], [70])
    (index if first == "index" else other).remove([70])
    index.merge(other)
    assert index.add(rows[:1]).tolist() == [71]


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_an_id_that_was_removed_here_may_come_from_there(
    given: bool, built: bool, gaussian_rows: Any, state: Any
) -> None:
    """The look-up must answer with the new row, in whatever form either id is kept."""
    rows = gaussian_rows(100, 16)
    ids = np.arange(30)
    index = index_of(rows[:30], ids[::-1] if given else None)
    other = index_of(rows[50:80], None if given else ids[::-1])
    index.remove(ids)
    assert 3 not in index
    if not built:
        index._id_map = None
    index.merge(other)
    assert all(row_id in index for row_id in ids)
    assert state(index) == state(other)
    index.remove(ids[:10])
    index.compact()
    assert index.ids.tolist() == [row_id for row_id in other.ids if row_id >= 10]


def test_empty_ones(gaussian_rows: Any, state: Any) -> None:
    rows = gaussian_rows(70, 16)
    index, empty, emptied = index_of(rows), tq.Index(16), index_of(rows)
    emptied.remove(emptied.ids)
    before = state(index)
    index.merge(empty)
    index.merge(emptied)
    empty.merge(empty)
    assert state(index) == before
    empty.merge(index)
    assert state(empty) == before


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"metric": "l2"}, "must have metric 'cosine' as this index has, got 'l2'"),
        ({"dim": 17}, "must have dim 16 as this index has, got 17"),
        ({"bits": 2}, "must have bits 4 as this index has, got 2"),
        ({"codec": "prod"}, "must have kind 'mse' as this index has, got 'prod'"),
        ({"sketch": "gaussian"}, "must have sketch 'orthogonal' as this index has, got 'gaussian'"),
        ({"scale": "paper"}, "must have scale 'unbiased' as this index has, got 'paper'"),
        ({"rotation": "hadamard"}, "must have rotation 'dense' as this index has, got 'hadamard'"),
        ({"originals": "float16"}, "must have originals None as this index has, got 'float16'"),
        ({"seed": 1}, "must have seed 0 as this index has, got 1"),
        ({"effort": "search"}, "must have effort 'plain' as this index has, got 'search'"),
        ({"center": np.ones(16)}, "must have the same center as this index, got another one"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_other_codecs_are_refused(parameters: dict[str, Any], message: str, state: Any) -> None:
    index, other = tq.Index(16), tq.Index(**{"dim": 16, **parameters})
    index.add(np.eye(16))
    before = state(index)
    for one, another in ((index, other), (other, index)):
        with pytest.raises(ArgumentError, match=r"^other must have "):
            one.merge(another)
    with pytest.raises(ArgumentError) as caught:
        index.merge(other)
    assert str(caught.value) == f"other {message}"
    assert state(index) == before


def test_what_is_no_index_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"^other must be an Index, got ndarray$"):
        tq.Index(16).merge(np.ones((3, 16)))  # type: ignore[arg-type]


@pytest.mark.parametrize("place", [0, 100, 199])
def test_ids_of_both_are_refused(place: int, gaussian_rows: Any, state: Any) -> None:
    rows = gaussian_rows(300, 16)
    index, ids = index_of(rows[:100]), np.arange(1000, 1200)
    ids[place] = 42
    other = index_of(rows[100:], ids)
    before, others = state(index), state(other)
    with pytest.raises(ArgumentError, match=r"^other must have ids that are new here, got 42$"):
        index.merge(other)
    with pytest.raises(ArgumentError, match=r"^other must have ids that are new here, got 0$"):
        index.merge(index)
    assert state(index) == before
    other.remove([42])  # what is removed does not collide
    index.merge(other)
    assert len(index) == 299
    assert index.ids.tolist() == before[0] + [row_id for row_id in others[0] if row_id != 42]


def test_a_merge_that_fails_changes_nothing(gaussian_rows: Any, monkeypatch: pytest.MonkeyPatch, state: Any) -> None:
    rows = gaussian_rows(200, 16)
    index, other = index_of(rows[:30]), index_of(rows[30:], np.arange(30, 200))
    before, copy = state(index), StoredRows.copy

    def copy_or_fail(self: StoredRows, start: int, source: StoredRows, numbers: Any) -> None:
        copy(self, start, source, numbers)
        if start > 40:
            raise KeyboardInterrupt

    monkeypatch.setattr(StoredRows, "copy", copy_or_fail)
    with pytest.raises(KeyboardInterrupt):
        index.merge(other)
    assert state(index) == before
    monkeypatch.setattr(StoredRows, "copy", copy)
    index.merge(other)
    assert state(index) == state(index_of(rows))


def test_the_other_is_searched_and_added_to_meanwhile(
    gaussian_rows: Any, monkeypatch: pytest.MonkeyPatch, state: Any
) -> None:
    rows, copy, wrong = gaussian_rows(200, 16), StoredRows.copy, []
    index, other = index_of(rows[:30]), index_of(rows[30:150], np.arange(30, 150))
    expected = other.search(rows[150:152], 200)

    def use_other() -> None:
        if other.search(rows[150:152], 200).ids.tolist() != expected.ids.tolist():
            wrong.append("another result")
        other.add(rows[150:], np.arange(150, 200))
        other.compact()

    def slow_copy(self: StoredRows, start: int, source: StoredRows, numbers: Any) -> None:
        monkeypatch.setattr(StoredRows, "copy", copy)
        thread = threading.Thread(target=use_other)
        thread.start()
        thread.join()  # it waits for no lock that the merge holds
        copy(self, start, source, numbers)

    monkeypatch.setattr(StoredRows, "copy", slow_copy)
    index.merge(other)
    assert not wrong
    assert len(other) == 170
    assert index.ids.tolist() == list(range(150))
    assert state(index) == state(index_of(rows[:150]))


@pytest.mark.parametrize("originals", ["float16", "float32"])
def test_originals_come_along(originals: Any, gaussian_rows: Any) -> None:
    rows = gaussian_rows(200, 16)
    index = index_of(rows[:100], originals=originals)
    index.merge(index_of(rows[100:], np.arange(100, 200), originals=originals))
    index.remove(range(0, 200, 3))
    index.compact()
    whole = index_of(rows, originals=originals)
    whole.remove(range(0, 200, 3))
    for one, other in zip(index.search(rows, 5, rerank=100), whole.search(rows, 5, rerank=100), strict=True):
        np.testing.assert_array_equal(one, other)
