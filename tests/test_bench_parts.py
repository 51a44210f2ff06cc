"""Parts of the benchmark runner: what is measured again, absent peers, ties, held-out queries, losses and ratios."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from tqindex.bench import child, environment
from tqindex.bench import plan as planning
from tqindex.bench.config import SIZES, SUITES, Config, load_config, make_config, set_tables
from tqindex.bench.exact import exact_neighbors, write_ann_hdf5
from tqindex.bench.peers import METHODS, Method, Peer, Setup, find_methods
from tqindex.bench.plan import Plan, Task
from tqindex.bench.sets import DataSet, Source, file_set, find_set, load_set
from tqindex.bench.suites import base as suites_base
from tqindex.bench.suites.base import Group, Job, build
from tqindex.bench.suites.search import Search
from tqindex.bench.timing import ratio, spread
from tqindex.bench.truth import Truth, find_truth
from tqindex.cli.command import cli
from tqindex.errors import ArgumentError

SAMPLE = Path(__file__).parent.parent / "datasets" / "glove-100-10k.h5"


def plan_of(results: Path, suite: str = "recall") -> Plan:
    task = Task(suite, "test", "glove-100-10k", None, None, str(results))
    return Plan(task, task.source())


def pending_peers(plan: Plan) -> set[str]:
    return {method.peer for fingerprint in plan.pending for method in plan.groups[fingerprint].methods}


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """Return a results folder that holds a row for all that `recall` measures."""
    plan = plan_of(tmp_path)
    for fingerprint, group in plan.groups.items():
        plan.file.put([{"method": group.methods[0].key}], fingerprint)
    plan.write(None)
    return tmp_path


# -- what is measured


def test_results_that_a_run_writes_are_no_change_of_what_it_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = "git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)
    sources = [tmp_path / "benchmarks" / name for name in ("environment.py", "results/base/recall.json")]
    for source in sources:
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text("before")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(environment, "__file__", str(sources[0]))
    found = []
    for source in reversed(sources):
        source.write_text("after")
        found.append(environment.describe_environment()["dirty"])
    assert found == [False, True]


# -- going on


def test_nothing_is_pending_when_all_is_there(finished: Path) -> None:
    assert plan_of(finished).pending == []


def test_changed_sources_are_measured_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites_base, "sources_hash", lambda: "other")
    assert pending_peers(plan_of(finished)) == {"tqindex"}


def test_another_version_is_measured_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = suites_base.package_version
    monkeypatch.setattr(suites_base, "package_version", lambda peer: "9" if peer == "turbovec" else versions(peer))
    assert pending_peers(plan_of(finished)) == {"turbovec"}


@pytest.mark.parametrize("change", [{"k": 32}, {"seeds": 3}])
def test_another_config_is_measured_again(
    finished: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    config = load_config("recall", "test")
    monkeypatch.setattr(planning, "load_config", lambda suite, size: replace(config, **change))
    plan = plan_of(finished)
    pending = {method.key for fingerprint in plan.pending for method in plan.groups[fingerprint].methods}
    bounded = {"faiss-pqfs"} if "seeds" in change else set()  # it has one seed before and after
    assert pending == {group.methods[0].key for group in plan.groups.values()} - bounded


def test_another_cpu_only_matters_to_times(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = set(plan_of(finished, "search").groups)
    monkeypatch.setattr(suites_base, "cpu_name", lambda: "another")
    assert plan_of(finished).pending == []
    assert not timed & set(plan_of(finished, "search").groups)


def test_rows_of_no_use_are_dropped(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("recall", "test")
    monkeypatch.setattr(planning, "load_config", lambda suite, size: replace(config, methods=("tqindex-mse",)))
    plan = plan_of(finished)
    plan.write(None)
    assert [row["method"] for row in plan_of(finished).file.rows] == ["tqindex-mse"]


# -- peers


def test_an_absent_peer_is_listed_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "package_version", lambda peer: None if peer == "faiss" else "1")
    plan = plan_of(tmp_path)
    assert plan.absent == [{"peer": "faiss", "reason": "not installed", "command": "pip install faiss-cpu"}]
    assert pending_peers(plan) == {"tqindex", "turbovec", "rabitqlib"}


def test_what_a_method_cannot_do_is_listed(tmp_path: Path, write_ann: Callable[..., Path]) -> None:
    euclidean = write_ann(tmp_path / "l2.h5", distance="euclidean")
    task = Task("recall", "test", None, str(euclidean), None, str(tmp_path))
    reasons = {each.get("method"): each["reason"] for each in Plan(task, task.source()).absent}
    assert reasons["turbovec"] == "takes inner products only"


class Failing(Peer):
    """Does nothing of what it is asked."""

    def add(self, rows: Any) -> None:
        raise RuntimeError("no room\nfor that")

    def search(self, queries: Any, k: int) -> Any:
        raise NotImplementedError

    def stored_bytes(self) -> int:
        return 0


@pytest.mark.parametrize("suite", ["recall", "indexing", "search"])
def test_a_failing_peer_is_listed_and_the_others_are_measured(tmp_path: Path, suite: str) -> None:
    data = data_set(rows(200), rows(30, seed=1))
    plan = plan_of(tmp_path, suite)
    failing = Method("turbovec", "theirs", "turbovec", "oblivious", lambda setup: Failing(), (2,))
    ours = METHODS["tqindex-mse"]
    config = Config(k=10, repeats=5, budget=0.1)
    job = Job(config, 1, data.source, data)
    for methods in [(failing,)] if suite == "recall" else [(ours, failing)]:
        found = child._rows(plan, job, Group(methods, 2))
        assert [row["method"] for row in found] == [method.key for method in methods if method is ours]
    assert plan.absent[-1] == {
        "peer": "turbovec",
        "method": "turbovec",
        "bits": 2,
        "reason": "no room",
        "command": None,
    }


def test_methods_are_named_once() -> None:
    assert len({method.label for method in METHODS.values()}) == len(METHODS)
    assert all(method.key.startswith(method.peer) for method in METHODS.values())
    with pytest.raises(ArgumentError, match=r"methods must be among .*; got 'faiss-lsh'"):
        find_methods(("tqindex-mse", "faiss-lsh"))


def rows(n: int = 600, dim: int = 16, seed: int = 0) -> Any:
    found = np.random.default_rng(seed).standard_normal((n, dim), np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("key", sorted(set(METHODS) - {"faiss-ivfpq"}))  # which takes ten seconds to train
def test_every_method_finds_vectors_again(key: str) -> None:
    method = METHODS[key]
    pytest.importorskip({"faiss": "faiss", "turbovec": "turbovec"}.get(method.peer, "numpy"))
    if method.peer == "rabitqlib":
        pytest.importorskip("rabitqlib")
    # Codebooks of 8 bits take a fifth of a second each to train.
    dim, bits = (16, 2) if {2, 4} == set(method.widths) else (64, 4 if 4 in method.widths else None)
    base = rows(dim=dim)
    setup = Setup(dim, len(base), bits, "ip", True, 1)
    peer = method.make(setup)
    sizes = build(peer, base).sizes
    queries = peer.prepare(base[:50])
    found = peer.search(queries, 10)
    assert found.shape == (50, 10)
    assert (found == np.arange(50)[:, np.newaxis]).any(axis=1).mean() > 0.9
    exact = peer.full_scan(queries, 10)
    assert (exact is None) == (key == "faiss-hnsw")
    assert sizes["bytes"] >= (bits or 32) * dim / 8


# -- configurations


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("size", SIZES)
def test_configurations_name_what_there_is(suite: str, size: str) -> None:
    config = load_config(suite, size)
    find_methods(config.methods)
    assert set(config.sets) <= set(set_tables())
    assert set(config.leave_out) | set(config.only) <= set(config.sets)
    for name in config.only:
        assert set(config.on_set(name).methods) <= set(config.methods)
    assert {key for keys in config.leave_out.values() for key in keys} <= set(config.methods)
    assert set(config.fewer_seeds) <= set(config.methods)
    assert config.repeats >= 5
    assert "tqindex-mse" in config.methods or suite == "distortion"


def test_an_unknown_key_is_refused() -> None:
    for table in ({"seed": 1}, {"only": {"glove-100-10k": {"seed": 1}}}):
        with pytest.raises(ArgumentError, match=r"must have keys among .*; got 'seed'"):
            make_config(table)


def test_a_set_may_have_values_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"bits": [2, 3], "methods": ["tqindex-mse", "turbovec"], "only": {"gaussian-100-4k": {"bits": [3]}}}
    monkeypatch.setattr(planning, "load_config", lambda suite, size: make_config(table))
    for name, bits in (("gaussian-100-4k", {3}), ("gaussian-100", {2, 3})):
        task = Task("recall", "test", name, None, None, str(tmp_path))
        assert {group.bits for group in Plan(task, task.source()).groups.values()} == bits
    assert make_config(table).on_set(None).bits == make_config(table).on_set("another").bits == (2, 3)


# -- data and truth


def own_source(tmp_path: Path, vectors: Any) -> Source:
    np.save(tmp_path / "own.npy", vectors)
    return file_set(tmp_path / "own.npy")


def test_queries_are_held_out(tmp_path: Path) -> None:
    vectors = rows(300)
    data = load_set(own_source(tmp_path, vectors))
    assert (len(data.base), len(data.queries)) == (270, 30)
    assert sorted(map(bytes, [*data.base, *data.queries])) == sorted(map(bytes, load_rows(vectors)))
    again = load_set(own_source(tmp_path, vectors))
    np.testing.assert_array_equal(again.queries, data.queries)


def load_rows(vectors: Any) -> Any:
    norms = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    return (vectors / norms).astype(np.float32)


def test_queries_that_are_in_the_base_are_dropped(tmp_path: Path) -> None:
    base, queries = rows(50), rows(6, seed=1)
    queries[2] = base[7]
    write_ann_hdf5(tmp_path / "a.h5", base, queries, None, None, "angular", "made by a test", k=10)
    data = load_set(file_set(tmp_path / "a.h5"))
    assert len(data.queries) == 5
    assert data.listed is not None
    np.testing.assert_array_equal(data.listed, exact_neighbors(base, np.delete(queries, 2, 0), 10)[0])


def test_all_queries_in_the_base_are_an_error(tmp_path: Path) -> None:
    base = rows(50)
    write_ann_hdf5(tmp_path / "a.h5", base, base[:5], None, None, "angular", "made by a test", k=10)
    with pytest.raises(ArgumentError, match="a: queries must not be rows of the base; all 5 are"):
        load_set(file_set(tmp_path / "a.h5"))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("wide", "a.h5: queries must have 16 columns as the rows, got 17"),
        ("neighbours", "a.h5: neighbours must be among the 50 rows, got number 50"),
        ("rows", "a.h5: train must be finite in float32, got nan in row 33"),
        ("queries", "a.h5: test must be finite in float32, got inf in row 2"),
    ],
)
def test_a_file_whose_parts_do_not_belong_together(tmp_path: Path, broken: str, message: str) -> None:
    base, queries = rows(50), rows(6, seed=1)
    ids, distances = exact_neighbors(base, queries, 10)
    if broken == "neighbours":
        ids[2, 3] = 50
    elif broken != "wide":
        array, row, value = {"rows": (base, 33, np.nan), "queries": (queries, 2, np.inf)}[broken]
        array[row, 4] = value
    write_ann_hdf5(tmp_path / "a.h5", base, queries, ids, distances, "angular", "made by a test", k=10)
    if broken == "wide":
        with h5py.File(tmp_path / "a.h5", "a") as file:
            del file["test"]
            file["test"] = np.ones((6, 17), np.float32)
    with pytest.raises(ValueError, match=message):
        load_set(file_set(tmp_path / "a.h5"))


def test_the_row_of_a_vector_that_is_not_finite_is_the_files(tmp_path: Path) -> None:
    vectors = rows(300)
    vectors[234, 1] = np.nan
    with pytest.raises(ValueError, match="vectors must be finite in float32, got nan in row 234"):
        load_set(own_source(tmp_path, vectors))


def test_made_sets_have_length_1_and_are_repeatable() -> None:
    source = find_set("gaussian-100-4k", [])
    assert source is not None
    data = load_set(source)
    assert data.base.shape == (4000, 100)
    np.testing.assert_allclose(np.linalg.norm(data.base, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(load_set(source).base, data.base)


def data_set(base: Any, queries: Any) -> DataSet:
    source = Source("made", "Made", None, {"by": "a test"}, base.shape[1], "cosine", None, "a test")
    return DataSet(source, base, queries, None)


def test_truth_counts_ties_as_found() -> None:
    half = rows(40)
    data = data_set(np.vstack([half, half]), load_rows(half[:5] + np.float32(0.01)))
    truth = Truth(data, exact_neighbors(data.base, data.queries, 10, "ip")[0])
    copies = np.arange(40, 45)[:, np.newaxis]
    assert truth.recall(copies) == 1
    assert truth.recall(copies + 7) == 0
    assert truth.recall_1_at(np.hstack([copies + 7, copies]), [1, 2]) == [0, 1]


def test_truth_of_missing_results_and_of_fewer_queries() -> None:
    data = data_set(rows(40), rows(5, seed=1))
    ids = exact_neighbors(data.base, data.queries, 10, "ip")[0]
    truth = Truth(data, ids)
    assert truth.recall(ids) == truth.recall(ids[:, ::-1]) == truth.recall(ids[:2]) == 1
    assert truth.recall(np.where(np.arange(10) < 4, ids, -1)) == pytest.approx(0.4)


def test_truth_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tqindex.bench import truth

    monkeypatch.setattr(truth, "cache_folder", lambda: tmp_path / "kernels")
    data = data_set(rows(40), rows(5, seed=1))
    first = find_truth(data)
    monkeypatch.setattr(truth, "exact_neighbors", None)
    ids = np.arange(10)[np.newaxis].repeat(5, 0)
    assert find_truth(data).recall(ids) == first.recall(ids)


# -- figures


def test_spread_and_ratio() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert (ratio(3.0, 2.0), ratio(3.0, None)) == (1.5, None)


class Shortlisted(Peer):
    """Finds its own best only where k is at least `needs`."""

    def __init__(self, needs: int) -> None:
        self.needs = needs

    def add(self, rows: Any) -> None:
        self.n = len(rows)

    def search(self, queries: Any, k: int) -> Any:
        ids = np.arange(k)[np.newaxis].repeat(len(queries), 0)
        if k < self.needs:
            ids[:, 0] = self.n - 1
        return ids

    def full_scan(self, queries: Any, k: int) -> Any:
        return np.arange(k)[np.newaxis].repeat(len(queries), 0)

    def stored_bytes(self) -> int:
        return 10 * getattr(self, "n", 0) + 100


def searched(needs: int) -> list[dict[str, Any]]:
    data = data_set(rows(200), rows(30, seed=1))
    job = Job(Config(k=10, repeats=5, budget=0.1), 1, data.source, data)
    ours = Method("tqindex-mse", "ours", "tqindex", "oblivious", lambda setup: Shortlisted(0), (2,))
    theirs = Method("turbovec", "theirs", "turbovec", "oblivious", lambda setup: Shortlisted(needs), (2,))
    return Search().measure(job, Group((ours, theirs), 2))


def test_losses_and_the_wider_search() -> None:
    by_key = {row["method"]: row for row in searched(needs=60)}
    assert [by_key[key]["lost"] for key in ("tqindex-mse", "turbovec", "turbovec-wide")] == [0, 0.1, 0]
    assert (by_key["turbovec-wide"]["k"], by_key["turbovec-wide"]["label"]) == (100, "theirs, k = 100")
    assert (by_key["turbovec"]["bytes"], by_key["turbovec"]["shared_bytes"]) == (10, 0.5)


def test_no_wider_search_where_nothing_is_lost() -> None:
    assert [row["method"] for row in searched(needs=10)] == ["tqindex-mse", "turbovec"]


def test_a_missing_package_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqindex.bench.runner", None)
    result = CliRunner().invoke(cli, ["bench", "run", "recall"])
    assert result.exit_code == 1
    assert result.output == "Error: this needs the package tqindex.bench.runner: pip install 'tqindex[bench]'\n"
