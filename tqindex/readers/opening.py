"""Opening a file of vectors by its format."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

from tqindex.errors import ArgumentError, FileFormatError, MissingFileError, StorageError
from tqindex.readers.base import Role, VectorFile
from tqindex.readers.flat import open_fbin, open_fvecs
from tqindex.readers.npy import open_npy

FLAT_READERS = {".npy": open_npy, ".fbin": open_fbin, ".fvecs": open_fvecs}
HDF5_SUFFIXES = (".h5", ".hdf5")


def open_vectors(path: str | os.PathLike[str], dataset: str | None = None, role: Role = "base") -> VectorFile:
    """Open a file of vectors for reading in slices.

    The format follows the extension: ``.npy``, ``.fbin``, ``.fvecs``; every other file must be HDF5.

    Parameters
    ----------
    path : str or path-like
        A regular file.
    dataset : str, optional
        The dataset to take from an HDF5 file. By default ``train`` for the base and ``test`` for the queries
        (ann-benchmarks form), else the file's only 2-D float dataset.
    role : {"base", "queries"}, default="base"
        What the vectors are wanted for.

    Returns
    -------
    VectorFile
        Of shape (n, dim), to be closed by the caller (``with``).

    Raises
    ------
    MissingFileError
        If there is no such file.
    FileFormatError
        If the file is not of a known format, is damaged, or holds no vectors (or several sets and no
        ``dataset``).
    StorageError
        If the system does not let the file be read.
    ArgumentError
        If ``role`` is unknown, or ``dataset`` is given for a format that has none.
    """
    path = Path(path)
    if role not in get_args(Role):
        raise ArgumentError(f"role must be one of {get_args(Role)}, got {role!r}")
    suffix = path.suffix.lower()
    try:
        _check_regular(path)
        if suffix not in FLAT_READERS:
            return _open_hdf5(path, dataset, role)
        if dataset is not None:
            raise ArgumentError(f"{path}: dataset applies to HDF5 files only, got {dataset!r} for a {suffix} file")
        return _open_flat(path, suffix)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFileError(f"{path}: no such file") from error
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from error


def _check_regular(path: Path) -> None:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise FileFormatError(f"{path}: a file of vectors is needed, got a directory")
    if not stat.S_ISREG(mode):
        raise FileFormatError(f"{path}: a regular file is needed, got {stat.filemode(mode)}")
    # h5py.is_hdf5 answers "no" to a file that it may not open; this names the real cause.
    with path.open("rb"):
        pass


def _open_flat(path: Path, suffix: str) -> VectorFile:
    with ExitStack() as opened:
        file = opened.enter_context(path.open("rb", buffering=0))
        vectors = FLAT_READERS[suffix](path, file)
        opened.pop_all()  # from here the VectorFile closes it
    return vectors


def _open_hdf5(path: Path, dataset: str | None, role: Role) -> VectorFile:
    import h5py

    if not h5py.is_hdf5(path):
        if path.suffix.lower() in HDF5_SUFFIXES:
            raise FileFormatError(f"{path}: not an HDF5 file, though its name ends in {path.suffix}")
        known = ", ".join((*FLAT_READERS, *HDF5_SUFFIXES))
        raise FileFormatError(f"{path}: the extension must be one of {known}, got {path.suffix!r}")
    from tqindex.readers.hdf5 import open_hdf5

    return open_hdf5(path, dataset, role)
