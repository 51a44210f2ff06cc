"""Range search: exactly the vectors whose scores reach the threshold, in order."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import tqindex as tq
from tqindex.errors import ArgumentError, VectorError
from tqindex.index import ranges

CODECS: list[dict[str, Any]] = [
    *({"bits": bits} for bits in (1, 2, 3, 4, 8)),
    *({"bits": bits, "codec": "prod"} for bits in (2, 4)),
]


def parts(result: Any) -> list[tuple[list[int], list[float]]]:
    """Ids and scores of every query."""
    lims = result.lims
    return [(result.ids[a:b].tolist(), result.scores[a:b].tolist()) for a, b in pairwise(lims)]


def expected(index: tq.Index, rows: Any, ids: Any, queries: Any, threshold: float) -> list[tuple[list[int], Any]]:
    scores = index.codec.scores(queries, index.codec.encode(rows, index.metric))
    if index.metric == "l2":
        scores = scores * np.float32(-2.0)
    found = []
    for row in scores:
        near = np.flatnonzero(row <= threshold if index.metric == "l2" else row >= threshold)
        order = near[np.lexsort((ids[near], row[near] if index.metric == "l2" else -row[near]))]
        found.append((ids[order].tolist(), row[order].tolist()))
    return found


@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
@pytest.mark.parametrize("config", CODECS, ids=str)
def test_range_search_equals_the_codec(metric: Any, config: Any, gaussian_rows: Any) -> None:
    rows, queries = gaussian_rows(700, 33, 1), gaussian_rows(40, 33, 2)
    rows[600:620] = rows[:20]  # ties
    index = tq.Index(33, metric=metric, center=np.full(33, 0.1), **config)
    ids = index.add(rows, np.random.default_rng(0).permutation(700) * 3)
    scores = index.codec.scores(queries, index.codec.encode(rows, metric))
    middle = float(scores[3, 5])  # a score itself, so that equality counts
    threshold = -2 * middle if metric == "l2" else middle
    assert parts(index.range_search(queries, threshold)) == expected(index, rows, ids, queries, threshold)
    assert parts(index.range_search(queries[0], threshold)) == expected(index, rows, ids, queries[:1], threshold)
    nothing, everything = (-np.inf, np.inf) if metric == "l2" else (np.inf, -np.inf)
    assert index.range_search(queries, nothing).ids.size == 0
    assert parts(index.range_search(queries, everything)) == expected(index, rows, ids, queries, everything)


def test_room_that_ends_is_given_again(gaussian_rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries, index = gaussian_rows(3000, 16, 1), gaussian_rows(30, 16, 2), tq.Index(16, metric="ip")
    ids = index.add(rows)
    monkeypatch.setattr(ranges, "_ROOM", 1)
    for threads in (1, 2):
        found = index.range_search(queries, -1.0, threads=threads)
        assert parts(found) == expected(index, rows, ids, queries, -1.0)


def test_removed_and_filtered_rows_are_not_found(gaussian_rows: Any) -> None:
    rows, queries, index = gaussian_rows(500, 16, 1), gaussian_rows(9, 16, 2), tq.Index(16, metric="ip")
    index.add(rows)
    index.remove(np.arange(0, 500, 2))
    left = np.arange(1, 500, 2)
    assert parts(index.range_search(queries, 0.5)) == expected(index, rows[left], left, queries, 0.5)
    few = {1, 2, 33, 77, 1000}
    with pytest.raises(ArgumentError, match=r"^filter must be a one-dimensional array of integers, got float64"):
        index.range_search(queries, -9.0, filter=[1.0])
    kept = np.array([1, 33, 77])
    assert parts(index.range_search(queries, -9.0, filter=few)) == expected(index, rows[kept], kept, queries, -9.0)


def test_a_threshold_between_two_float32_is_not_rounded_down(gaussian_rows: Any) -> None:
    rows, index = gaussian_rows(50, 8, 1), tq.Index(8, 8, "ip")
    index.add(rows)
    score = float(index.search(rows[0], 1).scores[0])
    assert index.range_search(rows[0], score).ids.size == 1
    assert index.range_search(rows[0], np.nextafter(score, np.inf)).ids.size == 0


def test_empty_index_and_no_queries(gaussian_rows: Any) -> None:
    index = tq.Index(8)
    assert parts(index.range_search(gaussian_rows(3, 8), 0.0)) == [([], [])] * 3
    index.add(gaussian_rows(5, 8))
    assert parts(index.range_search(np.empty((0, 8), np.float32), 0.0)) == []


@pytest.mark.parametrize("threshold", [np.nan, "1", None, True, [0.5]])
def test_thresholds_must_be_numbers(threshold: Any, gaussian_rows: Any) -> None:
    index = tq.Index(8)
    with pytest.raises(ArgumentError, match=r"^threshold must be a number, got "):
        index.range_search(gaussian_rows(1, 8), threshold)


def test_bad_queries_are_refused(gaussian_rows: Any) -> None:
    index = tq.Index(8)
    for queries in (gaussian_rows(2, 9), np.full((2, 8), np.nan, np.float32), np.zeros((1, 8), np.float32)):
        with pytest.raises(VectorError, match="queries"):
            index.range_search(queries, 0.5)
