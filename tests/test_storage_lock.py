"""One writer at a time: the second is told who the first is, and a lock ends with its owner."""

import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

import tqindex as tq
from tqindex.errors import CorruptIndexError, LockedError, MissingFileError, StorageError
from tqindex.storage.lock import writer_lock
from tqindex.storage.partial import partial_folder

HOLD = """
import sys, time
{before}
from tqindex.storage.lock import writer_lock
with writer_lock(sys.argv[1]):
    {inside}
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def place(tmp_path):
    index_of(20).save(tmp_path / "index")
    return tmp_path / "index"


def index_of(n):
    index = tq.Index(8)
    index.add(np.random.default_rng(0).standard_normal((n, 8)))
    return index


def grown(place):
    index = tq.load(place)
    index.add(np.ones((1, 8)))
    return index


@contextmanager
def holder(place, before="", inside="pass"):
    """Another process that holds the lock."""
    code = HOLD.format(before=before, inside=inside)
    with subprocess.Popen([sys.executable, "-c", code, str(place)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def can_lock(place):
    """Whether another process gets the lock."""
    code = "import sys; from tqindex.storage.lock import writer_lock\nwith writer_lock(sys.argv[1]): pass"
    done = subprocess.run([sys.executable, "-c", code, str(place)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or "LockedError" in done.stderr, done.stderr
    return done.returncode == 0


# --- who is refused ---


def test_a_second_process_is_refused_and_told_who_is_first(place, snapshot):
    index = grown(place)
    with holder(place, before="sys.argv[0] = '/usr/bin/first-writer'") as process:
        before = snapshot(place)
        start = time.monotonic()
        for save in (lambda: index.save(place), lambda: index_of(3).save(place, overwrite=True)):
            with pytest.raises(LockedError) as caught:
                save()
            message = str(caught.value)
            assert message.startswith(f"{place} is being written by process {process.pid} (first-writer) on ")
            assert f" on {socket.gethostname()} since 20" in message
            assert message.endswith(": try again when that has ended")
        assert time.monotonic() - start < 5, "nothing is waited for"
        assert isinstance(caught.value, StorageError)
        assert snapshot(place) == before
        assert len(tq.load(place)) == tq.verify(place).manifest.n == 20  # readers take no notice
    index.save(place)
    assert len(tq.load(place)) == 21


def test_a_second_process_gets_the_lock_when_the_first_is_done(place):
    with writer_lock(place):
        assert not can_lock(place)
        with writer_lock(str(place)):
            grown(place).save(place)
        assert not can_lock(place), "the inner ones must not end the outer one"
    assert can_lock(place)


def test_the_lock_is_of_the_directory_whatever_its_name(tmp_path, place):
    (tmp_path / "link").symlink_to("index")
    with writer_lock(tmp_path / "link"), writer_lock(place):
        assert not can_lock(place)
    with holder(place), pytest.raises(LockedError), writer_lock(tmp_path / "link"):
        pass


def test_a_second_thread_is_refused(place):
    refusals = []

    def write():
        try:
            grown(place).save(place)
        except LockedError as error:
            refusals.append(str(error))

    with writer_lock(place):
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    assert refusals == [f"{place} is being written by another thread of this process: try again when that has ended"]
    write()
    assert len(refusals) == 1


def test_an_error_ends_the_lock(place):
    with pytest.raises(ZeroDivisionError), writer_lock(place):
        raise ZeroDivisionError
    assert can_lock(place)
    assert (place / "lock").read_bytes() == b""


# --- whose end is the lock's end ---


def test_a_killed_owner_holds_nothing(place):
    with holder(place) as process:
        process.kill()
        process.wait()
        assert (place / "lock").stat().st_size > 0, "it had no time to clean up"
        grown(place).save(place)
    assert len(tq.load(place)) == 21


@pytest.mark.parametrize(
    "inside",
    [
        "import os; os.fork() or time.sleep(60)",
        "import subprocess; subprocess.Popen(['sleep', '60'])",
    ],
    ids=["fork", "exec"],
)
def test_children_do_not_keep_the_lock(place, inside):
    with holder(place, before="import os; os.setpgrp()", inside=inside) as process:
        assert not can_lock(place)
        process.kill()
        process.wait()
        try:
            assert can_lock(place)
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_forked_child_is_another_writer(place, run_python):
    code = f"""
