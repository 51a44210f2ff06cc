"""The recipes of datasets/fetch.py against a server in this process."""

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from tqindex.bench import fetch
from tqindex.bench.exact import exact_neighbors, write_ann_hdf5

DATASETS = Path(__file__).parent.parent / "datasets"
DBPEDIA = "dbpedia-openai3-1536"
DIM = 1536
REPOSITORY = f"Qdrant/dbpedia-entities-openai3-text-embedding-3-large-{DIM}-1M"
COLUMN = f"text-embedding-3-large-{DIM}-embedding"


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"datasets_{name}", DATASETS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def contents(path: Path) -> dict[str, Any]:
    with h5py.File(path, "r") as file:
        return {name: file[name][:] for name in file} | {"attrs": dict(file.attrs)}


# -- the recipes


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def parquet_bytes(tmp_path: Path, vectors: Any, column: str = COLUMN) -> bytes:
    table = pa.table({"_id": [str(i) for i in range(len(vectors))], column: list(vectors)})
    pq.write_table(table, tmp_path / "made.parquet", row_group_size=16)
    return (tmp_path / "made.parquet").read_bytes()


def publish(site: Any, tmp_path: Path, pieces: list[Any], column: str = COLUMN) -> None:
    """Put parquet files on the site as the Hub shows them: a listing, and links that redirect."""
    listing = [{"type": "file", "path": "data/.gitkeep", "size": 0, "oid": "0"}]
    for number, vectors in enumerate(pieces):
        body = parquet_bytes(tmp_path, vectors, column)
        path = f"data/train-{number:05d}-of-{len(pieces):05d}.parquet"
        lfs: Any = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 134}
        # in reverse, since the order must come from the names
        listing.insert(0, {"type": "file", "path": path, "size": len(body), "oid": "0", "lfs": lfs})
        site.moved[f"/datasets/{REPOSITORY}/resolve/main/{path}"] = f"/cdn/{number}"
        site.files[f"/cdn/{number}"] = body
    site.files[f"/api/datasets/{REPOSITORY}/tree/main/data"] = json.dumps(listing).encode()


def command(site: Any, folder: Path, *arguments: str) -> list[str]:
    script = [sys.executable, str(DATASETS / "fetch.py"), DBPEDIA]
    return [*script, "--directory", str(folder), "--base-url", site.url, *arguments]


def invoke(script: ModuleType, site: Any, folder: Path, name: str, *arguments: str) -> Result:
    return CliRunner().invoke(script.main, [name, "--directory", str(folder), "--base-url", site.url, *arguments])


def assert_one_line(result: Result, code: int, message: str) -> None:
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert isinstance(result.exception, SystemExit)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("fetch")


@pytest.fixture(scope="module")
def vectors() -> Any:
    return np.random.default_rng(8).standard_normal((160, DIM))


def test_dbpedia_as_a_command(site: Any, tmp_path: Path, vectors: Any) -> None:
    publish(site, tmp_path, list(vectors.reshape(4, 40, DIM)))
    run = command(site, tmp_path / "out", "--rows", "75", "--queries", "6")
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    output = tmp_path / "out" / f"{DBPEDIA}-75-6.h5"
    assert done.stdout == f"{output}\n"
    made = contents(output)
    np.testing.assert_array_equal(made["train"], vectors[:75].astype(np.float32))
    np.testing.assert_array_equal(made["test"], vectors[75:81].astype(np.float32))
    ids, _ = exact_neighbors(made["train"], made["test"], 75)
    np.testing.assert_array_equal(made["neighbors"], ids)
    assert made["attrs"]["distance"] == "angular"
    assert "the first 75 rows are train, the next 6 are test" in made["attrs"]["source"]
    # 81 rows are in the first three files; the fourth is never asked for
    assert [path for path, _, _ in site.asked if path.startswith("/cdn")] == ["/cdn/0", "/cdn/1", "/cdn/2"]


def test_dbpedia_again(site: Any, tmp_path: Path, vectors: Any, script: ModuleType) -> None:
    publish(site, tmp_path, [vectors[:40], vectors[40:80]])
    for rows, paths in (("20", ["/cdn/0"]), ("20", []), ("50", ["/cdn/1"])):
        site.asked.clear()
        result = invoke(script, site, tmp_path, DBPEDIA, "--rows", rows, "--queries", "5")
        assert result.exit_code == 0, result.output
        assert [path for path, _, _ in site.asked if path.startswith("/cdn")] == paths


