"""Recall is judged by true scores, so that ties are not misses, and says so where it cannot be judged."""

import h5py
import numpy as np
import pytest

from tqindex.readers import open_vectors
from tqindex.readers.truth import measure_recall

DISTANCES = {"cosine": "angular", "l2": "euclidean", "ip": "dot"}


@pytest.fixture
def truth(tmp_path):
    """Return a writer of query files; any part may be left out."""

    def write(distance="angular", **datasets):
        path = tmp_path / "queries.h5"
        with h5py.File(path, "w") as file:
            for name, data in datasets.items():
                if data is not None:
                    file[name] = np.asarray(data)
            if distance:
                file.attrs["distance"] = distance
        return path

    return write


def recall(path, ids, metric="cosine", n=4):
    with open_vectors(path, role="queries") as queries:
        return measure_recall(queries, np.asarray(ids, np.int64), metric, n)


BASE = np.float32([[1, 0], [0.6, 0.8], [0, 1], [-1, 0]])
QUERY = np.float32([[1, 0.1]])  # its neighbours are 0, 1, 2, 3 in every metric


@pytest.mark.parametrize("metric", DISTANCES)
@pytest.mark.parametrize(
    ("ids", "value"), [([0, 1], 1), ([1, 0], 1), ([0, 2], 0.5), ([2, 3], 0), ([-1, -1], 0), ([0, -1], 0.5)]
)
def test_share_of_the_neighbours(truth, metric, ids, value):
    for parts in ({"train": BASE}, {"distances": [[0.0, 0.5, 1.0, 2.0]]}, {}):
        path = truth(DISTANCES[metric], test=QUERY, neighbors=[[0, 1, 2, 3]], **parts)
        found = recall(path, [ids], metric)
        assert (found.value, found.k) == (value, 2)
        assert found.why == ("by true scores" if "train" in parts else "by listed distances" if parts else "by ids")


@pytest.mark.parametrize("metric", DISTANCES)
def test_equal_vectors_tie(truth, metric):
    rng = np.random.default_rng(0)
    half = rng.standard_normal((50, 33)).astype(np.float32)
    base, queries = np.vstack([half, half]), half[:5] + np.float32(0.01)
    path = truth(DISTANCES[metric], train=base, test=queries, neighbors=np.arange(5)[:, None])
    assert recall(path, np.arange(50, 55)[:, None], metric, n=100).value == 1
    assert recall(path, np.arange(60, 65)[:, None], metric, n=100).value == 0


def test_vectors_of_one_direction_tie_under_cosine(truth):
    rng = np.random.default_rng(1)
    half = rng.standard_normal((200, 33)).astype(np.float32)
    base = np.vstack([half, half * np.float32(0.7)])  # rounding leaves them a hair apart
    path = truth(train=base, test=half[:50], neighbors=np.arange(200, 250)[:, None])
    assert recall(path, np.arange(50)[:, None], n=400).value == 1
    path = truth(train=base, test=half[:50], neighbors=np.arange(50)[:, None])
    assert recall(path, np.arange(200, 250)[:, None], n=400).value == 1


def test_a_near_miss_is_a_miss(truth):
    base = np.float32([[1, 0, 0], [1, 1e-3, 0], [1, 2e-3, 0]])
    path = truth("euclidean", train=base, test=base[:1] + np.float32(0.1), neighbors=[[1]])
    assert recall(path, [[2]], "l2", n=3).value == 1  # 2 is nearer still
    assert recall(path, [[0]], "l2", n=3).value == 0


def test_order_of_the_neighbours_does_not_count(truth):
    path = truth(train=BASE, test=QUERY, neighbors=[[2, 0, 1]])
    assert recall(path, [[1, 2, 0]]).value == 1


@pytest.mark.parametrize("distances", [[1.0, 2.0, 2.0, 3.0], [-1.0, -2.0, -2.0, -3.0]], ids=["distances", "products"])
def test_listed_ties_beyond_k(truth, distances):
    path = truth(test=QUERY, neighbors=[[0, 1, 2, 3]], distances=[distances])
    assert [recall(path, [[0, i]]).value for i in (1, 2, 3)] == [1, 1, 0.5]
    assert [recall(path, [[i]]).value for i in (0, 1, 2, 3)] == [1, 0, 0, 0]


