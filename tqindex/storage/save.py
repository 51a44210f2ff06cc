"""Writing an index so that a crash leaves the old state or the new one.

A new directory is made under another name and renamed when it is complete. In a directory that is an index
already, under the writer's lock, new files are written beside the old ones and the manifest's rename is the commit.
Files are named by their content's checksum.
"""

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tqindex.errors import CorruptIndexError, MissingFileError, StorageError
from tqindex.index.compact import with_few_segments
from tqindex.index.segments import RowSet
from tqindex.storage.entries import Write, write_rows
from tqindex.storage.files import FileEntry, check_parent, storage_errors, sync_folder, write_file
from tqindex.storage.folder import MANIFEST, holds_nothing, is_ours, our_files, remove_files
from tqindex.storage.lock import writer_lock
from tqindex.storage.manifest import Manifest, read_manifest
from tqindex.storage.partial import partial_folder, remove_partials

if TYPE_CHECKING:
    from tqindex.index import Index

#: Why a directory cannot be renamed to a name that something else has got.
_TAKEN = {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}


def save_index(index: "Index", path: str | os.PathLike[str], overwrite: bool) -> None:
    """Write the index to `path`; see `Index.save`."""
    directory = Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would follow a link that is to stay)
    home, known = index._home or ("", None)
    own = str(directory) == home
    check_target(directory, overwrite or own)
    sealed = index._rows.draft()
    sealed.seal_tail()
    rows = with_few_segments(sealed)
    moved = rows is not sealed
    with storage_errors(directory, "written"):
        if directory.exists():
            with writer_lock(directory):
                check_target(directory, overwrite or own)  # now that nobody else can change it
                if known is not None and own and not overwrite:
                    _check_unchanged(directory, known)
                rows, manifest = _save_over(directory, rows, own)
        else:
            rows, manifest = _save_new(directory, rows)
    index._commit(rows, moved)
    index._home = str(directory), manifest
    remove_partials(directory)


def _check_unchanged(directory: Path, known: Manifest) -> None:
    """Refuse to replace what another index has written since; what is damaged or gone may be replaced."""
    try:
        found = read_manifest(directory)
    except (CorruptIndexError, MissingFileError):
        return
    if found != known:
        raise StorageError(f"{directory} was changed since it was loaded or saved: pass overwrite=True to replace it")


def check_target(directory: Path, overwrite: bool) -> None:
    """Refuse a place that an index may not be written to; needs no index yet, so `build` asks before it works.

    Raises
    ------
    MissingFileError
        The parent folder does not exist.
    StorageError
        Something is there that is not an index, or an index and `overwrite` is False.
    """
    with storage_errors(directory, "written"):
        check_parent(directory)
        if not directory.exists() and not directory.is_symlink():
            return
        if not is_ours(directory):
            raise StorageError(f"{directory} exists and is not a tqindex index: it is left alone")
        if not overwrite and not holds_nothing(directory):
            raise StorageError(f"{directory} exists: pass overwrite=True (--force) to replace it")


def _save_new(directory: Path, rows: RowSet) -> tuple[RowSet, Manifest]:
    with partial_folder(directory) as partial:
        rows, manifest = write_rows(rows, {}, _writer(partial))
        write_file(partial / MANIFEST, manifest.to_bytes())
        sync_folder(partial)
        try:
            partial.rename(directory)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            raise StorageError(f"{directory} was made by another process meanwhile: it is left alone") from error
    sync_folder(directory.parent)
    return rows, manifest


def _save_over(directory: Path, rows: RowSet, own: bool) -> tuple[RowSet, Manifest]:
    """Write into a directory that is an index, or empty; `own` rows that are there already are kept as they are."""
    before = our_files(directory)
    named = _named(directory)
    try:
        known = {name: entry for name, entry in named.items() if own and name in before}
        rows, manifest = write_rows(rows, known, _writer(directory))
        sync_folder(directory)  # what the manifest names must not come to the disk after it
        write_file(directory / MANIFEST, manifest.to_bytes())
    except BaseException:
        # Asks the directory, since Ctrl-C may come when the manifest is renamed already.
        remove_files(directory, our_files(directory) - before - _named(directory).keys())
        raise
    sync_folder(directory)
    remove_files(directory, before - manifest.files.keys())
    return rows, manifest


def _writer(directory: Path) -> Write:
    def write(name: str, pieces: list[bytes | memoryview]) -> None:
        write_file(directory / name, *pieces)

    return write


def _named(directory: Path) -> dict[str, FileEntry]:
    """What the manifest in a directory names; nothing where there is none that can be used: it is to be replaced."""
    try:
        return read_manifest(directory).files
    except CorruptIndexError:
        return {}
