"""An index on a GPU answers as on the CPU: the whole path, kernels in the host run, arrays of a stand-in for CuPy.

The cases marked `gpu` run on a device; without one they are skipped, and say why.
"""

import copy
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tqindex as tq
from tqindex.errors import ArgumentError, UnknownIdError, VectorError
from tqindex.gpu.engine import run_on
from tqindex.gpu.host import HostRuntime
from tqindex.index import segments as index_segments

N, DIM, K = 150, 64, 4
#: Every width, kind, rotation and metric. Widths and dims are those of other GPU tests: compiling is what takes long.
FORMS: dict[str, dict[str, Any]] = {
    "1 bit": {"dim": 2, "bits": 1, "metric": "ip"},
    "2 bits": {"dim": 384, "bits": 2, "metric": "l2"},
    "prod, Gaussian": {
        "dim": 7,
        "bits": 3,
        "metric": "cosine",
        "codec": "prod",
        "sketch": "gaussian",
        "rotation": "hadamard",
    },
    "4 bits": {"dim": DIM, "bits": 4, "metric": "cosine", "center": np.full(DIM, 0.1)},
    "prod": {"dim": 128, "bits": 4, "metric": "l2", "codec": "prod", "rotation": "dense"},
    "8 bits": {"dim": 33, "bits": 8, "metric": "ip", "center": np.full(33, 0.1), "scale": "paper"},
}
GPU = pytest.mark.gpu


@pytest.fixture(params=["host", "cupy", pytest.param("device", marks=GPU)])
def on_gpu(request: pytest.FixtureRequest, fake_cupy: Any) -> Iterator[None]:
    """Have `device="gpu"` mean the host run, CuPy's runtime on a stand-in, or a device."""
    if request.param == "host":
        with run_on(HostRuntime()):
            yield
    elif request.param == "cupy":
        with fake_cupy():
            yield
    else:
        request.getfixturevalue("needs_gpu")
        yield


@pytest.fixture
def on_host() -> Iterator[HostRuntime]:
    runtime = HostRuntime()
    with run_on(runtime):
        yield runtime


def random_rows(n: int, dim: int = DIM, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)


def pair(name: str = "4 bits", **more: Any) -> tuple[tq.Index, tq.Index]:
    """Return an empty index on the CPU and one on the GPU."""
    parameters = FORMS[name] | more
    return tq.Index(**parameters), tq.Index(**parameters, device="gpu")


def assert_same(found: Any, expected: Any) -> None:
    """Compare results; scores differ by no bit, since both sides add in one order."""
    for ours, theirs in zip(found, expected, strict=True):
        assert type(ours) is np.ndarray
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", FORMS)
def test_adding_and_searching_are_those_of_the_cpu(name: str, on_gpu: None) -> None:
    here, there = pair(name)
    vectors, queries = random_rows(N, here.dim), random_rows(12, here.dim, seed=1)
    for start, stop in ((0, 5), (5, 6), (6, 100), (100, N)):  # rows that begin, fill and cross blocks of 8
        assert here.add(vectors[start:stop]).tolist() == there.add(vectors[start:stop]).tolist()
    assert there.to_bytes() == here.to_bytes()
    assert_same(there.search(queries, K), here.search(queries, K))
    assert_same(there.search(queries[:3], K), here.search(queries[:3], K))
    assert_same(there.search(queries[0], N + 3), here.search(queries[0], N + 3))
    assert_same(there.search(queries[:3], K, exact_scan=True), here.search(queries[:3], K, exact_scan=True))
    threshold = float(here.search(queries[0], K).scores[-1])
    assert_same(there.range_search(queries, threshold), here.range_search(queries, threshold))


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_segments, "segment_capacity", lambda codec, metric: 64)


def changed(index: tq.Index, vectors: Any) -> None:
    """Ids of both kinds, removed and replaced rows, in several segments and a tail that grows."""
    ids = index.add(vectors[:100])
    index.add(vectors[100:140], ids=np.arange(1000, 1080, 2))
    index.remove([*ids[[0, 5, 63, 64]], 1002])
    index.update([ids[7], 1004], vectors[140:142])
    index.add(vectors[142:])


