"""The recipes of datasets/fetch.py, and the downloads under them, against a server in this process."""

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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
from tqindex.errors import FileFormatError

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


# -- a server whose files break, change and move


@dataclass
class Site:
    """Files by path, how to serve them, and what was asked: (path, Range header, bytes sent)."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    etags: bool = True
    cut_after: int | None = None  # bytes after which each answer closes
    hold: threading.Event | None = None  # set by the test: a cut answer waits for it before it closes
    asked: list[tuple[str, str | None, int]] = field(default_factory=list)


def handler_for(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path in site.moved:
                self.answer(302, {"Location": site.url + site.moved[self.path]}, b"")
            elif self.path not in site.files:
                self.answer(404, {}, b"")
            else:
                self.send_file(site.files[self.path])

        def send_file(self, body: bytes) -> None:
            etag = f'"{hashlib.sha256(body).hexdigest()}"'
            headers = {"ETag": etag} if site.etags else {}
            wanted = self.headers["Range"]
            if not (wanted and site.ranges and self.headers["If-Range"] == etag):
                self.answer(200, headers, body)
            elif (start := int(wanted.removeprefix("bytes=").rstrip("-"))) >= len(body):
                self.answer(416, {"Content-Range": f"bytes */{len(body)}"}, b"")
            else:
                span = f"bytes {start}-{len(body) - 1}/{len(body)}"
                self.answer(206, headers | {"Content-Range": span}, body[start:])

        def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            sent = body if site.cut_after is None else body[: site.cut_after]
            site.asked.append((self.path, self.headers["Range"], len(sent)))
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(sent)
            if site.hold is not None and len(sent) < len(body):
                self.wfile.flush()
                site.hold.wait(10)

        def log_message(self, *arguments: Any) -> None:
            pass

    return Handler


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler_for(site)) as server:
        site.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield site
        server.shutdown()
        thread.join()


BODY = np.random.default_rng(7).bytes(3_000_000)


def get(site: Site, target: Path, expected: bytes = BODY) -> None:
    def check(path: Path) -> None:
        if path.read_bytes() != expected:
            raise FileFormatError(f"{path}: other bytes")

    fetch.download(f"{site.url}/file", target, check, lambda done, total: None)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def cut_download(site: Site, target: Path) -> None:
    site.files["/file"] = BODY
    site.cut_after = 2_000_000
    with pytest.raises(fetch.DownloadError, match="closed after 2000000 of 3000000 bytes"):
        get(site, target)
    site.cut_after = None
    site.asked.clear()


def test_download_whole(site: Site, tmp_path: Path) -> None:
    site.files["/file"] = BODY
    get(site, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == BODY
    assert names(tmp_path) == ["out"]


def test_a_cut_download_asks_for_the_rest_only(site: Site, tmp_path: Path) -> None:
    cut_download(site, tmp_path / "out")
    assert "out" not in names(tmp_path)
    get(site, tmp_path / "out")
    assert site.asked == [("/file", "bytes=2000000-", 1_000_000)]
    assert (tmp_path / "out").read_bytes() == BODY
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("change", ["no ranges", "other content", "other, shorter content"])
def test_a_download_begins_again_where_it_cannot_resume(site: Site, tmp_path: Path, change: str) -> None:
    cut_download(site, tmp_path / "out")
    site.ranges = change != "no ranges"
    body = {"no ranges": BODY, "other content": BODY[::-1]}.get(change, BODY[:1000])
    site.files["/file"] = body
    get(site, tmp_path / "out", body)
    assert site.asked == [("/file", "bytes=2000000-", len(body))]
    assert (tmp_path / "out").read_bytes() == body


def test_without_a_validator_nothing_is_resumed(site: Site, tmp_path: Path) -> None:
    site.etags = False
    cut_download(site, tmp_path / "out")
    get(site, tmp_path / "out")
    assert site.asked == [("/file", None, len(BODY))]


@pytest.mark.parametrize(("extra", "requests"), [(b"", 1), (b"beyond the end", 2)])
def test_a_part_of_full_length(site: Site, tmp_path: Path, extra: bytes, requests: int) -> None:
    cut_download(site, tmp_path / "out")
    (tmp_path / "out.part").write_bytes(BODY + extra)
    get(site, tmp_path / "out")
    assert len(site.asked) == requests
    assert (tmp_path / "out").read_bytes() == BODY


def test_a_file_that_fails_its_check_is_set_aside(site: Site, tmp_path: Path) -> None:
    site.files["/file"] = BODY[:-1] + b"?"
    with pytest.raises(FileFormatError, match="other bytes"):
        get(site, tmp_path / "out")
    assert names(tmp_path) == ["out.rejected"]


def test_a_check_that_was_interrupted_needs_no_bytes_again(site: Site, tmp_path: Path) -> None:
    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    site.files["/file"] = BODY
    with pytest.raises(KeyboardInterrupt):
        fetch.download(f"{site.url}/file", tmp_path / "out", interrupt, lambda done, total: None)
    site.asked.clear()
    get(site, tmp_path / "out")
    assert site.asked == [("/file", "bytes=3000000-", 0)]
    assert names(tmp_path) == ["out"]


def test_missing_and_unreachable(site: Site, tmp_path: Path) -> None:
    with pytest.raises(fetch.DownloadError, match=r"/file: the server answers 404 Not Found$"):
        get(site, tmp_path / "out")
    with pytest.raises(fetch.DownloadError, match=r"^http://127\.0\.0\.1:1/file: .*refused"):
        fetch.download("http://127.0.0.1:1/file", tmp_path / "out", print, lambda done, total: None)
    assert names(tmp_path) == []


# -- the recipes


def parquet_bytes(tmp_path: Path, vectors: Any, column: str = COLUMN) -> bytes:
    table = pa.table({"_id": [str(i) for i in range(len(vectors))], column: list(vectors)})
    pq.write_table(table, tmp_path / "made.parquet", row_group_size=16)
    return (tmp_path / "made.parquet").read_bytes()


def publish(site: Site, tmp_path: Path, pieces: list[Any], column: str = COLUMN) -> None:
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


def command(site: Site, folder: Path, *arguments: str) -> list[str]:
    script = [sys.executable, str(DATASETS / "fetch.py"), DBPEDIA]
    return [*script, "--directory", str(folder), "--base-url", site.url, *arguments]


def invoke(script: ModuleType, site: Site, folder: Path, name: str, *arguments: str) -> Result:
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


def test_dbpedia_as_a_command(site: Site, tmp_path: Path, vectors: Any) -> None:
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


def test_dbpedia_again(site: Site, tmp_path: Path, vectors: Any, script: ModuleType) -> None:
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


def test_an_altered_parquet_file(site: Site, tmp_path: Path, vectors: Any, script: ModuleType) -> None:
    publish(site, tmp_path, [vectors[:40]])
    good = site.files["/cdn/0"]
    site.files["/cdn/0"] = good[:100] + b"?" + good[101:]
    result = invoke(script, site, tmp_path / "out", DBPEDIA, "--rows", "20", "--queries", "5")
    assert_one_line(result, 1, f"sha256 must be {hashlib.sha256(good).hexdigest()}, as listed; got ")
    assert names(tmp_path / "out") == [f"{DBPEDIA}-parquet"]
    assert names(tmp_path / "out" / f"{DBPEDIA}-parquet") == ["train-00000-of-00001.parquet.rejected"]


def test_parquet_that_does_not_fit(site: Site, tmp_path: Path, vectors: Any, script: ModuleType) -> None:
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
def test_a_listing_of_another_form(site: Site, tmp_path: Path, listing: str, script: ModuleType) -> None:
    site.files[f"/api/datasets/{REPOSITORY}/tree/main/data"] = listing.encode()
    result = invoke(script, site, tmp_path, DBPEDIA)
    assert_one_line(result, 1, "must list files with path, size and sha256")


def test_wrong_usage(site: Site, tmp_path: Path, script: ModuleType) -> None:
    assert_one_line(invoke(script, site, tmp_path, "glove-300"), 2, "'glove-300' is not one of")
    assert_one_line(invoke(script, site, tmp_path, DBPEDIA, "--rows", "0"), 2, "0 is not in the range")
    assert_one_line(invoke(script, site, tmp_path, "glove-200", "--rows", "2000000"), 2, "at most 1183514")
    assert_one_line(invoke(script, site, tmp_path, DBPEDIA, "--base-url", "x"), 2, "must begin with http")
    assert site.asked == []


def test_an_interrupted_command_resumes(site: Site, tmp_path: Path, vectors: Any) -> None:
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
def glove(site: Site, tmp_path: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small file of the form of glove-200, on the site; the recipe expects its size."""
    rng = np.random.default_rng(9)
    path = tmp_path / "published.h5"
    write_ann_hdf5(path, rng.standard_normal((400, 20)), rng.standard_normal((12, 20)), None, None, "angular", "made")
    recipe = script.AnnBenchmarks("http://unused", "glove-200-angular.hdf5", "angular", 400, 12, 20)
    monkeypatch.setitem(script.RECIPES, "glove-200", recipe)
    site.files["/glove-200-angular.hdf5"] = path.read_bytes()
    return path


def test_glove_is_used_as_it_is(site: Site, tmp_path: Path, glove: Path, script: ModuleType) -> None:
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


def test_glove_as_older_and_shuffled_ties(site: Site, tmp_path: Path, glove: Path, script: ModuleType) -> None:
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
    site: Site, tmp_path: Path, glove: Path, script: ModuleType, change: str, message: str
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
