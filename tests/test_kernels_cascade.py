"""The cascade gives what the exact scan gives, and loses no more than it says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tqindex as tq
from tqindex.codec import Codec
from tqindex.index import plan as index_plan
from tqindex.index import segments as index_segments
from tqindex.index.plan import ScanPlan
from tqindex.index.search import search_segments
from tqindex.readers import open_vectors

METRICS = ("ip", "cosine", "l2")
CODECS: list[dict[str, Any]] = [
    *({"bits": bits, "codec": "mse"} for bits in (1, 2, 3, 4, 8)),
    *({"bits": bits, "codec": "prod", "sketch": "orthogonal"} for bits in (2, 3, 4)),
    {"bits": 3, "codec": "prod", "sketch": "gaussian"},
    {"bits": 2, "codec": "mse", "scale": "paper"},
    {"bits": 4, "codec": "prod", "scale": "paper"},
]
SAMPLE = Path(__file__).parent.parent / "datasets" / "glove-100-10k.h5"


def name_of(config: dict[str, Any]) -> str:
    return "-".join(str(value) for value in config.values())


def clustered_rows(n: int, dim: int, nq: int) -> tuple[Any, Any]:
    """Rows in groups of 15, and queries near some of them: most rows can be given up early."""
    rng = np.random.default_rng(dim)
    middles = rng.standard_normal((-(-n // 15), dim))
    rows = middles[rng.permutation(np.arange(n) % len(middles))] + 0.5 * rng.standard_normal((n, dim))
    return rows.astype(np.float32), (middles[:nq] + 0.2 * rng.standard_normal((nq, dim))).astype(np.float32)


def assert_same(found: Any, expected: Any) -> None:
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.scores.view(np.uint32), expected.scores.view(np.uint32))


def assert_nothing_lost(index: tq.Index, queries: Any, k: int, threads: int = 1) -> float:
    """Check that the cascade gives what the exact scan gives; return the share of rows that it scored in full."""
    found = index.search(queries, k, threads)
    scored = index._scored
    assert scored is not None
    assert_same(found, index.search(queries, k, threads, exact_scan=True))
    assert index._scored == 1.0
    return scored


# --- the same result ---


@pytest.mark.parametrize(
    ("dim", "config"),
    [
        pytest.param(dim, config, id=f"{dim}-{name_of(config)}")
        for dim in (64, 65, 100, 257, 1536)
        for config in CODECS
        if dim < 1000 or config.get("sketch") != "gaussian"  # such a matrix takes a second to make
    ],
)
def test_the_cascade_is_the_exact_scan(dim: int, config: Any) -> None:
    n = 700 if dim > 1000 else 1500
    rows, queries = clustered_rows(n, dim, 3)
    rows[n - 60 :] = rows[:60]  # ties
    queries[2] = rows[7]
    for metric in METRICS:
        for center in (None, np.full(dim, 0.05, np.float32)):
            index = tq.Index(dim, metric=metric, center=center, **config)
            index.add(rows)
            shares = [assert_nothing_lost(index, queries, k) for k in (1, 10, 100, n + 5)]
            # A sketch of 2 bits errs most, and its margin is the widest.
            wide = config["codec"] == "prod" and config["bits"] == 2
            assert shares[0] <= (0.65 if wide else 0.5 if dim < 257 else 0.15)
            assert shares[0] <= shares[1] <= shares[2] <= shares[3] <= 1.2


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("bits", [1, 3])
def test_segments_threads_and_ids_leave_no_trace(
    bits: int, given: bool, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tqindex.index.search._SINGLE_ROWS", (128, 512))
    rows, queries = clustered_rows(3001, 100, 5)
    rows[2000:2500] = rows[:500]
    ids = np.random.default_rng(5).permutation(10**6)[: len(rows)] if given else None
    results = {}
    for size in (1, 20_000, 2**26):
        monkeypatch.setattr(index_segments, "SEGMENT_BYTES", size)
        index = tq.Index(100, bits, "l2")
        for part in np.split(np.arange(len(rows)), [5, 100, 1331]):
            index.add(rows[part], None if ids is None else ids[part])
        for k in (1, 10, 100, 4000):
            assert_nothing_lost(index, queries, k, threads)
            assert_same(index.search(queries, k, threads), results.setdefault(k, index.search(queries, k, 1)))


def test_equal_rows_come_by_the_smaller_id() -> None:
    rows = np.repeat(clustered_rows(40, 64, 1)[0], 50, axis=0)
    ids = np.random.default_rng(0).permutation(10_000)[: len(rows)]
    index = tq.Index(64, metric="ip")
    index.add(rows, ids)
    for threads in (1, 2, 5):
        np.testing.assert_array_equal(index.search(rows[700], 20, threads).ids, np.sort(ids[700:750])[:20])
    assert_nothing_lost(index, rows[::300], 49)


@pytest.mark.parametrize("order", ["best first", "best last", "best in the middle", "as they come"])
@pytest.mark.parametrize("metric", METRICS)
def test_no_order_of_rows_loses_any(order: str, metric: Any) -> None:
    rows, queries = clustered_rows(3000, 100, 4)
    true = rows @ queries[0] / np.linalg.norm(rows, axis=1)
    places = np.argsort(-true if order == "best first" else true)
    if order == "best in the middle":
        places = np.concatenate([places[::2], places[1::2][::-1]])
    index = tq.Index(100, 4, metric)
    index.add(rows if order == "as they come" else rows[places])
    for k in (1, 10, 100):
        assert_nothing_lost(index, queries, k)


@pytest.mark.parametrize("center", [None, 0.05])
@pytest.mark.parametrize("metric", METRICS)
def test_a_threshold_from_a_sample_loses_none(metric: Any, center: float | None) -> None:
    # So many rows that some blocks of them go first, for k up to a thirty-second of these.
    rows, queries = clustered_rows(12_005, 64, 3)
    rows[9000:9100] = rows[:100]
    index = tq.Index(64, 4, metric, center=None if center is None else np.full(64, center))
    index.add(rows)
    shares = [assert_nothing_lost(index, queries, k) for k in (1, 10, 46, 47, 200)]
    assert shares[0] < 0.2
    ids = np.arange(12_005)[::-1].copy()
    turned = tq.Index(64, 4, metric, center=None if center is None else np.full(64, center))
    turned.add(rows, ids)
    assert_nothing_lost(turned, queries, 10)


@pytest.mark.parametrize("nq", [1, 8])
@pytest.mark.parametrize("n", [1, 7, 8, 9, 15, 16, 17, 511, 513, 1031])
def test_any_number_of_rows(n: int, nq: int, gaussian_rows: Any) -> None:
    # What a failed add leaves behind the last row must not be found.
    index = tq.Index(64, 4, "ip")
    index.add(gaussian_rows(n, 64, 1))
    tail = index._rows.tail
    assert tail is not None
    left = tail.rows.read(np.zeros(len(tail.rows) - n, np.int64))
    left.scales[:] = 1e6
    tail.rows.write(n, left)
    queries = np.concatenate([gaussian_rows(nq - 1, 64, 2), index.reconstruct([0])])
    for k in (1, 3, 2000):
        assert_nothing_lost(index, queries, k)
        assert index.search(queries, k).ids.max() < n


# --- queries and rows of every form ---


def queries_of_every_form(dim: int, row: Any) -> dict[str, Any]:
    ordinary = np.random.default_rng(1).standard_normal(dim).astype(np.float32)
    return {
        "zero": np.zeros(dim, np.float32),
        "one-hot": np.eye(dim, dtype=np.float32)[dim // 2] * -3,
        "constant": np.full(dim, 0.7, np.float32),
        "two values": np.where(ordinary > 0, 1.0, -1e-3).astype(np.float32),
        "huge": ordinary * np.float32(1e15),
        "tiny": ordinary * np.float32(1e-20),
        "denormal": ordinary * np.float32(1e-42),
        "a row": row,
        "against a row": -row,
    }


@pytest.mark.parametrize("config", [CODECS[0], CODECS[1], CODECS[3], CODECS[4], CODECS[7]], ids=name_of)
@pytest.mark.parametrize("metric", METRICS)
def test_queries_of_every_form(metric: Any, config: Any) -> None:
    rows, _ = clustered_rows(1200, 100, 1)
    for center in (None, rows.mean(axis=0)):
        index = tq.Index(100, metric=metric, center=center, **config)
        index.add(rows)
        queries = queries_of_every_form(100, rows[77])
        if center is not None:
            queries["the centre"] = center
        for name, query in queries.items():
            if metric != "cosine" or (query.any() and name != "denormal"):
                for k in (1, 30):
                    assert_nothing_lost(index, query, k)


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_rows_of_every_size(bits: int, metric: Any) -> None:
    rows, queries = clustered_rows(1500, 64, 4)
    rows[::7] = 0.0
    rows[1::7] *= np.float32(1e6)
    rows[2::7] *= np.float32(1e-6)
    rows[3::7] *= np.float32(1e-30)
    queries[1] = rows[1]
    queries[2] = rows[2]
    for center in (None, np.full(64, 0.3)):
        index = tq.Index(64, bits, metric, center=center)
        index.add(rows)
        for k in (1, 10, 400):
            assert_nothing_lost(index, queries, k)


@pytest.mark.parametrize("shift", [0.0, 10.0, 1e3, 1e5])
@pytest.mark.parametrize("bits", [2, 4])
def test_distances_far_below_the_norms(bits: int, shift: float) -> None:
    # Scores are then small differences of large float32 numbers, and many are equal.
    rows, queries = clustered_rows(1500, 100, 4)
    index = tq.Index(100, bits, "l2")
    index.add(rows + np.float32(shift))
    for k in (1, 10):
        assert_nothing_lost(index, queries + np.float32(shift), k)


@pytest.mark.parametrize(("row_size", "query_size"), [(1e-30, 1e-13), (1e-20, 1e-22), (1e15, 1e-43), (1e15, 1e-36)])
@pytest.mark.parametrize("config", [CODECS[3], CODECS[7]], ids=name_of)
def test_numbers_too_small_for_float32s_digits(config: Any, row_size: float, query_size: float) -> None:
    rows, queries = clustered_rows(1500, 100, 4)
    index = tq.Index(100, metric="ip", **config)
    index.add(rows * np.float32(row_size))
    for k in (1, 10):
        assert_nothing_lost(index, queries * np.float32(query_size), k)


# --- how many are scored in full ---


def test_planes_are_no_longer_read_where_they_do_not_help(gaussian_rows: Any) -> None:
    rows, queries = gaussian_rows(6000, 64, 1), gaussian_rows(3, 64, 2)
    index = tq.Index(64, 4, "ip")
    index.add(rows)
    for k in (3000, 6000):
        assert 0.9 <= assert_nothing_lost(index, queries, k) <= 1.05
    for query in queries:
        assert 0.0 < assert_nothing_lost(index, query, 1) < 0.9


def test_small_dimensions_and_many_queries_are_scanned_whole(gaussian_rows: Any) -> None:
    for dim, nq in ((63, 1), (64, 9)):
        index = tq.Index(dim)
        index.add(gaussian_rows(2000, dim, 1))
        index.search(gaussian_rows(nq, dim, 2), 1)
        assert index._scored == 1.0


# --- what is lost ---

DIRECTIONS = 8


def lost_queries(dim: int, config: dict[str, Any], cosine: float, k: int, eps: float, seeds: int) -> tuple[int, int]:
    """Queries that lose any of their k best, and queries, over random rotations.

    The worst case: every row has the same inner product with each query, so that no row is ahead and every error of a
    bound counts. `cosine` is that of the rows with the sum of the queries.
    """
    lost = total = 0
    for seed in range(seeds):
        rng = np.random.default_rng([dim, seed])
        queries = np.eye(DIRECTIONS, dim, dtype=np.float32)
        rows = rng.standard_normal((1000, dim)).astype(np.float32)
        rows[:, :DIRECTIONS] = 0.0
        rows *= np.float32(np.sqrt(1 - cosine**2)) / np.linalg.norm(rows, axis=1, keepdims=True)
        rows[:, :DIRECTIONS] = cosine / np.sqrt(DIRECTIONS)
        index = tq.Index(dim, metric="ip", seed=seed, **config)
        index.add(rows)
        plan, segments = ScanPlan(index.codec), index._rows.all_segments()
        found, exact = (search_segments(plan, segments, queries, k, 1, whole, eps) for whole in (False, True))
        lost += int((found.scores != exact.scores).any(axis=1).sum())
        total += len(queries)
    return lost, total


def most_lost(eps: float, total: int) -> float:
    """What a true share of eps can show, 4 standard errors up."""
    return eps + 4 * np.sqrt(eps * (1 - eps) / total)


@pytest.mark.parametrize("eps", [0.2, 0.05])
@pytest.mark.parametrize("k", [1, 10])
@pytest.mark.parametrize("config", [CODECS[1], CODECS[3], CODECS[4]], ids=name_of)
@pytest.mark.parametrize(("dim", "cosine"), [(64, 0.3), (100, 0.95)])
def test_no_more_is_lost_than_eps(dim: int, cosine: float, config: Any, k: int, eps: float) -> None:
    lost, total = lost_queries(dim, config, cosine, k, eps, 25)
    assert lost / total <= most_lost(eps, total)


@pytest.mark.parametrize("config", CODECS[5:], ids=name_of)
def test_no_more_is_lost_than_eps_with_a_sketch(config: Any) -> None:
    # The best scores are those whose sketch errs upwards: one margin for both errors would not do.
    lost, total = lost_queries(64, config, 0.3, 10, 0.05, 25)
    assert lost / total <= most_lost(0.05, total)


@pytest.mark.parametrize("config", [CODECS[2], CODECS[3], CODECS[4], CODECS[7]], ids=name_of)
def test_a_margin_of_a_third_is_noticed(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = index_plan._quantile
    monkeypatch.setattr(index_plan, "_quantile", lambda probability: whole(probability) / 3)
    lost, total = lost_queries(64, config, 0.3, 10, 0.05, 25)
    assert lost / total > most_lost(0.05, total)


def test_a_larger_k_takes_a_larger_margin() -> None:
    # Each of 2 k bounds may fail with probability eps / 2 k: 4.89 deviations for k = 1, 5.73 for k = 100.
    plan = ScanPlan(Codec(64, 4))
    assert index_plan.deviations(plan, 1, 1000, 1e-6) == pytest.approx((4.8916, 0.0), abs=1e-3)
    assert index_plan.deviations(plan, 100, 1000, 1e-6) == pytest.approx((5.7307, 0.0), abs=1e-3)
    assert index_plan.deviations(plan, 1, 1000, 1.0) == (0.0, 0.0)
    # With a sketch half of eps is left for that, and its error in any of n rows gets the other half.
    plan = ScanPlan(Codec(64, 4, "prod"))
    assert index_plan.deviations(plan, 1, 1000, 1e-6) == pytest.approx((5.0263, 6.1094), abs=1e-3)


def check_data_set(rows: Any, queries: Any, config: dict[str, Any], metric: Any, seeds: int) -> int:
    """Check that no query loses any of its 10 best over some rotations; return how many results were looked at."""
    results = 0
    for seed in range(seeds):
        index = tq.Index(rows.shape[1], metric=metric, seed=seed, **config)
        index.add(rows)
        for first in range(0, len(queries), 8):
            assert_nothing_lost(index, queries[first : first + 8], 10)
            results += 10 * len(queries[first : first + 8])
    return results


def sample() -> tuple[Any, Any]:
    with open_vectors(SAMPLE) as base, open_vectors(SAMPLE, role="queries") as queries:
        return base[:].astype(np.float32), queries[:].astype(np.float32)


def test_nothing_is_lost_on_the_sample() -> None:
    rows, queries = sample()
    assert check_data_set(rows, queries[:100], CODECS[3], "cosine", 1) == 1000


@pytest.mark.nightly
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("config", CODECS, ids=name_of)
def test_nothing_is_lost_on_the_whole_sample(config: Any, metric: Any) -> None:
    assert check_data_set(*sample(), config, metric, 3) >= 10_000


@pytest.mark.nightly
@pytest.mark.parametrize("config", CODECS, ids=name_of)
@pytest.mark.parametrize("dim", [64, 1536])
def test_nothing_is_lost_on_gaussian_rows(dim: int, config: Any, gaussian_rows: Any) -> None:
    rows, queries = gaussian_rows(20_000, dim, 1), gaussian_rows(400, dim, 2)
    queries[200:] += 2 * rows[:200]  # half of them with a near row
    assert check_data_set(rows, queries, config, "cosine", 3) >= 10_000
