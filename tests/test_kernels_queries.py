"""Few queries, encoded by one kernel, equal what the codec makes of them; what is refused is refused alike."""

from typing import Any

import numpy as np
import pytest

import tqindex as tq
from tqindex.codec import Codec
from tqindex.errors import VectorError
from tqindex.index.plan import ScanPlan, encode_few_queries
from tqindex.kernels.queries import BIAS, SHIFT, SKETCH_SHIFT, SKETCH_STEP, STAGES, STEP, encode_queries

METRICS = ("ip", "cosine", "l2")
CODECS: list[dict[str, Any]] = [
    {"bits": 4},
    {"bits": 8},
    {"bits": 2, "rotation": "dense"},
    {"bits": 3, "kind": "prod"},
    {"bits": 4, "kind": "prod", "sketch": "gaussian", "rotation": "hadamard"},
]


def varied_queries(dim: int, metric: str) -> Any:
    rows = np.random.default_rng(dim).standard_normal((6, dim)).astype(np.float32)
    rows[1] *= np.float32(1e15)
    rows[2] *= np.float32(1e-20)
    rows[3] = np.eye(dim)[dim // 2] * -3
    rows[4, : dim // 2] = 0.0
    if metric != "cosine":
        rows[5] = 0.0
    return rows


def name_of(config: dict[str, Any]) -> str:
    return "-".join(str(value) for value in config.values())


@pytest.mark.parametrize("config", CODECS, ids=name_of)
@pytest.mark.parametrize("dim", [2, 33, 64, 65, 100, 257])
def test_few_queries_are_encoded_as_the_codec_does(dim: int, config: Any) -> None:
    for metric in METRICS:
        for center in (None, np.full(dim, 0.1, np.float32)):
            codec = Codec(dim, center=center, **config)
            rows = varied_queries(dim, metric)
            before = rows.copy()
            oracle, plan = codec.encode_queries(rows, metric), ScanPlan(codec, metric)
            levels, sketch_levels, slices, weights, reals, integers = encode_few_queries(plan, rows, (5.0, 6.0))
            np.testing.assert_array_equal(rows, before)
            np.testing.assert_array_equal(levels[:, :dim], oracle.levels)
            assert not levels[:, dim:].any()
            np.testing.assert_array_equal(reals[:, STEP].view(np.uint32), oracle.steps.view(np.uint32))
            np.testing.assert_array_equal(reals[:, BIAS], oracle.biases)
            shifts, sketch_shifts = plan.shifts(oracle)
            np.testing.assert_array_equal(integers[:, SHIFT], shifts)
            np.testing.assert_array_equal(integers[:, SKETCH_SHIFT], sketch_shifts)
            if oracle.sketch_levels is not None and oracle.sketch_steps is not None:
                np.testing.assert_array_equal(sketch_levels[:, :dim], oracle.sketch_levels)
                np.testing.assert_array_equal(reals[:, SKETCH_STEP], oracle.sketch_steps)
            assert set(integers[:, STAGES]) <= {0, len(plan.stages)}
            assert weights.any() == slices.any() == (dim >= 64)


def test_an_exact_scan_has_no_stages() -> None:
    *_, integers = encode_few_queries(ScanPlan(Codec(100)), varied_queries(100, "ip"), None)
    assert not integers[:, STAGES].any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 1e19, 0.0])
@pytest.mark.parametrize("metric", METRICS)
def test_few_and_many_queries_are_refused_alike(metric: Any, value: float) -> None:
    index = tq.Index(70, metric=metric, center=np.full(70, 0.1))
    index.add(np.random.default_rng(0).standard_normal((20, 70)))
    for row in (0, 3):
        messages = []
        for nq in (4, 40):
            queries = np.ones((nq, 70), np.float32)
            queries[row] = value
            try:
                index.search(queries)
            except VectorError as error:
                messages.append(str(error))
            else:
                messages.append("")
        assert messages[0] == messages[1]
        assert bool(messages[0]) == (not np.isfinite(value) or (value == 0.0) == (metric == "cosine"))


def test_queries_of_an_empty_index_are_still_checked() -> None:
    with pytest.raises(VectorError, match="queries must be finite in float32, got nan in row 0"):
        tq.Index(8).search(np.full(8, np.nan))
    codec = Codec(8)
    with pytest.raises(VectorError, match="zero vector in row 7"):
        encode_queries(codec, np.zeros((1, 8), np.float32), "cosine", 7)


def test_read_only_and_strided_queries() -> None:
    index = tq.Index(100)
    index.add(np.random.default_rng(0).standard_normal((50, 100)))
    queries = np.random.default_rng(1).standard_normal((2, 200)).astype(np.float32)[:, ::2]
    expected = index.search(queries.copy(), 5)
    kept = np.ascontiguousarray(queries)
    kept.flags.writeable = False
    for given in (queries, kept, kept.astype(np.float64)):
        np.testing.assert_array_equal(index.search(given, 5).scores, expected.scores)
