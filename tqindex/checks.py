"""Checks of arguments, in one place. Messages name the argument, the rule and the value got."""

import math
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.errors import ArgumentError, VectorError

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

#: int32 sums of dim products of two int8 levels, doubled for 8 bits, stay exact up to this width.
MAX_DIM = 65_536
#: Squared norms and scales stay inside float32 up to this norm.
MAX_NORM = 2.0**60
#: DLPack's numbers of memory that is read on a GPU: its own, and managed memory.
_CUDA_MEMORY = (2, 13)
#: What owners of arrays raise where they do not hand them out: torch for bfloat16, a gradient, "meta", float8.
TAKING_ERRORS = (TypeError, ValueError, RuntimeError, BufferError, KeyError)


def check_integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Return `value` as int if it is an integer in [low, high]; bools and floats are not."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise ArgumentError(f"{name} must be an integer, got {value!r}")
    if value < low or (high is not None and value > high):
        rule = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ArgumentError(f"{name} must be {rule}, got {value}")
    return int(value)


def check_number(name: str, value: Any) -> float:
    """Return `value` as a float if it is a number other than NaN."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise ArgumentError(f"{name} must be a number, got {value!r}")
    if math.isnan(value):
        raise ArgumentError(f"{name} must be a number, got nan")
    return float(value)


def check_choice(name: str, value: Any, choices: Collection[Any]) -> Any:
    """Return `value` if it is one of `choices`."""
    if isinstance(value, bool) or value not in choices:
        listed = ", ".join(str(choice) for choice in choices)
        raise ArgumentError(f"{name} must be one of {listed}; got {value!r}")
    return value


def as_rows(vectors: Any, dim: int, name: str = "vectors", first_row: int = 0, finite: bool = True) -> Float32Array:
    """Return `vectors` as C-contiguous finite float32 of shape (n, dim).

    Parameters
    ----------
    vectors : array-like of float16, float32 or float64, shape (n, dim) or (dim,)
    dim : int
    name : str
        What messages call it.
    first_row : int
        Added to the row numbers in messages, for callers that pass one block of many.
    finite : bool
        False leaves `check_finite` to the caller.

    Raises
    ------
    VectorError
        Wrong dtype, wrong width, NaN or inf (float64 that overflows float32 included).
    """
    rows = as_array(vectors, name)
    rows = check_rows(rows, dim, name)
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(rows, dtype=np.float32)
    if finite:
        check_finite(rows, name, first_row)
    return rows


def check_rows(rows: Any, dim: int, name: str) -> Any:
    """Return an array of any module as one of two dimensions if it is float16/32/64 of shape (n, dim) or (dim,)."""
    if rows.dtype.kind != "f" or rows.dtype.itemsize > 8:
        raise VectorError(f"{name} must be float16, float32 or float64, got {rows.dtype}")
    if rows.ndim not in (1, 2) or rows.shape[-1] != dim:
        raise VectorError(f"{name} must have {dim} columns (n, {dim}), got shape {rows.shape}")
    return rows.reshape(-1, dim)


def check_finite(rows: npt.NDArray[Any], name: str, first_row: int = 0) -> None:
    """Refuse NaN and inf."""
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        value = rows[row][~np.isfinite(rows[row])][0]
        raise VectorError(f"{name} must be finite in {rows.dtype}, got {value} in row {first_row + row}")


def as_array(vectors: Any, name: str) -> npt.NDArray[Any]:
    """Return `vectors` as an ndarray: arrays as they are, else through DLPack or NumPy."""
    if isinstance(vectors, np.ma.MaskedArray):
        raise VectorError(f"{name} must not be a masked array: fill or drop the masked values first")
    if isinstance(vectors, np.ndarray):
        return vectors
    if is_on_gpu(vectors):
        raise VectorError(
            f"{name} must be in host memory where the index is on the CPU, got {type(vectors).__name__} on a GPU: "
            "copy them, or use index.to('gpu')"
        )
    has_array = hasattr(vectors, "__array__")
    try:
        return np.from_dlpack(vectors) if hasattr(vectors, "__dlpack__") and not has_array else np.asarray(vectors)
    except TAKING_ERRORS as error:
        if has_array or hasattr(vectors, "__dlpack__"):
            raise not_taken(vectors, name, error) from error
        # lists of unequal lengths
        raise VectorError(f"{name} must be a rectangular array of numbers, got {type(vectors).__name__}") from error


def is_on_gpu(array: Any) -> bool:
    """Whether an array says, by the CUDA array interface or by DLPack, that it is in a GPU's memory."""
    if hasattr(array, "__dlpack_device__"):
        try:
            return array.__dlpack_device__()[0] in _CUDA_MEMORY
        except TAKING_ERRORS:  # torch's tensors without memory, "meta"
            return False
    try:
        return hasattr(array, "__cuda_array_interface__")
    except TAKING_ERRORS:  # who has it, and refuses to show it, is on a GPU
        return True


def not_taken(vectors: Any, name: str, error: Exception) -> VectorError:
    """Return what to raise where the owner of an array does not hand it out."""
    said = str(error).strip().partition("\n")[0]
    return VectorError(f"{name} cannot be taken from {type(vectors).__name__}: {said or type(error).__name__}")


def check_norms(norms: npt.NDArray[np.float64], name: str, first_row: int = 0) -> None:
    """Refuse norms whose squares leave float32."""
    if norms.size and norms.max() > MAX_NORM:
        row = int(np.argmax(norms > MAX_NORM))
        raise VectorError(
            f"{name} must have norms of at most 2**60 after centring, got {norms[row]:.3g} in row {first_row + row}"
        )


def check_nonzero(norms: npt.NDArray[np.float64], name: str, first_row: int = 0) -> None:
    """Refuse zero vectors, which have no direction for metric='cosine'."""
    if norms.size and norms.min() == 0.0:
        row = int(np.argmin(norms))
        raise VectorError(f"{name} must not be zero under metric='cosine', got a zero vector in row {first_row + row}")
