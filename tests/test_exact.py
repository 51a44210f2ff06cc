"""Exact nearest neighbours against brute force, and the ann-benchmarks files that hold them."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tqindex.bench.exact import exact_neighbors, write_ann_hdf5
from tqindex.errors import ArgumentError, VectorError


def contents(path: Path) -> dict[str, Any]:
    with h5py.File(path, "r") as file:
        return {name: file[name][:] for name in file} | {"attrs": dict(file.attrs)}


def brute_force(base: Any, queries: Any, k: int, metric: str) -> tuple[Any, Any]:
    base, queries = np.asarray(base, np.float64), np.asarray(queries, np.float64)
    found = []
    for q in queries:
        if metric == "cosine":
            costs = [1 - (x @ q) / np.sqrt((x @ x) * (q @ q)) for x in base]
        elif metric == "ip":
            costs = [-(x @ q) for x in base]
        else:
            costs = [np.sqrt((x - q) @ (x - q)) for x in base]
        found.append(sorted(zip(costs, range(len(base)), strict=True))[:k])
    return np.array([[i for _, i in row] for row in found]), np.array([[c for c, _ in row] for row in found])


# -- exact neighbours and the file form


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize(("block_rows", "dtype"), [(None, "f8"), (1, "f4"), (7, "f2"), (64, "f4")])
def test_exact_neighbors_equal_brute_force(metric: Any, block_rows: int | None, dtype: str) -> None:
    rng = np.random.default_rng(1)
    base, queries = rng.standard_normal((300, 33)).astype(dtype), rng.standard_normal((9, 33)).astype(dtype)
    ids, distances = exact_neighbors(base, queries, 20, metric, block_rows)
    right_ids, right = brute_force(base, queries, 20, metric)
    assert (ids.dtype.name, distances.dtype.name) == ("int64", "float32")
    np.testing.assert_array_equal(ids, right_ids)
    np.testing.assert_allclose(distances, right, rtol=2**-22, atol=1e-14)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("block_rows", [None, 3, 16])
def test_equal_vectors_rank_by_row(metric: Any, block_rows: int | None) -> None:
    rng = np.random.default_rng(2)
    base = np.repeat(rng.standard_normal((6, 65)), 20, axis=0)[rng.permutation(120)]
    queries = rng.standard_normal((5, 65))
    ids, distances = exact_neighbors(base, queries, 50, metric, block_rows)
    for row, values in zip(ids, base[ids], strict=True):
        same = (values[1:] == values[:-1]).all(axis=1)
        assert same.sum() == 47  # 20 + 20 + 10 equal rows stand together
        assert (np.diff(row)[same] > 0).all()
        assert row[0] == np.flatnonzero((base == values[0]).all(axis=1))[0]
    assert (np.diff(distances, axis=1) >= 0).all()


def test_l2_survives_cancellation() -> None:
    # |x|^2 is near 5e17 and the squared distances are near 100: a matrix product alone orders these at random.
    rng = np.random.default_rng(3)
    base, queries = 1e8 + rng.standard_normal((500, 50)), 1e8 + rng.standard_normal((4, 50))
    ids, distances = exact_neighbors(base, queries, 10, "l2", 100)
    right_ids, right = brute_force(base, queries, 10, "l2")
    np.testing.assert_array_equal(ids, right_ids)
    np.testing.assert_allclose(distances, right, rtol=2**-22)


def test_base_is_read_in_blocks(tmp_path: Path) -> None:
    base = np.random.default_rng(4).standard_normal((100, 8)).astype(np.float32)
    read: list[int] = []

    class Watched:
        shape = base.shape

        def __getitem__(self, key: slice) -> Any:
            read.append(len(base[key]))
            return base[key]

    expected, _ = exact_neighbors(base, base[:5], 3)
    np.testing.assert_array_equal(exact_neighbors(Watched(), base[:5], 3, block_rows=30)[0], expected)
    assert read == [30, 30, 30, 10]
    with h5py.File(tmp_path / "base.h5", "w") as file:
        file["train"] = base
        np.testing.assert_array_equal(exact_neighbors(file["train"], base[:5], 3)[0], expected)


def test_exact_neighbors_refuse() -> None:
    base = np.ones((4, 3))
    zero, infinite = base.copy(), base.copy()
    zero[2], infinite[3, 1] = 0, np.inf
    for arguments, error, message in [
        ((base, base, 5), ArgumentError, "k must be between 1 and the number of base rows, 4; got 5"),
        ((base, base, 0), ArgumentError, "got 0"),
        ((base, base, 1, "dot"), ArgumentError, "metric must be one of cosine, ip, l2; got 'dot'"),
        ((base, base, 1, "ip", 0), ArgumentError, "block_rows must be at least 1; got 0"),
        ((base, base[:, :2], 1), VectorError, r"queries must be of shape \(nq, 3\); got \(4, 2\)"),
        ((base[0], base, 1), VectorError, r"base must be of shape \(n, d\); got \(3,\)"),
        ((base.astype(str), base, 1), VectorError, "base must hold real numbers"),
        ((zero, base, 1, "cosine", 1), VectorError, "base row 2 is a zero vector"),
        ((base, zero, 1), VectorError, "queries row 2 is a zero vector"),
        ((infinite, base, 1, "l2", 2), VectorError, "base row 3 holds NaN or inf"),
    ]:
        with pytest.raises(error, match=message):
            exact_neighbors(*arguments)  # type: ignore[arg-type]
    assert exact_neighbors(zero, base, 1, "l2")[1].shape == (4, 1)
    assert exact_neighbors(base, base[:0], 2)[0].shape == (0, 2)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path, train = tmp_path / "set.h5", np.random.default_rng(6).standard_normal((30, 5))
    blocks = iter([train[:20], train[20:]])
    write_ann_hdf5(path, blocks, train[:4], None, None, "euclidean", "made here", k=7)
    written = contents(path)
    np.testing.assert_array_equal(written["train"], train.astype(np.float32))
    ids, distances = exact_neighbors(written["train"], written["test"], 7, "l2")
    np.testing.assert_array_equal(written["neighbors"], ids)
    np.testing.assert_array_equal(written["distances"], distances)
    before = path.read_bytes()
    with pytest.raises(VectorError, match="train blocks must be"):
        write_ann_hdf5(path, iter([train, train[:, :3]]), train[:4], None, None, "dot", "", k=7)
    with pytest.raises(VectorError, match="neighbors and distances must be of one shape"):
        write_ann_hdf5(path, train, train[:4], ids[:3], distances[:3], "dot", "")
    assert [entry.name for entry in tmp_path.iterdir()] == ["set.h5"]
    assert path.read_bytes() == before
