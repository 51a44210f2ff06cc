"""Compaction: removed rows go, small segments are joined, and nothing that a user sees changes."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tqindex as tq
from tqindex.index import compact as compact_module
from tqindex.index import segments as index_segments
from tqindex.index.compact import MAX_SMALL_SEGMENTS, with_few_segments
from tqindex.kernels.rows import StoredRows

CODECS = [("mse", 1), ("mse", 2), ("mse", 3), ("mse", 4), ("mse", 8), ("prod", 2), ("prod", 3), ("prod", 4)]
METRICS = ("ip", "cosine", "l2")
DIMS = (7, 33, 64, 65)


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of 64 rows, copied in pieces of 24."""
    monkeypatch.setattr(index_segments, "SEGMENT_BYTES", 1)
    monkeypatch.setattr(compact_module, "_BLOCK_ROWS", 24)


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("segment-*")}


def changed_index(rows: Any, folder: Path | None, given: bool, **parameters: Any) -> tq.Index:
    """An index of 300 rows, mapped if there is a folder, of which some are removed and some updated since."""
    rng = np.random.default_rng(0)
    index = tq.Index(rows.shape[1], **parameters)
    index.add(rows[:300], rng.permutation(10_000)[:300] if given else None)
    if folder is not None:
        index.save(folder)
        index = tq.load(folder)
    ids = rng.permutation(index.ids)
    index.remove(ids[:90])
    index.update(ids[90:100], rows[300:310])
    index.upsert([20_000, *ids[100:103]], rows[310:314])
    return index


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("codec", "bits"), CODECS)
def test_nothing_that_is_seen_changes(
    codec: Any, bits: int, metric: Any, given: bool, mapped: bool, gaussian_rows: Any, tmp_path: Path, state: Any
) -> None:
    dim = DIMS[(bits + METRICS.index(metric)) % len(DIMS)]
    center = np.full(dim, 0.1) if given else None
    parameters = {"codec": codec, "bits": bits, "metric": metric, "center": center}
    folder = tmp_path / "index" if mapped else None
    index = changed_index(gaussian_rows(314, dim), folder, given, **parameters)
    before, held = state(index), index.info()
    assert held["removed"] == 103
    index.compact()
    assert state(index) == before
    info = index.info()
    assert (info["n"], info["removed"], info["live_bytes"], info["segments"]) == (211, 0, 0, 4)
    for name in ("code_bytes", "side_bytes"):
        assert info[name] * 314 == held[name] * 211
    index.save(tmp_path / "after")
    assert state(tq.load(tmp_path / "after")) == before
    assert tq.verify(tmp_path / "after").manifest.n == 211
    assert index.add(np.ones((1, dim))).tolist() == [20_001]


def test_whole_segments_are_kept_and_their_files_too(gaussian_rows: Any, tmp_path: Path) -> None:
    index = tq.Index(16)
    index.add(gaussian_rows(300, 16))
    index.save(tmp_path / "index")
    files = stamps(tmp_path / "index")
    for source in (index, tq.load(tmp_path / "index")):
        source.remove([130])
        before = list(source._rows.segments)
        source.compact()
        after = source._rows.all_segments()
        assert [after.index(segment) for segment in before if segment in after] == [0, 1, 3, 4]
        assert after[2].n == 63
    index.save(tmp_path / "index")
    written = stamps(tmp_path / "index")
    assert len(written) == len(files) == 5
    assert len(set(written.items()) & set(files.items())) == 4


def test_a_whole_tail_still_grows_in_place(gaussian_rows: Any) -> None:
    index = tq.Index(16)
    index.add(gaussian_rows(80, 16))
    tail = index._rows.tail
    index.compact()
    assert index._rows.tail is tail
    index.add(gaussian_rows(10, 16))
    assert index.info()["segments"] == 2


def test_small_segments_are_joined(gaussian_rows: Any, tmp_path: Path, state: Any) -> None:
    rows, index = gaussian_rows(200, 16), tq.Index(16)
    for start in range(0, 200, 10):
        index.add(rows[start : start + 10])
        index.save(tmp_path / "index")
    assert index.info()["segments"] == 20
    for source in (index, tq.load(tmp_path / "index")):
        before = state(source)
        source.compact()
        assert state(source) == before
        assert [segment.n for segment in source._rows.all_segments()] == [64, 64, 64, 8]
        source.add(rows[:50])  # the last of them grows
        assert source.info()["segments"] == 4
        assert source.info()["id_bytes"] == 0


def test_a_second_compaction_has_nothing_to_do(gaussian_rows: Any) -> None:
    index = changed_index(gaussian_rows(314, 16), None, given=True)
    index.compact()
    before = index._rows.all_segments()
    index.compact()
    assert all(one is other for one, other in zip(before, index._rows.all_segments(), strict=True))


@pytest.mark.parametrize(
    ("removed", "stored"),
    [
        (range(64), 0),  # a whole segment
        (range(128, 192), 0),
        (range(250, 256), 0),  # the end
        (range(10), 0),  # the beginning: 10 to 63 follow each other
        ([100], 63),  # 64 to 127 without 100
        ([0, 63, 70], 125),  # 62 and 63 rows of two segments become 64 and 61
    ],
    ids=str,
)
def test_consecutive_ids_cost_nothing(removed: Any, stored: int, gaussian_rows: Any, state: Any) -> None:
    index = tq.Index(16)
    index.add(gaussian_rows(256, 16))
    index.remove(removed)
    before = state(index)
    index.compact()
    assert index.info()["id_bytes"] == 8 * stored
    assert state(index) == before


