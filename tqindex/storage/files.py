"""Files that are written whole or not at all, and read with nothing taken on trust."""

import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from tqindex.errors import CorruptIndexError, MissingFileError, StorageError, TQIndexError

#: Neither through a link nor, at a pipe, without end; 0 where the system has no such flag.
_OPEN_PLAIN = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))


@dataclass(frozen=True)
class FileEntry:
    """What a manifest says of a file."""

    file: str
    bytes: int
    sha256: str


def write_file(path: Path, *pieces: bytes | memoryview) -> None:
    """Write pieces, one after another, under a temporary name, flush to the disk, rename."""
    temporary = temporary_path(path, "tmp")
    try:
        with temporary.open("xb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_parent(target: Path) -> None:
    """Refuse a place in a folder that is not there."""
    if not target.parent.is_dir():
        raise MissingFileError(f"{target.parent} must be a folder that exists, to write {target.name} into")


def check_file_target(target: Path) -> None:
    """Refuse a place where no file can be written, before there is anything to write."""
    check_parent(target)
    if not os.access(target.parent, os.W_OK):
        raise StorageError(f"{target.parent} must be a folder that may be written to, to write {target.name} into")
    if target.exists() and not target.is_file():
        raise StorageError(f"{target} must be a regular file, got {stat.filemode(target.stat().st_mode)}")


def temporary_path(path: Path, ending: str) -> Path:
    """Return a name beside `path` that no other writer has; process numbers repeat, in containers at once."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{ending}")


def sync_folder(directory: Path) -> None:
    """Flush a directory's entries; Windows has no such call and needs none."""
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def open_plain(path: Path, flags: int, mode: int = 0o666) -> int:
    """Open a plain file and return its descriptor; a link, a pipe or a folder is an OSError that says so."""
    if path.is_symlink():  # where O_NOFOLLOW is unknown this has to do; elsewhere it gives the better message
        raise OSError(None, "it must be a plain file, not a link")
    descriptor = os.open(path, flags | _OPEN_PLAIN, mode)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(None, "it must be a plain file")
    return descriptor


def read_content(path: Path, entry: FileEntry, mmap: bool) -> npt.NDArray[np.uint8]:
    """Map a file that a manifest names; without `mmap` read it whole and compare its checksum.

    Raises
    ------
    CorruptIndexError
        The file is missing, not a plain one, truncated or altered.
    StorageError
        It cannot be read.
    """
    with storage_errors(path, "read"), _open_named(path) as file:
        size = os.fstat(file.fileno()).st_size
        check_size(path, entry, size)
        if mmap and size:
            return np.memmap(file, np.uint8, "r")
        content = np.fromfile(file, np.uint8, size)
    check_content(path, entry, content)
    return content


def _open_named(path: Path) -> BinaryIO:
    missing = CorruptIndexError(f"{path} is missing or not a plain file")
    if path.is_symlink() or not path.is_file():
        raise missing
    try:
        return os.fdopen(open_plain(path, os.O_RDONLY), "rb")
    except FileNotFoundError as error:  # a save has removed it just now
        raise missing from error


def check_size(path: Path, entry: FileEntry, size: int) -> None:
    """Refuse a file whose size is not the manifest's; comes before anything is allocated by it."""
    if size != entry.bytes:
        raise CorruptIndexError(f"{path} is truncated or altered: it must have {entry.bytes} bytes, got {size}")


def check_content(path: Path, entry: FileEntry, content: npt.NDArray[np.uint8]) -> None:
    """Refuse content that is not the manifest's, such as what a short read gave."""
    check_size(path, entry, content.size)
    if hashlib.sha256(content.data).hexdigest() != entry.sha256:
        raise CorruptIndexError(f"{path} is altered: its checksum does not match the manifest's")


@contextmanager
def storage_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn what the system raises into StorageError: "PATH cannot be `doing`: reason"."""
    try:
        yield
    except TQIndexError:
        raise
    except OSError as error:
        raise StorageError(f"{path} cannot be {doing}: {error.strerror or error}") from error
