"""A save that is cut short at any step leaves the old state or the new one."""

import errno
import importlib
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest

import tqindex as tq
from tqindex.errors import StorageError
from tqindex.storage import files

# Everything that a save asks of the system, in the order of a save.
STEPS = [(os, "fsync"), *[(Path, name) for name in ("mkdir", "open", "replace", "rename", "unlink")]]


class Killed(BaseException):
    """The process is gone: no clean-up runs either."""


class Crash:
    """Lets `steps` steps of a save pass, and stops it before or after the next one is done."""

    def __init__(self, monkeypatch, steps, error, after):
        self.left, self.error, self.after, self.struck = steps, error, after, False
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # slow, and tells nothing here
        for owner, name in STEPS:
            monkeypatch.setattr(owner, name, self.guarded(getattr(owner, name)))
        monkeypatch.setattr(shutil, "rmtree", self.guarded(shutil.rmtree))

    def guarded(self, step):
        def run(*arguments, **options):
            if self.struck and isinstance(self.error, Killed):
                raise self.error
            self.left -= 1
            strikes = self.left < 0 and not self.struck
            self.struck |= strikes
            if strikes and not self.after:
                raise self.error
            result = step(*arguments, **options)
            if strikes:
                if hasattr(result, "close"):
                    result.close()
                raise self.error
            return result

        return run


def rows(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 16), np.float32)


def index_of(n, seed=0):
    index = tq.Index(16)
    index.add(rows(n, seed))
    return index


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "lock")


def assert_whole(folder):
    """Sound, and nothing in the folder but what the manifest names."""
    found = tq.verify(folder)
    assert names(folder) == sorted(["manifest.json", *found.manifest.files])


def assert_tidy(home, size):
    """No temporary names; files of the old state only where it was replaced and not yet removed."""
    assert names(home) in ([], ["index"])
    place = home / "index"
    if size == 70:
        assert_whole(place)
    elif place.exists():
        assert [name for name in names(place) if name.startswith(".")] == []
        assert size == 100 or names(place) == []


def start_new(place):
    return index_of(100), False


def start_in_empty_folder(place):
    place.mkdir()
    return index_of(100), False


def start_growing(place):
    index_of(70).save(place)
    index = tq.load(place)
    index.add(rows(30, seed=1))
    return index, False


def start_removing(place):
    """One segment gets its first live file, another one a new one, and a third is added."""
    index = index_of(50)
    index.save(place)
    index.add(rows(40, seed=2))
    index.remove(np.arange(50, 70))
    index.save(place)
    index = tq.load(place)
    index.remove([*range(10), *range(75, 85)])
    index.add(rows(50, seed=1))
    return index, False


def start_replacing(place):
    index_of(70).save(place)
    return index_of(100), True


STARTS = [start_new, start_in_empty_folder, start_growing, start_removing, start_replacing]
ERRORS = [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), Killed()]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("start", STARTS, ids=lambda start: start.__name__)
def test_any_step_may_be_the_last(tmp_path, start, error, after):
    sizes = set()
    for steps in range(100):
        home = tmp_path / str(steps)
        home.mkdir()
        place = home / "index"
        index, overwrite = start(place)
        expected = index.search(rows(3), 5)
        with pytest.MonkeyPatch.context() as patch:
            crash = Crash(patch, steps, error, after)
            try:
                index.save(place, overwrite)
            except (StorageError, KeyboardInterrupt, Killed) as caught:
                assert isinstance(caught, StorageError) == isinstance(error, OSError)  # noqa: PT017
        size = tq.verify(place).manifest.n if (place / "manifest.json").exists() else None
        sizes.add(size)
        if not isinstance(error, Killed):
            assert_tidy(home, size)
        np.testing.assert_array_equal(index.search(rows(3), 5).ids, expected.ids)
        index.save(place, overwrite=True)
        assert_whole(place)
        assert len(tq.load(place)) == 100
        if not crash.struck:
            break
    assert not crash.struck, "the save has more steps than were tried"
    assert steps >= 5
    assert sizes == {None if start in (start_new, start_in_empty_folder) else 70, 100}


