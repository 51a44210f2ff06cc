"""Searching: exactness on easy data, arguments, threads, forks; and how little an import loads."""

import threading
from typing import Any

import numpy as np
import pytest

import tqindex as tq
from tqindex.errors import ArgumentError, VectorError
from tqindex.index import segments as index_segments
from tqindex.index.ids import IdMap

METRICS = ("ip", "cosine", "l2")


def exact(rows: Any, queries: Any, metric: str, k: int) -> tuple[Any, Any]:
    """Best k by float64 arithmetic: scores (distances under l2) and ids."""
    x, q = rows.astype(np.float64), queries.astype(np.float64)
    if metric == "cosine":
        x, q = x / np.linalg.norm(x, axis=1, keepdims=True), q / np.linalg.norm(q, axis=1, keepdims=True)
    scores = q @ x.T if metric != "l2" else ((q[:, np.newaxis] - x) ** 2).sum(axis=2)
    ids = np.argsort(scores if metric == "l2" else -scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, ids, axis=1), ids


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("bits", "codec", "least"), [(8, "mse", 0.98), (4, "mse", 0.85), (4, "prod", 0.75)])
@pytest.mark.parametrize("dim", [33, 100])
def test_results_are_the_exact_ones_on_easy_data(
    dim: int, bits: int, codec: Any, least: float, centred: bool, metric: Any, gaussian_rows: Any
) -> None:
    # Queries lie in a plane through the data's spread, so that neighbours are far apart.
    shift = 0.5 if centred else 0.0
    spread = np.linspace(2.0, 0.1, dim, dtype=np.float32) ** 2
    rows, queries = gaussian_rows(300, dim, 1) * spread + shift, gaussian_rows(40, dim, 2) * spread + shift
    index = tq.Index(dim, bits, metric, codec, center=np.full(dim, shift) if centred and metric != "cosine" else None)
    index.add(rows)
    scores, ids = index.search(queries, 5)
    true_scores, true_ids = exact(rows, queries, metric, 5)
    recall = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(ids, true_ids, strict=True)])
    assert recall >= least
    if bits == 8:
        scale = np.abs(true_scores).max()
        np.testing.assert_allclose(scores, true_scores, rtol=0, atol=0.01 * scale)
    order = np.diff(scores, axis=1)
    assert (order >= 0).all() if metric == "l2" else (order <= 0).all()


def test_l2_distances_are_squared_and_nearly_true(gaussian_rows: Any) -> None:
    rows, queries = gaussian_rows(200, 64, 1), gaussian_rows(20, 64, 2)
    index = tq.Index(64, 8, "l2")
    index.add(rows)
    scores, ids = index.search(queries, 200)
    true = ((queries[:, np.newaxis].astype(np.float64) - rows) ** 2).sum(axis=2)
    np.testing.assert_allclose(scores, np.take_along_axis(true, ids, axis=1), rtol=0.02)
    assert abs(index.search(rows, 1).scores).max() < 1.0


@pytest.mark.parametrize("k", [0, -1, 2**20 + 1, 1.0, True, "10", None])
def test_bad_k_is_refused(k: Any) -> None:
    index = tq.Index(8)
    index.add(np.eye(8))
    with pytest.raises(ArgumentError, match=r"^k must be"):
        index.search(np.ones(8), k)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([np.nan] * 8, "queries must be finite in float32, got nan in row 1"),
        ([1e39] * 8, "queries must be finite in float32, got inf in row 1"),
        ([0.0] * 8, "queries must not be zero under metric='cosine', got a zero vector in row 1"),
    ],
)
def test_bad_queries_are_refused(row: Any, message: str) -> None:
    index = tq.Index(8)
    index.add(np.eye(8))
    with pytest.raises(VectorError) as caught:
        index.search(np.array([[1.0] * 8, row]))
    assert str(caught.value) == message


def test_zero_vectors_and_queries_are_fine_without_cosine() -> None:
    for metric in ("ip", "l2"):
        index = tq.Index(9, metric=metric)
        index.add(np.concatenate([np.zeros((2, 9)), np.eye(9)]))
        scores, ids = index.search(np.zeros(9), 3)
        assert ids.tolist() == [0, 1, 2]
        np.testing.assert_array_equal(scores[:2], 0.0)
        np.testing.assert_array_equal(index.reconstruct([0, 1]), 0.0)


