"""Kernels for many queries, run on the host: the same results as the CPU's exact scan, bit for bit."""

from typing import Any

import numpy as np
import pytest

import tqindex as tq
from tqindex.codec import Codec
from tqindex.codec.codes import QueryCodes
from tqindex.errors import ArgumentError
from tqindex.gpu import scan as gpu_scan
from tqindex.gpu.best import Best, Candidates, join_best, keep_best, no_best
from tqindex.gpu.codes import DeviceQueries
from tqindex.gpu.host.runtime import HostRuntime
from tqindex.gpu.rows import DeviceRows
from tqindex.gpu.scan import count_first, inner_product, matrix_rows, plan_grid, room_kept, scan_rows, score_rows
from tqindex.index import segments as index_segments
from tqindex.index.filters import allowed_segments
from tqindex.index.plan import ScanPlan
from tqindex.index.search import search_segments
from tqindex.kernels.queries import encode_queries
from tqindex.kernels.scan import NO_ID

METRICS = ("ip", "cosine", "l2")
CODECS: list[dict[str, Any]] = [
    *({"bits": bits, "codec": "mse"} for bits in (1, 2, 3, 4, 8)),
    *({"bits": bits, "codec": "prod"} for bits in (2, 3, 4)),
    *({"bits": bits, "codec": "trellis"} for bits in (2, 3, 4)),
]
HOST = HostRuntime()


def name_of(config: dict[str, Any]) -> str:
    return "-".join(str(value) for value in config.values())


def made_index(n: int, dim: int, metric: Any = "ip", **config: Any) -> tq.Index:
    """An index of rows of which the last tenth equals the first."""
    rng = np.random.default_rng([n, dim])
    rows = rng.standard_normal((n, dim), np.float32)
    rows[n - n // 10 :] = rows[: n // 10]
    index = tq.Index(dim, metric=metric, **config)
    index.add(rows)
    return index


def queries_for(nq: int, dim: int) -> Any:
    return np.random.default_rng([nq, dim, 1]).standard_normal((nq, dim), np.float32)


def on_device(runtime: HostRuntime, codec: Codec, queries: Any, metric: str) -> DeviceQueries:
    given = encode_queries(codec, queries, metric)
    arrays = (None if array is None else runtime.upload(array) for array in vars(given).values())
    return DeviceQueries.of(runtime, codec, QueryCodes(*arrays))


def scanned(runtime: HostRuntime, index: tq.Index, segments: Any, queries: Any, k: int) -> Best:
    sent = on_device(runtime, index.codec, queries, index.metric)
    best = no_best(runtime, len(queries), k)
    for segment in segments:
        rows = DeviceRows(runtime, [segment.rows]).updated([segment])
        best = scan_rows(runtime, index.codec, sent, rows, best)
    return best


def assert_same(found: Any, expected: Any) -> None:
    """Compare results, of which the CPU's have id -1 where there is none."""
    np.testing.assert_array_equal(np.where(found.ids == NO_ID, -1, found.ids), expected.ids)
    np.testing.assert_array_equal(found.scores.view(np.uint32), expected.scores.view(np.uint32))


def assert_found(runtime: HostRuntime, index: tq.Index, queries: Any, k: int, segments: Any = None) -> None:
    segments = index._rows.all_segments() if segments is None else segments
    plan = ScanPlan(index.codec, index.metric)
    expected = search_segments(plan, segments, queries, k, 1, exact_scan=True)
    assert_same(scanned(runtime, index, segments, queries, k), expected)


# --- the same result ---


@pytest.mark.parametrize("config", CODECS, ids=name_of)
@pytest.mark.parametrize("dim", [3, 110, 288])
def test_many_queries_are_the_exact_scan(dim: int, config: Any) -> None:
    for metric, center in (("ip", None), ("cosine", np.full(dim, 0.1)), ("l2", None)):
        index = made_index(203, dim, metric, center=center, **config)
        assert_found(HOST, index, queries_for(9, dim), 10)


@pytest.mark.parametrize("config", [CODECS[3], CODECS[6]], ids=name_of)
@pytest.mark.parametrize("k", [1, 16, 17, 128, 129, 1000])
def test_any_number_of_results(k: int, config: Any) -> None:
    # 130 queries are more than a tile has, 700 rows more than a block takes where it keeps 16.
    assert_found(HOST, made_index(700, 24, **config), queries_for(130, 24), k)


@pytest.mark.parametrize("schedule", ["forward", "reverse", "shuffled"])
@pytest.mark.parametrize("k", [10, 100, 200])
def test_no_schedule_changes_a_result(k: int, schedule: Any) -> None:
    runtime = HostRuntime(schedule, seed=3)
    index = made_index(500, 50, "l2", bits=4, codec="prod")
    index.remove(np.arange(0, 500, 3))
    assert_found(runtime, index, queries_for(11, 50), k)


@pytest.mark.parametrize("dim", [8200, 65_536])
def test_dims_beyond_shared_memory(dim: int) -> None:
    assert_found(HOST, made_index(20, dim, bits=2), queries_for(9, dim), 3)


def test_segments_and_ids_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_segments, "SEGMENT_BYTES", 1)
    rows = np.repeat(queries_for(30, 40), 7, axis=0)
    index = tq.Index(40, metric="ip")
    index.add(rows, np.random.default_rng(0).permutation(10**6)[: len(rows)])
    assert len(index._rows.all_segments()) > 2
    for k in (5, 40, 150):
        assert_found(HOST, index, rows[::20], k)
    parts = [scanned(HOST, index, [segment], rows[::20], 40) for segment in index._rows.all_segments()]
    whole = scanned(HOST, index, index._rows.all_segments(), rows[::20], 40)
    for got, wanted in zip(join_best(HOST, parts), whole, strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("allowed", [range(0), [77], range(0, 400, 5), range(300)])
@pytest.mark.parametrize("k", [3, 40, 150])
def test_filters(k: int, allowed: Any) -> None:
    index = made_index(400, 33, bits=3)
    index.remove([0, 5, 10, 399])
    segments = allowed_segments(np.array(allowed, np.int64), index._rows, lambda: index._map(index._rows))
    assert_found(HOST, index, queries_for(9, 33), k, segments)


def test_nothing_to_scan() -> None:
    index = made_index(10, 16)
    assert_found(HOST, index, queries_for(9, 16), 4, segments=[])
    sent = on_device(HOST, index.codec, np.empty((0, 16), np.float32), "ip")
    segment = index._rows.all_segments()[0]
    rows = DeviceRows(HOST, [segment.rows]).updated([segment])
    assert scan_rows(HOST, index.codec, sent, rows, no_best(HOST, 0, 4)).ids.shape == (0, 4)


def test_scores_are_written_out_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_scan, "MATRIX_BYTES", 4 * 9 * 70)
    index = made_index(900, 20)
    assert_found(HOST, index, queries_for(9, 20), 130)
    index.remove(np.arange(0, 900, 2))
    assert_found(HOST, index, queries_for(9, 20), 130)


