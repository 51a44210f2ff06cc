"""One writer at a time: a lock of the operating system on a file in the index's directory.

The lock dies with its owner, however that ends. What the file says of the owner is for the next writer's message.
"""

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tqindex.errors import CorruptIndexError, LockedError, MissingFileError
from tqindex.storage.files import open_plain, storage_errors
from tqindex.storage.folder import LOCK, LOCK_BEGINNING, MANIFEST, is_ours

#: Bytes of the text; what is longer is not ours.
_MAX_TEXT = 1024
#: Characters of each of its fields that a message shows.
_SHOWN = 80
#: Windows refuses to read what is locked, so the byte that is stands far behind the text.
_LOCKED_BYTE = 2**30


@dataclass(eq=False)
class _Held:
    """A lock of this process."""

    descriptor: int
    thread: int
    depth: int = 0


#: By the directory's device and number, which its names and links share.
_held: dict[tuple[int, int], _Held] = {}
_guard = threading.Lock()


@contextmanager
def writer_lock(path: str | os.PathLike[str]) -> Iterator[None]:
    """Be the only one who writes an index, for as long as the context lasts; the same thread may enter again.

        with writer_lock(path):
            index = tqindex.load(path)
            index.remove(ids)
            index.save(path)

    Readers take no notice. A network file system may not tell its machines of each other's locks.

    Raises
    ------
    LockedError
        Another process or thread is writing; the message says which. Nothing is waited for.
    MissingFileError, CorruptIndexError, StorageError
        There is nothing at `path`; it is not an index; the lock cannot be opened.
    """
    directory = Path(path)
    with storage_errors(directory, "locked"):
        if not directory.exists():
            raise MissingFileError(f"{directory} does not exist")
        if not is_ours(directory):
            raise CorruptIndexError(f"{directory} is not a tqindex index: it has no {MANIFEST}")
        status = directory.stat()
        key = status.st_dev, status.st_ino
        held = _enter(directory, key)
    try:
        yield
    finally:
        _leave(key, held)


def _enter(directory: Path, key: tuple[int, int]) -> _Held:
    with _guard:
        held = _held.get(key)
        if held is None:
            held = _held[key] = _Held(_acquire(directory), threading.get_ident())
        elif held.thread != threading.get_ident():
            raise LockedError(_message(directory, "another thread of this process"))
        held.depth += 1
        return held


def _leave(key: tuple[int, int], held: _Held) -> None:
    with _guard:
        held.depth -= 1
        # A child that was forked meanwhile has let go of it already.
        if not held.depth and _held.get(key) is held:
            del _held[key]
            _write_text(held.descriptor, b"")
            os.close(held.descriptor)


def _acquire(directory: Path) -> int:
    descriptor = open_plain(directory / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        _lock(descriptor, directory)
        _write_text(descriptor, _this_process())
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _lock(descriptor: int, directory: Path) -> None:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise LockedError(_message(directory, _owner(descriptor))) from None


def _read_text(descriptor: int) -> bytes:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, _MAX_TEXT)


def _write_text(descriptor: int, text: bytes) -> None:
    """Replace the text, unless the file has another name too or somebody else's content."""
    with suppress(OSError):  # a full disk: the lock holds without its text
        content = _read_text(descriptor)
        if os.fstat(descriptor).st_nlink == 1 and (not content or content.startswith(LOCK_BEGINNING)):
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, text)


def _this_process() -> bytes:
    fields = {
        "tqindex": "writer",
        "pid": os.getpid(),
        "host": socket.gethostname()[:_SHOWN],
        "command": Path(sys.argv[0] if sys.argv else "").name[:_SHOWN],
        "since": datetime.now().astimezone().isoformat(" ", "seconds"),
    }
    return json.dumps(fields).encode()


def _owner(descriptor: int) -> str:
    """Say who holds the lock, as far as the text can be used: it may be half written, or anything."""
    try:
        fields = json.loads(_read_text(descriptor))
        pid, host, command, since = (_shown(fields[name]) for name in ("pid", "host", "command", "since"))
    except (ValueError, TypeError, LookupError, RecursionError):
        return "another process"
    return f"process {pid} ({command or 'unnamed'}) on {host} since {since}"


def _shown(value: object) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(value)[:_SHOWN])


def _message(directory: Path, owner: str) -> str:
    return f"{directory} is being written by {owner}: try again when that has ended"


def _forget() -> None:
    """In a forked child: the parent's locks are not its own, and must not outlive the parent in it."""
    global _guard  # noqa: PLW0603 (another thread of the parent may have held it)
    _guard = threading.Lock()
    for held in _held.values():
        os.close(held.descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