import os
from tqindex.errors import LockedError
from tqindex.storage.lock import writer_lock
with writer_lock({str(place)!r}):
    child = os.fork()
    if not child:
        try:
            with writer_lock({str(place)!r}):
                os._exit(1)
        except LockedError:
            os._exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    with writer_lock({str(place)!r}):
        print("still held")
"""
    assert run_python("-c", code).split("\n")[:2] == ["7", "still held"]


# --- the file ---


def test_a_directory_with_only_a_lock_is_an_empty_one(tmp_path, place):
    with writer_lock(place):
        shutil.copy(place / "lock", tmp_path / "text")
    for content in (b"", (tmp_path / "text").read_bytes()):
        new = tmp_path / f"new{len(content)}"
        new.mkdir()
        (new / "lock").write_bytes(content)
        with pytest.raises(CorruptIndexError, match=r"is not a tqindex index: it has no manifest\.json"):
            tq.load(new)
        index_of(3).save(new)
        assert tq.verify(new).manifest.n == 3


def test_somebody_elses_lock_file_makes_a_directory_foreign(tmp_path, snapshot):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "lock").write_text("12345\n")
    with pytest.raises(StorageError, match="is not a tqindex index: it is left alone"):
        index_of(3).save(tmp_path / "theirs", overwrite=True)
    with pytest.raises(CorruptIndexError, match="is not a tqindex index"), writer_lock(tmp_path / "theirs"):
        pass
    assert (tmp_path / "theirs" / "lock").read_text() == "12345\n"


def test_somebody_elses_text_stays(tmp_path, place):
    (place / "lock").write_text("12345\n")
    with writer_lock(place):
        assert not can_lock(place)
        grown(place).save(place)
    assert (place / "lock").read_text() == "12345\n"


def test_what_cannot_be_locked(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MissingFileError, match="no does not exist"), writer_lock(tmp_path / "no"):
        pass
    with pytest.raises(CorruptIndexError, match="file is not a tqindex index"), writer_lock(tmp_path / "file"):
        pass


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda lock, outside: lock.symlink_to(outside), "it must be a plain file, not a link"),
        (lambda lock, outside: lock.symlink_to(outside.parent / "new"), "it must be a plain file, not a link"),
        (lambda lock, outside: os.mkfifo(lock), "it must be a plain file"),
        (lambda lock, outside: lock.mkdir(), "Is a directory"),
    ],
    ids=["link", "dangling link", "pipe", "folder"],
)
def test_a_lock_that_is_no_plain_file(tmp_path, place, snapshot, make, words, overwrite):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    index = grown(place)
    make(place / "lock", outside)
    before = snapshot(tmp_path)
    with pytest.raises(StorageError, match=rf"index cannot be locked: {words}"):
        index.save(place, overwrite)
    assert snapshot(tmp_path) == before
    assert outside.read_text() == "mine"


def test_a_file_with_another_name_is_locked_but_not_written(tmp_path, place):
    (tmp_path / "outside").write_text('{"tqindex": "writer" and more')
    (place / "lock").hardlink_to(tmp_path / "outside")
    with writer_lock(place):
        assert not can_lock(place)
    assert (tmp_path / "outside").read_text() == '{"tqindex": "writer" and more'


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[1]",
        b"\xff\xfe",
        b"[" * 5000,
        b'{"pid": 3}',
        bytes(range(128, 192)),
        b'{"pid":' + b"9" * 900 + b"}",
    ],
    ids=lambda text: repr(text[:10]),
)
def test_a_text_that_cannot_be_used(place, text):
    with holder(place):
        (place / "lock").write_bytes(text)
        with pytest.raises(LockedError, match="index is being written by another process: try again"):
            grown(place).save(place)


def test_a_text_is_shown_on_one_line_of_bounded_length(place):
    with holder(place):
        long = "x" * 500
        (place / "lock").write_text(f'{{"pid": 3, "host": "a\\nb\\u001b[31m", "command": "{long}", "since": [1]}}')
        with pytest.raises(LockedError) as caught:
            grown(place).save(place)
    assert f"process 3 ({'x' * 80}) on a?b?[31m since [1]: try" in str(caught.value)


# --- new directories ---


def test_of_two_that_make_the_same_directory_one_wins(tmp_path, monkeypatch):
    place, other = tmp_path / "index", index_of(5)
    rename = type(place).rename

    def overtaken(path, target):
        if not place.exists():
            monkeypatch.undo()
            other.save(place)
        return rename(path, target)

    monkeypatch.setattr(type(place), "rename", overtaken)
    with pytest.raises(StorageError, match="index was made by another process meanwhile: it is left alone"):
        index_of(3).save(place)
    assert tq.verify(place).manifest.n == 5
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (lambda place: index_of(3), "index exists: pass overwrite=True"),
        (grown, "index was changed since it was loaded or saved"),
    ],
    ids=["an empty directory", "a loaded one"],
)
def test_what_changed_before_the_lock_was_had_is_seen(tmp_path, place, monkeypatch, start, words):
    module = importlib.import_module("tqindex.storage.save")
    index = start(place)
    if start is not grown:
        shutil.rmtree(place)
        place.mkdir()

    @contextmanager
    def late(directory):
        monkeypatch.undo()
        (index_of(5) if start is not grown else grown(place)).save(place)
        with writer_lock(directory):
            yield

    monkeypatch.setattr(module, "writer_lock", late)
    with pytest.raises(StorageError, match=words):
        index.save(place)
    assert tq.verify(place).manifest.n == (21 if start is grown else 5)


def test_many_processes_make_the_same_directory(tmp_path, run_python):
    code = f"""