@pytest.mark.parametrize("start", [start_growing, start_removing, start_replacing])
def test_a_full_disk_leaves_the_old_index(tmp_path, start, snapshot, monkeypatch):
    place = tmp_path / "index"
    index, overwrite = start(place)
    before = snapshot(tmp_path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="index cannot be written: No space left on device") as caught:
        index.save(place, overwrite)
    assert "\n" not in str(caught.value)
    assert snapshot(tmp_path) == before


def test_a_limit_on_file_size(tmp_path, snapshot):
    place = tmp_path / "index"
    index, _ = start_growing(place)
    index.add(rows(20_000))
    before = snapshot(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        with pytest.raises(StorageError, match="index cannot be written: File too large"):
            index.save(place)
        with pytest.raises(StorageError, match="new cannot be written: File too large"):
            index.save(tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert snapshot(tmp_path) == before
    index.save(place)
    assert len(tq.load(place)) == 20_100


def test_old_files_that_cannot_be_removed_do_no_harm(tmp_path, monkeypatch):
    place = tmp_path / "index"
    index, overwrite = start_replacing(place)

    def deny(path, missing_ok=False):
        raise PermissionError(errno.EACCES, "Permission denied")  # Windows, while a reader maps it

    monkeypatch.setattr(Path, "unlink", deny)
    index.save(place, overwrite)
    assert len(names(place)) == 3
    assert len(tq.load(place)) == 100
    monkeypatch.undo()
    index.save(place)
    assert_whole(place)


def leave_temporary_files(place):
    """What a process killed in the middle of two saves leaves."""
    (segment,) = place.glob("segment-*")
    (place / f".{segment.name}.0123abcd.tmp").write_bytes(b"half")
    (place / ".manifest.json.0123abcd.tmp").write_bytes(b"{")
    (place / "segment-0123456789abcdef.safetensors").write_bytes(b"no manifest names it")
    (place / "live-0123456789abcdef.bin").write_bytes(b"nor this")
    (place / ".live-0123456789abcdef.bin.0123abcd.tmp").write_bytes(b"")


def test_leftovers_disturb_nobody_and_go_with_the_next_save(tmp_path):
    place = tmp_path / "index"
    index, _ = start_growing(place)
    leave_temporary_files(place)
    (tmp_path / ".index.0123abcd.partial").mkdir()
    assert len(tq.load(place)) == 70
    assert tq.verify(place).manifest.n == 70
    index.save(place)
    assert_whole(place)


def test_leftovers_alone_are_no_index_but_may_be_replaced(tmp_path):
    place = tmp_path / "index"
    start_replacing(place)
    leave_temporary_files(place)
    (place / "manifest.json").unlink()
    with pytest.raises(StorageError, match="index exists: pass overwrite=True"):
        index_of(100).save(place)
    index_of(100).save(place, overwrite=True)
    assert_whole(place)


def test_a_reader_between_two_states_takes_the_newer(tmp_path, monkeypatch):
    module = importlib.import_module("tqindex.storage.load")  # the package's attribute of that name is the function
    place = tmp_path / "index"
    index, overwrite = start_replacing(place)
    read = module.read_manifest
    seen = []

    def read_then_replaced(directory):
        manifest = read(directory)
        if not seen:
            index.save(place, overwrite)
        seen.append(manifest.n)
        return manifest

    monkeypatch.setattr(module, "read_manifest", read_then_replaced)
    assert len(tq.load(place)) == 100
    assert seen == [70, 100]


def test_a_file_may_go_while_it_is_opened(tmp_path, monkeypatch):
    index = index_of(100)
    index.save(tmp_path / "index")
    index.add(rows(50))
    opening, saved = files.open_plain, []

    def slow(path, *arguments):
        if path.suffix == ".safetensors" and not saved:
            saved.append(index.compact())
            index.save(tmp_path / "index")
        return opening(path, *arguments)

    monkeypatch.setattr(files, "open_plain", slow)
    assert len(tq.load(tmp_path / "index", mmap=False)) == 150
