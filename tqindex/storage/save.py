"""Writing an index so that a crash leaves the old state or the new one.

A new directory is made under another name and renamed when it is complete. In a directory that is an index
already, new segment files are written beside the old ones and the manifest's rename is the commit. Segment files
are named by their content's checksum.
"""

import hashlib
import os
import re
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tqindex.errors import CorruptIndexError, MissingFileError, StorageError
from tqindex.index.segments import RowSet, Segment
from tqindex.storage.files import storage_errors, sync_folder, temporary_path, write_file
from tqindex.storage.manifest import MANIFEST, SEGMENT_NAME, Manifest, SegmentEntry, is_manifest, read_manifest
from tqindex.storage.segments import segment_content

if TYPE_CHECKING:
    from tqindex.index import Index

#: Segment files, and what a save that was killed may leave of one or of a manifest.
_OURS = re.compile(rf"{SEGMENT_NAME.pattern}|\.({SEGMENT_NAME.pattern}|{re.escape(MANIFEST)})\.[0-9a-f]{{8}}\.tmp")


def save_index(index: "Index", path: str | os.PathLike[str], overwrite: bool) -> None:
    """Write the index to `path`; see `Index.save`."""
    directory = Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would follow a link that is to stay)
    home, known = index._home or ("", None)
    own = str(directory) == home
    check_target(directory, overwrite or own)
    if known is not None and own and not overwrite:
        _check_unchanged(directory, known)
    rows = index._rows.draft()
    rows.seal_tail()
    with storage_errors(directory, "written"):
        rows, manifest = _save_over(directory, rows, own) if directory.exists() else _save_new(directory, rows)
    index._commit(rows)
    index._home = str(directory), manifest


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
        if not _is_ours(directory):
            raise StorageError(f"{directory} exists and is not a tqindex index: it is left alone")
        if not overwrite and any(directory.iterdir()):
            raise StorageError(f"{directory} exists: pass overwrite=True (--force) to replace it")


def _is_ours(directory: Path) -> bool:
    """Say whether a path is an index, be it a damaged one, or a directory with nothing but our leftovers."""
    if not directory.is_dir():
        return False
    return is_manifest(directory / MANIFEST) or all(_OURS.fullmatch(path.name) for path in directory.iterdir())


def _save_new(directory: Path, rows: RowSet) -> tuple[RowSet, Manifest]:
    partial = temporary_path(directory, "partial")
    try:
        partial.mkdir()
        segments, entries = _write_segments(partial, rows, {})
        manifest = _manifest(rows, entries)
        write_file(partial / MANIFEST, manifest.to_bytes())
        sync_folder(partial)
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(directory.parent)
    return replace(rows, segments=segments), manifest


def _save_over(directory: Path, rows: RowSet, own: bool) -> tuple[RowSet, Manifest]:
    """Write into a directory that is an index, or empty; `own` rows that are there already are kept as they are."""
    before = _files(directory)
    known = {entry.file: entry for entry in _entries(directory) if own and entry.file in before}
    try:
        segments, entries = _write_segments(directory, rows, known)
        manifest = _manifest(rows, entries)
        write_file(directory / MANIFEST, manifest.to_bytes())
    except BaseException:
        # Asks the directory, since Ctrl-C may come when the manifest is renamed already.
        _remove(directory, _files(directory) - before - {entry.file for entry in _entries(directory)})
        raise
    sync_folder(directory)
    _remove(directory, before - {entry.file for entry in entries})
    return replace(rows, segments=segments), manifest


def _entries(directory: Path) -> tuple[SegmentEntry, ...]:
    """What the manifest in a directory names; nothing where there is none that can be used: it is to be replaced."""
    try:
        return read_manifest(directory).segments
    except CorruptIndexError:
        return ()


def _write_segments(
    directory: Path, rows: RowSet, known: dict[str, SegmentEntry]
) -> tuple[list[Segment], list[SegmentEntry]]:
    """Write every segment that is not `known` to be there; returns them with their file names."""
    segments, entries = [], []
    for segment in rows.segments:
        stored = known.get(segment.file)
        if stored is None:
            pieces = segment_content(segment)
            checksum = hashlib.sha256()
            for piece in pieces:
                checksum.update(piece)
            digest, size = checksum.hexdigest(), sum(map(len, pieces))
            name = f"segment-{digest[:16]}.safetensors"
            write_file(directory / name, *pieces)
            del pieces  # before the next segment's are made
        else:
            name, size, digest = stored.file, stored.bytes, stored.sha256
        # Two segments may share a file: neither generated ids nor the number of rows are part of its content.
        first_id = None if segment.ids.size else segment.first_id
        entries.append(SegmentEntry(name, size, digest, segment.n, first_id))
        segments.append(replace(segment, file=name))
    return segments, entries


def _manifest(rows: RowSet, entries: list[SegmentEntry]) -> Manifest:
    return Manifest(rows.codec, rows.metric, rows.next_id, tuple(entries))


def _files(directory: Path) -> set[str]:
    """Names of the segment files and of what killed saves left in a directory."""
    return {path.name for path in directory.iterdir() if _OURS.fullmatch(path.name)}


def _remove(directory: Path, names: set[str]) -> None:
    """Remove files that no manifest names; one that stays does no harm."""
    for name in names:
        with suppress(OSError):
            (directory / name).unlink()
