"""Files that are one array after a short header: ``.fbin``, ``.fvecs``, and the layouts ``.npy`` shares."""

from __future__ import annotations

import math
import os
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqindex.errors import FileFormatError
from tqindex.readers.base import VectorFile, check_form


class FlatFile(VectorFile):
    """An array that starts at byte ``offset`` of a file.

    Slices are read, never mapped: touched pages of a map count as the process's own memory.
    """

    def __init__(self, path: Path, file: FileIO, shape: tuple[int, int], dtype: np.dtype[Any], offset: int = 0) -> None:
        super().__init__(path, shape, dtype, file)
        self._file = file
        self._stored = dtype
        self._offset = offset

    def _read_items(self, first: int, count: int, rows: slice) -> NDArray[Any]:
        """Read ``count`` stored items from item ``first``; ``rows`` is what to call them in an error."""
        self._file.seek(self._offset + first * self._stored.itemsize)
        items = np.fromfile(self._file, dtype=self._stored, count=count)
        if items.size != count:
            raise FileFormatError(
                f"{self.path}: rows {rows.start}:{rows.stop} end early: "
                f"expected {count * self._stored.itemsize} bytes, got {items.nbytes}"
            )
        return items


class RowMajorFile(FlatFile):
    """Vectors one after another."""

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        dim = self.shape[1]
        items = self._read_items(start * dim, (stop - start) * dim, slice(start, stop))
        if not self._stored.isnative:
            items = items.byteswap(inplace=True).view(self.dtype)
        return items.reshape(-1, dim)


class ColumnMajorFile(FlatFile):
    """Coordinates one after another (Fortran order): a slice of rows is one short read for each column."""

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        n, dim = self.shape
        rows = np.empty((stop - start, dim), dtype=self.dtype)
        for column in range(dim):
            rows[:, column] = self._read_items(column * n + start, stop - start, slice(start, stop))
        return rows


class FvecsFile(FlatFile):
    """Vectors one after another, each behind its own dimension."""

    def __init__(self, path: Path, file: FileIO, shape: tuple[int, int]) -> None:
        # The words are read as int32 for the headers' sake; the others are the bits of float32.
        super().__init__(path, file, shape, np.dtype("<i4"))
        self.dtype = np.dtype(np.float32)

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        dim = self.shape[1]
        width = dim + 1
        words = self._read_items(start * width, (stop - start) * width, slice(start, stop)).reshape(-1, width)
        wrong = np.flatnonzero(words[:, 0] != dim)
        if wrong.size:
            row = int(wrong[0])
            raise FileFormatError(
                f"{self.path}: row {start + row} must have dimension {dim} like row 0, got {words[row, 0]}"
            )
        return np.ascontiguousarray(words[:, 1:].view("<f4"), dtype=self.dtype)


def open_fbin(path: Path, file: FileIO) -> VectorFile:
    """Open ``.fbin``: uint32 n, uint32 dim, then float32 values by rows, all little-endian.

    Raises
    ------
    FileFormatError
        If the header is incomplete, the size does not match it, or there are no vectors.
    """
    header = np.fromfile(file, dtype="<u4", count=2)
    if header.size != 2:
        raise FileFormatError(f"{path}: an .fbin header has 8 bytes, got a file of {file_size(file)} bytes")
    dtype = np.dtype("<f4")
    n, dim = header.tolist()
    check_size(path, file, header.nbytes, (n, dim), dtype)
    shape = check_form(str(path), (n, dim), dtype)
    return RowMajorFile(path, file, shape, dtype, offset=header.nbytes)


def open_fvecs(path: Path, file: FileIO) -> VectorFile:
    """Open ``.fvecs``: for each row int32 dim, then dim float32 values, little-endian.

    The dimension is taken from row 0; every other row's is checked when the row is read.

    Raises
    ------
    FileFormatError
        If the file is empty, row 0 has no usable dimension, or the size is not a whole number of rows.
    """
    size = file_size(file)
    if size == 0:
        raise FileFormatError(f"{path} is empty: at least one vector is needed, got 0 bytes")
    header = np.fromfile(file, dtype="<i4", count=1)
    if header.size != 1 or header[0] < 1:
        got = f"{header[0]}" if header.size else f"a file of {size} bytes"
        raise FileFormatError(f"{path}: row 0 must start with a dimension of at least 1 as int32, got {got}")
    dim = int(header[0])
    row_bytes = 4 * (dim + 1)
    if size % row_bytes:
        raise FileFormatError(
            f"{path}: the size must be a whole number of rows of {row_bytes} bytes "
            f"(dimension {dim} in row 0), got {size} bytes"
        )
    return FvecsFile(path, file, (size // row_bytes, dim))


def check_size(path: Path, file: FileIO, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Check that a file ends where its array does.

    Raises
    ------
    FileFormatError
        If the file is shorter, or longer, than ``offset`` bytes and an array of this shape and dtype.
    """
    expected = offset + math.prod(shape) * dtype.itemsize
    found = file_size(file)
    if found != expected:
        fault = "truncated" if found < expected else "too long"
        raise FileFormatError(f"{path} is {fault}: expected {expected} bytes for shape {shape} of {dtype}, got {found}")


def file_size(file: FileIO) -> int:
    """Return the bytes in an open file."""
    return os.fstat(file.fileno()).st_size
