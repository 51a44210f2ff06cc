"""HDF5 files: one dataset of vectors, and the truth that ann-benchmarks files keep beside it.

Imported only when an HDF5 file is opened, since h5py is slow to import.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tqindex.errors import FileFormatError, StorageError
from tqindex.readers.base import Metric, Role, VectorFile, one_line
from tqindex.readers.hdf5_choice import choose_dataset, describe, dtype_of, find, h5_errors

# Names in the attribute `distance`, in lower case.
METRICS: dict[str, Metric] = {
    "angular": "cosine",
    "cosine": "cosine",
    "euclidean": "l2",
    "l2": "l2",
    "dot": "ip",
    "inner": "ip",
    "inner_product": "ip",
    "ip": "ip",
}


class HDF5File(VectorFile):
    """One dataset of an HDF5 file. A slice costs its own memory and, in a chunked dataset, one chunk's."""

    def __init__(self, path: Path, file: h5py.File, dataset: h5py.Dataset, role: Role) -> None:
        super().__init__(path, dataset.shape, dataset.dtype, file, name=dataset.name.lstrip("/"))
        self._file = file
        self._dataset = dataset
        self._role = role

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        rows = np.empty((stop - start, self.shape[1]), dtype=self.dtype)
        with h5_errors(f"{self.path}: rows {start}:{stop} of {self.name!r} cannot be read"):
            self._dataset.read_direct(rows, np.s_[start:stop])
        return rows

    @property
    def distance(self) -> str | None:
        """The attribute `distance` as it stands; None if it is missing or no text."""
        attributes = self._file.attrs
        with h5_errors(f"{self.path}: attribute 'distance' cannot be read"):
            if "distance" not in attributes:
                return None
            stated = attributes["distance"]  # not get(): it would pass damage off as absence
        if isinstance(stated, bytes):
            stated = stated.decode("utf-8", "replace")
        return stated if isinstance(stated, str) else None

    @property
    def metric(self) -> Metric | None:
        """The metric of the attribute `distance`; None if it is missing or tqindex has no such metric."""
        return METRICS.get((self.distance or "").lower())

    @property
    def neighbors(self) -> NDArray[Any] | None:
        """True neighbours of the queries, read on access.

        None if the file has none, if it was opened as a base, or if the dataset opened is not the `test` that
        the neighbours belong to.

        Returns
        -------
        ndarray of shape (nq, k) or None
            Row numbers of the base, of the integer type stored.

        Raises
        ------
        FileFormatError
            If `neighbors` is not a 2-D integer dataset with a row for each query, or differs in shape from
            `distances`.
        """
        return self._truth("neighbors", "iu", "integer")

    @property
    def distances(self) -> NDArray[Any] | None:
        """Distances to the true neighbours, read on access; None where `neighbors` would be.

        Returns
        -------
        ndarray of shape (nq, k) or None
            As stored: 1 - cosine, euclidean, or whatever the file's maker chose, of the float type stored.

        Raises
        ------
        FileFormatError
            If `distances` is not a 2-D float dataset with a row for each query, or differs in shape from
            `neighbors`.
        """
        return self._truth("distances", "f", "float")

    def integers(self, name: str) -> NDArray[np.int64] | None:
        """Read a 1-D integer dataset of the file; None if it has nothing of that name.

        Raises
        ------
        FileFormatError
            If what has the name is of another form, has numbers beyond int64, or cannot be read.
        """
        found = find(self.path, self._file, name)
        if found is None:
            return None
        where = f"{self.path}: {name!r}"
        dtype = dtype_of(found) if isinstance(found, h5py.Dataset) else None
        if dtype is None or dtype.kind not in "iu" or found.shape is None or len(found.shape) != 1:
            got = describe(found) if isinstance(found, h5py.Dataset) else "a group"
            raise FileFormatError(f"{where} must be a 1-D integer dataset, got {got}")
        with h5_errors(f"{where} cannot be read"):
            stored: NDArray[Any] = found[()]
        if stored.dtype.kind == "u" and stored.size and stored.max() > np.iinfo(np.int64).max:
            raise FileFormatError(f"{where} must hold numbers that fit int64, got {stored.max()}")
        return stored.astype(np.int64)

    def base(self) -> VectorFile | None:
        """Open `train` if the file has both `train` and `test`.

        Returns
        -------
        VectorFile or None
            A second file, with a handle of its own: close it too.

        Raises
        ------
        FileFormatError
            If `train` is not a set of vectors.
        """
        if self._find("train") is None or self._find("test") is None:
            return None
        return open_hdf5(self.path, "train", "base")

    def _find(self, name: str) -> h5py.Dataset | None:
        item = find(self.path, self._file, name)
        return item if isinstance(item, h5py.Dataset) else None

    def _truth(self, name: str, kinds: str, words: str) -> NDArray[Any] | None:
        foreign = self.name != "test" and self._find("test") is not None
        found = {each: self._find(each) for each in ("neighbors", "distances")}
        truth = found[name]
        if truth is None or foreign or self._role != "queries":
            return None
        where = f"{self.path}: dataset {name!r}"
        shape, dtype = truth.shape, dtype_of(truth)
        if shape is None or len(shape) != 2 or shape[0] != len(self) or dtype is None or dtype.kind not in kinds:
            raise FileFormatError(
                f"{where} must be 2-D {words} with {len(self)} rows, one a query, got {describe(truth)}"
            )
        shapes = {each: item.shape for each, item in found.items() if item is not None}
        if len(set(shapes.values())) > 1:
            raise FileFormatError(f"{self.path}: neighbors and distances must have one shape, got {shapes}")
        with h5_errors(f"{where} cannot be read"):
            stored: NDArray[Any] = truth[()]
        return stored.astype(stored.dtype.newbyteorder("="), copy=False)


def open_hdf5(path: Path, dataset: str | None, role: Role) -> HDF5File:
    """Open an HDF5 file and choose its dataset.

    Raises
    ------
    FileFormatError
        If the file is damaged, or the choice fails (see `choose_dataset`).
    StorageError
        If another program has locked the file.
    """
    with ExitStack() as opened:
        file = opened.enter_context(_open_file(path))
        with h5_errors(f"{path}: its datasets cannot be listed"):
            vectors = HDF5File(path, file, choose_dataset(path, file, dataset, role), role)
        opened.pop_all()  # from here the VectorFile closes it
    return vectors


def _open_file(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except BlockingIOError as error:
        raise StorageError(f"{path}: locked by another program: {one_line(error)}") from error
    except (OSError, RuntimeError) as error:
        raise FileFormatError(f"{path}: cannot be read as HDF5: {one_line(error)}") from error