class ByDlpack:
    """What a tensor of another library looks like: DLPack and nothing else."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


def test_a_flat_query_by_dlpack_gives_flat_results() -> None:
    index = tq.Index(8)
    index.add(np.eye(8))
    assert index.search(ByDlpack(np.ones(8, np.float32)), k=2).ids.shape == (2,)


def test_results_unpack_and_are_named() -> None:
    index = tq.Index(8)
    index.add(np.eye(8))
    result = index.search(np.eye(8)[:2], k=1)
    assert isinstance(result, tq.SearchResult)
    scores, ids = result
    assert scores is result.scores
    assert ids is result.ids
    assert repr(index).startswith("<tqindex.Index: 8 vectors, metric='cosine', Codec(dim=8, bits=4,")


@pytest.mark.parametrize("given", [False, True])
def test_searching_while_adding_sees_states_that_existed(
    given: bool, gaussian_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_segments, "SEGMENT_BYTES", 1)
    rows, queries, batch = gaussian_rows(600, 16, 1), gaussian_rows(2, 16, 2), 20
    ids = np.random.default_rng(0).permutation(10**6)[:600] if given else np.arange(600)
    calm, states = tq.Index(16, 2, "l2"), set()

    def seen(index: tq.Index) -> tuple[Any, ...]:
        scores, found = index.search(queries, 700, threads=2)
        return scores.tobytes(), found.tobytes()

    def add(index: tq.Index, start: int) -> None:
        part = slice(start, start + batch)
        index.add(rows[part], ids[part] if given else None, threads=2)

    states.add(seen(calm))
    for start in range(0, 600, batch):
        add(calm, start)
        states.add(seen(calm))
    index, wrong, during, done = tq.Index(16, 2, "l2"), [], [0] * 4, threading.Event()

    def search(worker: int) -> None:
        try:
            while not done.is_set():
                during[worker] += 1
                if seen(index) not in states:
                    wrong.append("a state that never was")
        except Exception as error:  # noqa: BLE001 (told to the main thread)
            wrong.append(repr(error))

    threads = [threading.Thread(target=search, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for start in range(0, 600, batch):
        add(index, start)
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert min(during) > 0
    assert seen(index) == seen(calm)


def test_a_look_up_that_an_add_overtakes_is_forgotten(gaussian_rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = gaussian_rows(3, 8)
    index = tq.Index(8)
    index.add(rows[:1], [5])
    build, halfway, added = IdMap.of, threading.Event(), threading.Event()

    def slow_build(segments: Any) -> IdMap:
        built = build(segments)
        halfway.set()
        added.wait(10)
        return built

    monkeypatch.setattr(IdMap, "of", slow_build)
    reader = threading.Thread(target=lambda: 5 in index)
    reader.start()
    assert halfway.wait(10)
    monkeypatch.setattr(IdMap, "of", build)
    index.add(rows[1:2], [9])
    added.set()
    reader.join()
    assert 9 in index
    with pytest.raises(ArgumentError, match="ids must be new, got 9"):
        index.add(rows[2:], [9])


FORK = """
import os, warnings, numpy as np, tqindex as tq
warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, about forks of threads
index = tq.Index(16)
rows = np.random.default_rng(0).standard_normal((20000, 16))
index.add(rows, threads=2)
expected = index.search(rows[:5], 3, threads=2)
child = os.fork()
if child == 0:
    import faulthandler
    faulthandler.dump_traceback_later(60, exit=True)
    found = index.search(rows[:5], 3, threads=2)
    index.add(rows[:300], threads=2)
    same = (found.ids == expected.ids).all() and (found.scores == expected.scores).all() and len(index) == 20300
    os._exit(0 if same else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(index))
"""


def test_a_forked_child_can_search_and_add(run_python: Any) -> None:
    assert run_python("-c", FORK) == "0 20000\n"


LATE = ("numba", "llvmlite", "h5py", "rich", "safetensors", "click", "torch", "cupy", "pyarrow")


@pytest.mark.parametrize(
    ("code", "loaded"),
    [
        ("import tqindex", set()),
        ("import tqindex as tq; tq.Codec; tq.Codes; tq.errors; dir(tq); tq.__version__", set()),
        (
            "import numpy as np, tqindex as tq; c = tq.Codec(8, kind='prod'); c.decode(c.encode(np.ones((2, 8))))",
            set(),
        ),
        ("import tqindex as tq; tq.Index", {"numba", "llvmlite"}),
    ],
)
def test_imports_are_late(code: str, loaded: set[str], run_python: Any) -> None:
    printed = run_python("-c", f"{code}\nimport sys; print(*sorted({{m.split('.')[0] for m in sys.modules}}))")
    assert set(printed.split()) & set(LATE) == loaded
    assert "tqindex" in printed.split()


def test_the_package_has_no_other_names() -> None:
    assert set(tq.__all__) <= set(dir(tq))
    assert tq.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="module 'tqindex' has no attribute 'IVF'"):
        _ = tq.IVF
