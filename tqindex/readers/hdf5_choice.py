"""Which dataset of an HDF5 file holds the vectors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tqindex.errors import FileFormatError
from tqindex.readers.base import Role, check_form, is_float, one_line

# The names of ann-benchmarks: what each role takes, and the 2-D datasets that are no vectors.
ROLE_NAMES: dict[Role, str] = {"base": "train", "queries": "test"}
TRUTH_NAMES = ("neighbors", "distances")

# An error is one line: a file of thousands of datasets must not make it a page.
MAX_LISTED = 10


def choose_dataset(path: Path, file: h5py.File, dataset: str | None, role: Role) -> h5py.Dataset:
    """Return the dataset of vectors: the one named, the one of the role's name, or the only one there is.

    Raises
    ------
    FileFormatError
        If the dataset named is missing or no set of vectors; if none is named and there is none, or several.
    """
    chosen = _only_candidate(path, file, role) if dataset is None else _named(path, file, dataset)
    check_form(f"{path}: dataset {chosen.name.lstrip('/')!r}", chosen.shape, chosen.dtype)
    return chosen


def _named(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    item = find(path, file, name)
    if is_vectors(item):
        return item
    candidates = _list([each for each in _all_datasets(file) if _is_candidate(each)])
    if item is None:
        raise FileFormatError(f"{path}: no dataset {name!r} in the file; 2-D float datasets: {candidates}")
    got = describe(item) if isinstance(item, h5py.Dataset) else f"the group {name!r}"
    raise FileFormatError(f"{path}: --dataset must name a 2-D float dataset, got {got}; there are: {candidates}")


def _only_candidate(path: Path, file: h5py.File, role: Role) -> h5py.Dataset:
    own = find(path, file, ROLE_NAMES[role])
    if is_vectors(own):
        return own
    datasets = _all_datasets(file)
    candidates = [each for each in datasets if _is_candidate(each)]
    if isinstance(own, h5py.Dataset):
        # A `train` that is no vectors (integers, say) must not make `test` the base, nor the reverse.
        other = {f"/{name}" for name in ROLE_NAMES.values()}
        candidates = [each for each in candidates if each.name not in other]
    if not candidates:
        raise FileFormatError(f"{path}: no 2-D float dataset for the {role}, got {_list(datasets)}")
    if len(candidates) > 1:
        raise FileFormatError(
            f"{path}: several 2-D float datasets, one must be named (build --dataset): {_list(candidates)}"
        )
    return candidates[0]


def _all_datasets(file: h5py.File) -> list[h5py.Dataset]:
    """Return the datasets of the file and all its groups, in order of name; links are not followed."""
    found: list[h5py.Dataset] = []

    def visit(_name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found.append(item)

    file.visititems(visit)
    return found


def _is_candidate(dataset: h5py.Dataset) -> bool:
    return is_vectors(dataset) and dataset.name.rpartition("/")[2] not in TRUTH_NAMES


def find(path: Path, file: h5py.File, name: str) -> Any:
    """Return the dataset or group of a name, or None if there is no such name.

    Raises
    ------
    FileFormatError
        If the name is there and what it stands for is not, or is damaged: ``file.get`` would give None.
    """
    with h5_errors(f"{path}: {name!r} cannot be read"):
        if name not in file:
            return None
        return file[name]


@contextmanager
def h5_errors(what: str) -> Iterator[None]:
    """Turn what h5py raises for a damaged file into FileFormatError."""
    try:
        yield
    except (OSError, RuntimeError, KeyError) as error:
        raise FileFormatError(f"{what}: {one_line(error)}") from error


def is_vectors(item: Any) -> bool:
    """Say whether an object of a file is a dataset of the form that vectors have: 2-D and float."""
    if not isinstance(item, h5py.Dataset) or item.shape is None or len(item.shape) != 2:
        return False
    dtype = dtype_of(item)
    return dtype is not None and is_float(dtype)


def dtype_of(dataset: h5py.Dataset) -> np.dtype[Any] | None:
    """Return the dtype of a dataset, or None if NumPy has none like it."""
    try:
        dtype: np.dtype[Any] = dataset.dtype
    except (TypeError, ValueError):  # how h5py says so
        return None
    return dtype


def describe(dataset: h5py.Dataset) -> str:
    """Return the name, shape and dtype of a dataset for a message."""
    return f"{dataset.name.lstrip('/')!r} {dataset.shape} {dtype_of(dataset)}"


def _list(datasets: list[h5py.Dataset]) -> str:
    listed = ", ".join(describe(each) for each in datasets[:MAX_LISTED])
    more = len(datasets) - MAX_LISTED
    return f"{listed} and {more} more" if more > 0 else listed or "none"
