"""NumPy's ``.npy`` files."""

from __future__ import annotations

import tokenize
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from numpy.lib import format as npy_format

from tqindex.errors import FileFormatError
from tqindex.readers.base import VectorFile, check_form, one_line
from tqindex.readers.flat import ColumnMajorFile, RowMajorFile, check_size

# Version 3.0 differs only in the field names of structured arrays, which are no vectors.
HEADER_READERS = {
    (1, 0): npy_format.read_array_header_1_0,
    (2, 0): npy_format.read_array_header_2_0,
}
# The header is a Python literal, so these are what a damaged one can raise.
HEADER_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    SyntaxError,
    tokenize.TokenError,
    RecursionError,
    MemoryError,
)


def open_npy(path: Path, file: FileIO) -> VectorFile:
    """Open a ``.npy`` file of either byte order, in C or Fortran order.

    Raises
    ------
    FileFormatError
        If the header cannot be read, the array is not 2-D float16, float32 or float64, it has no rows, or the
        file is not as long as the header says.
    """
    with _header_errors(f"{path}: not a .npy file"):
        version = npy_format.read_magic(file)
    if version not in HEADER_READERS:
        raise FileFormatError(f"{path}: the .npy version must be 1.0 or 2.0, got {version[0]}.{version[1]}")
    with _header_errors(f"{path}: the .npy header cannot be read"):
        shape, fortran_order, dtype = HEADER_READERS[version](file)
    n, dim = check_form(str(path), shape, dtype)
    offset = file.tell()
    check_size(path, file, offset, shape, dtype)
    layout = ColumnMajorFile if fortran_order else RowMajorFile
    return layout(path, file, (n, dim), dtype, offset)


@contextmanager
def _header_errors(what: str) -> Iterator[None]:
    try:
        yield
    except HEADER_ERRORS as error:
        raise FileFormatError(f"{what}: {one_line(error)}") from error
