"""Files that are written whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqindex.errors import StorageError, TQIndexError


def write_file(path: Path, *pieces: bytes | memoryview) -> None:
    """Write pieces, one after another, under a temporary name, flush to the disk, rename."""
    temporary = temporary_path(path, "tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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


@contextmanager
def storage_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn what the system raises into StorageError: "PATH cannot be `doing`: reason"."""
    try:
        yield
    except TQIndexError:
        raise
    except OSError as error:
        raise StorageError(f"{path} cannot be {doing}: {error.strerror or error}") from error
