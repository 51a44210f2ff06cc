"""`tqindex bench run`: all suites at size `test`, going on where a run stopped, and errors in one line."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from tqindex.bench import runner
from tqindex.bench.config import FILE_SUITES, SUITES
from tqindex.cli.command import run

Cli = Callable[..., tuple[int, str, str]]
#: Keys of every suite's rows, beside those of all rows.
KEYS = {
    "recall": {"bytes", "shared_bytes", "seeds", "recall_1_at", "recall_10"},
    "indexing": {"train", "add", "ratio", "read_once", "bytes", "shared_bytes"},
    "search": {"batch", "single", "batch_ratio", "single_ratio", "recall_10", "bytes", "lost"},
    "scale": {"n", "batch", "single", "add", "resident_bytes", "code_bytes"},
    "distortion": {"dim", "bits", "mse", "mse_bound", "shannon", "product_variance", "product_bound"},
    "threads": {"threads", "batch", "add", "batch_speedup", "add_speedup"},
}
ALL_ROWS = {"peer", "method", "label", "family", "bits", "oblivious", "seconds", "fingerprint"}


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run all suites once and return their folder."""
    folder = tmp_path_factory.mktemp("results")
    assert run(["bench", "run", "--size", "test", "--results", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def by_suite(results: Path) -> dict[str, dict[str, Any]]:
    held = [json.loads(path.read_text()) for path in (results / "test").iterdir()]
    return {each["suite"]: each for each in held}


def rows_of(held: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in held["rows"]}


def test_every_suite_has_a_file(by_suite: dict[str, dict[str, Any]]) -> None:
    assert set(by_suite) == set(SUITES)


@pytest.mark.parametrize("suite", SUITES)
def test_form(by_suite: dict[str, dict[str, Any]], suite: str) -> None:
    held = by_suite[suite]
    assert (held["format"], held["size"]) == (1, "test")
    assert (held["dataset"] is None) == (suite == "distortion")
    assert {"cpu", "simd", "cores", "commit", "versions"} <= set(held["environment"])
    assert held["rows"]
    for row in held["rows"]:
        assert ALL_ROWS | KEYS[suite] <= set(row)
        assert row["oblivious"] == (row["family"] == "oblivious")
        for name in {"train", "add", "batch", "single"} & set(row):
            assert 0 < row[name]["low"] <= row[name]["median"] <= row[name]["high"]


def test_recall(by_suite: dict[str, dict[str, Any]]) -> None:
    rows = rows_of(by_suite["recall"])
    for row in rows.values():
        assert list(row["recall_1_at"]) == ["1", "2", "4", "8", "16", "32", "64"]
        assert all(len(values) == row["seeds"] for values in (row["recall_10"], *row["recall_1_at"].values()))
        curve = np.array(list(row["recall_1_at"].values()))
        assert (np.diff(curve, axis=0) >= 0).all()
    # What the paper's ablation and ours say, far beyond noise.
    mean = {key: np.mean(row["recall_10"]) for key, row in rows.items()}
    assert mean["tqindex-mse-centred"] > mean["tqindex-mse"] > mean["tqindex-mse-paper"] > mean["tqindex-prod"]
    assert mean["tqindex-prod"] > mean["tqindex-prod-gaussian"] + 0.1
    assert rows["faiss-pqfs"]["bytes"] == pytest.approx(25, abs=0.1)  # its last block of 32 is not full
    assert rows["tqindex-mse"]["bytes"] == 30


def test_indexing_ratios(by_suite: dict[str, dict[str, Any]]) -> None:
    rows = rows_of(by_suite["indexing"])
    assert rows["tqindex-mse"]["ratio"] == 1
    ours, theirs = (rows[key]["train"]["median"] + rows[key]["add"]["median"] for key in ("tqindex-mse", "faiss-pqfs"))
    assert rows["faiss-pqfs"]["ratio"] == pytest.approx(theirs / ours, rel=0.05)
    assert rows["tqindex-mse"]["repeats"] == 5
    assert rows["faiss-pqfs"]["repeats"] < 5  # they would be more than the budget


def test_search(by_suite: dict[str, dict[str, Any]]) -> None:
    rows = rows_of(by_suite["search"])
    ours, theirs = rows["tqindex-mse"], rows["turbovec"]
    assert (ours["batch_ratio"], ours["single_ratio"], ours["lost"]) == (1, 1, 0)
    assert theirs["batch_ratio"] == pytest.approx(theirs["batch"]["median"] / ours["batch"]["median"], rel=1e-3)
    assert theirs["single_ratio"] == pytest.approx(theirs["single"]["median"] / ours["single"]["median"], rel=1e-3)
    assert rows["faiss-flat"]["recall_10"] == 1
    assert rows["faiss-flat"]["batch_ratio"] is None
    assert rows["faiss-hnsw"]["lost"] is None


def test_distortion_is_what_theory_says(by_suite: dict[str, dict[str, Any]]) -> None:
    for row in by_suite["distortion"]["rows"]:
        if row["mse"] is not None:
            assert row["mse"] / row["mse_bound"] == pytest.approx(1, abs=0.02)
            assert row["mse"] > row["shannon"]
        else:
            assert row["product_variance"] / row["product_bound"] == pytest.approx(1, abs=0.04)


def test_threads_and_growth(by_suite: dict[str, dict[str, Any]]) -> None:
    one = next(row for row in by_suite["threads"]["rows"] if row["threads"] == 1)
    assert (one["batch_speedup"], one["add_speedup"]) == (1, 1)
    ours = [row for row in by_suite["scale"]["rows"] if row["peer"] == "tqindex"]
    assert [row["n"] for row in ours] == [1000, 4000]
    assert ours[1]["code_bytes"] == pytest.approx(4 * ours[0]["code_bytes"], rel=0.01)


def test_sets_that_are_not_at_hand_are_listed(by_suite: dict[str, dict[str, Any]]) -> None:
    listed = {each["dataset"]: each["command"] for each in by_suite["recall"]["not_measured"]}
    assert {"glove-200", "dbpedia-openai3-1536", "dbpedia-openai3-3072"} <= set(listed)
    assert "datasets/fetch.py glove-200" in listed["glove-200"]
    assert listed["glove-200"].endswith("tqindex bench run recall --set glove-200 --size paper")


def test_nothing_is_measured_twice(results: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.subprocess, "Popen", None)
    before = {path: path.stat().st_mtime_ns for path in (results / "test").iterdir()}
    code, out, _ = cli("bench", "run", "--size", "test", "--results", results)
    assert code == 0
    assert out.count(": 0 of ") == len(SUITES)
    assert {path: path.stat().st_mtime_ns for path in (results / "test").iterdir()} == before


def test_what_is_missing_is_measured_and_the_rest_stays(results: Path, cli: Cli, tmp_path: Path) -> None:
    held = json.loads((results / "test" / "distortion.json").read_text())
    whole = held["rows"]
    held["rows"] = whole[:3] + whole[4:]
    held["rows"][0]["label"] = "kept"
    path = tmp_path / "test" / "distortion.json"
    path.parent.mkdir()
    path.write_text(json.dumps(held))
    code, out, _ = cli("bench", "run", "distortion", "--size", "test", "--results", tmp_path)
    assert code == 0
    assert f"1 of {len(whole)} to measure" in out
    rows = json.loads(path.read_text())["rows"]
    assert [row["fingerprint"] for row in rows] == [row["fingerprint"] for row in whole]
    assert rows[0]["label"] == "kept"
    assert rows[3] == whole[3] | {"seconds": rows[3]["seconds"]}  # the same seeds


@pytest.mark.parametrize("whole_group", [True, False])
def test_ctrl_c_keeps_what_was_measured(tmp_path: Path, whole_group: bool) -> None:
    command = [sys.executable, "-m", "tqindex", "bench", "run", "distortion", "--size", "test", "--results", tmp_path]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    path, end = tmp_path / "test" / "distortion.json", time.monotonic() + 60
    while not (path.exists() and json.loads(path.read_text())["rows"]):
        assert time.monotonic() < end
        time.sleep(0.02)
    if whole_group:  # as from a terminal
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert 0 < len(json.loads(path.read_text())["rows"]) < 20
    assert [each.name for each in path.parent.iterdir()] == ["distortion.json"]


def test_a_file_of_ones_own(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    planned = []
    monkeypatch.setattr(runner, "_run_children", lambda plans, at_once: planned.extend(plans) or 0)
    np.save("own.npy", np.random.default_rng(0).standard_normal((300, 16), np.float32))
    code, out, _ = cli("bench", "own.npy", "--size", "test")
    assert code == 0
    assert {plan.task.suite for plan in planned} == set(FILE_SUITES)
    assert "bench-results/test/recall-own.json" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "speed"], "suite must be one of recall, indexing, search, scale, distortion, threads; got 'speed'"),
        (["run", "recall", "--set", "glove"], "data set must be one of glove-100-10k, "),
        (["nowhere.h5"], "nowhere.h5: no such file"),
        (["run", "--file", "nowhere.h5"], "nowhere.h5: no such file"),
        (["run", "--file", "nowhere.h5", "--set", "glove-100-10k"], "--file stands in the place of the data sets"),
        (["run", "--data", "nowhere"], "Invalid value for '--data'"),
        (["run", "distortion", "--size", "huge"], "Invalid value for '--size'"),
    ],
)
def test_wrong_arguments_are_one_line(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = cli("bench", *arguments)
    assert code == 2
    assert err.startswith(f"Error: {message}")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_result_file_that_is_none(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "test" / "distortion.json"
    path.parent.mkdir()
    for content in ("{", "[]", '{"format": 2, "rows": []}'):
        path.write_text(content)
        code, _, err = cli("bench", "run", "distortion", "--size", "test", "--results", tmp_path)
        assert code == 2
        assert err.startswith(f"Error: {path}: ")
        assert path.read_text() == content


def test_a_folder_that_cannot_be_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    code = run(["bench", "run", "distortion", "--size", "test", "--results", str(tmp_path / "file")])
    assert code == 2
    err = capfd.readouterr().err
    assert err.startswith(f"Error: {tmp_path}/file: cannot be written")
    assert err.count("\n") == 1


def test_one_run_at_a_time_writes_into_a_folder(cli: Cli, tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"):
        code, out, err = cli("bench", "run", "distortion", "--size", "test", "--results", tmp_path)
    assert (code, out.count("\n")) == (2, 1)
    assert err == f"Error: {tmp_path}: another `tqindex bench run` is writing its results there\n"


def test_peers(cli: Cli) -> None:
    code, out, _ = cli("bench", "peers")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["tqindex", "faiss", "turbovec", "rabitqlib"]
