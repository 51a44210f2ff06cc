"""The command on good input: what it builds, finds and prints."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version

import click
import h5py
import numpy as np
import pytest

import tqindex as tq
from tqindex.bench.exact import exact_neighbors
from tqindex.cli.command import cli as commands
from tqindex.kernels.cpu import simd_level


@pytest.fixture
def ann(tmp_path, write_ann):
    return write_ann(tmp_path / "words.h5")


def base_of(path):
    with h5py.File(path) as file:
        return file["train"][:], file["test"][:]


def write_as(path, rows):
    """Write vectors in the format of the path's extension."""
    if path.suffix == ".npy":
        np.save(path, rows)
    elif path.suffix == ".fbin":
        path.write_bytes(np.array(rows.shape, "<u4").tobytes() + rows.tobytes())
    else:
        dims = np.full((len(rows), 1), rows.shape[1], "<i4")
        path.write_bytes(np.hstack([dims, rows.view("<i4")]).tobytes())


def labels(out):
    return [line.split()[0] for line in out.splitlines()]


# --- build ---


@pytest.mark.parametrize("form", [".h5", ".npy", ".fbin", ".fvecs"])
def test_every_format_gives_the_same_index(tmp_path, cli, ann, form):
    base, queries = base_of(ann)
    for name, rows in {"base": base, "queries": queries}.items():
        if form == ".h5":
            with h5py.File(tmp_path / f"{name}.h5", "w") as file:
                file["only"] = rows
        else:
            write_as(tmp_path / f"{name}{form}", rows)
    assert cli("build", ann)[0] == 0
    code, out, err = cli("build", tmp_path / f"base{form}")
    assert (code, err) == (0, "")
    assert labels(out) == ["built", "vectors", "size", "rate"]
    one, other = tmp_path / "words.tq", tmp_path / "base.tq"  # the default output
    for path in one.iterdir():
        assert (other / path.name).read_bytes() == path.read_bytes()
    code, out, err = cli("search", other, tmp_path / f"queries{form}", "--json")
    assert (code, err) == (0, "")
    assert np.array(json.loads(out)["ids"]).shape == (7, 10)


def test_build_equals_the_library(tmp_path, cli, ann):
    base, queries = base_of(ann)
    options = ["--bits", 3, "--metric", "l2", "--center", "none", "--codec", "prod", "--seed", 5]
    options += ["--sketch", "gaussian", "--rotation", "hadamard", "--threads", 1]
    assert cli("build", ann, "-o", tmp_path / "a", *options)[0] == 0
    index = tq.Index(16, bits=3, metric="l2", codec="prod", seed=5, sketch="gaussian", rotation="hadamard")
    index.add(base)
    loaded = tq.load(tmp_path / "a")
    assert loaded.codec == index.codec
    np.testing.assert_array_equal(loaded.search(queries, 9).scores, index.search(queries, 9).scores)


def test_effort(tmp_path, cli, ann):
    base, _ = base_of(ann)
    code, out, err = cli("build", ann, "--effort", "search", "--center", "none")
    assert (code, err) == (0, "")
    assert "metric cosine, mse 4 bits, effort search, not centred\n" in out
    assert "mse 4 bits, effort search, not centred\n" in cli("info", tmp_path / "words.tq")[1]
    assert json.loads(cli("info", tmp_path / "words.tq", "--json")[1])["effort"] == "search"
    loaded, index = tq.load(tmp_path / "words.tq"), tq.Index(16, effort="search")
    assert loaded.codec == index.codec
    index.add(base)
    np.testing.assert_array_equal(loaded.reconstruct(range(300)), index.reconstruct(range(300)))
    assert not np.array_equal(loaded.reconstruct(range(300)), tq.Index(16).codec.decode(tq.Codec(16).encode(base)))
    assert "mse 4 bits, centred" in cli("build", ann, "--force")[1]


