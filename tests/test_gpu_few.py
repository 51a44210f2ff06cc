"""Kernels for few queries, run on the host: what they find is what the exact scan finds, and most rows are not read."""

from typing import Any

import numpy as np
import pytest

import tqindex as tq
from tqindex.codec import Codec
from tqindex.codec.codes import QueryCodes
from tqindex.codec.packing import plane_bytes
from tqindex.gpu.best import no_best
from tqindex.gpu.codes import DeviceQueries
from tqindex.gpu.few import bound_constants, count_probes, count_turns, is_worth_bounds, scan_rows_few
from tqindex.gpu.host.count import CountingRuntime
from tqindex.gpu.host.runtime import HostRuntime
from tqindex.gpu.rows import DeviceRows
from tqindex.index import segments as index_segments
from tqindex.index.filters import allowed_segments
from tqindex.index.plan import EPS, ScanPlan, deviations
from tqindex.index.search import search_segments
from tqindex.kernels.queries import encode_queries
from tqindex.kernels.scan import NO_ID

METRICS = ("ip", "cosine", "l2")
CODECS: list[dict[str, Any]] = [
    *({"bits": bits, "codec": "mse"} for bits in (1, 2, 3, 4, 8)),
    *({"bits": bits, "codec": "prod"} for bits in (2, 3, 4)),
]
HOST = HostRuntime()


def name_of(config: dict[str, Any]) -> str:
    return "-".join(str(value) for value in config.values())


