"""Bad input: one line that names file or argument, exit code 2, and nothing written or changed."""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

INDEX = "index.tq"


@pytest.fixture(scope="module")
def room(tmp_path_factory, write_ann):
    """A folder with an index and one file of every kind of bad input."""
    from tqindex.cli.command import run

    room = tmp_path_factory.mktemp("room")
    write_ann(room / "good.h5", n=60, dim=8, nq=3)
    good = np.random.default_rng(0).standard_normal((60, 8), np.float32)
    assert run(["build", str(room / "good.h5"), "-o", str(room / INDEX)]) == 0
    for name, value in {"nan": np.nan, "inf": -np.inf, "zero": 0.0}.items():
        np.save(room / f"{name}.npy", np.where(np.arange(60)[:, None] == 7, np.float32(value), good))
    np.save(room / "overflow.npy", good.astype(np.float64) * np.where(np.arange(60) == 5, 1e39, 1)[:, None])
    np.save(room / "long.npy", good * np.float32(1e30))
    np.save(room / "wide.npy", np.ones((5, 9), np.float32))
    np.save(room / "narrow.npy", np.ones((5, 1), np.float32))
    np.save(room / "empty.npy", np.ones((0, 8), np.float32))
    np.save(room / "integers.npy", np.ones((5, 8), np.int32))
    (room / "text.h5").write_text("no HDF5")
    (room / "text.txt").write_text("text")
    (room / "short.fbin").write_bytes(np.array([5, 8], "<u4").tobytes())
    with h5py.File(room / "none.h5", "w") as file:
        file["ids"] = np.arange(5)
    with h5py.File(room / "several.h5", "w") as file:
        file["a"], file["b"] = good, good
    with h5py.File(room / "truth.h5", "w") as file:
        file["test"], file["neighbors"] = good, np.zeros((60, 3))
    with h5py.File(room / "jaccard.h5", "w") as file:
        file["train"], file.attrs["distance"] = good, "jaccard"
    assert run(["search", str(room / INDEX), str(room / "good.h5"), "-o", str(room / "hits-before.h5")]) == 0
    (room / "ids.txt").write_text("3\n")
    (room / "folder").mkdir()
    (room / "folder" / "notes.txt").touch()
    (room / "empty").mkdir()
    os.mkfifo(room / "pipe")
    for name in ("cut", "altered", "newer"):
        assert run(["build", str(room / "good.h5"), "-o", str(room / name)]) == 0
        manifest = json.loads((room / name / "manifest.json").read_bytes())
        segment = room / name / manifest["segments"][0]["file"]
        if name == "newer":
            (room / name / "manifest.json").write_text(json.dumps({**manifest, "version": 7}))
        elif name == "cut":
            os.truncate(segment, 500)
        else:
            segment.write_bytes(segment.read_bytes()[:-1] + b"?")
    return room