@pytest.mark.parametrize("name", ["4 bits", "prod"])
def test_a_changing_index_is_sent_again_where_it_changed(name: str, on_gpu: None, small_segments: None) -> None:
    here, there = pair(name)
    vectors, queries = random_rows(N, here.dim), random_rows(10, here.dim, seed=1)
    for index in (here, there):
        index.add(vectors[:3])
    assert_same(there.search(queries, K), here.search(queries, K))  # now copies are on the device
    for index in (here, there):
        index.add(vectors[3:13])  # the rows before end within a block
    assert_same(there.search(queries, 13), here.search(queries, 13))
    for index in (here, there):
        index.add(vectors[13:15], ids=[70, 80])  # the tail's ids are stored from now on
    assert_same(there.search(queries, 15), here.search(queries, 15))
    for index in (here, there):
        index.remove([0, 1, 2])
        index.compact()
        changed(index, vectors[3:])
    assert_same(there.search(queries, K), here.search(queries, K))
    assert_same(there.search(queries[:2], K), here.search(queries[:2], K))
    for index in (here, there):
        index.remove([1006, 100])
    assert_same(there.search(queries, N), here.search(queries, N))
    assert_same(there.range_search(queries, -1e9), here.range_search(queries, -1e9))


@pytest.mark.parametrize("given", ["ids", "mask", "callable", "none", "all"])
def test_a_filter_works_inside_the_scan(given: str, on_host: Any, small_segments: None) -> None:
    vectors, queries = random_rows(N), random_rows(10, seed=1)
    here, there = pair()
    for index in (here, there):
        changed(index, vectors)
    allowed: Any = {
        "ids": [3, 9, 20, 1008, 77777],
        "mask": np.arange(len(here)) % 3 == 0,
        "callable": lambda ids: ids % 2 == 0,
        "none": [],
        "all": here.ids,
    }[given]
    for rows_of in (queries, queries[:2]):
        assert_same(there.search(rows_of, K, filter=allowed), here.search(rows_of, K, filter=allowed))
    assert_same(there.range_search(queries, -1.0, filter=allowed), here.range_search(queries, -1.0, filter=allowed))


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_rerank_takes_the_originals(metric: Any, on_gpu: None) -> None:
    vectors, queries = random_rows(N), random_rows(9, seed=1)
    here, there = pair(metric=metric, originals="float16")
    for index in (here, there):
        index.add(vectors)
    assert_same(there.search(queries, 3, rerank=20), here.search(queries, 3, rerank=20))
    here.fetch = there.fetch = lambda ids: vectors[ids]
    assert_same(there.search(queries[0], 3, rerank=20), here.search(queries[0], 3, rerank=20))


def test_ties_go_to_the_smaller_id_across_segments(on_host: Any, small_segments: None) -> None:
    row = random_rows(1)
    here, there = pair()
    ids = np.random.default_rng(3).permutation(200)
    for index in (here, there):
        index.add(np.repeat(row, 200, axis=0), ids=ids)
    for queries in (row, np.repeat(row, 9, axis=0)):
        found = there.search(queries, 30)
        assert found.ids.tolist() == [list(range(30))] * len(queries)
        assert_same(found, here.search(queries, 30))


# -- what is refused, and what stays as it is


@pytest.mark.parametrize(("on", "metric"), [("host", "cosine"), ("device", "ip")])
def test_vectors_are_refused_as_on_the_cpu_and_nothing_changes(on: str, metric: Any, fake_cupy: Any) -> None:
    with fake_cupy() as cupy:
        vectors = random_rows(20)
        here, there = pair(center=None, metric=metric)
        for index in (here, there):
            index.add(vectors)
        for row, value in ((13, np.nan), (3, np.inf), (19, 0.0 if metric == "cosine" else 1e30)):
            wrong = vectors.copy()
            wrong[row] = value
            given = cupy.array(wrong) if on == "device" else wrong
            for ask in ("add", "search"):
                with pytest.raises(VectorError) as expected:
                    getattr(here, ask)(wrong)
                with pytest.raises(VectorError) as caught:
                    getattr(there, ask)(given)
                assert str(caught.value) == str(expected.value)
        assert there.to_bytes() == here.to_bytes()
        with pytest.raises(UnknownIdError):
            there.update([99], vectors[:1])
        for form, add in ((np.float16, 5), (np.float64, 5)):
            given = vectors.astype(form)[:add]
            here.add(given), there.add(cupy.array(given) if on == "device" else given)
        assert there.to_bytes() == here.to_bytes()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"effort": "search"}, "effort must be 'plain' to encode on a GPU, got 'search': encode on the CPU"),
        ({"codec": "trellis"}, "codec must be 'mse' or 'prod' to encode on a GPU, got 'trellis': encode on the CPU"),
    ],
)
def test_codes_that_only_the_cpu_makes_are_refused_by_name_and_searched(more: Any, message: str, on_gpu: None) -> None:
    vectors = random_rows(N)
    index = tq.Index(DIM, bits=4, **more)
    index.add(vectors)
    expected = [index.search(vectors[:nq], K) for nq in (2, 10)]
    index.to("gpu")
    assert_same(index.search(vectors[:2], K), expected[0])
    assert_same(index.search(vectors[:10], K), expected[1])
    with pytest.raises(ArgumentError, match=message):
        index.add(vectors)
    assert len(index) == N


