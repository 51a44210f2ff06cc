"""An index of trellis codes does all that one of scalar codes does, and finds what the codec says."""

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import tqindex as tq
from tqindex.codec.trellis import TRELLIS_BITS
from tqindex.errors import ArgumentError, FormatVersionError, VectorError
from tqindex.index import search
from tqindex.index import segments as index_segments
from tqindex.index.plan import ScanPlan
from tqindex.index.search import FEW_QUERIES

METRICS = ("ip", "cosine", "l2")
#: Widths of planes that are whole words and not, down to single bytes.
DIMS = (5, 33, 64, 100, 257)


def make(dim: int, bits: int = 3, metric: Any = "cosine", **parameters: Any) -> tq.Index:
    return tq.Index(dim, bits, metric, "trellis", **parameters)


def ranked(index: tq.Index, rows: Any, ids: Any, queries: Any) -> tuple[Any, Any]:
    """All ids and scores as the codec has them, best first, equal ones by the smaller id."""
    scores = index.codec.scores(queries, index.codec.encode(rows, index.metric))
    order = np.lexsort((np.broadcast_to(ids, scores.shape), -scores), axis=1)
    scores = np.take_along_axis(scores, order, axis=1)
    return (scores * np.float32(-2) if index.metric == "l2" else scores), ids[order]


