"""Directories in the making: under another name beside their place, until they are complete and renamed.

On POSIX systems the maker holds an OS lock on the directory itself, which a rename does not end. So what a killed
maker left can be told from what a living one works on. Windows cannot lock a directory, and leftovers stay.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tqindex.storage.files import temporary_path
from tqindex.storage.folder import MANIFEST, our_files, remove_files

_ENDING = "partial"


@contextmanager
def partial_folder(directory: Path) -> Iterator[Path]:
    """Make the folder that is to be renamed to `directory`; it goes where the context ends with an error."""
    partial, descriptor = temporary_path(directory, _ENDING), None
    try:
        partial.mkdir()
        descriptor = _try_lock(partial)
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def remove_partials(directory: Path) -> None:
    """Remove what killed makers of `directory` left beside it; foreign files in such a folder stay."""
    form = re.compile(rf"\.{re.escape(directory.name)}\.[0-9a-f]{{8}}\.{_ENDING}")
    with suppress(OSError):
        for path in directory.parent.iterdir():
            if form.fullmatch(path.name):
                _remove_partial(path)


def _remove_partial(path: Path) -> None:
    descriptor = _try_lock(path)
    if descriptor is None:
        return
    try:
        files = our_files(path) | {MANIFEST}
        # An empty one may be a moment old: its maker locks it before the first file, so a lock on any other is proof.
        if any(path.iterdir()):
            remove_files(path, files)
            path.rmdir()
    except OSError:
        pass  # it disturbs nobody
    finally:
        os.close(descriptor)


def _try_lock(folder: Path) -> int | None:
    """Lock a folder; None where somebody else has it, it is none, or the system cannot."""
    if sys.platform == "win32":
        return None
    import fcntl

    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None
    return descriptor
