"""Reranking: candidates of the codes, ordered by exact scores of the original vectors."""

from typing import Any

import numpy as np
import pytest

import tqindex as tq
from tqindex.errors import ArgumentError, VectorError
from tqindex.index import rerank

METRICS = ("ip", "cosine", "l2")


def exact(rows: Any, queries: Any, metric: str) -> Any:
    """Scores by float64 arithmetic, distances under l2."""
    x, q = rows.astype(np.float64), queries.astype(np.float64)
    if metric == "cosine":
        x, q = x / np.linalg.norm(x, axis=1, keepdims=True), q / np.linalg.norm(q, axis=1, keepdims=True)
    return ((q[:, np.newaxis] - x) ** 2).sum(axis=2) if metric == "l2" else q @ x.T


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("originals", ["float32", "float16"])
@pytest.mark.parametrize("nq", [3, 40])
def test_all_candidates_give_the_exact_order(metric: Any, originals: Any, nq: int, gaussian_rows: Any) -> None:
    rows, queries = gaussian_rows(300, 20, 1), gaussian_rows(nq, 20, 2)
    index = tq.Index(20, 2, metric, originals=originals)
    ids = index.add(rows[:100], np.arange(1000, 1100))
    ids = np.concatenate([ids, index.add(rows[100:])])
    scores, found = index.search(queries, 7, rerank=300)
    true = exact(rows.astype(originals), queries, metric)
    order = np.argsort(true if metric == "l2" else -true, axis=1)[:, :7]
    np.testing.assert_array_equal(found, ids[order])
    np.testing.assert_allclose(scores, np.take_along_axis(true, order, axis=1), rtol=1e-5, atol=1e-5)
    one = index.search(queries[0], 7, rerank=300)
    np.testing.assert_array_equal(one.ids, found[0])


@pytest.mark.parametrize(("originals", "size"), [("float16", 2), ("float32", 4), (None, 0)])
def test_originals_are_counted(originals: Any, size: int, gaussian_rows: Any) -> None:
    index = tq.Index(20, originals=originals)
    index.add(gaussian_rows(30, 20))
    info = index.info()
    assert info["original_bytes"] == 30 * 20 * size
    assert info["total_bytes"] == 30 * (12 + 4 + 20 * size)


def test_only_candidates_are_scored(gaussian_rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = gaussian_rows(300, 20, 1), gaussian_rows(30, 20, 2)
    asked = []

    def fetch(ids: Any) -> Any:
        asked.append(ids)
        return rows[ids].tolist()  # anything that gives vectors

    index = tq.Index(20, 2, "ip", originals=fetch)
    index.add(rows)
    candidates = index.search(queries, 15).ids
    monkeypatch.setattr(rerank, "_BLOCK_BYTES", 4 * 20 * 15 * 7)
    found = index.search(queries, 5, rerank=15).ids
    true = exact(rows, queries, "ip")
    for q, row in enumerate(candidates):
        order = row[np.argsort(-true[q, row])][:5]
        np.testing.assert_array_equal(found[q], order)
    assert len(asked) == 5  # 30 queries, 7 at a time
    assert all(len(set(ids)) == len(ids) for ids in asked)


def test_updates_removals_filters_and_missing_hits(gaussian_rows: Any) -> None:
    rows, index = gaussian_rows(40, 20, 1), tq.Index(20, 4, "ip", originals="float32")
    index.add(rows[:10])
    index.update([3], rows[20:21])
    index.remove([4])
    found = index.search(rows[20], 10, rerank=10)
    assert found.ids[0] == 3
    np.testing.assert_allclose(found.scores[0], rows[20] @ rows[20], rtol=1e-6)
    assert sorted(found.ids.tolist()) == [-1, 0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert found.scores[-1] == -np.inf
    assert set(index.search(rows[20], 2, rerank=4, filter=[1, 2]).ids.tolist()) == {1, 2}


def test_more_candidates_bring_recall(gaussian_rows: Any) -> None:
    rows, queries = gaussian_rows(5000, 32, 1), gaussian_rows(50, 32, 2)
    index = tq.Index(32, 2, "ip", originals="float16")
    index.add(rows)
    best = np.argsort(-exact(rows, queries, "ip"), axis=1)[:, :10]
    recalls = [
        np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, best, strict=True)])
        for found in (index.search(queries, 10).ids, index.search(queries, 10, rerank=300).ids)
    ]
    assert recalls[0] < 0.7
    assert recalls[1] > 0.98


def test_what_cannot_be_done_is_said(gaussian_rows: Any) -> None:
    rows = gaussian_rows(20, 8)
    with pytest.raises(ArgumentError, match=r"originals must be one of float16, float32; got 'float8'"):
        tq.Index(8, originals="float8")  # type: ignore[arg-type]
    index = tq.Index(8)
    index.add(rows)
    with pytest.raises(ArgumentError, match="rerank needs originals"):
        index.search(rows, 3, rerank=5)
    index = tq.Index(8, originals="float16")
    with pytest.raises(VectorError, match="vectors must be finite in float16, got inf in row 2"):
        index.add(np.where(np.arange(20)[:, np.newaxis] == 2, np.float32(1e6), rows))
    assert len(index) == 0
    index.add(rows)
    for wrong in (2, 0, -1, 2**21, 2.5, True):
        with pytest.raises(ArgumentError, match=r"^rerank must be"):
            index.search(rows, 3, rerank=wrong)  # type: ignore[arg-type]
    for answer, error, words in (
        (lambda ids: rows[:1], ArgumentError, "originals must give one vector per id"),
        (lambda ids: rows[ids][:, :3], VectorError, "originals must have 8 columns"),
        (lambda ids: np.full((len(ids), 8), np.nan), VectorError, "originals must be finite"),
    ):
        index = tq.Index(8, originals=answer)
        index.add(rows)
        with pytest.raises(error, match=words):
            index.search(rows[:2], 3, rerank=5)
