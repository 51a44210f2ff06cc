"""What a disk and a system can do to a save or a load, and links that lead out of the directory."""

import errno
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

import tqindex as tq
from tqindex.errors import CorruptIndexError, StorageError


@pytest.fixture
def place(tmp_path):
    index = tq.Index(8)
    index.add(rows(100))
    index.remove([1, 2])
    index.save(tmp_path / "index")
    return tmp_path / "index"


def rows(n):
    return np.random.default_rng(n).standard_normal((n, 8), np.float32)


def grown(place):
    index = tq.load(place)
    index.add(rows(10))
    index.remove([3])
    return index


# --- the disk ---


@pytest.mark.parametrize("kept", [0, 1, 50])
def test_short_writes_and_a_full_disk(place, snapshot, monkeypatch, kept):
    """A disk that is full in the middle of a file: part of it is written."""
    index, before = grown(place), snapshot(place.parent)
    opened = Path.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def writelines(self, pieces):
            self.file.write(b"".join(pieces)[:kept])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(
        Path, "open", lambda path, mode: Full(opened(path, mode)) if mode == "xb" else opened(path, mode)
    )
    for target in (place, place.parent / "new"):
        with pytest.raises(StorageError, match=f"{target.name} cannot be written: No space left on device"):
            index.save(target)
    assert snapshot(place.parent) == before


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES, errno.EIO, errno.EDQUOT])
def test_a_lock_that_cannot_be_opened(place, snapshot, monkeypatch, error):
    index, before = grown(place), snapshot(place)

    def refuse(*arguments, **options):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StorageError, match=f"index cannot be locked: {os.strerror(error)}"):
        index.save(place)
    monkeypatch.undo()
    assert snapshot(place) == before
    index.save(place)
    assert tq.verify(place).manifest.n == 107


@pytest.fixture
def nobody():
    """Be a user whom file modes stop, where the tests run as root."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.fixture
def open_folder():
    """A folder that any user may enter: pytest's own are the user's alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def test_a_read_only_directory(place, open_folder, snapshot, request):
    copy = shutil.copytree(place, open_folder / "index")
    copy.chmod(0o555)
    request.getfixturevalue("nobody")
    before = snapshot(open_folder)
    index = grown(copy)
    with pytest.raises(StorageError, match="index cannot be locked: Permission denied"):
        index.save(copy)
    assert snapshot(open_folder) == before
    assert tq.verify(copy).manifest.n == 98
    open_folder.joinpath("sealed").mkdir(mode=0o555)
    with pytest.raises(StorageError, match="new cannot be written: Permission denied"):
        index.save(open_folder / "sealed" / "new")
    index.save(open_folder / "elsewhere")
    assert tq.verify(open_folder / "elsewhere").manifest.n == 107


@pytest.mark.parametrize("missing", [1, 100])
@pytest.mark.parametrize("kind", ["segment", "live"])
def test_short_reads(place, monkeypatch, kind, missing):
    read = np.fromfile

    def short(file, dtype, count):
        content = read(file, dtype, count)
        return content[:-missing] if (count > 100) == (kind == "segment") else content

    monkeypatch.setattr(np, "fromfile", short)
    with pytest.raises(
        CorruptIndexError, match=rf"{kind}-\w+\.\w+ is truncated or altered: it must have \d+ bytes, got"
    ):
        tq.load(place, mmap=False)


def test_files_unlinked_under_a_memory_map(place):
    index, expected = tq.load(place), tq.load(place, mmap=False).search(rows(4), 20)
    shutil.rmtree(place)
    found = index.search(rows(4), 20)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.scores, expected.scores)
    index.add(rows(10))
    index.save(place)
    assert tq.verify(place).manifest.n == 108


# --- links that lead out ---


@pytest.mark.parametrize("pattern", ["segment-*", "live-*", "manifest.json"])
def test_links_are_neither_followed_nor_written_through(tmp_path, place, snapshot, pattern):
    (tmp_path / "outside").mkdir()
    (path,) = place.glob(pattern)
    inside = shutil.move(path, tmp_path / "outside" / path.name)
    path.symlink_to(inside)
    before = snapshot(tmp_path / "outside")
    with pytest.raises(CorruptIndexError):
        tq.load(place, mmap=False)
    index = tq.Index(8)
    index.add(rows(5))
    if pattern == "manifest.json":  # a directory without a manifest of its own, and with a foreign link
        with pytest.raises(StorageError, match="is not a tqindex index: it is left alone"):
            index.save(place, overwrite=True)
    else:
        index.save(place, overwrite=True)
        assert tq.verify(place).manifest.n == 5
        assert not path.is_symlink(), "the link is ours to remove, what it points to is not"
    assert snapshot(tmp_path / "outside") == before


def test_a_planted_temporary_name_is_not_written_through(tmp_path, place, monkeypatch):
    (tmp_path / "outside").write_text("mine")
    monkeypatch.setattr("secrets.token_hex", lambda size: "0123abcd")
    (place / ".manifest.json.0123abcd.tmp").symlink_to(tmp_path / "outside")
    with pytest.raises(StorageError, match="index cannot be written: File exists"):
        grown(place).save(place)
    assert (tmp_path / "outside").read_text() == "mine"
