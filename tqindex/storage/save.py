"""Writing an index so that a crash leaves the old state or the new one.

A new directory is made under another name and renamed when it is complete. In a directory that is an index
already, new segment files are written beside the old ones and the manifest's rename is the commit. Segment files
are named by their content's checksum.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tqindex.errors import CorruptIndexError, MissingFileError, StorageError
from tqindex.index.segments import RowSet, Segment
from tqindex.storage.manifest import MANIFEST, Manifest, SegmentEntry, read_manifest
from tqindex.storage.segments import segment_to_bytes

if TYPE_CHECKING:
    from tqindex.index import Index


def save_index(index: "Index", path: str | os.PathLike[str], overwrite: bool) -> None:
    """Write the index to `path`; see `Index.save`."""
    directory = Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would follow a link that is to stay)
    check_target(directory, overwrite or str(directory) == index._home)
    rows = index._rows.draft()
    rows.seal_tail()
    with _one_line_errors(directory):
        if directory.exists():
            rows = _save_over(directory, rows, own=str(directory) == index._home)
        else:
            rows = _save_new(directory, rows)
    index._rows, index._home = rows, str(directory)


def check_target(directory: Path, overwrite: bool) -> None:
    """Refuse a place that an index may not be written to; needs no index yet, so `build` asks before it works.

    Raises
    ------
    MissingFileError
        The parent folder does not exist.
    StorageError
        Something is there that is not an index, or an index and `overwrite` is False.
    """
    if not directory.parent.is_dir():
        raise MissingFileError(f"{directory.parent} must be a folder that exists, to write {directory.name} into")
    if not directory.exists() and not directory.is_symlink():
        return
    if directory.is_dir() and not any(directory.iterdir()):
        return
    if not (directory / MANIFEST).is_file():
        raise StorageError(f"{directory} exists and is not a tqindex index: it is left alone")
    if not overwrite:
        raise StorageError(f"{directory} exists: pass overwrite=True (--force) to replace it")


def _save_new(directory: Path, rows: RowSet) -> RowSet:
    partial = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        segments, entries = _write_segments(partial, rows, {})
        _write_file(partial / MANIFEST, _manifest(rows, entries).to_bytes())
        _sync(partial)
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync(directory.parent)
    return replace(rows, segments=segments)


def _save_over(directory: Path, rows: RowSet, own: bool) -> RowSet:
    """Write into a directory that is an index, or empty; `own` rows that are there already are kept as they are."""
    before = _files(directory)
    try:
        known = {entry.file: entry for entry in read_manifest(directory).segments} if own else {}
    except CorruptIndexError:
        known = {}  # what is there is replaced; if it was ours, all our rows are written anew
    try:
        segments, entries = _write_segments(directory, rows, known)
        _write_file(directory / MANIFEST, _manifest(rows, entries).to_bytes())
    except BaseException:
        _remove(directory, _files(directory) - before)
        raise
    _sync(directory)
    _remove(directory, before - {entry.file for entry in entries})
    return replace(rows, segments=segments)


def _write_segments(
    directory: Path, rows: RowSet, known: dict[str, SegmentEntry]
) -> tuple[list[Segment], list[SegmentEntry]]:
    """Write every segment that is not `known` to be there; returns them with their file names."""
    segments, entries = [], []
    for segment in rows.segments:
        entry = known.get(segment.file)
        if entry is None:
            content = segment_to_bytes(segment)
            digest = hashlib.sha256(content).hexdigest()
            first_id = None if segment.ids.size else segment.first_id
            entry = SegmentEntry(f"segment-{digest[:16]}.safetensors", len(content), digest, segment.n, first_id)
            _write_file(directory / entry.file, content)
        segments.append(replace(segment, file=entry.file))
        entries.append(entry)
    return segments, entries


def _manifest(rows: RowSet, entries: list[SegmentEntry]) -> Manifest:
    return Manifest(rows.codec, rows.metric, rows.next_id, tuple(entries))


def _write_file(path: Path, content: bytes) -> None:
    """Write under a temporary name, flush to the disk, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync(directory: Path) -> None:
    """Flush a directory's entries; Windows has no such call and needs none."""
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _files(directory: Path) -> set[str]:
    """Names of the segment files in a directory."""
    return {path.name for path in directory.glob("segment-*.safetensors")}


def _remove(directory: Path, names: set[str]) -> None:
    for name in names:
        (directory / name).unlink(missing_ok=True)


@contextmanager
def _one_line_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{directory} cannot be written: {error.strerror or error}") from error
