"""What every file of vectors offers, and the rules that every format shares."""

from __future__ import annotations

import textwrap
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from tqindex.errors import ArgumentError, FileFormatError

Role = Literal["base", "queries"]
Metric = Literal["ip", "cosine", "l2"]

# longdouble is left out: its layout differs between machines.
FLOAT_BYTES = (2, 4, 8)

# Characters: NumPy quotes the whole header of a .npy file, up to 10 000.
MAX_QUOTED = 200


class Closeable(Protocol):
    """A handle of an open file."""

    def close(self) -> None:
        """Let the file go."""


class VectorFile(ABC):
    """Vectors in a file, read a slice of rows at a time.

    Use it in a ``with`` statement. ``file[a:b]`` reads those rows and no others, so memory follows the slice
    and not the file. Two threads must not read one VectorFile at once: they would share its read position.

    Attributes
    ----------
    path : Path
        The file, as it was named.
    name : str or None
        The dataset inside an HDF5 file, without the leading slash; None in the other formats.
    shape : tuple of int
        ``(n, dim)``, both at least 1.
    dtype : numpy.dtype
        float16, float32 or float64 in native byte order: what a slice comes back in.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int],
        dtype: np.dtype[Any],
        handle: Closeable,
        name: str | None = None,
    ) -> None:
        self.path = path
        self.name = name
        self.shape = shape
        self.dtype = dtype.newbyteorder("=")
        self._handle = handle
        self._closed = False

    @abstractmethod
    def _read(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows ``start`` to ``stop``, at least one, as ``__getitem__`` promises them."""

    def __getitem__(self, key: slice) -> NDArray[Any]:
        """Read rows.

        Parameters
        ----------
        key : slice
            With step 1. Bounds work as in Python: negative ones count from the end, all are cut to the file.

        Returns
        -------
        ndarray of shape (rows, dim)
            A fresh C-contiguous array of type ``dtype``.

        Raises
        ------
        ArgumentError
            If ``key`` is not a slice of step 1, or the file is closed.
        FileFormatError
            If the rows cannot be read: the file is damaged or was cut short.
        """
        if not isinstance(key, slice) or key.step not in (None, 1):
            raise ArgumentError(f"{self.path}: rows are read by a slice with step 1, got {key!r}")
        if self._closed:
            raise ArgumentError(f"{self.path}: rows are read from an open file, got one that is closed")
        start, stop, _ = key.indices(self.shape[0])
        if stop <= start:
            return np.empty((0, self.shape[1]), dtype=self.dtype)
        return self._read(start, stop)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def distance(self) -> str | None:
        """The distance that the file states in its own words; None if it states none."""
        return None

    @property
    def metric(self) -> Metric | None:
        """The metric that the file states (ann-benchmarks form); None if it states none that tqindex has."""
        return None

    @property
    def neighbors(self) -> NDArray[Any] | None:
        """True neighbours of these queries, integer, shape (nq, k); None where the file has none."""
        return None

    @property
    def distances(self) -> NDArray[Any] | None:
        """Distances to the true neighbours as the file gives them, float, shape (nq, k), or None."""
        return None

    def integers(self, name: str) -> NDArray[np.int64] | None:  # noqa: ARG002 (most formats have none)
        """Read the 1-D integer dataset of a name that the file holds beside its vectors; None where it has none."""
        return None

    def base(self) -> VectorFile | None:
        """Open the base vectors that the file holds beside its queries; None where it has none."""
        return None

    def close(self) -> None:
        """Close the file. Closing twice is harmless."""
        self._closed = True
        self._handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        inside = "" if self.name is None else f"[{self.name!r}]"
        return f"<{type(self).__name__} {str(self.path)!r}{inside} {self.shape} {self.dtype}>"


def is_float(dtype: np.dtype[Any]) -> bool:
    """Say whether a dtype, in either byte order, is one that vectors may have."""
    return dtype.kind == "f" and dtype.itemsize in FLOAT_BYTES


def check_form(where: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, int]:
    """Check that an array in a file is a set of vectors.

    Parameters
    ----------
    where : str
        The file, and the dataset in it if there are several; the error starts with it.
    shape, dtype
        What the file says about the array.

    Returns
    -------
    tuple of int
        ``(n, dim)``.

    Raises
    ------
    FileFormatError
        If the array is not 2-D, not float16, float32 or float64, or has no rows or no columns.
    """
    if len(shape) != 2:
        raise FileFormatError(f"{where} must be 2-D, one vector a row, got shape {shape}")
    if not is_float(dtype):
        raise FileFormatError(f"{where} must hold float16, float32 or float64, got dtype {dtype}")
    n, dim = shape
    if n < 0 or dim < 1:
        raise FileFormatError(f"{where} must have vectors of at least one dimension, got shape {shape}")
    if n == 0:
        raise FileFormatError(f"{where} is empty: at least one vector is needed, got shape {shape}")
    return n, dim


def one_line(error: Exception) -> str:
    """Return what an error says as one line of bounded length, for a message that quotes it."""
    return textwrap.shorten(str(error), width=MAX_QUOTED, placeholder=" ...")