def test_parquet_is_never_whole_in_memory(tmp_path: Path) -> None:
    values = np.random.default_rng(10).standard_normal(6_000 * DIM)
    offsets = pa.array(np.arange(6_001) * DIM, pa.int32())
    table = pa.table({COLUMN: pa.ListArray.from_arrays(offsets, pa.array(values))})
    pq.write_table(table, tmp_path / "large.parquet", row_group_size=500)
    del table, offsets
    before, most, rows = pa.total_allocated_bytes(), 0, 0
    for block in fetch.parquet_vectors([tmp_path / "large.parquet"], COLUMN, DIM, 0, 6_000):
        rows += len(block)
        most = max(most, pa.total_allocated_bytes() - before)
    assert rows == 6_000
    assert most < values.nbytes / 2


def test_an_altered_parquet_file(site: Any, tmp_path: Path, vectors: Any, script: ModuleType) -> None:
    publish(site, tmp_path, [vectors[:40]])
    good = site.files["/cdn/0"]
    site.files["/cdn/0"] = good[:100] + b"?" + good[101:]
    result = invoke(script, site, tmp_path / "out", DBPEDIA, "--rows", "20", "--queries", "5")
    assert_one_line(result, 1, f"sha256 must be {hashlib.sha256(good).hexdigest()}, as listed; got ")
    assert names(tmp_path / "out") == [f"{DBPEDIA}-parquet"]
    assert names(tmp_path / "out" / f"{DBPEDIA}-parquet") == ["train-00000-of-00001.parquet.rejected"]


def test_parquet_that_does_not_fit(site: Any, tmp_path: Path, vectors: Any, script: ModuleType) -> None:
    for piece, column, rows, message in [
        (vectors[:, :7], COLUMN, "20", f"must hold {DIM} numbers in every row"),
        (vectors, "embedding", "20", f"must have a column {COLUMN}; got _id, embedding"),
        (["text"] * 30, COLUMN, "20", "must hold lists of numbers; got string"),
        (vectors[:24], COLUMN, "20", "must hold 25 rows (--rows + --queries); got 24"),
        (np.zeros_like(vectors), COLUMN, "20", "is a zero vector"),
    ]:
        publish(site, tmp_path, [piece], column)
        result = invoke(script, site, tmp_path / "out", DBPEDIA, "--rows", rows, "--queries", "5")
        assert_one_line(result, 1, message)
        assert names(tmp_path / "out") == [f"{DBPEDIA}-parquet"]


@pytest.mark.parametrize(
    "listing",
    [
        "<html>",
        '{"error": "x"}',
        '[{"path": "data/a.parquet", "size": 3}]',
        json.dumps([{"path": "data/../../a.parquet", "size": 3, "lfs": {"oid": "0" * 64, "size": 3}}]),
    ],
)
def test_a_listing_of_another_form(site: Any, tmp_path: Path, listing: str, script: ModuleType) -> None:
    site.files[f"/api/datasets/{REPOSITORY}/tree/main/data"] = listing.encode()
    result = invoke(script, site, tmp_path, DBPEDIA)
    assert_one_line(result, 1, "must list files with path, size and sha256")


def test_wrong_usage(site: Any, tmp_path: Path, script: ModuleType) -> None:
    assert_one_line(invoke(script, site, tmp_path, "glove-300"), 2, "'glove-300' is not one of")
    assert_one_line(invoke(script, site, tmp_path, DBPEDIA, "--rows", "0"), 2, "0 is not in the range")
    assert_one_line(invoke(script, site, tmp_path, "glove-200", "--rows", "2000000"), 2, "at most 1183514")
    assert_one_line(invoke(script, site, tmp_path, DBPEDIA, "--base-url", "x"), 2, "must begin with http")
    assert site.asked == []


def test_an_interrupted_command_resumes(site: Any, tmp_path: Path, vectors: Any) -> None:
    publish(site, tmp_path, [vectors[:40]])
    part = tmp_path / "out" / f"{DBPEDIA}-parquet" / "train-00000-of-00001.parquet.part"
    site.cut_after, site.hold = 200_000, threading.Event()
    run = command(site, tmp_path / "out", "--rows", "20", "--queries", "5")
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(run, stderr=subprocess.PIPE, text=True, env=environment) as process:
        while process.poll() is None and not (part.exists() and part.stat().st_size):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    site.hold.set()
    assert process.returncode == 1, errors
    assert errors == "Error: stopped; what has arrived is kept, and the same command resumes\n"
    kept = part.stat().st_size
    site.asked.clear()
    site.cut_after = None
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ("/cdn/0", f"bytes={kept}-", len(site.files["/cdn/0"]) - kept) in site.asked