@pytest.mark.parametrize(("distance", "metric"), [("angular", "cosine"), ("euclidean", "l2"), ("dot", "ip")])
def test_the_files_metric_is_taken_and_overridden(tmp_path, cli, write_ann, distance, metric):
    ann = write_ann(tmp_path / "a.h5", distance=distance)
    assert f"metric {metric}," in cli("build", ann)[1]
    assert tq.load(tmp_path / "a.tq").metric == metric
    other = "ip" if metric == "l2" else "l2"
    assert f"metric {other}," in cli("build", ann, "--force", "--metric", other)[1]
    assert tq.load(tmp_path / "a.tq").metric == other


def test_center(tmp_path, cli, ann):
    base, _ = base_of(ann)
    assert "centred on the mean of 300 rows" in cli("build", ann)[1]
    unit = base / np.linalg.norm(base, axis=1, keepdims=True)
    np.testing.assert_allclose(tq.load(tmp_path / "words.tq").codec.center, unit.mean(axis=0), atol=1e-6)
    cli("build", ann, "--force", "--metric", "ip")
    np.testing.assert_allclose(tq.load(tmp_path / "words.tq").codec.center, base.mean(axis=0), atol=1e-6)
    assert "not centred" in cli("build", ann, "--force", "--center", "none")[1]
    assert tq.load(tmp_path / "words.tq").codec.center is None


def test_center_of_a_long_file_is_from_all_of_it(tmp_path, cli):
    rows = np.repeat(np.linspace(-1, 3, 20_000, dtype=np.float32)[:, None], 2, axis=1)
    np.save(tmp_path / "a.npy", rows)
    assert "centred on the mean of 4,096 rows" in cli("build", tmp_path / "a.npy", "--metric", "l2")[1]
    np.testing.assert_allclose(tq.load(tmp_path / "a.tq").codec.center, [1, 1], atol=0.01)


def test_force_replaces(tmp_path, cli, ann):
    for bits in (4, 2):
        assert cli("build", ann, "--bits", bits, "--force")[0] == 0
        assert tq.verify(tmp_path / "words.tq").manifest.codec.bits == bits


def test_relative_paths(tmp_path, cli, ann, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli("build", "words.h5", "-o", "new/")[0] == 0
    assert cli("build", "./words.h5", "-o", "./new", "--force")[1].startswith("built     new from words.h5 [train]\n")
    assert cli("verify", "new/")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "words.h5"]


# --- search ---


@pytest.fixture
def index(tmp_path, cli, ann):
    assert cli("build", ann, "--bits", 8)[0] == 0
    return tmp_path / "words.tq"


def test_search_table(cli, index, ann):
    _, queries = base_of(ann)
    code, out, err = cli("search", index, ann, "-k", 3)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["query", "rank", "id", "score"]
    assert len({len(line) for line in lines[:16]}) == 1  # aligned
    scores, ids = tq.load(index).search(queries, 3)
    shown = [[float(word) for word in line.split()] for line in lines[1:16]]
    expected = [[q, rank + 1, ids[q, rank], scores[q, rank]] for q in range(5) for rank in range(3)]
    np.testing.assert_allclose(shown, expected, rtol=1e-5)
    assert lines[16] == "... of 7 queries with 3 hits each; --json and --output give all"
    assert re.fullmatch(r"recall@3  [01]\.\d{4} \(by true scores\)", lines[17])
    assert lines[18].startswith("rate      ")
    assert len(lines) == 19


def test_search_table_of_few_hits_and_of_missing_ones(tmp_path, cli, write_ann):
    ann = write_ann(tmp_path / "a.h5", n=2, dim=3, nq=1, distance="euclidean")
    cli("build", ann)
    _, out, _ = cli("search", tmp_path / "a.tq", ann, "-k", 4)
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["query", "rank", "id", "squared", "distance"]
    assert lines[3][:2] == ["recall@2", "1.0000"]  # two vectors cannot give four hits
    _, out, _ = cli("search", tmp_path / "a.tq", ann, "-k", 4, "--json")
    hits = json.loads(out)
    assert (hits["ids"][0][2:], hits["scores"][0][2:], hits["recall_k"]) == ([-1, -1], [None, None], 2)