def test_more_asked_than_listed(truth):
    path = truth(train=BASE, test=QUERY, neighbors=[[0, 1]])
    found = recall(path, [[0, 3, 1, 2]])
    assert (found.value, found.k) == (0.5, 2)


def test_more_asked_than_there_are(truth):
    path = truth(train=BASE, test=QUERY, neighbors=[[0, 1, 2, 3]])
    found = recall(path, [[0, 1, 2, 3, -1, -1]])
    assert (found.value, found.k) == (1, 4)


def test_a_base_of_many_blocks(truth):
    rng = np.random.default_rng(2)
    base, queries = rng.standard_normal((10_000, 4)), rng.standard_normal((3, 4))
    order = np.argsort(-(queries @ base.T), axis=1)
    path = truth("dot", train=base, test=queries, neighbors=order[:, :20])
    assert recall(path, order[:, :20][:, ::-1], "ip", n=10_000).value == 1
    assert recall(path, order[:, 10:30], "ip", n=10_000).value == 0.5


@pytest.mark.parametrize(
    ("parts", "ids", "n", "why"),
    [
        ({"neighbors": None}, [0], 4, "the query file has no exact neighbours"),
        ({"distance": "euclidean"}, [0], 4, "the file's neighbours are for metric l2, the index has cosine"),
        ({}, [0, 1], 2, "the file's neighbours name rows that are not in this index of 2"),
        ({}, [0], 3, "the file's neighbours are among 4 vectors, the index has 3"),
        ({}, [0], 9, "the file's neighbours are among 4 vectors, the index has 9"),
        ({"neighbors": [[0, -1]]}, [0, 1], 4, "the file's neighbours name rows that are not in this index of 4"),
        ({"neighbors": np.empty((1, 0), int)}, [0], 4, "the file's neighbours name rows that are not in this index"),
        ({}, [1_000_000], 4, "the index has ids that are no row numbers, 1000000 for one"),
        ({}, [-1], 0, "the file's neighbours name rows that are not in this index of 0"),
    ],
)
def test_not_known(truth, parts, ids, n, why):
    path = truth(**{"train": BASE, "test": QUERY, "neighbors": [[0, 2]], **parts})
    found = recall(path, [ids], n=n)
    assert found.value is None
    assert found.why.startswith(why)


@pytest.mark.parametrize("distance", [None, "jaccard"])
def test_a_file_of_no_known_metric_is_said_to_be_one(truth, distance):
    path = truth(distance, train=BASE, test=QUERY, neighbors=[[0]])
    assert recall(path, [[0]]).why == "by true scores; the file states no metric that is known"


def test_the_command_says_why(tmp_path, cli, write_ann):
    one, other = write_ann(tmp_path / "a.h5"), write_ann(tmp_path / "b.h5", n=200)
    assert cli("build", one)[0] == 0
    assert cli("build", one, "--metric", "l2", "-o", tmp_path / "l2")[0] == 0
    for index, file, why in [
        ("a.tq", other, "the file's neighbours are among 200 vectors, the index has 300"),
        ("l2", one, "the file's neighbours are for metric cosine, the index has l2"),
    ]:
        _, out, _ = cli("search", tmp_path / index, file)
        assert f"\nrecall    not known: {why}\n" in out


def test_duplicates_in_the_base_cost_no_recall(tmp_path, cli, truth):
    rng = np.random.default_rng(3)
    distinct = rng.standard_normal((20, 16)).astype(np.float32)
    copies = np.tile(distinct, (5, 1))
    last_copies = np.arange(80, 100)  # the search gives the first ones: the smaller id wins
    near = distinct[:5] + np.float32(0.001)
    path = truth(train=copies, test=near, neighbors=last_copies[:5, None])
    assert cli("build", path)[0] == 0
    _, out, _ = cli("search", tmp_path / "queries.tq", path, "-k", 1)
    assert "recall@1  1.0000 (by true scores)" in out
