"""What users pass to an index, checked."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.checks import is_on_gpu
from tqindex.errors import ArgumentError, VectorError
from tqindex.kernels.scan import NO_ID

Int64Array = npt.NDArray[np.int64]

#: The largest number stands for no id at all while a search runs.
MAX_ID = NO_ID - 1


def as_source(vectors: Any, dim: int, as_rows: Callable[[Any, int], Any]) -> Any:
    """Return something of shape (n, dim) that gives rows by slices; as_rows(vectors, dim) makes it of what does not."""
    if not (hasattr(vectors, "shape") and hasattr(vectors, "__getitem__") and len(vectors.shape) == 2):
        return as_rows(vectors, dim)
    if vectors.shape[1] != dim:
        raise VectorError(f"vectors must have {dim} columns (n, {dim}), got shape {tuple(vectors.shape)}")
    return vectors


def as_host_array(values: Any, name: str) -> npt.NDArray[Any]:
    """Return ids or bools as NumPy's array; those on a GPU are refused, since the CPU works on them."""
    if is_on_gpu(values):
        raise ArgumentError(f"{name} must be in host memory, got {type(values).__name__} on a GPU: copy them")
    return np.asarray(values)


def as_ids(ids: npt.ArrayLike, name: str = "ids") -> npt.NDArray[np.int64]:
    """Return integers as int64, of no or one dimension; messages call them `name`."""
    array = as_host_array(ids, name)
    if array.size == 0 and array.dtype.kind == "f":
        array = array.astype(np.int64)  # an empty list has no integer type of its own
    if array.dtype.kind not in "iu" or array.ndim > 1:
        raise ArgumentError(
            f"{name} must be a one-dimensional array of integers, got {array.dtype}, shape {array.shape}"
        )
    if array.dtype == np.uint64 and array.size and array.max() > 2**63 - 1:
        raise ArgumentError(f"{name} must fit int64, got {array.max()}")
    return array.astype(np.int64)


def distinct_ids(ids: npt.ArrayLike, n: int | None = None) -> Int64Array:
    """Return ids as int64 (n,) if they are in range and none comes twice."""
    checked = np.atleast_1d(as_ids(ids)).copy()
    if n is not None and checked.shape != (n,):
        raise ArgumentError(f"ids must have one id per vector, shape ({n},), got {checked.shape}")
    if not checked.size:
        return checked
    if checked.min() < 0 or checked.max() > MAX_ID:
        wrong = checked.min() if checked.min() < 0 else checked.max()
        raise ArgumentError(f"ids must be from 0 to 2**63 - 2, got {wrong}")
    ordered = np.sort(checked)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if repeated.size:
        raise ArgumentError(f"ids must be distinct, got {repeated[0]} twice")
    return checked
