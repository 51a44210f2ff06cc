"""The scan gives the scores and the order of the codec, float for float, whatever the cuts and threads."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tqindex as tq
from tqindex.index import segments as index_segments
from tqindex.kernels.compile import kernel
from tqindex.kernels.product import (
    BLOCK_GROUPS,
    LANES,
    TILE,
    TILE_CONFIGURATION,
    _place_row,
    begin_tiles,
    end_tiles,
    multiply_tile,
    pack_queries,
)
from tqindex.kernels.scan import NO_ID, push

# Parts of kernels, callable from here.
_begin, _multiply, _end, _find_row, _push = (
    kernel(part.py_func) for part in (begin_tiles, multiply_tile, end_tiles, _place_row, push)
)

METRICS = ("ip", "cosine", "l2")
CODECS: list[dict[str, Any]] = [
    *({"bits": bits, "codec": "mse"} for bits in (1, 2, 3, 4, 8)),
    *({"bits": bits, "codec": "prod", "sketch": "orthogonal"} for bits in (2, 3, 4)),
    {"bits": 3, "codec": "prod", "sketch": "gaussian"},
    *({"bits": bits, "codec": "trellis"} for bits in (2, 3, 4)),
]


def name_of(config: dict[str, Any]) -> str:
    return "-".join(str(value) for value in config.values())


def expected_result(index: tq.Index, rows: Any, ids: Any, queries: Any, k: int) -> tuple[Any, Any]:
    """Scores of the codec, sorted: larger first, then the smaller id; padded to k columns."""
    scores = index.codec.scores(queries, index.codec.encode(rows, index.metric))
    order = np.array([np.lexsort((ids, -row)) for row in scores])[:, :k]
    missing = max(0, k - len(rows))
    best = np.take_along_axis(scores, order, axis=1)
    best = np.pad(best, ((0, 0), (0, missing)), constant_values=-np.inf)
    if index.metric == "l2":
        best = best * np.float32(-2.0)
    return best, np.pad(ids[order], ((0, 0), (0, missing)), constant_values=-1)


def assert_same(result: Any, expected: tuple[Any, Any]) -> None:
    assert result.scores.dtype == np.float32
    assert result.ids.dtype == np.int64
    np.testing.assert_array_equal(result.scores, expected[0])
    np.testing.assert_array_equal(result.ids, expected[1])


@pytest.mark.parametrize("config", CODECS, ids=name_of)
@pytest.mark.parametrize("dim", [2, 7, 31, 33, 64, 65, 100, 257])
def test_search_equals_the_codec(dim: int, config: Any, gaussian_rows: Any) -> None:
    rows, queries = gaussian_rows(150, dim, 1), gaussian_rows(6, dim, 2)
    rows[100:120] = rows[:20]  # ties
    queries[3] = rows[5]
    for metric in METRICS:
        for center in (None, np.full(dim, 0.05, np.float32)):
            index = tq.Index(dim, metric=metric, center=center, **config)
            ids = index.add(rows)
            for k in (1, 25, 200):
                assert_same(index.search(queries, k), expected_result(index, rows, ids, queries, k))


@pytest.mark.parametrize("config", [CODECS[1], CODECS[4], CODECS[7], CODECS[11]], ids=name_of)
def test_search_equals_the_codec_at_1536(config: Any, gaussian_rows: Any) -> None:
    rows, queries = gaussian_rows(70, 1536, 1), gaussian_rows(3, 1536, 2)
    index = tq.Index(1536, metric="l2", center=np.full(1536, 0.05), **config)
    ids = index.add(rows)
    assert_same(index.search(queries, 10), expected_result(index, rows, ids, queries, 10))


@pytest.mark.parametrize("k", [1, 10, 11, 700])
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("given", [False, True])
def test_segments_and_threads_leave_no_trace(
    given: bool, threads: int, k: int, gaussian_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_segments, "SEGMENT_BYTES", 1)  # 64 rows
    rows, queries = gaussian_rows(500, 33, 1), gaussian_rows(5, 33, 2)
    rows[250:] = rows[:250]
    index = tq.Index(33, 3, "ip", "prod")
    ids = np.random.default_rng(5).permutation(10**6)[:500] if given else None
    ids = index.add(rows, ids)
    assert index.info()["segments"] == 8
    assert_same(index.search(queries, k, threads=threads), expected_result(index, rows, ids, queries, k))


def test_large_scans_cross_chunks_and_query_blocks(gaussian_rows: Any) -> None:
    rows, queries = gaussian_rows(9000, 8, 1), gaussian_rows(300, 8, 2)
    index = tq.Index(8, 2, "ip")
    ids = index.add(rows)
    expected = expected_result(index, rows, ids, queries, 5)
    for threads in (1, 3):
        assert_same(index.search(queries, 5, threads=threads), expected)


@pytest.mark.parametrize(
    ("dim", "config"),
    # The oracle of trellis codes takes its time.
    [*itertools.product([33, 100, 257], [CODECS[3], CODECS[4], CODECS[7]]), (33, CODECS[10])],
    ids=lambda value: name_of(value) if isinstance(value, dict) else str(value),
)
@pytest.mark.parametrize("metric", METRICS)
def test_thresholds_from_a_first_pass_and_bounds_leave_no_trace(
    dim: int, metric: Any, config: Any, gaussian_rows: Any
) -> None:
    # Enough rows for a first pass; scales far apart, none, and of either sign of score; few queries are zero.
    rows, queries = gaussian_rows(4000, dim, 1), gaussian_rows(35, dim, 2)
    rows *= np.random.default_rng(0).uniform(0.01, 3.0, (len(rows), 1)).astype(np.float32)
    rows[2000:2100], rows[3500:] = rows[:100], rows[0]
    queries[0], queries[1] = rows[0], -rows[0]
    index = tq.Index(dim, metric=metric, **config)
    ids = index.add(rows, np.random.default_rng(1).permutation(10**6)[: len(rows)])
    for k in (1, 10, 16, 17, 40):
        assert_same(index.search(queries, k), expected_result(index, rows, ids, queries, k))


def test_scores_below_zero_and_extreme_scales(gaussian_rows: Any) -> None:
    rows, queries = np.abs(gaussian_rows(1600, 100, 1)), -np.abs(gaussian_rows(20, 100, 2))
    for factor in (1.0, 1e-20, 1e-36, 1e16):
        index = tq.Index(100, 4, "ip")
        scaled = rows * np.float32(factor)
        ids = index.add(scaled)
        for sign in (1, -1):
            assert_same(index.search(sign * queries, 10), expected_result(index, scaled, ids, sign * queries, 10))


def test_equal_scores_come_by_the_smaller_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_segments, "SEGMENT_BYTES", 1)
    index = tq.Index(16, metric="ip")
    rows = np.ones((300, 16), np.float32)
    ids = np.random.default_rng(0).permutation(1000)[:300]
    index.add(rows, ids)
    for threads in (1, 2, 5):
        np.testing.assert_array_equal(index.search(rows[0], 20, threads=threads).ids, np.sort(ids)[:20])


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    st.integers(2, 40),
    st.sampled_from(CODECS),
    st.sampled_from(METRICS),
    st.integers(1, 90),
    st.integers(1, 100),
    st.integers(1, 4),
    st.booleans(),
)
def test_search_property(dim: int, config: Any, metric: Any, n: int, k: int, threads: int, centred: bool) -> None:
    rng = np.random.default_rng(n)
    # Few distinct values, so that many scores are equal.
    rows = rng.integers(-1, 2, (n, dim)).astype(np.float32)
    rows[~rows.any(axis=1)] = 1.0
    queries = rng.integers(-2, 3, (3, dim)) + np.float32(0.5)
    index = tq.Index(dim, metric=metric, center=np.full(dim, 0.1) if centred else None, **config)
    ids = index.add(rows, rng.permutation(3 * n)[:n])
    assert_same(index.search(queries, k, threads), expected_result(index, rows, ids, queries, k))


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 50)), min_size=1, max_size=40, unique=True), st.data())
def test_push_keeps_the_best(pairs: list[tuple[int, int]], data: Any) -> None:
    k = data.draw(st.integers(1, len(pairs)))
    scores, ids = np.full((2, k), -np.inf, np.float32), np.full((2, k), NO_ID, np.int64)
    for score, row_id in pairs:
        if (-score, row_id) < (-scores[1, 0], ids[1, 0]):
            _push(scores, ids, 1, np.float32(score), row_id)
    kept = sorted(zip(-scores[1], ids[1].tolist(), strict=True))
    assert (ids[0] == NO_ID).all()
    assert kept == sorted((-score, row_id) for score, row_id in pairs)[:k]


@pytest.mark.parametrize("nq", [1, 2, 33, 37])
@pytest.mark.parametrize("dim", [31, 64, 100, 1536])
def test_any_number_of_queries(dim: int, nq: int, gaussian_rows: Any) -> None:
    rows, queries = gaussian_rows(130, dim, 1), gaussian_rows(nq, dim, 2)
    for config in CODECS:
        index = tq.Index(dim, metric="l2", center=np.full(dim, 0.05), **config)
        ids = index.add(rows)
        assert_same(index.search(queries, 9), expected_result(index, rows, ids, queries, 9))


@pytest.mark.parametrize("rows", [1, 13, TILE])
@pytest.mark.parametrize("dim", [8, 64, 100, 65_536])
def test_products_are_exact_at_their_largest(dim: int, rows: int) -> None:
    depth = -(-dim // 64) * 64
    levels = np.full((TILE, depth), 255, np.uint8)
    levels[:, ::3] = 0
    queries = np.full((35, dim), 127, np.int8)
    queries[1::2] = -127
    queries[3] = np.random.default_rng(0).integers(-127, 128, dim)
    packed = pack_queries(queries)
    columns = LANES * BLOCK_GROUPS
    products = np.zeros((len(packed) // BLOCK_GROUPS, TILE, columns), np.int32)
    placed = np.zeros(levels.size, np.uint8)
    expected = levels[:rows, :dim].astype(np.float64) @ queries.astype(np.float64).T
    for r, row in enumerate(levels):
        at, step = _find_row(r, depth)
        for i in range(0, depth, 64):
            placed[at + i // 64 * step :][:64] = row[i : i + 64]
    reaching = np.zeros(TILE // 16, np.uint32)
    _begin(TILE_CONFIGURATION)
    for i, strip in enumerate(products):
        # A bound that one product is not below, and the others are.
        bounds = np.full(columns, 2**31 - 1, np.int32)
        of_strip = expected[:, columns * i : columns * (i + 1)]
        bounds[1] = of_strip[:, 1].max()
        _multiply(placed, rows, depth, packed.reshape(-1), i * BLOCK_GROUPS, strip.reshape(-1), bounds, reaching)
        bits = np.unpackbits(reaching.view(np.uint8).reshape(-1, 4)[:, :2], bitorder="little")[:rows]
        np.testing.assert_array_equal(bits, of_strip[:, 1] == bounds[1])
    _end()
    found = products.transpose(1, 0, 2).reshape(TILE, -1)
    np.testing.assert_array_equal(found[:rows, :35], expected)
    assert not found[:rows, 35:].any()


def test_eight_bit_scores_hold_at_the_largest_width() -> None:
    dim = 65_536
    rows = np.stack([np.ones(dim, np.float32), -np.ones(dim, np.float32)])
    index = tq.Index(dim, 8, "ip")
    ids = index.add(rows)
    assert_same(index.search(rows, 2), expected_result(index, rows, ids, rows, 2))
    np.testing.assert_allclose(index.search(rows, 1).scores[:, 0], dim, rtol=1e-3)