@pytest.mark.parametrize("bits", TRELLIS_BITS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dim", DIMS)
def test_searches_find_what_the_codec_says(dim: int, metric: Any, bits: int, gaussian_rows: Any) -> None:
    rows, queries = gaussian_rows(211, dim, 1), gaussian_rows(20, dim, 2)
    rows[200:] = rows[:11]  # ties
    index = make(dim, bits, metric, center=np.full(dim, 0.1) if metric != "ip" else None)
    ids = index.add(rows, np.random.default_rng(0).permutation(211) * 5)
    scores, expected = ranked(index, rows, ids, queries)
    for many in (queries, queries[:3], queries[:1]):  # batches, and few queries one by one
        found = index.search(many, 30)
        np.testing.assert_array_equal(found.ids, expected[: len(many), :30])
        np.testing.assert_array_equal(found.scores, scores[: len(many), :30])
    np.testing.assert_array_equal(index.search(queries, 30, exact_scan=True).ids, expected[:, :30])
    np.testing.assert_array_equal(index.reconstruct(ids), index.codec.decode(index.codec.encode(rows, metric)))


@pytest.mark.parametrize("parameters", [{"codec": "trellis"}, {"effort": "search"}, {"codec": "prod"}], ids=str)
def test_few_queries_find_the_same_one_by_one_and_together(
    parameters: Any, gaussian_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, queries = gaussian_rows(301, 72, 1), gaussian_rows(9, 72, 2)
    rows[290:] = rows[:11]  # ties
    index = tq.Index(72, 3, "l2", **parameters)
    index.add(rows)
    for nq in range(1, 10):
        found = []
        for most in (0, FEW_QUERIES):
            monkeypatch.setattr(search, "_FEW_IN_FULL", (most, most))
            found.append(index.search(queries[:nq], 20, exact_scan=True))
        np.testing.assert_array_equal(*found)


def test_few_queries_go_together_where_no_planes_are_read_first() -> None:
    plans = {codec: ScanPlan(tq.Codec(72, 3, codec)) for codec in ("mse", "trellis")}
    assert search.few_queries(plans["mse"], exact_scan=False) == FEW_QUERIES
    in_full = [search.few_queries(plans[codec], exact_scan=True) for codec in ("trellis", "mse")]
    assert in_full == sorted(in_full)
    assert in_full[0] == search.few_queries(plans["trellis"], exact_scan=False) < 3


def test_queries_that_go_together_are_refused_by_their_row() -> None:
    index, queries = make(72), np.ones((4, 72), np.float32)
    queries[3, 5] = np.nan
    with pytest.raises(VectorError, match="queries must be finite in float32, got nan in row 3"):
        index.search(queries)


@pytest.mark.parametrize("metric", METRICS)
def test_removed_and_forbidden_rows_are_not_found(metric: Any, gaussian_rows: Any) -> None:
    rows, queries = gaussian_rows(300, 40, 1), gaussian_rows(12, 40, 2)
    index = make(40, 2, metric)
    ids = index.add(rows)
    index.remove(ids[::3])
    index.update([1, 2], rows[[0, 3]])
    index.add(rows[30:33])
    held = np.concatenate([rows[index.ids[:-5]], rows[[0, 3]], rows[30:33]])
    for allowed in (np.arange(303), np.arange(0, 303, 2)):
        kept = np.isin(index.ids, allowed)
        scores, expected = ranked(index, held[kept], index.ids[kept], queries)
        for many in (queries, queries[:2]):
            found = index.search(many, 10, filter=allowed)
            np.testing.assert_array_equal(found.ids, expected[: len(many), :10])
            np.testing.assert_array_equal(found.scores, scores[: len(many), :10])
    before = index.search(queries, 20)
    index.compact()
    np.testing.assert_array_equal(index.search(queries, 20), before)


@pytest.mark.parametrize("metric", METRICS)
def test_range_search_finds_all_that_reach_a_threshold(metric: Any, gaussian_rows: Any) -> None:
    rows, queries = gaussian_rows(300, 33, 1), gaussian_rows(20, 33, 2)
    index = make(33, 4, metric)
    ids = index.add(rows)
    scores, expected = ranked(index, rows, ids, queries)
    threshold = float(scores[3, 40])
    found = index.range_search(queries, threshold)
    near = scores <= threshold if metric == "l2" else scores >= threshold
    for query, (first, last) in enumerate(pairwise(found.lims)):
        np.testing.assert_array_equal(found.ids[first:last], expected[query, near[query]])


def test_rerank_takes_originals(gaussian_rows: Any) -> None:
    rows, queries = gaussian_rows(300, 33, 1), gaussian_rows(20, 33, 2)
    index = make(33, 2, "ip", originals="float32")
    index.add(rows)
    exact = np.argsort(-(queries @ rows.T), axis=1)[:, :5]
    np.testing.assert_array_equal(index.search(queries, 5, rerank=300).ids, exact)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("bits", TRELLIS_BITS)
def test_saved_indexes_come_back(
    bits: int, mmap: bool, gaussian_rows: Any, tmp_path: Path, state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_segments, "SEGMENT_BYTES", 1)  # segments of 64 rows
    rows = gaussian_rows(150, 65, 1)
    index = make(65, bits, "l2", center=rows.mean(axis=0))
    index.add(rows)
    index.remove([3, 64])
    index.save(tmp_path / "a")
    loaded = tq.load(tmp_path / "a", mmap=mmap)
    assert state(loaded) == state(index) == state(tq.Index.from_bytes(index.to_bytes())) == state(copy.copy(index))
    assert tq.verify(tmp_path / "a").manifest.version == loaded.info()["format_version"] == 3
    for each in (loaded, index):
        each.add(rows[:5] + 1)
    assert state(loaded) == state(index)


def test_what_reads_only_older_formats_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gaussian_rows: Any
) -> None:
    index = make(16)
    index.add(gaussian_rows(9, 16))
    index.save(tmp_path / "a")
    monkeypatch.setattr("tqindex.storage.manifest.FORMAT_VERSION", 2)
    with pytest.raises(FormatVersionError, match="has format version 3; this tqindex reads 1 to 2: upgrade tqindex"):
        tq.load(tmp_path / "a")


def test_indexes_are_merged(gaussian_rows: Any, state: Any) -> None:
    rows = gaussian_rows(150, 100, 1)
    whole, index, other = make(100), make(100), make(100)
    whole.add(rows)
    index.add(rows[:70])
    other.add(rows[70:], np.arange(70, 150))
    index.merge(other)
    assert state(index) == state(whole)
    with pytest.raises(ArgumentError, match="other must have kind 'trellis' as this index has, got 'mse'"):
        index.merge(tq.Index(100, 3))
    with pytest.raises(ArgumentError, match="other must have bits 3"):
        index.merge(make(100, 4))


def test_info_says_that_searches_scan_in_full(gaussian_rows: Any) -> None:
    index = make(256, 4)
    index.add(gaussian_rows(3000, 256))
    index.search(gaussian_rows(1, 256, 2), 5)
    info = index.info()
    assert (info["codec"], info["bits"], info["scan"], info["rows_scored"]) == ("trellis", 4, "full", 1.0)
    assert (info["code_bytes"], info["side_bytes"]) == (3000 * 128, 3000 * 4)
    assert tq.Index(256, 4).info()["scan"] == "cascade"


def test_codes_do_not_depend_on_threads_or_blocks(gaussian_rows: Any, state: Any) -> None:
    rows = gaussian_rows(500, 70, 1)
    one, two = make(70, 2), make(70, 2)
    one.add(rows, threads=1)
    for first in range(0, 500, 77):
        two.add(rows[first : first + 77], threads=2)
    assert state(one) == state(two)


def test_from_the_command_line(cli: Any, write_ann: Any, tmp_path: Path) -> None:
    ann = write_ann(tmp_path / "words.h5", dim=40)
    code, out, err = cli("build", ann, "--codec", "trellis", "--bits", 3)
    assert (code, err) == (0, "")
    assert "metric cosine, trellis 3 bits, centred on the mean of 300 rows\n" in out
    out = cli("info", tmp_path / "words.tq")[1]
    assert "trellis 3 bits, centred\n" in out
    assert "scan      full\n" in out
    code, out, err = cli("search", tmp_path / "words.tq", ann)
    assert (code, err) == (0, "")
    assert float(out.split("recall@10 ")[1].split()[0]) > 0.7
    assert cli("verify", tmp_path / "words.tq")[0] == 0
    code, _, err = cli("build", ann, "-o", tmp_path / "b", "--codec", "trellis", "--bits", 8)
    assert (code, err) == (2, "Error: bits of kind 'trellis' must be one of 2, 3, 4; got 8\n")


def recall(index: tq.Index, rows: npt.NDArray[np.float32], queries: npt.NDArray[np.float32]) -> float:
    index.add(rows)
    found, exact = index.search(queries, 10).ids, np.argsort(-(queries @ rows.T), axis=1)[:, :10]
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, exact, strict=True)]))


@pytest.mark.parametrize(("bits", "more"), [(2, 0.06), (3, 0.03), (4, 0.01)])
def test_more_is_found_than_by_scalar_codes(bits: int, more: float, gaussian_rows: Any) -> None:
    rows, queries = gaussian_rows(2000, 96, 1), gaussian_rows(200, 96, 2)
    ours, scalar = (recall(tq.Index(96, bits, "ip", codec), rows, queries) for codec in ("trellis", "mse"))
    assert ours > scalar + more