def test_json_equals_the_output_file(tmp_path, cli, index, ann):
    _, queries = base_of(ann)
    code, out, err = cli("search", index, ann, "-k", 6, "--json", "--output", tmp_path / "hits.h5")
    assert (code, err) == (0, "")
    hits = json.loads(out)
    with h5py.File(tmp_path / "hits.h5") as file:
        ids, scores, attributes = file["ids"][:], file["scores"][:], dict(file.attrs)
    assert (ids.dtype, scores.dtype, ids.shape) == ("int64", "float32", (7, 6))
    np.testing.assert_array_equal(hits["ids"], ids)
    np.testing.assert_array_equal(np.float32(hits["scores"]), scores)
    np.testing.assert_array_equal(tq.load(index).search(queries, 6).ids, ids)
    for name in ("metric", "k", "recall", "recall_k"):
        assert attributes[name] == hits[name]
    assert (hits["metric"], hits["k"], hits["recall_by"]) == ("cosine", 6, "by true scores")
    assert hits["queries_per_second"] > 0


def test_output_file_and_force(tmp_path, cli, index, ann):
    target = tmp_path / "hits.h5"
    code, out, _ = cli("search", index, ann, "--output", target)
    assert code == 0
    assert out.startswith(f"written   {target}: ids and scores of 7 queries with 10 hits each\n")
    assert labels(out) == ["written", "recall@10", "rate"]
    assert cli("search", index, ann, "-k", 2, "--output", target)[0] == 2
    assert cli("search", index, ann, "-k", 2, "--output", target, "--force")[0] == 0
    with h5py.File(target) as file:
        assert file["ids"].shape == (7, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hits.h5", "words.h5", "words.tq"]


@pytest.mark.parametrize("distance", ["angular", "euclidean", "dot"])
def test_finds_what_is_near(tmp_path, cli, write_ann, distance):
    ann = write_ann(tmp_path / "a.h5", n=1000, dim=32, nq=20, distance=distance)
    cli("build", ann, "--bits", 8)
    recall = json.loads(cli("search", tmp_path / "a.tq", ann, "--json")[1])["recall"]
    assert recall > 0.95


def test_one_thread_finds_the_same(cli, index, ann):
    one, two = (json.loads(cli("search", index, ann, "--json", "--threads", n)[1]) for n in (1, 2))
    assert (one["ids"], one["scores"]) == (two["ids"], two["scores"])


def test_dataset_option(tmp_path, cli, index, ann):
    hits = json.loads(cli("search", index, ann, "--dataset", "train", "-k", 1, "--json")[1])
    assert hits["ids"] == [[i] for i in range(300)]
    assert (hits["recall"], hits["recall_by"]) == (None, "the query file has no exact neighbours")
    assert cli("build", ann, "--dataset", "test", "-o", tmp_path / "queries.tq")[0] == 0
    assert len(tq.load(tmp_path / "queries.tq")) == 7


# --- info, verify, help ---


def test_info(cli, index):
    code, out, err = cli("info", index)
    assert (code, err) == (0, "")
    assert labels(out) == [
        "index",
        "vectors",
        "rotation",
        "codes",
        "sides",
        "ids",
        "total",
        "segments",
        "scan",
        "kernels",
    ]
    assert {line.index(line.split()[1]) for line in out.splitlines()} == {10}  # values stand in one column
    assert "300 x 16, metric cosine, mse 8 bits, centred" in out
    assert "total     7,200 bytes, 24.0 per vector; float32 has 64" in out
    found = json.loads(cli("info", index, "--json")[1])
    assert found == {"path": str(index), **tq.load(index).info()}


def test_info_of_an_empty_index(tmp_path, cli):
    tq.Index(3, codec="prod").save(tmp_path / "a")
    code, out, _ = cli("info", tmp_path / "a")
    assert (code, "total     0 bytes\n" in out, "prod (orthogonal sketch) 4 bits, not centred" in out) == (
        0,
        True,
        True,
    )
    assert json.loads(cli("info", tmp_path / "a", "--json")[1])["bytes_per_vector"] is None


def test_verify(cli, index):
    size = sum(path.stat().st_size for path in index.glob("segment-*"))
    code, out, err = cli("verify", index)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"ok        {index}: manifest, checksums and ids are sound",
        "vectors   300",
        f"files     1, {size:,} bytes",
    ]


