"""How the codec scales and rounds rows."""

from typing import Any, cast

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]


def to_length(rows: Float32Array, norms: Float64Array, length: float) -> Float32Array:
    """Scale rows of the given norms to `length` in float64, round to float32; zero rows stay zero."""
    return (rows.astype(np.float64) * divide(length, norms)[:, np.newaxis]).astype(np.float32)


def divide(a: Any, b: Float64Array) -> Float64Array:
    """a / b, and 0 where b is 0."""
    return cast(Float64Array, np.divide(a, b, out=np.zeros_like(b), where=b != 0.0))


def side(values: Float64Array, norms: Float64Array) -> Float32Array:
    """Return what belongs to rows of these norms as float32, 0 where a row is 0."""
    return np.where(norms == 0.0, 0.0, values).astype(np.float32)


def round_to_int8(rows: Float32Array) -> tuple[npt.NDArray[np.int8], Float64Array]:
    """Round rows to integers in [-127, 127]; returns them and the float64 step of each row."""
    largest = np.abs(rows).max(axis=1).astype(np.float64)
    levels = np.rint(rows.astype(np.float64) * divide(127.0, largest)[:, np.newaxis])
    return levels.astype(np.int8), largest / 127.0


def integer_products(queries: npt.NDArray[np.int8], levels: npt.NDArray[np.int8]) -> npt.NDArray[np.int64]:
    """Exact integer products: float64 holds every partial sum, so BLAS may take any order."""
    return np.rint(queries.astype(np.float64) @ levels.astype(np.float64).T).astype(np.int64)