# -- a file that is in ann-benchmarks form already


@pytest.fixture
def glove(site: Any, tmp_path: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small file of the form of glove-200, on the site; the recipe expects its size."""
    rng = np.random.default_rng(9)
    path = tmp_path / "published.h5"
    write_ann_hdf5(path, rng.standard_normal((400, 20)), rng.standard_normal((12, 20)), None, None, "angular", "made")
    recipe = script.AnnBenchmarks("http://unused", "glove-200-angular.hdf5", "angular", 400, 12, 20)
    monkeypatch.setitem(script.RECIPES, "glove-200", recipe)
    site.files["/glove-200-angular.hdf5"] = path.read_bytes()
    return path


def test_glove_is_used_as_it_is(site: Any, tmp_path: Path, glove: Path, script: ModuleType) -> None:
    out = tmp_path / "out"
    result = invoke(script, site, out, "glove-200")
    assert (result.exit_code, result.output) == (0, f"{out / 'glove-200.h5'}\n")
    assert (out / "glove-200.h5").read_bytes() == glove.read_bytes()
    site.files.clear()  # what follows needs no server
    assert invoke(script, site, out, "glove-200").exit_code == 0
    result = invoke(script, site, out, "glove-200", "--rows", "30", "--queries", "5")
    assert result.exit_code == 0, result.output
    whole, made = contents(glove), contents(out / "glove-200-30-5.h5")
    np.testing.assert_array_equal(made["train"], whole["train"][:30])
    np.testing.assert_array_equal(made["test"], whole["test"][:5])
    ids, distances = exact_neighbors(made["train"], made["test"], 30)
    np.testing.assert_array_equal(made["neighbors"], ids)
    np.testing.assert_array_equal(made["distances"], distances)
    assert "first 30 of train, first 5 of test" in made["attrs"]["source"]


def test_glove_as_older_and_shuffled_ties(site: Any, tmp_path: Path, glove: Path, script: ModuleType) -> None:
    with h5py.File(glove, "a") as file:
        del file.attrs["type"], file.attrs["dimension"]  # as in ann-benchmarks' older files
        file["train"][7] = file["train"][6]
        ids, distances = exact_neighbors(file["train"], file["test"][:])
        swapped = np.select([ids == 6, ids == 7], [7, 6], ids)
        file["neighbors"][:], file["distances"][:] = swapped, distances
    site.files["/glove-200-angular.hdf5"] = glove.read_bytes()
    result = invoke(script, site, tmp_path / "out", "glove-200")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("rows", "train must be float of shape (400, 20); got float32 of shape (399, 20)"),
        ("no test", "test must be float of shape (12, 20); got no such dataset"),
        ("distance", "attribute distance must be angular; got euclidean"),
        ("neighbor", "neighbours of query 11 must be the exact ones; they differ"),
        ("outside", "neighbors must be rows of train; got "),
        ("distances", "neighbours of query 0 must be the exact ones; they differ"),
        ("twice", "neighbours of query 0 must be the exact ones; they differ"),
        ("not HDF5", "not an HDF5 file"),
    ],
)
def test_glove_that_is_not_as_expected(
    site: Any, tmp_path: Path, glove: Path, script: ModuleType, change: str, message: str
) -> None:
    with h5py.File(glove, "a") as file:
        if change == "rows":
            file["train"].resize(399, axis=0)
        elif change == "no test":
            del file["test"]
        elif change == "distance":
            file.attrs["distance"] = "euclidean"
        elif change == "neighbor":
            file["neighbors"][11, 99] = np.setdiff1d(np.arange(400), file["neighbors"][11])[0]
        elif change == "outside":
            file["neighbors"][0, 0] = 400
        elif change == "distances":
            file["distances"][0, 5] += 0.001
        elif change == "twice":
            file["neighbors"][0, 1] = file["neighbors"][0, 0]
    site.files["/glove-200-angular.hdf5"] = b"<html>" if change == "not HDF5" else glove.read_bytes()
    out = tmp_path / "out"
    assert_one_line(invoke(script, site, out, "glove-200"), 1, message)
    assert names(out) == ["glove-200.h5.rejected"]
