"""Exact nearest neighbours, and ann-benchmarks HDF5 files that hold them.

Everything is computed in float64 from the values as stored, in blocks, so a base of any length can be a
dataset of an open HDF5 file. A matrix product finds candidates; each candidate's distance is then summed on
its own, so equal vectors get equal distances wherever they stand.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import h5py
import numpy as np
import numpy.typing as npt

from tqindex.errors import ArgumentError, VectorError

Metric = Literal["cosine", "ip", "l2"]
Float64 = npt.NDArray[np.float64]
# The name that ann-benchmarks gives to each metric.
METRICS: dict[str, Metric] = {"angular": "cosine", "dot": "ip", "euclidean": "l2"}

BLOCK_BYTES = 64 << 20  # one float64 block of the base
MAX_BLOCK_ROWS = 65_536
QUERY_ROWS = 256  # queries scored against a block at a time
CHUNK_BYTES = 512 << 10  # one HDF5 chunk of vectors


class Matrix(Protocol):
    """What is asked of a base: a 2-D ndarray or an h5py dataset."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""
        ...

    def __getitem__(self, key: slice, /) -> Any:
        """Rows, as an ndarray."""
        ...


def exact_neighbors(
    base: Matrix,
    queries: npt.ArrayLike,
    k: int = 100,
    metric: Metric = "cosine",
    block_rows: int | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The k nearest base rows of each query, nearest first; of equal distances the smaller row first.

    Parameters
    ----------
    base : array or h5py dataset, real, (n, d)
        Read in blocks.
    queries : array, real, (nq, d)
        Held in memory as float64.
    k : int
        1 <= k <= n.
    metric : {"cosine", "ip", "l2"}
        The distance is 1 - cos, -<q, x> or the Euclidean distance.
    block_rows : int, optional
        Base rows read at a time; by default 64 MiB of them as float64.

    Returns
    -------
    neighbors : int64, (nq, k)
        Row numbers in base.
    distances : float32, (nq, k)
        Rounded from the float64 values that give the order.

    Raises
    ------
    ArgumentError
        k, metric or block_rows is outside its range.
    VectorError
        A shape or dtype does not fit, or a row holds NaN or inf, or is zero under cosine.
    """
    if metric not in METRICS.values():
        raise ArgumentError(f"metric must be one of cosine, ip, l2; got {metric!r}")
    if len(base.shape) != 2:
        raise VectorError(f"base must be of shape (n, d); got {base.shape}")
    n, dim = base.shape
    if not 1 <= k <= n:
        raise ArgumentError(f"k must be between 1 and the number of base rows, {n}; got {k}")
    if block_rows is None:
        block_rows = min(MAX_BLOCK_ROWS, max(1, BLOCK_BYTES // (8 * max(dim, 1))))
    if block_rows < 1:
        raise ArgumentError(f"block_rows must be at least 1; got {block_rows}")
    given = np.asarray(queries)
    if given.ndim != 2 or given.shape[1] != dim:
        raise VectorError(f"queries must be of shape (nq, {dim}); got {given.shape}")

    asked = _checked(given, "queries", 0, metric)
    found = _Nearest(np.full((len(asked.values), k), n), np.full((len(asked.values), k), np.inf))
    for start in range(0, n, block_rows):
        block = _checked(base[start : min(start + block_rows, n)], "base", start, metric)
        for first in range(0, len(asked.values), QUERY_ROWS):
            stop = first + QUERY_ROWS
            _scan_block(found.rows(first, stop), asked.rows(first, stop), block, start, metric)
    distances = np.sqrt(found.costs) if metric == "l2" else found.costs
    return found.ids, distances.astype(np.float32)


@dataclass
class _Vectors:
    """float64 rows, (m, d), and their Euclidean norms, (m,)."""

    values: Float64
    norms: Float64

    def rows(self, start: int, stop: int) -> "_Vectors":
        return _Vectors(self.values[start:stop], self.norms[start:stop])


@dataclass
class _Nearest:
    """The k best rows so far of each query, and what they cost (smaller is better; l2: squared distance)."""

    ids: npt.NDArray[np.int64]
    costs: Float64

    def rows(self, start: int, stop: int) -> "_Nearest":
        return _Nearest(self.ids[start:stop], self.costs[start:stop])


def _checked(block: npt.NDArray[Any], name: str, start: int, metric: Metric) -> _Vectors:
    if block.dtype.kind not in "fiu":
        raise VectorError(f"{name} must hold real numbers; got dtype {block.dtype}")
    values = block.astype(np.float64)
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise VectorError(f"{name} row {start + int(finite.argmin())} holds NaN or inf")
    norms = np.sqrt((values * values).sum(axis=1))
    if metric == "cosine" and not norms.all():
        raise VectorError(f"{name} row {start + int(norms.argmin())} is a zero vector, which has no cosine")
    return _Vectors(values, norms)


def _cosine_cost(products: Float64, query_norms: Float64, base_norms: Float64) -> Float64:
    return 1.0 - products / (query_norms * base_norms)


def _ip_cost(products: Float64, query_norms: Float64, base_norms: Float64) -> Float64:  # noqa: ARG001
    return -products


def _l2_cost(products: Float64, query_norms: Float64, base_norms: Float64) -> Float64:
    return query_norms**2 + base_norms**2 - 2.0 * products


_COSTS: dict[Metric, Callable[[Float64, Float64, Float64], Float64]] = {
    "cosine": _cosine_cost,
    "ip": _ip_cost,
    "l2": _l2_cost,
}


def _rounding(metric: Metric, query_norms: Float64, base_norms: Float64, dim: int) -> Float64:
    """How far a cost from the matrix product can be from the same cost summed alone, (m,).

    Each is within (d + 4) eps / 2 of the true value times the largest magnitude summed; the two together,
    with a factor 2 to spare, give the bound.
    """
    largest = base_norms.max()
    if metric == "cosine":
        scale = np.ones_like(query_norms)
    elif metric == "ip":
        scale = query_norms * largest
    else:
        scale = (query_norms + largest) ** 2
    return 2.0 * (dim + 4) * np.finfo(np.float64).eps * scale


def _scan_block(found: _Nearest, queries: _Vectors, block: _Vectors, start: int, metric: Metric) -> None:
    """Put the rows of `block`, which begins at base row `start`, into `found` where they belong."""
    n, dim = block.values.shape
    k = found.ids.shape[1]
    cost = _COSTS[metric]
    near = cost(queries.values @ block.values.T, queries.norms[:, None], block.norms)
    bound = found.costs[:, -1]
    if n >= k and np.isinf(bound).any():
        bound = np.minimum(bound, np.partition(near, k - 1, axis=1)[:, k - 1])
    bound = bound + _rounding(metric, queries.norms, block.norms, dim)
    candidates = near <= bound[:, None]
    for row in np.flatnonzero(candidates.any(axis=1)):
        columns = np.flatnonzero(candidates[row])
        vectors, query = block.values[columns], queries.values[row]
        if metric == "l2":
            exact = ((vectors - query) ** 2).sum(axis=1)
        else:
            exact = cost((vectors * query).sum(axis=1), queries.norms[row], block.norms[columns])
        costs = np.concatenate((found.costs[row], exact))
        ids = np.concatenate((found.ids[row], columns + start))
        best = np.lexsort((ids, costs))[:k]
        found.costs[row], found.ids[row] = costs[best], ids[best]


def write_ann_hdf5(
    path: str | os.PathLike[str],
    train: Matrix | Iterator[npt.NDArray[Any]],
    test: npt.NDArray[Any],
    neighbors: npt.NDArray[Any] | None,
    distances: npt.NDArray[Any] | None,
    distance: str,
    source: str,
    *,
    dtype: npt.DTypeLike = np.float32,
    k: int = 100,
) -> None:
    """Write a data set in ann-benchmarks form, under a temporary name until it is complete.

    Parameters
    ----------
    path : path
        An existing file is replaced.
    train : array or h5py dataset, (n, d), or iterator over blocks, (m, d)
        The base; written block by block.
    test : array, (nq, d)
        The queries.
    neighbors, distances : arrays, (nq, k), or None
        None for both: computed here with `exact_neighbors`, from the values as stored.
    distance : {"angular", "euclidean", "dot"}
        Stored as an attribute.
    source : str
        Where the vectors come from, in words; stored as an attribute.
    dtype : float dtype
        What train and test are stored in.
    k : int
        Neighbours per query to compute, where they are not given.

    Raises
    ------
    ArgumentError
        distance is unknown, only one of neighbors and distances is given, or k is outside its range.
    VectorError
        A shape does not fit, or vectors have no exact neighbours (see `exact_neighbors`).
    OSError
        The file cannot be written.
    """
    if distance not in METRICS:
        raise ArgumentError(f"distance must be one of {', '.join(METRICS)}; got {distance!r}")
    if (neighbors is None) != (distances is None):
        raise ArgumentError("neighbors and distances must be both given or both None; got one of them")
    if test.ndim != 2:
        raise VectorError(f"test must be of shape (nq, d); got {test.shape}")
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with h5py.File(temporary, "w") as file:
            base = _write_train(file, train, test.shape[1], np.dtype(dtype))
            _create(file, "test", test.astype(dtype))
            if neighbors is None or distances is None:
                neighbors, distances = exact_neighbors(base, file["test"][:], k, METRICS[distance])
            if neighbors.shape != distances.shape or len(neighbors) != len(test):
                raise VectorError(
                    f"neighbors and distances must be of one shape ({len(test)}, k); "
                    f"got {neighbors.shape} and {distances.shape}"
                )
            _create(file, "neighbors", neighbors.astype(np.int32 if len(base) < 2**31 else np.int64))
            _create(file, "distances", distances.astype(np.float32))
            file.attrs.update(
                type="dense", distance=distance, dimension=test.shape[1], point_type="float", source=source
            )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def row_blocks(matrix: Matrix, stop: int) -> Iterator[npt.NDArray[Any]]:
    """The rows of `matrix` before `stop`, in order, in blocks (m, d) of bounded size."""
    rows = min(MAX_BLOCK_ROWS, max(1, BLOCK_BYTES // (8 * max(matrix.shape[1], 1))))
    for start in range(0, stop, rows):
        yield matrix[start : min(start + rows, stop)]


def _create(file: Any, name: str, values: npt.NDArray[Any]) -> None:
    # No time stamps: the same values must give the same bytes.
    file.create_dataset(name, data=values, compression="gzip", shuffle=True, track_times=False)


def _write_train(file: Any, train: Matrix | Iterator[npt.NDArray[Any]], dim: int, dtype: np.dtype[Any]) -> Any:
    blocks = train if isinstance(train, Iterator) else row_blocks(train, train.shape[0])
    chunk_rows = max(1, CHUNK_BYTES // (dtype.itemsize * max(dim, 1)))
    dataset = file.create_dataset(
        "train",
        (0, dim),
        dtype,
        maxshape=(None, dim),
        chunks=(chunk_rows, dim),
        compression="gzip",
        shuffle=True,
        track_times=False,
    )
    for block in blocks:
        if block.ndim != 2 or block.shape[1] != dim:
            raise VectorError(f"train blocks must be of shape (m, {dim}), as test is; got {block.shape}")
        start = len(dataset)
        dataset.resize(start + len(block), axis=0)
        dataset[start:] = block
    return dataset
