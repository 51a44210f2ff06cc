"""Writing an index so that a crash leaves the old state or the new one.

A new directory is made under another name and renamed when it is complete. In a directory that is an index
already, under the writer's lock, new files are written beside the old ones and the manifest's rename is the commit.
Files are named by their content's checksum.
"""

import errno
import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tqindex.errors import CorruptIndexError, MissingFileError, StorageError
from tqindex.index.segments import RowSet, Segment
from tqindex.storage.files import FileEntry, storage_errors, sync_folder, write_file
from tqindex.storage.folder import MANIFEST, holds_nothing, is_ours, our_files, remove_files
from tqindex.storage.lock import writer_lock
from tqindex.storage.manifest import LiveEntry, Manifest, SegmentEntry, read_manifest
from tqindex.storage.partial import partial_folder, remove_partials
from tqindex.storage.segments import segment_content

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
    rows = index._rows.draft()
    rows.seal_tail()
    with storage_errors(directory, "written"):
        if directory.exists():
            with writer_lock(directory):
                check_target(directory, overwrite or own)  # now that nobody else can change it
                if known is not None and own and not overwrite:
                    _check_unchanged(directory, known)
                rows, manifest = _save_over(directory, rows, own)
        else:
            rows, manifest = _save_new(directory, rows)
    index._commit(rows)
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
        if not directory.parent.is_dir():
            raise MissingFileError(f"{directory.parent} must be a folder that exists, to write {directory.name} into")
        if not directory.exists() and not directory.is_symlink():
            return
        if not is_ours(directory):
            raise StorageError(f"{directory} exists and is not a tqindex index: it is left alone")
        if not overwrite and not holds_nothing(directory):
            raise StorageError(f"{directory} exists: pass overwrite=True (--force) to replace it")


def _save_new(directory: Path, rows: RowSet) -> tuple[RowSet, Manifest]:
    with partial_folder(directory) as partial:
        segments, entries = _write_segments(partial, rows, {})
        manifest = _manifest(rows, entries)
        write_file(partial / MANIFEST, manifest.to_bytes())
        sync_folder(partial)
        try:
            partial.rename(directory)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            raise StorageError(f"{directory} was made by another process meanwhile: it is left alone") from error
    sync_folder(directory.parent)
    return replace(rows, segments=segments), manifest


def _save_over(directory: Path, rows: RowSet, own: bool) -> tuple[RowSet, Manifest]:
    """Write into a directory that is an index, or empty; `own` rows that are there already are kept as they are."""
    before = our_files(directory)
    named = _named(directory)
    try:
        known = {name: entry for name, entry in named.items() if own and name in before}
        segments, entries = _write_segments(directory, rows, known)
        manifest = _manifest(rows, entries)
        sync_folder(directory)  # what the manifest names must not come to the disk after it
        write_file(directory / MANIFEST, manifest.to_bytes())
    except BaseException:
        # Asks the directory, since Ctrl-C may come when the manifest is renamed already.
        remove_files(directory, our_files(directory) - before - _named(directory).keys())
        raise
    sync_folder(directory)
    remove_files(directory, before - manifest.files.keys())
    return replace(rows, segments=segments), manifest


def _named(directory: Path) -> dict[str, FileEntry]:
    """What the manifest in a directory names; nothing where there is none that can be used: it is to be replaced."""
    try:
        return read_manifest(directory).files
    except CorruptIndexError:
        return {}


def _write_segments(
    directory: Path, rows: RowSet, known: dict[str, FileEntry]
) -> tuple[list[Segment], list[SegmentEntry]]:
    """Write what is not `known` to be there; returns the segments with their files' names."""
    segments, entries = [], []
    for segment in rows.segments:
        entry = _write_segment(directory, segment, known)
        entries.append(entry)
        segments.append(replace(segment, file=entry.file, live_file=entry.live.file if entry.live else ""))
    return segments, entries


def _write_segment(directory: Path, segment: Segment, known: dict[str, FileEntry]) -> SegmentEntry:
    stored: FileEntry | None = known.get(segment.file)
    if stored is None:
        stored = _write_named(directory, "segment-{}.safetensors", segment_content(segment))
    # Two segments may share a file: neither generated ids nor the number of rows are part of its content.
    first_id = None if segment.ids.size else segment.first_id
    live = _write_live(directory, segment, known)
    return SegmentEntry(stored.file, stored.bytes, stored.sha256, segment.n, first_id, live)


def _write_live(directory: Path, segment: Segment, known: dict[str, FileEntry]) -> LiveEntry | None:
    removed = segment.n - segment.n_live
    if not removed:
        return None
    stored: FileEntry | None = known.get(segment.live_file)
    if stored is None:
        stored = _write_named(directory, "live-{}.bin", [segment.live.data])
    return LiveEntry(stored.file, stored.bytes, stored.sha256, removed)


def _write_named(directory: Path, form: str, pieces: list[bytes | memoryview]) -> FileEntry:
    """Write a file that is named by its content."""
    checksum = hashlib.sha256()
    for piece in pieces:
        checksum.update(piece)
    digest = checksum.hexdigest()
    name = form.format(digest[:16])
    write_file(directory / name, *pieces)
    return FileEntry(name, sum(map(len, pieces)), digest)


def _manifest(rows: RowSet, entries: list[SegmentEntry]) -> Manifest:
    return Manifest(rows.codec, rows.metric, rows.next_id, tuple(entries), rows.originals)