# --- scores of all rows, inner products ---


@pytest.mark.parametrize("config", CODECS, ids=name_of)
@pytest.mark.parametrize("dim", [5, 64, 131])
def test_inner_products_are_the_codecs(dim: int, config: Any) -> None:
    kind = config["codec"]
    for center in (None, np.full(dim, 0.2)):
        codec = Codec(dim, config["bits"], kind, center=center)
        codes, queries = codec.encode(queries_for(77, dim), "cosine"), queries_for(3, dim)
        encoded = QueryCodes(*vars(encode_queries(codec, queries, "ip")).values())
        found = inner_product(HOST, codec, encoded, codes)
        np.testing.assert_array_equal(found.view(np.uint32), codec.inner_product(queries, codes).view(np.uint32))


def test_inner_products_refuse_other_codes() -> None:
    codec, queries = Codec(16), queries_for(2, 16)
    encoded = encode_queries(codec, queries, "ip")
    with pytest.raises(ArgumentError, match="got 'l2'"):
        inner_product(HOST, codec, encoded, codec.encode(queries, "l2"))
    with pytest.raises(ArgumentError, match="with 8 bytes each, got 4"):
        inner_product(HOST, codec, encoded, Codec(16, 2).encode(queries))


def test_scores_of_all_rows_count_removed_ones() -> None:
    index = made_index(90, 32, "l2")
    index.remove([3, 4])
    (segment,) = index._rows.all_segments()
    sent = on_device(HOST, index.codec, queries_for(2, 32), "l2")
    scores = score_rows(HOST, index.codec, sent, DeviceRows(HOST, [segment.rows]).updated([segment]))
    assert scores.shape == (2, 90)
    expected = search_segments(ScanPlan(index.codec, "l2"), [segment], queries_for(2, 32), 88, 1, exact_scan=True)
    np.testing.assert_array_equal(np.take_along_axis(scores, expected.ids, axis=1), expected.scores)