def clustered_rows(n: int, dim: int, nq: int) -> tuple[Any, Any]:
    """Rows in groups of 15, and queries near some of them: most rows can be given up early."""
    rng = np.random.default_rng(dim)
    middles = rng.standard_normal((-(-n // 15), dim))
    rows = middles[rng.permutation(np.arange(n) % len(middles))] + 0.5 * rng.standard_normal((n, dim))
    rows[n - n // 20 :] = rows[: n // 20]  # ties
    return rows.astype(np.float32), (middles[:nq] + 0.2 * rng.standard_normal((nq, dim))).astype(np.float32)


def assert_nothing_lost(
    index: tq.Index, queries: Any, k: int, segments: Any = None, runtime: HostRuntime = HOST, exact_scan: bool = False
) -> float:
    """Check that the scan gives what the CPU's exact scan gives; return the share of rows that it scored in full."""
    plan, segments = ScanPlan(index.codec, index.metric), index._rows.all_segments() if segments is None else segments
    expected = search_segments(plan, segments, queries, k, 1, exact_scan=True)
    given = encode_queries(index.codec, queries, index.metric)
    arrays = (None if array is None else runtime.upload(array) for array in vars(given).values())
    sent = DeviceQueries.of(runtime, index.codec, QueryCodes(*arrays))
    n = sum(segment.n_live for segment in segments)
    margins = None if exact_scan or not n else deviations(plan, min(k, n), n, EPS)
    best, scored = no_best(runtime, len(queries), k), 0
    for segment in segments:
        rows = DeviceRows(runtime, [segment.rows]).updated([segment])
        best, more = scan_rows_few(runtime, plan, sent, rows, best, margins)
        scored += more.sum()
    np.testing.assert_array_equal(np.where(best.ids == NO_ID, -1, best.ids), expected.ids)
    np.testing.assert_array_equal(best.scores.view(np.uint32), expected.scores.view(np.uint32))
    return float(scored / (n * len(queries))) if n else 1.0


# --- the same result ---


@pytest.mark.parametrize("config", CODECS, ids=name_of)
@pytest.mark.parametrize("dim", [65, 110])
def test_few_queries_are_the_exact_scan(dim: int, config: Any) -> None:
    rows, queries = clustered_rows(700, dim, 3)
    queries[2] = rows[7]
    for metric in METRICS:
        index = tq.Index(dim, metric=metric, center=np.full(dim, 0.05) if metric == "cosine" else None, **config)
        index.add(rows)
        shares = [assert_nothing_lost(index, queries, k) for k in (1, 10)]
        assert shares[0] <= (0.75 if config["codec"] == "prod" else 0.5)
        assert assert_nothing_lost(index, queries[:1], 10, exact_scan=True) == 1.0


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_trellis_codes_are_scored_in_full(bits: int) -> None:
    rows, queries = clustered_rows(200, 110, 2)
    for metric in METRICS:
        index = tq.Index(110, bits=bits, codec="trellis", metric=metric)
        index.add(rows)
        assert assert_nothing_lost(index, queries, 10) == 1.0


@pytest.mark.parametrize("schedule", ["forward", "reverse", "shuffled"])
def test_no_schedule_changes_a_result(schedule: Any) -> None:
    runtime = HostRuntime(schedule, seed=2)
    rows, queries = clustered_rows(1500, 100, 2)
    index = tq.Index(100, 3, "l2", codec="prod")
    index.add(rows)
    index.remove(np.arange(0, 1500, 4))
    shares = {assert_nothing_lost(index, queries, k, runtime=runtime) for k in (1, 8)}
    assert len(shares) == 2
    assert max(shares) < 1


def test_how_many_rows_are_scored_does_not_depend_on_the_schedule() -> None:
    rows, queries = clustered_rows(1500, 64, 2)
    index = tq.Index(64, 4, "ip")
    index.add(rows)
    runtimes = (HostRuntime(), HostRuntime("reverse"), HostRuntime("shuffled", seed=5))
    assert len({assert_nothing_lost(index, queries, 7, runtime=runtime) for runtime in runtimes}) == 1


@pytest.mark.parametrize("k", [1, 46, 47, 100, 1000, 1600])
def test_any_number_of_results(k: int) -> None:
    # With fewer than 32 rows for each result all of them are scored.
    rows, queries = clustered_rows(1500, 64, 2)
    index = tq.Index(64, 2)
    index.add(rows)
    share = assert_nothing_lost(index, queries, k)
    assert share == 1.0 if k > 46 else share < 1.0


@pytest.mark.parametrize("given", [False, True])
def test_segments_and_ids_leave_no_trace(given: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = clustered_rows(2000, 70, 3)
    monkeypatch.setattr(index_segments, "SEGMENT_BYTES", 20_000)
    index = tq.Index(70, 4, "l2")
    index.add(rows, np.random.default_rng(5).permutation(10**6)[: len(rows)] if given else None)
    assert len(index._rows.all_segments()) > 3
    for k in (1, 9):
        assert assert_nothing_lost(index, queries, k) < 1.0


@pytest.mark.parametrize("step", [2, 10, 100, 3000])
def test_filters(step: int) -> None:
    rows, queries = clustered_rows(2000, 64, 2)
    index = tq.Index(64, 3)
    index.add(rows)
    index.remove([0, 1, 1999])
    allowed = np.arange(5, 2000, step)
    for ids in (allowed, allowed[:0]):
        segments = allowed_segments(ids, index._rows, lambda: index._map(index._rows))
        for k in (1, 30):
            assert_nothing_lost(index, queries, k, segments)


def test_rows_that_are_not_live_do_not_help_the_threshold() -> None:
    # The best rows by far are removed: a threshold from them would lose all others.
    rows, queries = clustered_rows(1500, 64, 1)
    rows[::3] = queries[0]
    index = tq.Index(64, 4)
    index.add(rows)
    index.remove(np.arange(0, 1500, 3))
    assert assert_nothing_lost(index, queries, 10) < 1.0


@pytest.mark.parametrize("dim", [8256, 16_400])
def test_dims_beyond_shared_memory(dim: int) -> None:
    rows, queries = clustered_rows(70, dim, 2)
    index = tq.Index(dim, 2, codec="prod")
    index.add(rows)
    assert assert_nothing_lost(index, queries, 2) < 1.0


@pytest.mark.parametrize(("row_size", "query_size"), [(1e-30, 1e-13), (1e-20, 1e-22), (1e15, 1e-43), (1e15, 1e-36)])
def test_numbers_too_small_for_float32s_digits(row_size: float, query_size: float) -> None:
    rows, queries = clustered_rows(900, 100, 4)
    rows[::5] = 0.0
    for config in (CODECS[3], CODECS[7]):
        index = tq.Index(100, metric="ip", **config)
        index.add(rows * np.float32(row_size))
        assert_nothing_lost(index, queries * np.float32(query_size), 10)


def test_zero_queries_and_distances_far_below_the_norms() -> None:
    rows, queries = clustered_rows(900, 100, 3)
    queries[0] = 0.0
    for shift in (0.0, 1e3):
        index = tq.Index(100, 4, "l2")
        index.add(rows + np.float32(shift))
        assert_nothing_lost(index, queries + np.float32(shift), 10)


def test_bounds_of_very_different_rows() -> None:
    # Codes of a byte tell bounds of one block apart only by a share of their range.
    rows, queries = clustered_rows(1000, 64, 3)
    rows[::97] *= np.float32(1e6)
    rows[1::97] = 0.0
    index = tq.Index(64, 4, "ip")
    index.add(rows)
    for k in (1, 9):
        assert_nothing_lost(index, queries, k)
    index = tq.Index(64, 4, "ip")
    index.add(np.repeat(rows[2:3], 600, axis=0))
    assert assert_nothing_lost(index, queries, 1) > 1.0


# --- what is read ---


@pytest.mark.parametrize("dim", [100, 256, 768])
def test_little_more_is_read_than_the_first_plane_and_the_survivors(dim: int) -> None:
    n = 6000
    rows, queries = clustered_rows(n, dim, 1)
    index = tq.Index(dim, 4, "ip")
    index.add(rows)
    runtime = CountingRuntime()
    share = assert_nothing_lost(index, queries, 1, runtime=runtime)
    moved = sum(traffic.distinct_bytes for count in runtime.counts for traffic in (*count.loads, *count.stores))
    row = 4 * plane_bytes(dim) + 4
    least = n * (plane_bytes(dim) + 4 + share * row)
    assert moved <= 1.25 * least


# --- launch arithmetic ---


def test_bounds_are_those_of_the_cascade() -> None:
    # A coarse query that is the query itself: v and the bit's gap in units of the codebook's step, sigma as margin.
    for codec in (Codec(200, 3), Codec(200, 3, "prod"), Codec(200, 8)):
        plan = ScanPlan(codec)
        lowest, gap, margin = bound_constants(plan, (5.0, 2.0))
        assert gap == pytest.approx(-2 * lowest)
        known = plan.stages[0]
        step = codec.codebook.step * (0.5 if codec.bits == 8 else 1.0)
        assert lowest * step == pytest.approx(known[0] * known[3])
        assert margin * step == pytest.approx((5 * np.sqrt(known[4]) + 2 * known[6]) * np.sqrt(200 / 199), rel=1e-4)


def test_groups_and_probes() -> None:
    assert [count_turns(n, 10) for n in (1, 1000, 2560, 10**7)] == [1, 1, 4, 8]
    assert [count_probes(groups, 10) for groups in (256, 5)] == [20, 5]
    assert is_worth_bounds(1000, 1000, 31)
    assert not is_worth_bounds(1000, 1000, 32)
    assert not is_worth_bounds(10_000, 600, 1)
