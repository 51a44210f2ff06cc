"""Ids that a command is given."""

import re
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tqindex.errors import ArgumentError, MissingFileError
from tqindex.index.arguments import MAX_ID
from tqindex.readers import VectorFile
from tqindex.readers.base import MAX_QUOTED
from tqindex.storage.files import storage_errors

_DIGITS = re.compile(rb"[0-9]{1,19}")
_STANDARD_INPUT = "-"


def read_ids(name: str, vectors: VectorFile | None = None) -> npt.NDArray[np.int64]:
    """Read ids from the dataset of that name beside the vectors, else from a text file with one integer per line.

    Parameters
    ----------
    name : of the dataset or the file; "-" for standard input
    vectors : an open file whose datasets are looked at first

    Raises
    ------
    ArgumentError, FileFormatError
        A line or a dataset that does not hold ids.
    MissingFileError, StorageError
        There is neither dataset nor file; it cannot be read.
    """
    if name == _STANDARD_INPUT:
        return _parse("standard input", sys.stdin.buffer.read())
    beside = None if vectors is None else vectors.integers(name)
    if beside is not None:
        return beside
    path = Path(name)
    with storage_errors(path, "read"):
        if not path.exists():
            other = "" if vectors is None else f", and {vectors.path} has no dataset of that name"
            raise MissingFileError(f"{name}: no such file{other}")
        return _parse(name, path.read_bytes())


def _parse(name: str, content: bytes) -> npt.NDArray[np.int64]:
    ids = []
    for number, line in enumerate(content.splitlines(), 1):
        text = line.strip()
        if not text:
            continue
        if not _DIGITS.fullmatch(text) or int(text) > MAX_ID:
            shown = text[:MAX_QUOTED].decode(errors="replace")
            raise ArgumentError(f"{name}: line {number} must be an integer from 0 to 2**63 - 2, got {shown!r}")
        ids.append(int(text))
    return np.array(ids, np.int64)