@pytest.mark.parametrize("device", ["", "cuda", "gpu:", "gpu:-1", "gpu:a", "gpu:1:2", "gpu:999", 0, None, ["gpu"]])
def test_names_of_no_device_are_refused(device: Any) -> None:
    with pytest.raises(ArgumentError, match="device"):
        tq.Index(DIM, device=device)


# -- moving, saving, saying where


def test_moving_makes_no_copy_and_can_go_back(on_host: Any) -> None:
    vectors = random_rows(N)
    index = tq.Index(DIM)
    index.add(vectors[:50])
    expected = index.search(vectors[:10], K)
    assert index.to("gpu") is index
    assert index.device == index.info()["device"] == "host"
    assert {"rerank", "range order"} <= set(index.info()["on_cpu"])
    assert_same(index.search(vectors[:10], K), expected)
    index.add(vectors[50:])
    index.to("cpu")
    assert (index.device, index.info()["on_cpu"]) == ("cpu", [])
    again = tq.Index(DIM)
    again.add(vectors)
    assert_same(index.search(vectors[:10], K), again.search(vectors[:10], K))


def test_files_say_nothing_of_the_device(on_host: Any, tmp_path: Path) -> None:
    vectors = random_rows(N)
    here, there = pair()
    for index, name in ((here, "here"), (there, "there")):
        index.add(vectors)
        index.save(tmp_path / name)
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("here", "there")]
    assert files[0] == files[1]
    assert tq.load(tmp_path / "there").device == "cpu"
    for mmap in (True, False):
        loaded = tq.load(tmp_path / "here", mmap=mmap, device="gpu")
        assert loaded.device == "host"
        assert_same(loaded.search(vectors[:10], K), here.search(vectors[:10], K))
        assert_same(loaded.search(vectors[:1], K), here.search(vectors[:1], K))
        loaded.add(vectors[:3])
        loaded.save(tmp_path / "here", overwrite=True)
        here.add(vectors[:3])
        here.save(tmp_path / "here", overwrite=True)
    assert copy.copy(there).device == "cpu"


def test_copies_on_the_device_go_with_the_rows(on_host: Any) -> None:
    index = tq.Index(DIM, device="gpu")
    held = index._engine._store._held  # type: ignore[attr-defined]
    index.add(random_rows(10))
    index.search(random_rows(1), 1)
    index.add(random_rows(5000))  # the tail grows to other arrays
    index.search(random_rows(1), 1)
    assert len(held) == 1
    assert index.to("gpu")._engine._store._held is held  # type: ignore[attr-defined]
    index.remove(np.arange(100))
    index.compact()
    assert len(held) == 0


def test_info_tells_the_share_of_rows_scored_in_full(on_host: Any) -> None:
    index = tq.Index(DIM, device="gpu")
    index.add(random_rows(400))
    index.search(random_rows(2), 1)
    assert index.info()["scan"] == "cascade"
    assert 0 < index.info()["rows_scored"] < 0.9
    for few, options in ((2, {"exact_scan": True}), (3, {})):
        index.search(random_rows(few), 1, **options)  # type: ignore[arg-type]
        assert index.info()["rows_scored"] == 1.0


def test_threads_share_an_index(on_host: Any, state: Callable[[tq.Index], Any]) -> None:
    vectors = random_rows(N)
    here, there = pair()
    for index in (here, there):
        index.add(vectors)
    expected, found = here.search(vectors[:9], K), list[Any]()

    def ask() -> None:
        found.extend(there.search(vectors[:9], K) for _ in range(3))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 9
    for each in found:
        assert_same(each, expected)


def test_a_second_device_has_its_own_arrays_and_kernels(fake_cupy: Any) -> None:
    vectors = random_rows(N)
    with fake_cupy(devices=2) as cupy:
        here, there = pair()
        there.to("gpu:1")
        assert there.device == "gpu:1"
        for index in (here, there):
            index.add(vectors)
        for queries in (vectors[:10], vectors[:2]):
            assert_same(there.search(queries, K), here.search(queries, K))
        assert {device for _, device in cupy.fake.launches} == {1}
        there.to("gpu:0")
        assert_same(there.search(vectors[:10], K), here.search(vectors[:10], K))
        assert cupy.fake.launches[-1][1] == 0
