"""Adding: batches, ids, refusals, inputs of every kind, all or nothing."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import tqindex as tq
from tqindex.errors import ArgumentError, TQIndexError, UnknownIdError, VectorError
from tqindex.index import changing as index_module
from tqindex.index import segments as index_segments

DIMS = [2, 3, 7, 31, 33, 65]
METRICS = ("ip", "cosine", "l2")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 50 rows at dim 33, segments of 64."""
    monkeypatch.setattr(index_module, "_BLOCK_BYTES", 4 * 33 * 50)
    monkeypatch.setattr(index_segments, "SEGMENT_BYTES", 1)


def state(index: tq.Index, queries: Any) -> list[Any]:
    """Everything that can be seen of an index: results, reconstruction, cost."""
    scores, ids = index.search(queries, 12)
    known = np.unique(ids[ids >= 0])
    return [scores.tolist(), ids.tolist(), index.reconstruct(known).tolist(), json.dumps(index.info()), len(index)]


class ByDlpack:
    """What a tensor of another library looks like: DLPack and nothing else."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("codec", ["mse", "prod"])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("sizes", [[1] * 300, [3] * 100, [64, 64, 172], [0, 299, 0, 1], [63, 1, 65, 171]], ids=len)
def test_batches_leave_no_trace(
    sizes: list[int], given: bool, codec: Any, metric: Any, gaussian_rows: Any, small_blocks: None
) -> None:
    rows, queries = gaussian_rows(300, 33, 1), gaussian_rows(4, 33, 2)
    ids = np.random.default_rng(1).permutation(1000)[:300] if given else None
    whole, parts = (tq.Index(33, 3, metric, codec) for _ in range(2))
    expected_ids = whole.add(rows, ids)
    start, returned = 0, []
    for size in sizes:
        stop = start + size
        returned.append(parts.add(rows[start:stop], None if ids is None else ids[start:stop]))
        start = stop
    np.testing.assert_array_equal(np.concatenate(returned), expected_ids)
    assert state(parts, queries) == state(whole, queries)
    assert whole.info()["segments"] == 5


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("metric", METRICS)
def test_nothing_and_one(metric: Any, n: int, dim: int, gaussian_rows: Any) -> None:
    index, rows = tq.Index(dim, metric=metric), gaussian_rows(n, dim)
    ids = index.add(rows)
    assert ids.dtype == np.int64
    assert ids.tolist() == list(range(n))
    assert len(index) == index.info()["n"] == n
    assert json.loads(json.dumps(index.info())) == index.info()
    scores, found = index.search(gaussian_rows(2, dim, 1), k=3)
    assert scores.shape == found.shape == (2, 3)
    np.testing.assert_array_equal(found[:, n:], -1)
    np.testing.assert_array_equal(scores[:, n:], np.inf if metric == "l2" else -np.inf)
    np.testing.assert_array_equal(found[:, :n], 0)
    assert np.isfinite(scores[:, :n]).all()


@pytest.mark.parametrize("dim", DIMS)
def test_a_single_vector_may_be_flat(dim: int, gaussian_rows: Any) -> None:
    flat, square = tq.Index(dim), tq.Index(dim)
    row = gaussian_rows(1, dim)
    assert flat.add(row[0]).tolist() == square.add(row).tolist() == [0]
    scores, ids = flat.search(row[0], k=2)
    assert scores.shape == ids.shape == (2,)
    expected = square.search(row, k=2)
    np.testing.assert_array_equal(scores, expected.scores[0])
    np.testing.assert_array_equal(ids, expected.ids[0])
    assert flat.search(row[:0], k=2).ids.shape == (0, 2)


def test_ids_generated_given_and_mixed(gaussian_rows: Any, small_blocks: None) -> None:
    index, rows = tq.Index(33, 8, "l2"), gaussian_rows(250, 33)
    assert index.add(rows[:3]).tolist() == [0, 1, 2]
    assert index.add(rows[3:5], [100, 7]).tolist() == [100, 7]
    assert index.add(rows[5:150]).tolist() == list(range(101, 246))
    assert index.add(rows[150:151], 50).tolist() == [50]
    assert index.add(rows[151:200], np.arange(400, 449, dtype=np.uint64)).tolist() == list(range(400, 449))
    assert index.add(rows[200:]).tolist() == list(range(449, 499))
    ids = np.array([0, 1, 2, 100, 7, *range(101, 246), 50, *range(400, 499)])
    np.testing.assert_array_equal(index.search(rows, 1).ids[:, 0], ids)
    assert all(i in index for i in ids)
    assert np.int32(7) in index
    for other in (-1, 3, 99, 246, 399, 499, 2**63, 2**70, True, 7.0, "7", None):
        assert other not in index
    np.testing.assert_allclose(index.reconstruct(ids[:200]), rows[:200], atol=0.1)
    np.testing.assert_allclose(index.reconstruct(7), rows[4], atol=0.1)
    with pytest.raises(UnknownIdError, match=r"^ids must be in the index, got 99$") as caught:
        index.reconstruct([7, 99])
    assert isinstance(caught.value, KeyError)


@pytest.mark.parametrize("given", ["all", "none", "second", "first"])
def test_growth_keeps_rows_and_ids(given: str, gaussian_rows: Any) -> None:
    # Past the first 1,024 rows the tail's arrays are replaced by longer ones.
    rows, index, ids, start = gaussian_rows(5000, 8), tq.Index(8, 4, "l2"), [], 0
    for turn, size in enumerate([700, 400, 1000, 2900]):
        named = given == "all" or (given, turn) in (("second", 1), ("first", 0))
        part = 10_000 * turn + np.arange(size, 0, -1) if named else None
        ids.append(index.add(rows[start : start + size], part))
        start += size
    assert index.info()["segments"] == 1
    assert len(index) == 5000
    decoded = index.codec.decode(index.codec.encode(rows, "l2"))
    np.testing.assert_array_equal(index.reconstruct(np.concatenate(ids)), decoded)
    best = np.array([index.search(row, 20).ids for row in rows[::500]])
    assert (best == np.concatenate(ids)[::500, np.newaxis]).any(axis=1).all()


def test_the_largest_id_ends_generation(gaussian_rows: Any, tmp_path: Path) -> None:
    index, rows = tq.Index(8), gaussian_rows(3, 8)
    index.add(rows[:1], [2**63 - 2])
    assert 2**63 - 2 in index
    assert index.search(rows[:1], 1).ids == 2**63 - 2
    index.save(tmp_path / "index")
    index = tq.load(tmp_path / "index")
    with pytest.raises(ArgumentError, match="ids must be given: generated ones would pass"):
        index.add(rows[1:])
    assert index.add(rows[1:], [5, 6]).tolist() == [5, 6]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 2, 3], r"one id per vector, shape \(2,\), got \(3,\)"),
        (7, r"one id per vector, shape \(2,\), got \(1,\)"),
        ([20, -1], r"from 0 to 2\*\*63 - 2, got -1"),
        ([20, 2**63 - 1], r"from 0 to 2\*\*63 - 2, got 9223372036854775807"),
        ([20, 20], "distinct, got 20 twice"),
        ([20, 3], "new, got 3, which is in the index"),
        ([10, 11], "new, got 10, which is in the index"),
        ([1.0, 2.0], "a one-dimensional array of integers, got float64"),
        (["a", "b"], "a one-dimensional array of integers, got <U1"),
        ([True, False], "a one-dimensional array of integers, got bool"),
        ([[20, 21]], r"a one-dimensional array of integers, got int64, shape \(1, 2\)"),
        (np.array([20, 2**63], np.uint64), "fit int64, got 9223372036854775808"),
        ([], r"one id per vector, shape \(2,\), got \(0,\)"),
    ],
    ids=str,
)
def test_bad_ids_are_refused(ids: Any, message: str, gaussian_rows: Any) -> None:
    index, rows = tq.Index(8), gaussian_rows(8, 8)
    index.add(rows[:4])
    index.add(rows[4:5], [10])
    before = state(index, rows)
    with pytest.raises(ArgumentError, match=f"^ids must (be |have |){message}"):
        index.add(rows[5:7], ids)
    assert state(index, rows) == before


BAD_VECTORS = [
    (np.zeros((2, 33), int), "float16, float32 or float64, got int64"),
    (np.zeros((2, 33), complex), "float16, float32 or float64, got complex128"),
    (np.zeros((2, 33), bool), "float16, float32 or float64, got bool"),
    (np.zeros((2, 33), np.longdouble), "float16, float32 or float64, got"),
    (np.zeros((2, 32)), r"33 columns \(n, 33\), got shape \(2, 32\)"),
    (np.zeros(32), r"33 columns \(n, 33\), got shape \(32,\)"),
    (np.zeros((1, 2, 33)), r"33 columns \(n, 33\), got shape \(1, 2, 33\)"),
    (1.0, r"33 columns \(n, 33\), got shape \(\)"),
]


@pytest.mark.parametrize(("vectors", "message"), BAD_VECTORS, ids=lambda value: str(value)[:40].replace("\n", ""))
def test_bad_vectors_and_queries_are_refused(vectors: Any, message: str, gaussian_rows: Any) -> None:
    index, rows = tq.Index(33), gaussian_rows(8, 33)
    index.add(rows)
    before = state(index, rows)
    with pytest.raises(VectorError, match=f"^vectors must (be|have) {message}"):
        index.add(vectors)
    with pytest.raises(VectorError, match=f"^queries must (be|have) {message}"):
        index.search(vectors)
    assert state(index, rows) == before


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("first", [0, 10, 64, 70])
@pytest.mark.parametrize(
    ("metric", "value", "message"),
    [
        ("cosine", np.nan, "finite in float32, got nan in row 299$"),
        ("ip", np.inf, "finite in float32, got inf in row 299$"),
        ("ip", 1e39, "finite in float32, got inf in row 299$"),
        ("cosine", 0.0, "zero under metric='cosine', got a zero vector in row 299$"),
        ("l2", 2.0**60, r"norms of at most 2\*\*60 after centring, got [0-9.e+]* in row 299$"),
    ],
)
def test_add_is_all_or_nothing(
    metric: Any, value: float, message: str, first: int, given: bool, gaussian_rows: Any, small_blocks: None
) -> None:
    rows, queries = gaussian_rows(400, 33).astype(np.float64), gaussian_rows(5, 33, 1)
    ids = (lambda low, high: np.arange(high, low, -1)) if given else (lambda low, high: None)
    index, calm = (tq.Index(33, 3, metric, "prod") for _ in range(2))
    for one in (index, calm):
        one.add(rows[:first])
    before = state(index, queries)
    bad = rows[::-1][:300].copy()
    bad[299] = value
    with pytest.raises(VectorError, match=message):
        index.add(bad, ids(1000, 1300))
    assert state(index, queries) == before
    assert 1250 not in index
    for one in (index, calm):
        one.add(rows[first:300], ids(2000, 2300 - first))
        one.add(rows[300:])
    assert state(index, queries) == state(calm, queries)


def test_a_failing_progress_callback_changes_nothing(gaussian_rows: Any, small_blocks: None) -> None:
    index, rows, told = tq.Index(33), gaussian_rows(120, 33), []
    index.add(rows, progress=told.append)
    assert told == [50, 100, 120]
    before = state(index, rows)

    def fail(done: int) -> None:
        if done > 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index.add(rows, progress=fail)
    assert state(index, rows) == before
    assert index.add(rows[:1]).tolist() == [120]


def make_input(form: str, rows: Any, folder: Path) -> Any:
    """Return the rows in another form."""
    if form == "h5py":
        file = h5py.File(folder / "rows.h5", "w")
        return file.create_dataset("rows", data=rows)
    if form == "mapped":
        np.save(folder / "rows.npy", rows)
        return np.load(folder / "rows.npy", mmap_mode="r")
    if form == "read-only":
        rows = rows.copy()
        rows.flags.writeable = False
    forms = {
        "dlpack": lambda: ByDlpack(rows),
        "columns": lambda: np.asfortranarray(rows),
        "strided": lambda: np.repeat(np.repeat(rows, 2, axis=0), 3, axis=1)[::2, ::3],
        "backwards": lambda: rows[::-1].copy()[::-1],
        "big endian": lambda: rows.astype(">f4"),
        "lists": rows.tolist,
    }
    return forms.get(form, lambda: rows)()


@pytest.mark.parametrize(
    "form", ["h5py", "mapped", "read-only", "dlpack", "columns", "strided", "backwards", "big endian", "lists"]
)
def test_forms_of_input_leave_no_trace(form: str, gaussian_rows: Any, tmp_path: Path, small_blocks: None) -> None:
    rows = gaussian_rows(130, 33)
    plain, other = tq.Index(33), tq.Index(33)
    plain.add(rows)
    given = make_input(form, rows, tmp_path)
    other.add(given)
    assert state(other, rows) == state(plain, rows)
    expected, found = plain.search(rows, 3), other.search(given, 3)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.scores, expected.scores)
    if form == "h5py":
        given.file.close()


@pytest.mark.parametrize("dtype", ["f2", "f8"])
def test_other_floats_are_cast(dtype: str, gaussian_rows: Any) -> None:
    rows = gaussian_rows(50, 33).astype(dtype)
    plain, other = tq.Index(33), tq.Index(33)
    plain.add(rows.astype(np.float32))
    other.add(rows)
    assert state(other, rows) == state(plain, rows.astype(np.float32))


@pytest.mark.parametrize("codec", ["mse", "prod"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dim", [8, 33])
def test_reconstruct_is_decode(dim: int, metric: Any, codec: Any, gaussian_rows: Any) -> None:
    rows = gaussian_rows(90, dim)
    index = tq.Index(dim, 4, metric, codec, center=np.full(dim, 0.1))
    index.add(rows)
    decoded = index.codec.decode(index.codec.encode(rows, metric))
    order = np.random.default_rng(0).permutation(90)
    np.testing.assert_array_equal(index.reconstruct(order), decoded[order])
    np.testing.assert_array_equal(index.reconstruct([5, 5]), decoded[[5, 5]])
    one = index.reconstruct(5)
    assert one.shape == (dim,)
    np.testing.assert_array_equal(one, decoded[5])
    assert index.reconstruct([]).shape == (0, dim)


@pytest.mark.parametrize("dim", [32, 33])
def test_reconstruct_finds_rows_of_any_segment(dim: int, gaussian_rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_segments, "SEGMENT_BYTES", 1)
    rows = gaussian_rows(200, dim)
    index = tq.Index(dim, metric="ip")
    index.add(rows)
    decoded = index.codec.decode(index.codec.encode(rows))
    for ids in ([0], [199, 3], [64, 63]):
        np.testing.assert_array_equal(index.reconstruct(ids), decoded[ids])


def test_info_counts_bytes(gaussian_rows: Any) -> None:
    for codec, metric, center, sides in (
        ("mse", "cosine", None, 4),
        ("mse", "l2", None, 8),
        ("prod", "ip", np.full(33, 0.1), 12),
        ("prod", "l2", np.full(33, 0.1), 12),
    ):
        index = tq.Index(33, 3, metric, codec, center=center)
        index.add(gaussian_rows(10, 33))
        info = index.info()
        assert (info["code_bytes"], info["side_bytes"], info["id_bytes"]) == (10 * 3 * 5, 10 * sides, 0)
        assert info["bytes_per_vector"] == 15 + sides
        index.add(gaussian_rows(10, 33), np.arange(50, 60))
        info = index.info()
        assert info["id_bytes"] == 8 * 20
        assert info["total_bytes"] == 20 * (15 + sides + 8)
        assert (info["centered"], info["metric"], info["n"]) == (center is not None, metric, 20)


def test_a_codec_object_is_taken_as_it_is(gaussian_rows: Any) -> None:
    codec = tq.Codec(33, 2, "prod", seed=5)
    index = tq.Index(33, metric="l2", codec=codec)
    assert index.codec is codec
    assert (index.dim, index.bits) == (33, 2)
    named = tq.Index(33, 2, "l2", "prod", seed=5)
    for one in (index, named):
        one.add(gaussian_rows(20, 33))
    assert state(index, gaussian_rows(2, 33)) == state(named, gaussian_rows(2, 33))
    with pytest.raises(ArgumentError, match="dim must equal the codec's dim 33, got 32"):
        tq.Index(32, codec=codec)
    for other in (
        {"bits": 2},
        {"seed": 5},
        {"effort": "search"},
        {"scale": "paper"},
        {"rotation": "dense"},
        {"sketch": "gaussian"},
        {"center": np.zeros(33)},
    ):
        with pytest.raises(ArgumentError, match="come with Codec"):
            tq.Index(33, codec=codec, **other)
    for wrong in ({"metric": "dot"}, {"codec": "pq"}, {"codec": None}):
        with pytest.raises(TQIndexError, match=f"^{next(iter(wrong))} must be one of"):
            tq.Index(33, **wrong)