import os, sys
import numpy as np
import tqindex as tq
from tqindex.errors import StorageError

indexes = []
for n in range(1, 9):
    indexes.append(tq.Index(8))
    indexes[-1].add(np.ones((n, 8)), threads=1)
for turn in range(10):
    place = {str(tmp_path)!r} + f"/index{{turn}}"
    begin, go = os.pipe()
    children = []
    for n, index in enumerate(indexes, 1):
        children.append(os.fork())
        if not children[-1]:
            os.close(go)
            os.read(begin, 1)
            try:
                index.save(place)
            except StorageError:
                os._exit(0)
            os._exit(n)
    os.close(begin)
    os.close(go)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    (won,) = [code for code in codes if code]
    assert tq.verify(place).manifest.n == won, codes
print(sorted({{name.split("x")[0] for name in os.listdir({str(tmp_path)!r})}}))
"""
    assert run_python("-c", code).strip() == "['inde']"


def test_leftovers_of_dead_makers_go_and_those_of_living_ones_stay(tmp_path, place):
    dead, foreign, empty = (tmp_path / f".index.0000000{i}.partial" for i in range(3))
    other = tmp_path / ".other.00000000.partial"
    for folder in (dead, foreign, other):
        shutil.copytree(place, folder)
        (folder / ".manifest.json.0123abcd.tmp").touch()
    (foreign / "notes.txt").write_text("mine")
    empty.mkdir()  # its maker may be about to lock it
    link = tmp_path / ".index.00000009.partial"
    link.symlink_to("other-index")
    shutil.copytree(place, tmp_path / "other-index")
    with partial_folder(place) as living:
        (living / "manifest.json").touch()
        grown(place).save(place)
        assert [path.name for path in living.iterdir()] == ["manifest.json"]
    assert not dead.exists()
    assert [path.name for path in foreign.iterdir()] == ["notes.txt"]
    assert len(list(other.iterdir())) == 3
    assert empty.exists()
    assert tq.verify(tmp_path / "other-index").manifest.n == 20
    grown(place).save(place)
    assert not living.exists()
