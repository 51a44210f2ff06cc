"""The commands that change an index: add, remove, compact."""

import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager

import h5py
import numpy as np
import pytest

import tqindex as tq
from tqindex.cli import command
from tqindex.errors import LockedError
from tqindex.storage.lock import writer_lock

DIM = 16
NEW = np.random.default_rng(3).standard_normal((60, DIM), np.float32)


@pytest.fixture
def room(tmp_path, cli, write_ann, monkeypatch):
    """A folder, and the one worked in, with an index of 300 vectors, and 60 more in files."""
    monkeypatch.chdir(tmp_path)
    write_ann(tmp_path / "words.h5", dim=DIM)
    assert cli("build", "words.h5", "-o", "old")[0] == 0
    np.save("new.npy", NEW)
    with h5py.File("new.h5", "w") as file:
        file["vectors"], file["names"] = NEW, np.arange(1000, 1060, dtype=np.uint32)
        file["groups/more"], file["other"] = NEW[:5], np.ones((60, 2), int)
        file["real"], file["large"] = np.ones(60), np.full(60, 2**63, np.uint64)
    write_ids("ids.txt", range(1000, 1060))
    return tmp_path


def write_ids(name, ids):
    with open(name, "w") as file:  # noqa: PTH123
        file.writelines(f"{row_id}\n" for row_id in ids)


def contents(index, queries=NEW[:9]):
    """Everything that can be seen of an index on disk."""
    assert tq.verify(index)
    loaded = tq.load(index)
    scores, ids = loaded.search(queries, len(loaded) + 1)
    return loaded.ids.tolist(), scores.tolist(), ids.tolist()


def labels(out):
    return [line.split()[0] for line in out.splitlines()]


def process(*arguments, **options):
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONWARNINGS": "error"}
    options = {"capture_output": True, "text": True, "env": environment} | options
    return subprocess.run([sys.executable, "-m", "tqindex", *map(str, arguments)], check=False, **options)


def assert_refused(result, words):
    code, out, err = result
    assert (code, out) == (2, "")
    assert re.fullmatch(r"Error: .*\n", err)
    assert words in err


# --- add ---


@pytest.mark.parametrize("file", ["new.npy", "new.h5"])
def test_add(room, cli, file):
    expected = tq.load("old")
    expected.add(NEW)
    expected.save("expected")
    options = ["--dataset", "vectors", "--threads", 1] if file == "new.h5" else []
    code, out, err = cli("add", "old", file, *options)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert labels(out) == ["added", "ids", "vectors", "rate"]
    source = "new.h5 [vectors]" if file == "new.h5" else "new.npy"
    assert lines[:3] == [f"added     60 vectors from {source} to old", "ids       300 to 359", "vectors   360 x 16"]
    assert contents("old") == contents("expected")


def test_add_writes_no_old_segment_again(room, cli):
    before = {path.name: path.stat().st_ino for path in (room / "old").glob("segment-*")}
    assert cli("add", "old", "new.npy")[0] == 0
    after = {path.name: path.stat().st_ino for path in (room / "old").glob("segment-*")}
    assert before.items() < after.items()


@pytest.mark.parametrize("names", ["names", "ids.txt"])
def test_add_with_ids(room, cli, names):
    code, out, err = cli("add", "old", "new.h5", "--dataset", "vectors", "--ids", names)
    assert (code, err) == (0, "")
    assert f"ids       from {names}\n" in out
    assert tq.load("old").ids.tolist() == [*range(300), *range(1000, 1060)]
    assert tq.load("old").search(NEW, 1).ids[:, 0].tolist() == list(range(1000, 1060))