# --- the best of many ---


def ordered(scores: Any, ids: Any, k: int) -> tuple[Any, Any]:
    order = np.lexsort((ids, -scores), axis=-1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)


@pytest.mark.parametrize("schedule", ["forward", "shuffled"])
@pytest.mark.parametrize(("k", "m"), [(1, 1), (1, 5000), (7, 300), (2048, 2500), (2049, 3000), (5000, 9000)])
def test_selection(k: int, m: int, schedule: Any) -> None:
    runtime, rng = HostRuntime(schedule, seed=1), np.random.default_rng(k)
    scores = rng.integers(-40, 40, (2, m)).astype(np.float32) * np.float32(1e-3)  # many ties
    scores[scores == 0] *= rng.choice([-1, 1], (scores == 0).sum())  # -0 is 0
    ids = np.array([rng.permutation(3 * m)[:m] * 2**40 for _ in range(2)])
    empty = rng.random((2, m)) < 0.1
    found = keep_best(runtime, no_best(runtime, 2, k), Candidates(np.where(empty, -np.inf, scores), entry_ids=ids))
    wanted = ordered(np.where(empty, np.float32(-np.inf), scores), np.where(empty, NO_ID, ids), k)
    np.testing.assert_array_equal(found.ids, wanted[1])
    np.testing.assert_array_equal(found.scores, wanted[0])


@pytest.mark.parametrize("k", [3, 40])
def test_selection_by_slices_and_with_what_was_best(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tqindex.gpu.best._SLICE", 100)
    rng = np.random.default_rng(k)
    scores, ids = rng.standard_normal((2, 1000), np.float32), rng.permutation(5000)[:1000]
    before = Best(*ordered(rng.standard_normal((2, k), np.float32), np.arange(2 * k).reshape(2, k) + 5000, k))
    found = keep_best(HOST, before, Candidates(scores, ids=ids))
    both = np.hstack([scores, before.scores]), np.hstack([np.tile(ids, (2, 1)), before.ids])
    for got, wanted in zip(found, ordered(*both, k), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_equal_candidates_are_told_apart_by_their_ids_alone() -> None:
    ids = np.random.default_rng(0).permutation(4000).reshape(1, -1) * 2**30 - 2**40
    zeros = np.copysign(np.float32(0), np.random.default_rng(1).standard_normal((1, 4000), np.float32))
    found = keep_best(HOST, no_best(HOST, 1, 100), Candidates(zeros, entry_ids=ids))
    np.testing.assert_array_equal(found.ids, np.sort(ids)[:, :100])


# --- launch arithmetic ---


@pytest.mark.parametrize("k", [0, 16, 128])
def test_a_grid_covers_all_rows_and_queries(k: int) -> None:
    for rows in (1, 127, 128, 129, 100_000, 2**31):
        for nq in (1, 32, 65, 512):
            grid = plan_grid(rows, nq, per_tile := 32 if k == 128 else 128, k)
            assert (grid.parts - 1) * grid.rows_per_part < rows <= grid.parts * grid.rows_per_part
            assert grid.tiles * per_tile >= nq
            assert grid.rows_per_part % 128 == 0
            assert grid.parts * grid.tiles < 2**31


def test_some_of_many_rows_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [count_first(rows) for rows in (0, 65_535, 65_536, 1_000_000, 2**31)] == [0, 0, 2048, 31_250, 32_768]
    index, queries = made_index(300, 64, bits=4, codec="mse"), queries_for(9, 64)
    segments = index._rows.all_segments()
    expected = scanned(HOST, index, segments, queries, 10)
    monkeypatch.setattr(gpu_scan, "_LEAST_SHARED", 300)
    monkeypatch.setattr(gpu_scan, "_FIRST_SHARE", 2)
    found = scanned(HOST, index, segments, queries, 10)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_room_for_results() -> None:
    assert [room_kept(k) for k in (1, 16, 17, 128, 129, 2**20)] == [16, 16, 128, 128, 0, 0]
    assert matrix_rows(512, 1000) == 131_072
    assert matrix_rows(512, 2**20) == 2**21