# The command, and words that its one line must have.
CASES = [
    ("build no.h5", "no.h5: no such file"),
    ("build folder", "folder: a file of vectors is needed, got a directory"),
    ("build .", ": a file of vectors is needed, got a directory"),
    ("build text.h5", "text.h5: not an HDF5 file"),
    ("build text.txt", "text.txt: the extension must be one of"),
    ("build none.h5", "none.h5: no 2-D float dataset for the base, got 'ids' (5,) int64"),
    (
        "build several.h5",
        "several.h5: several 2-D float datasets, one must be named (build --dataset): 'a' (60, 8) float32, 'b'",
    ),
    ("build several.h5 --dataset c", "no dataset 'c' in the file"),
    ("search index.tq good.h5 --output good.h5 --force", "good.h5 exists and does not hold search results"),
    ("search index.tq wide.npy --output wide.npy --force", "wide.npy exists and does not hold search results"),
    ("build jaccard.h5", "jaccard.h5 states distance 'jaccard': --metric must say what to use instead"),
    ("build nan.npy --dataset a", "dataset applies to HDF5 files only, got 'a'"),
    ("build empty.npy", "empty.npy is empty: at least one vector is needed, got shape (0, 8)"),
    ("build integers.npy", "must hold float16, float32 or float64, got dtype int32"),
    ("build narrow.npy", "narrow.npy: number of columns must be from 2 to 65536, got 1"),
    ("build short.fbin", "short.fbin is truncated: expected 168 bytes"),
    ("build nan.npy", "nan.npy: vectors must be finite in float32, got nan in row 7"),
    ("build inf.npy --center none", "inf.npy: vectors must be finite in float32, got -inf in row 7"),
    ("build overflow.npy --metric ip", "overflow.npy: vectors must be finite in float32, got "),
    ("build long.npy --metric l2 --center none", "long.npy: vectors must have norms of at most 2**60"),
    ("build zero.npy", "zero.npy: vectors must not be zero under metric='cosine', got a zero vector in row 7"),
    ("build zero.npy --center none", "zero.npy: vectors must not be zero under metric='cosine'"),
    ("build good.h5 -o new --bits 0", "bits must be one of 1, 2, 3, 4, 8; got 0"),
    ("build good.h5 -o new --bits 5", "bits must be one of 1, 2, 3, 4, 8; got 5"),
    ("build good.h5 -o new --bits 2.5", "Invalid value for '--bits': '2.5' is not a valid integer."),
    ("build good.h5 -o new --bits 8 --codec prod", "bits of kind 'prod' must be one of 2, 3, 4; got 8"),
    ("build good.h5 -o new --bits 1 --codec prod", "bits of kind 'prod' must be one of 2, 3, 4; got 1"),
    ("build good.h5 -o new --metric l3", "--metric must be one of ip, cosine, l2; got 'l3'"),
    ("build good.h5 -o new --center mean", "--center must be one of auto, none; got 'mean'"),
    ("build good.h5 -o new --codec pq", "--codec must be one of mse, prod, trellis; got 'pq'"),
    ("build good.h5 -o new --sketch x", "--sketch must be one of orthogonal, gaussian; got 'x'"),
    ("build good.h5 -o new --sketch gaussian", "--sketch must go with --codec prod"),
    ("build good.h5 -o new --scale x", "scale must be one of unbiased, paper; got 'x'"),
    ("build good.h5 -o new --rotation x", "rotation must be one of hadamard, dense; got 'x'"),
    ("build good.h5 -o new --effort most", "effort must be one of plain, search; got 'most'"),
    ("build good.h5 -o new --effort search --bits 8", "effort 'search' must go with bits 2, 3 or 4"),
    ("build good.h5 -o new --seed -1", "seed must be from 0 to 9223372036854775807, got -1"),
    ("build good.h5 -o new --seed 9223372036854775808", "seed must be from 0 to 9223372036854775807, got 922"),
    ("build good.h5 -o new --seed x", "Invalid value for '--seed': 'x' is not a valid integer."),
    ("build good.h5 -o new --threads 0", "threads must be from 1 to 1024, got 0"),
    ("build good.h5 -o new --bitz 3", "No such option"),
    ("build good.h5 -o index.tq", "index.tq exists: pass overwrite=True (--force) to replace it"),
    ("build good.h5 -o cut", "cut exists: pass overwrite=True (--force) to replace it"),
    ("build good.h5 -o folder --force", "folder exists and is not a tqindex index: it is left alone"),
    ("build good.h5 -o good.h5 --force", "good.h5 exists and is not a tqindex index: it is left alone"),
    ("build good.h5 -o no/new", "no must be a folder that exists, to write new into"),
    ("build good.h5 -o good.h5/new", "good.h5 must be a folder that exists, to write new into"),
    ("build good.h5 -o /proc/new", "/proc/new cannot be written: "),
    ("build", "Missing argument 'FILE'."),
    ("build good.h5 good.h5", "Got unexpected extra argument"),
    ("search index.tq", "Missing argument 'QUERIES'."),
    ("search no good.h5", "no does not exist"),
    ("search empty good.h5", "empty is not a tqindex index: it has no manifest.json"),
    ("search folder good.h5", "folder is not a tqindex index: it has no manifest.json"),
    ("search good.h5 good.h5", "good.h5 is not a tqindex index: it has no manifest.json"),
    ("search cut good.h5", "is truncated or altered: it must have"),
    ("search altered good.h5", "is altered: its checksum does not match the manifest's"),
    ("search newer good.h5", "newer has format version 7; this tqindex reads 1 to 3: upgrade tqindex"),
    ("search index.tq no.npy", "no.npy: no such file"),
    ("search index.tq empty.npy", "empty.npy is empty"),
    ("search index.tq wide.npy", "wide.npy: vectors must have 8 columns as index.tq has, got 9"),
    ("search index.tq nan.npy", "nan.npy: queries must be finite in float32, got nan in row 7"),
    (
        "search index.tq zero.npy",
        "zero.npy: queries must not be zero under metric='cosine', got a zero vector in row 7",
    ),
    ("search index.tq truth.h5", "dataset 'neighbors' must be 2-D integer with 60 rows"),
    ("search index.tq good.h5 -k 0", "k must be from 1 to 1048576, got 0"),
    ("search index.tq good.h5 -k -3", "k must be from 1 to 1048576, got -3"),
    ("search index.tq good.h5 -k 2.5", "Invalid value for '-k': '2.5' is not a valid integer."),
    ("search index.tq good.h5 -k 1e30", "Invalid value for '-k': '1e30' is not a valid integer."),
    (f"search index.tq good.h5 -k {10**30}", f"k must be from 1 to 1048576, got {10**30}"),
    ("search index.tq good.h5 --threads 1025", "threads must be from 1 to 1024, got 1025"),
    ("search index.tq good.h5 --output wide.npy", "wide.npy exists: pass --force to replace it"),
    ("search index.tq good.h5 --output folder --force", "folder must be a regular file, got d"),
    ("search index.tq good.h5 --output pipe --force", "pipe must be a regular file, got p"),
    ("search index.tq good.h5 --output no/hits.h5", "no must be a folder that exists, to write hits.h5 into"),
    ("search index.tq good.h5 --output /proc/hits.h5", "/proc/hits.h5 cannot be written: "),
    ("info no", "no does not exist"),
    ("info folder", "folder is not a tqindex index"),
    ("info cut", "is truncated or altered: it must have"),
    ("info newer --json", "newer has format version 7"),
    ("info", "Missing argument 'INDEX'."),
    ("verify empty", "empty is not a tqindex index"),
    ("verify cut", "is truncated or altered: it must have"),
    ("verify altered", "is altered: its checksum does not match the manifest's"),
    ("verify newer", "newer has format version 7"),
    ("frobnicate", "No such command 'frobnicate'."),
    ("--frob", "No such option"),
]