@pytest.mark.parametrize("name", [None, *commands.commands])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(cli, name, option):
    code, out, err = cli(*([name] if name else []), option)
    assert (code, err) == (0, "")
    assert out.startswith("Usage: tqindex ")
    assert "..." not in out.split("Commands:")[-1] or name  # each command's line is whole
    if name:
        command = commands.commands[name]
        assert len(command.help or "") > 20
        assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_without_arguments_there_is_help(cli):
    code, out, err = cli()
    assert (code, out) == (2, "")
    assert err == cli("--help")[1]


def test_version(cli):
    assert cli("--version") == (0, f"tqindex {version('tqindex')}, kernels for {simd_level()}\n", "")


def test_a_wrong_simd_level_is_one_line():
    environment = {**os.environ, "TQINDEX_SIMD": "mmx"}
    command = [sys.executable, "-m", "tqindex", "--version"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"Error: TQINDEX_SIMD must be one of .*portable on this machine, got 'mmx'\n", done.stderr)


def test_warmup_leaves_nothing_to_compile(tmp_path, write_ann):
    environment = {**os.environ, "TQINDEX_CACHE_DIR": str(tmp_path / "kernels")}
    write_ann(tmp_path / "a.h5", n=60, dim=64, nq=3)
    write_ann(tmp_path / "many.h5", n=60, dim=64, nq=20)

    def run(*arguments):
        command = [sys.executable, "-m", "tqindex", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    def kept():
        return {path.name for path in (tmp_path / "kernels").rglob("*.kernel")}

    assert "ready in" in run("warmup")
    before = kept()
    assert before
    run("build", "a.h5", "-o", "a.tq", "--codec", "prod")
    run("search", "a.tq", "a.h5")
    run("search", "a.tq", "many.h5")
    (tmp_path / "ids.txt").write_text("7\n")
    run("remove", "a.tq", "--ids", "ids.txt")
    run("compact", "a.tq")
    assert kept() == before


# --- as a process ---


def process(*arguments, **options):
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONWARNINGS": "error"}
    options = {"capture_output": True, "text": True, "env": environment} | options
    return subprocess.run([sys.executable, "-m", "tqindex", *map(str, arguments)], check=False, **options)


def test_a_pipe_gets_no_bar_and_no_escapes(tmp_path, ann):
    for arguments in (["build", ann], ["search", tmp_path / "words.tq", ann]):
        done = process(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert "\x1b" not in done.stdout
        assert "\r" not in done.stdout


def test_a_terminal_gets_a_bar(tmp_path, ann):
    leader, follower = os.openpty()
    done = process("build", ann, capture_output=False, stdout=subprocess.PIPE, stderr=follower)
    os.close(follower)
    shown = os.read(leader, 100_000).decode()
    os.close(leader)
    assert done.returncode == 0
    assert labels(done.stdout) == ["built", "vectors", "size", "rate"]
    assert "encoding" in shown
    assert "300/300" in shown


def test_a_reader_that_stops_early(index, ann):
    reading, writing = os.pipe()
    os.close(reading)
    done = process("search", index, ann, capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_recall_of_the_sample_is_that_of_its_ids(cli, tmp_path, request):
    sample = request.config.rootpath / "datasets" / "glove-100-10k.h5"
    assert cli("build", sample, "-o", tmp_path / "glove.tq")[0] == 0
    hits = json.loads(cli("search", tmp_path / "glove.tq", sample, "--json")[1])
    assert hits["recall"] > 0.85
    base, queries = base_of(sample)
    ids, _ = exact_neighbors(base, queries[:50], 10)
    by_ids = np.mean([len({*a} & {*b}) for a, b in zip(ids.tolist(), hits["ids"], strict=False)]) / 10
    assert abs(by_ids - hits["recall"]) < 0.05