def test_ids_are_found_after_compaction(gaussian_rows: Any) -> None:
    rows = gaussian_rows(300, 16)
    index = changed_index(gaussian_rows(314, 16), None, given=True)
    ids = index.ids  # and the look-up is built before the rows move
    assert ids[7] in index
    index.compact()
    assert all(row_id in index for row_id in ids)
    index.remove(ids[50:60])
    index.update(ids[:5], rows[:5])
    assert ids[55] not in index
    assert index.ids.tolist() == [*ids[5:50], *ids[60:], *ids[:5]]
    best = index.search(rows[:5], 1).ids[:, 0]
    np.testing.assert_array_equal(best, ids[:5])


@pytest.mark.parametrize("given", [False, True])
def test_everything_removed(given: bool, gaussian_rows: Any, tmp_path: Path) -> None:
    rows = gaussian_rows(150, 16)
    index = tq.Index(16, metric="l2")
    ids = index.add(rows, np.arange(500, 350, -1) if given else None)
    index.remove(ids)
    index.compact()
    assert (index.info()["segments"], index.info()["total_bytes"], len(index)) == (0, 0, 0)
    assert index.search(rows[0], 2).ids.tolist() == [-1, -1]
    index.save(tmp_path / "index")
    for source in (index, tq.load(tmp_path / "index")):
        assert source.add(rows[:2]).tolist() == [ids.max() + 1, ids.max() + 2]  # removed ids do not come again
        source.add(rows[2:3], ids[:1])  # unless they are given
        assert source.search(rows[:3], 1).ids[:, 0].tolist() == [ids.max() + 1, ids.max() + 2, ids[0]]


def test_an_empty_index(tmp_path: Path) -> None:
    index = tq.Index(16)
    index.compact()
    assert len(index) == 0
    index.save(tmp_path / "index")
    loaded = tq.load(tmp_path / "index")
    loaded.compact()
    assert loaded.add(np.ones((1, 16))).tolist() == [0]


def test_a_compaction_that_fails_changes_nothing(
    gaussian_rows: Any, monkeypatch: pytest.MonkeyPatch, state: Any
) -> None:
    index = changed_index(gaussian_rows(314, 16), None, given=False)
    before, copy = state(index), StoredRows.copy

    def copy_or_fail(self: StoredRows, start: int, source: StoredRows, rows: Any) -> None:
        copy(self, start, source, rows)
        if start > 30:
            raise KeyboardInterrupt

    monkeypatch.setattr(StoredRows, "copy", copy_or_fail)
    with pytest.raises(KeyboardInterrupt):
        index.compact()
    assert state(index) == before
    monkeypatch.setattr(StoredRows, "copy", copy)
    index.compact()
    assert state(index) == before


def test_memory_is_what_is_written_and_a_block(gaussian_rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    index = tq.Index(8, 4, "ip")
    index.add(gaussian_rows(1_000_000, 8))
    index.remove([5])
    small = tq.Index(8, 4, "ip")
    small.add(gaussian_rows(3, 8))
    small.remove([1])
    small.compact()  # compiles the kernel
    tracemalloc.start()
    index.compact()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < index.info()["total_bytes"] + 5e6


# -- what a save joins


def small_rows(index: tq.Index, sizes: list[int]) -> None:
    """Add batches, each a segment of its own."""
    for size in sizes:
        index.add(np.random.default_rng(size).standard_normal((size, index.dim)))
        index._rows.seal_tail()


def test_few_segments_are_left_alone() -> None:
    index = tq.Index(16)
    small_rows(index, [5] * MAX_SMALL_SEGMENTS + [64] * 10)
    assert with_few_segments(index._rows) is index._rows


def test_many_small_segments_are_joined_and_full_ones_kept(state: Any) -> None:
    index = tq.Index(16)
    small_rows(index, [5] * 33 + [64] + [5] * 32)
    index.remove([2, 170, 171])  # the last two in the full one
    before, full = state(index), index._rows.segments[33]
    rows = with_few_segments(index._rows)
    assert rows.tail is None
    assert [(segment.n, segment.n_live) for segment in rows.segments] == [
        *[(64, 64), (64, 64), (36, 36)],
        (64, 62),
        *[(64, 64), (64, 64), (32, 32)],
    ]
    assert rows.segments[3] is full
    assert rows.next_id == index._rows.next_id
    index._commit(rows, moved=True)
    assert state(index) == before


def test_saving_joins_many_small_segments(tmp_path: Path, state: Any) -> None:
    index, rows = tq.Index(16), np.random.default_rng(0).standard_normal((5, 16))
    for turn in range(MAX_SMALL_SEGMENTS + 1):
        index.add(rows + turn, np.arange(5) + 10 * (99 - turn))
        assert 990 in index  # the look-up is there before the rows move
        before = state(index)
        index.save(tmp_path / "index")
        assert state(index) == before
    assert index.info()["segments"] == len(list((tmp_path / "index").glob("segment-*"))) == 6
    assert state(tq.load(tmp_path / "index")) == before
    index.update([990], rows[:1])
    assert index.search(rows[0], 1).ids == 990
