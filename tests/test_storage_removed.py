"""Removed rows on disk: live files beside segments that never change."""

import json
import subprocess
import sys

import numpy as np
import pytest

import tqindex as tq
from tqindex.errors import UnknownIdError


@pytest.fixture
def place(tmp_path):
    return tmp_path / "index"


def rows(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 16), np.float32)


def index_of(*sizes):
    """An index with one segment per size once it is saved."""
    index = tq.Index(16)
    for seed, n in enumerate(sizes):
        index.add(rows(n, seed))
        index._rows.seal_tail()
    return index


def stamps(folder):
    """What a save that writes a file again cannot leave as it was."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir() if "-" in path.name}


def fields(place):
    return json.loads((place / "manifest.json").read_bytes())


def assert_same(loaded, index):
    np.testing.assert_array_equal(loaded.ids, index.ids)
    for one, other in zip(loaded.search(rows(4, 99), 20), index.search(rows(4, 99), 20), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(loaded.reconstruct(index.ids), index.reconstruct(index.ids))
    assert loaded.info() == index.info()


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("n", [1, 7, 8, 9, 64, 130])
def test_round_trip(place, n, mmap):
    index = index_of(n)
    index.add(rows(3, 50), ids=[1000, 999, 998])
    index.remove([n - 1, 999])
    index.save(place)
    loaded = tq.load(place, mmap=mmap)
    assert_same(loaded, index)
    for gone in (n - 1, 999):
        assert gone not in loaded
        with pytest.raises(UnknownIdError):
            loaded.remove([gone])
    assert tq.verify(place).manifest.n == len(loaded) == n + 1


def test_everything_may_be_removed(place):
    index = index_of(10)
    index.remove(np.arange(10))
    index.save(place)
    loaded = tq.load(place)
    assert (len(loaded), tq.verify(place).manifest.n) == (0, 0)
    assert (loaded.search(rows(1), 3).ids == -1).all()
    np.testing.assert_array_equal(loaded.add(rows(1)), [10])


def test_a_removed_id_may_be_given_again(place):
    index = index_of(10)
    index.remove([3, 4])
    index.save(place)
    index = tq.load(place)
    index.add(rows(2, 7), ids=[4, 3])
    index.update([3, 9], rows(2, 8))
    index.upsert([4, 77], rows(2, 9))
    index.save(place)
    assert_same(tq.load(place), index)
    assert tq.verify(place).manifest.n == 11


def test_live_bits_are_read_into_memory(place):
    index = index_of(100)
    index.remove([5])
    index.save(place)
    (segment,) = tq.load(place)._rows.segments
    assert isinstance(segment.rows.lead, np.memmap)
    assert not isinstance(segment.live, np.memmap)


def test_rows_that_come_after_a_removal(place):
    index = index_of(10)
    index.add(rows(3, 5))
    index.remove([11])
    index.add(rows(4, 6))  # into the tail of which a row is removed
    index.save(place)
    assert_same(tq.load(place), index)
    assert tq.verify(place).manifest.n == 16


# --- what is written ---


def test_a_removal_writes_its_live_bits_and_no_segment(place):
    index = index_of(100, 50, 30)
    index.save(place)
    before = stamps(place)
    index.remove([3, 120])
    index.save(place)
    after = stamps(place)
    assert {name: after[name] for name in before} == before
    added = sorted(set(after) - set(before))
    assert [name.split("-")[0] for name in added] == ["live", "live"]
    sizes = [entry["live"]["bytes"] if "live" in entry else None for entry in fields(place)["segments"]]
    assert sizes == [13, 7, None]


@pytest.mark.parametrize("reload", [True, False])
def test_only_new_removals_are_written(place, reload):
    index = index_of(100, 50)
    index.remove([3, 120])
    index.save(place)
    before, first = stamps(place), [entry["live"]["file"] for entry in fields(place)["segments"]]
    index = tq.load(place) if reload else index
    index.remove([4])
    index.save(place)
    after, second = stamps(place), [entry["live"]["file"] for entry in fields(place)["segments"]]
    assert (first[1] == second[1], first[0] == second[0]) == (True, False)
    assert {name: stamp for name, stamp in before.items() if name != first[0]}.items() <= after.items()
    assert first[0] not in after, "no manifest names it"
    assert len(after) == 4


def test_saving_without_a_change_changes_no_byte(place):
    index = index_of(100)
    index.remove([1])
    index.save(place)
    before, manifest = stamps(place), (place / "manifest.json").read_bytes()
    index.save(place)
    tq.load(place).save(place)
    assert (stamps(place), (place / "manifest.json").read_bytes()) == (before, manifest)


def test_segments_with_the_same_rows_removed_share_a_live_file(place):
    index = index_of(20, 20)
    index.remove([3, 23])
    index.save(place)
    assert len(list(place.glob("live-*"))) == 1
    assert_same(tq.load(place), index)
    index.remove([4])
    index.save(place)
    assert len(list(place.glob("live-*"))) == 2
    assert_same(tq.load(place), index)


def test_what_is_saved_elsewhere_is_whole(tmp_path, place):
    index = index_of(20)
    index.remove([3])
    index.save(place)
    index = tq.load(place)
    index.save(tmp_path / "copy")
    assert_same(tq.load(tmp_path / "copy"), index)
    assert tq.verify(tmp_path / "copy").files == 2


def test_overwriting_removes_live_files(place):
    index = index_of(20)
    index.remove([3])
    index.save(place)
    index_of(10).save(place, overwrite=True)
    assert list(place.glob("live-*")) == []
    assert tq.verify(place).manifest.n == 10


def test_own_folder_whose_live_file_was_lost_is_made_whole(place):
    index = index_of(20)
    index.remove([3])
    index.save(place)
    next(place.glob("live-*")).unlink()
    index.save(place)
    assert_same(tq.load(place), index)


def test_a_removal_by_another_is_a_change(place):
    index_of(20).save(place)
    one, other = tq.load(place), tq.load(place)
    one.remove([3])
    one.save(place)
    with pytest.raises(tq.errors.StorageError, match="was changed since it was loaded or saved"):
        other.save(place)


def test_the_version_is_the_earliest_that_will_do(place):
    index = index_of(20)
    assert index.info()["format_version"] == 1
    index.save(place)
    assert fields(place)["version"] == 1
    index.remove([3])
    assert index.info()["format_version"] == 2
    index.save(place)
    assert fields(place)["version"] == tq.load(place).info()["format_version"] == 2


# --- readers of an older version ---

READER = """
import hashlib, sys
import numpy as np
import tqindex as tq
index = tq.load(sys.argv[1])
queries = np.random.default_rng(1).standard_normal((4, 16), np.float32)
for _ in sys.stdin:
    found = index.search(queries, 20)
    content = found.ids.tobytes() + found.scores.tobytes() + index.reconstruct(index.ids).tobytes()
    print(len(index), hashlib.sha256(content).hexdigest(), flush=True)
"""


def test_another_process_keeps_its_version(place):
    index = index_of(300, 200)
    index.remove(np.arange(50))
    index.save(place)
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:

        def ask():
            reader.stdin.write("\n")
            reader.stdin.flush()
            return reader.stdout.readline()

        first = ask()
        assert first.split()[0] == "450"
        index.remove(np.arange(100, 200))
        index.save(place)
        assert ask() == first
        old = stamps(place)
        index_of(10).save(place, overwrite=True)
        assert not stamps(place).keys() & old.keys(), "the reader's files must be gone"
        assert ask() == first
        for path in place.iterdir():
            path.unlink()
        place.rmdir()
        assert ask() == first
        reader.stdin.close()
        assert reader.wait(60) == 0