def assert_one_line(code, out, err, words):
    assert code == 2
    assert out == ""
    assert err.startswith("Error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert len(err) < 700
    assert words in err


@pytest.mark.parametrize(("line", "words"), CASES, ids=[line for line, _ in CASES])
def test_bad_input(room, cli, snapshot, monkeypatch, line, words):
    monkeypatch.chdir(room)
    before = snapshot(room)
    assert_one_line(*cli(*line.split()), words)
    assert snapshot(room) == before


@pytest.mark.parametrize(
    ("value", "options", "words"),
    [
        (np.nan, ["--metric", "ip"], "late.npy: vectors must be finite in float32, got nan in row 269000"),
        (np.nan, ["--center", "none"], "late.npy: vectors must be finite in float32, got nan in row 269000"),
        (0.0, [], "late.npy: vectors must not be zero under metric='cosine', got a zero vector in row 269000"),
    ],
)
def test_a_bad_row_far_down(tmp_path, cli, value, options, words):
    rows = np.ones((270_000, 8), np.float32)  # more than one block
    rows[269_000] = value
    np.save(tmp_path / "late.npy", rows)
    assert_one_line(*cli("build", tmp_path / "late.npy", *options), words)
    assert [path.name for path in tmp_path.iterdir()] == ["late.npy"]


@pytest.mark.parametrize("line", ["build no.h5", "build --bitz"])
def test_as_a_process(room, line):
    done = subprocess.run(
        [sys.executable, "-m", "tqindex", *line.split()], cwd=room, capture_output=True, text=True, check=False
    )
    assert_one_line(done.returncode, done.stdout, done.stderr, "")


def test_a_name_of_two_lines_makes_one(tmp_path, cli):
    assert_one_line(*cli("build", tmp_path / "a\nb.h5"), "a b.h5: no such file")


def test_a_name_that_is_no_text(tmp_path):
    name = os.fsdecode(b"\xff")
    np.save(tmp_path / f"{name}.npy", np.ones((3, 4), np.float32))
    command = [sys.executable, "-m", "tqindex", "build", f"{name}.npy"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / f"{name}.tq" / "manifest.json").exists()


# --- nowhere to write ---


COMMANDS = {
    "new index": ["build", "good.h5", "-o", "new"],
    "old index": ["build", "good.h5", "-o", INDEX, "--force", "--bits", "2"],
    "added to": ["add", INDEX, "good.h5"],
    "removed from": ["remove", INDEX, "--ids", "ids.txt"],
    "compacted": ["compact", INDEX],
    "new hits": ["search", INDEX, "good.h5", "--output", "hits.h5"],
    "old hits": ["search", INDEX, "good.h5", "--output", "hits-before.h5", "--force"],
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_a_full_disk(room, cli, snapshot, monkeypatch, arguments):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.chdir(room)
    before = snapshot(room)
    monkeypatch.setattr(os, "fsync", full)
    assert_one_line(*cli(*arguments), "cannot be written: No space left on device")
    assert snapshot(room) == before


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_a_limit_on_file_size(room, cli, snapshot, monkeypatch, arguments):
    monkeypatch.chdir(room)
    before = snapshot(room)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        result = cli(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_one_line(*result, "cannot be written: File too large")
    assert snapshot(room) == before


def test_a_full_standard_output(room):
    command = [sys.executable, "-m", "tqindex", "info", INDEX]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, cwd=room, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert_one_line(done.returncode, "", done.stderr, "No space left on device")


def test_no_memory(room, cli, monkeypatch):
    monkeypatch.setattr(np, "memmap", lambda *arguments: np.empty(2**50))
    monkeypatch.chdir(room)
    assert_one_line(*cli("info", INDEX), "not enough memory: Unable to allocate")
