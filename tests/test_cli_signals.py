"""Ctrl-C: exit code 130, one line, no half index, and any earlier one as it was."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

# The command with a step that says when it begins and then takes for ever.
SLOW = """
import pathlib, sys, time
{patch}
from tqindex.cli import main
main()
"""
STALL = "lambda *arguments, **options: (pathlib.Path('MARK').touch(), time.sleep(60))"
MANIFEST = f"""
import tqindex.storage.save as m
write, stall = m.write_file, {STALL}
m.write_file = lambda path, *pieces: stall() if path.name == "manifest.json" else write(path, *pieces)
"""
IMPORTS = f"""
import builtins
load, stall = builtins.__import__, {STALL}
builtins.__import__ = lambda name, *rest: stall() if name == "click" else load(name, *rest)
"""
PATCHES = {
    "reading": f"from tqindex.readers.npy import RowMajorFile as m; m._read = {STALL}",
    "encoding": f"import tqindex.index.engine as m; m.encode_rows = {STALL}",
    "flushing": f"import os; os.fsync = {STALL}",
    "manifest": MANIFEST,
    "searching": f"import tqindex.index.engine as m; m.search_rows = {STALL}",
    "imports": IMPORTS,
}


@pytest.fixture
def folder(tmp_path, cli):
    """A folder with vectors and an index of them."""
    np.save(tmp_path / "a.npy", np.random.default_rng(0).standard_normal((3000, 8), np.float32))
    assert cli("build", tmp_path / "a.npy", "-o", tmp_path / "old")[0] == 0
    assert cli("search", tmp_path / "old", tmp_path / "a.npy", "-o", tmp_path / "before.h5")[0] == 0
    return tmp_path


def interrupt(folder, tmp_path_factory, patch, *arguments, by=signal.SIGINT):
    """Run the command in a folder, send a signal when the patched step begins, return (code, stdout, stderr)."""
    mark = tmp_path_factory.mktemp("mark") / "reached"
    code = SLOW.format(patch=patch.replace("MARK", str(mark)))
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", code, *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        while process.poll() is None and not mark.exists():
            time.sleep(0.01)
        process.send_signal(by)
        out, err = process.communicate(timeout=30)
    assert mark.exists(), err
    return process.returncode, out, err


def assert_interrupted(code, out, err):
    assert (code, out) == (130, "")
    assert err.strip() == "Interrupted: nothing half-written is left."


@pytest.mark.parametrize(
    ("step", "target"),
    [
        ("reading", "new"),
        ("encoding", "old"),
        ("flushing", "new"),
        ("manifest", "old"),
    ],
)
def test_build(folder, snapshot, tmp_path_factory, step, target):
    before = snapshot(folder)
    arguments = ["build", "a.npy", "-o", target, "--bits", "2", "--force"]
    assert_interrupted(*interrupt(folder, tmp_path_factory, PATCHES[step], *arguments))
    assert snapshot(folder) == before


@pytest.mark.parametrize(("step", "target"), [("searching", "hits.h5"), ("flushing", "before.h5")])
def test_search(folder, snapshot, tmp_path_factory, step, target):
    before = snapshot(folder)
    arguments = ["search", "old", "a.npy", "--output", target, "--force"]
    assert_interrupted(*interrupt(folder, tmp_path_factory, PATCHES[step], *arguments))
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    ("step", "arguments"),
    [
        ("reading", ["add", "old", "b.npy"]),
        ("encoding", ["add", "old", "b.npy"]),
        ("flushing", ["add", "old", "b.npy"]),
        ("manifest", ["add", "old", "b.npy"]),
        ("flushing", ["remove", "old", "--ids", "ids.txt"]),
        ("manifest", ["remove", "old", "--ids", "ids.txt"]),
        ("flushing", ["compact", "old"]),
        ("manifest", ["compact", "old"]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_changes(folder, cli, snapshot, tmp_path_factory, monkeypatch, step, arguments):
    np.save(folder / "b.npy", np.ones((3000, 8), np.float32))
    (folder / "ids.txt").write_text("3\n5\n")
    assert cli("remove", folder / "old", "--ids", folder / "ids.txt")[0] == 0  # so that there is something to compact
    (folder / "ids.txt").write_text("4\n")
    before = snapshot(folder)
    assert_interrupted(*interrupt(folder, tmp_path_factory, PATCHES[step], *arguments))
    assert snapshot(folder) == before
    monkeypatch.chdir(folder)
    assert cli(*arguments)[0] == 0  # the lock died with its owner


@pytest.mark.parametrize("target", ["new", "old"])
def test_a_polite_kill_leaves_nothing_either(folder, snapshot, tmp_path_factory, target):
    before = snapshot(folder)
    arguments = ["build", "a.npy", "-o", target, "--bits", "2", "--force"]
    done = interrupt(folder, tmp_path_factory, PATCHES["manifest"], *arguments, by=signal.SIGTERM)
    assert done == (143, "", "")
    assert snapshot(folder) == before


def test_while_modules_load(folder, tmp_path_factory):
    assert_interrupted(*interrupt(folder, tmp_path_factory, PATCHES["imports"], "info", "old"))


def test_in_the_middle_of_real_work(folder, snapshot, tmp_path_factory):
    """No step is replaced: the signal comes when the second block of ten is read."""
    large = np.lib.format.open_memmap(folder / "large.npy", "w+", np.float32, (20_000, 1024))
    large[:, 0] = 1
    del large
    before = snapshot(folder)
    patch = """
from tqindex.readers.npy import RowMajorFile as m
read = m._read
def _read(self, start, stop):
    if start > 2000: pathlib.Path('MARK').touch()
    return read(self, start, stop)
m._read = _read
"""
    arguments = ["build", "large.npy", "-o", "new", "--center", "none"]
    assert_interrupted(*interrupt(folder, tmp_path_factory, patch, *arguments))
    assert snapshot(folder) == before