def test_ids_from_standard_input(room):
    done = process("add", "old", "new.npy", "--ids", "-", input="\n".join(f" {i}\r" for i in range(500, 560)) + "\n\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert tq.load("old").ids[300:].tolist() == list(range(500, 560))
    done = process("remove", "old", "--ids", "-", input="500\n7")
    assert (done.returncode, done.stderr) == (0, "")
    assert tq.load("old").ids.tolist() == [*range(7), *range(8, 300), *range(501, 560)]


# --- remove ---


def test_remove(room, cli):
    write_ids("gone.txt", [*range(100, 190), 5])
    expected = tq.load("old")
    expected.remove([5, *range(100, 190)])
    code, out, err = cli("remove", "old", "--ids", "gone.txt")
    assert (code, err) == (0, "")
    info = expected.info()
    cost = f"to free   91 removed vectors take {info['removed_bytes']:,} bytes until `tqindex compact`"
    assert out.splitlines() == ["removed   91 vectors from old", "vectors   209 x 16", cost]
    assert info["removed_bytes"] == 91 * (info["code_bytes"] + info["side_bytes"]) // 300 + info["live_bytes"]
    assert contents("old")[0] == expected.ids.tolist()
    assert contents("old")[2] == expected.search(NEW[:9], 210).ids.tolist()
    shown = cli("info", "old")[1]
    assert cost in shown.splitlines()
    assert "vectors   209 x 16" in shown
    assert json.loads(cli("info", "old", "--json")[1])["removed"] == 91


def test_remove_nothing_and_everything(room, cli):
    write_ids("none.txt", [])
    write_ids("all.txt", range(300))
    before = contents("old")
    assert cli("remove", "old", "--ids", "none.txt")[0] == 0
    assert contents("old") == before
    assert "to free" not in cli("info", "old")[1]
    assert cli("remove", "old", "--ids", "all.txt")[0] == 0
    assert len(tq.load("old")) == 0
    assert cli("compact", "old")[0] == 0
    assert not list((room / "old").glob("segment-*"))
    assert cli("add", "old", "new.npy")[0] == 0
    assert tq.load("old").ids.tolist() == list(range(300, 360))


# --- compact ---


def test_compact(room, cli):
    write_ids("gone.txt", range(100, 190))
    cli("add", "old", "new.npy")
    cli("remove", "old", "--ids", "gone.txt")
    before, held = contents("old"), tq.load("old").info()
    code, out, err = cli("compact", "old")
    assert (code, err) == (0, "")
    info = tq.load("old").info()
    assert out.splitlines() == [
        "compacted old: 90 removed vectors dropped",
        "vectors   270 x 16",
        "segments  1, before 2",
        f"total     {info['total_bytes']:,} bytes, before {held['total_bytes']:,}",
    ]
    assert (info["removed"], info["segments"]) == (0, 1)
    assert contents("old") == before
    assert len(list((room / "old").glob("segment-*"))) == 1
    assert not list((room / "old").glob("live-*"))
    assert "to free" not in cli("info", "old")[1]
    assert cli("add", "old", "new.npy")[1].splitlines()[1] == "ids       360 to 419"


def test_compact_leaves_whole_segments_alone(room, cli):
    before = {path.name: path.stat().st_ino for path in (room / "old").glob("segment-*")}
    code, out, _ = cli("compact", "old")
    assert (code, out.splitlines()[0]) == (0, "compacted old: 0 removed vectors dropped")
    assert {path.name: path.stat().st_ino for path in (room / "old").glob("segment-*")} == before


def test_damage_is_not_copied_under_a_new_checksum(room, cli, snapshot):
    write_ids("gone.txt", [3])
    cli("remove", "old", "--ids", "gone.txt")
    segment = next((room / "old").glob("segment-*"))
    content = bytearray(segment.read_bytes())
    content[-1] ^= 1
    segment.write_bytes(content)
    before = snapshot(room)
    assert_refused(cli("compact", "old"), "is altered: its checksum does not match the manifest's")
    assert snapshot(room) == before


# --- what is refused ---


CASES = [
    ("add old no.npy", "no.npy: no such file"),
    ("add no new.npy", "no does not exist"),
    ("add new.npy new.npy", "new.npy is not a tqindex index"),
    ("add old wide.npy", "wide.npy: vectors must have 16 columns as old has, got 17"),
    ("add old nan.npy", "nan.npy: vectors must be finite in float32, got nan in row 40"),
    ("add old new.h5", "several 2-D float datasets, one must be named (build --dataset)"),
    ("add old new.npy --threads 0", "threads must be from 1 to 1024, got 0"),
    ("add old new.npy --ids names", "names: no such file, and new.npy has no dataset of that name"),
    ("add old new.npy --ids folder", "folder cannot be read: Is a directory"),
    ("add old new.npy --ids short.txt", "ids must have one id per vector, shape (60,), got (2,)"),
    ("add old new.npy --ids twice.txt", "ids must be distinct, got 7 twice"),
    ("add old new.npy --ids held.txt", "ids must be new, got 299, which is in the index"),
    ("add old new.npy --ids words.txt", "words.txt: line 2 must be an integer from 0 to 2**63 - 2, got 'two'"),
    ("add old new.npy --ids new.npy", "new.npy: line 1 must be an integer from 0 to 2**63 - 2, got "),
    (
        "add old new.h5 --dataset vectors --ids other",
        "must be a 1-D integer dataset, got 'other' (60, 2) int64",
    ),
    ("add old new.h5 --dataset vectors --ids groups", "'groups' must be a 1-D integer dataset, got a group"),
    ("add old new.h5 --dataset vectors --ids real", "'real' must be a 1-D integer dataset, got 'real' (60,) float64"),
    (
        "add old new.h5 --dataset vectors --ids large",
        "'large' must hold numbers that fit int64, got 922337203",
    ),
    ("add old new.h5 --dataset vectors --ids no.txt", "no.txt: no such file, and new.h5 has no dataset of that name"),
    ("add old", "Missing argument 'FILE'."),
    ("remove old", "Missing option '--ids'."),
    ("remove no --ids ids.txt", "no does not exist"),
    ("remove old --ids no.txt", "no.txt: no such file"),
    ("remove old --ids ids.txt", "ids must be in the index, got 1000"),
    ("remove old --ids partly.txt", "ids must be in the index, got 300"),
    ("remove old --ids twice.txt", "ids must be distinct, got 7 twice"),
    ("remove old --ids minus.txt", "minus.txt: line 1 must be an integer from 0 to 2**63 - 2, got '-1'"),
    (
        "remove old --ids large.txt",
        "large.txt: line 1 must be an integer from 0 to 2**63 - 2, got '92233720",
    ),
    ("remove old --ids huge.txt", "huge.txt: line 3 must be an integer from 0 to 2**63 - 2, got '1111"),
    ("compact no", "no does not exist"),
    ("compact folder", "folder is not a tqindex index"),
    ("compact", "Missing argument 'INDEX'."),
]


@pytest.fixture
def bad_room(room):
    """The same with files that cannot be used."""
    np.save("wide.npy", np.ones((3, 17)))
    np.save("nan.npy", np.where(np.arange(60)[:, None] == 40, np.nan, NEW))
    write_ids("short.txt", [1000, 1001])
    write_ids("twice.txt", [7, *range(1000, 1058), 7])
    write_ids("held.txt", range(299, 359))
    write_ids("words.txt", [1, "two", 3])
    write_ids("partly.txt", [*range(290, 301)])
    write_ids("minus.txt", [-1])
    write_ids("large.txt", [2**63 - 1])
    write_ids("huge.txt", [1, 2, "1" * 5000])
    (room / "folder").mkdir()
    (room / "folder" / "notes.txt").touch()
    return room


@pytest.mark.parametrize(("line", "words"), CASES, ids=[line for line, _ in CASES])
def test_refusals_change_nothing(bad_room, cli, snapshot, line, words):
    before = snapshot(bad_room)
    assert_refused(cli(*line.split()), words)
    assert snapshot(bad_room) == before


# --- one writer ---


@contextmanager
def locked(path):
    """Hold the writer's lock in another thread."""
    held, release = threading.Event(), threading.Event()

    def hold():
        with writer_lock(path):
            held.set()
            release.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    yield
    release.set()
    thread.join()


LINES = [["add", "old", "new.npy"], ["remove", "old", "--ids", "some.txt"], ["compact", "old"]]


@pytest.mark.parametrize("arguments", LINES, ids=lambda line: line[0])
def test_who_comes_second_is_refused(room, cli, snapshot, arguments):
    write_ids("some.txt", [1, 2])
    with locked("old"):
        before = snapshot(room)
        assert_refused(cli(*arguments), "old is being written by another thread of this process")
        assert snapshot(room) == before
    assert cli(*arguments)[0] == 0


@pytest.mark.parametrize("arguments", LINES, ids=lambda line: line[0])
def test_the_lock_is_held_from_loading_to_saving(room, cli, monkeypatch, arguments):
    write_ids("some.txt", [1, 2])
    tried, refused = [], []

    def try_lock():
        try:
            with writer_lock("old"):
                pass
        except LockedError:
            refused.append(True)

    def trying(step):
        def run(*given, **options):
            tried.append(step)
            thread = threading.Thread(target=try_lock)
            thread.start()
            thread.join()
            return step(*given, **options)

        return run

    monkeypatch.setattr(command, "load", trying(command.load))
    monkeypatch.setattr(tq.Index, "save", trying(tq.Index.save))
    assert cli(*arguments)[0] == 0
    assert len(tried) == len(refused) == 2
