"""Reading and verifying an index on disk."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tqindex.errors import CorruptIndexError
from tqindex.index import Index
from tqindex.index.segments import RowSet, Segment
from tqindex.storage.manifest import Manifest, read_manifest
from tqindex.storage.segments import read_segment


def load(path: str | os.PathLike[str], mmap: bool = True) -> Index:
    """Open an index that `Index.save` or `tqindex build` wrote.

    Parameters
    ----------
    path : path of the directory
    mmap : bool
        Map the segment files: opening is quick and memory is shared, but checksums are not compared (use
        `tqindex verify`). False reads everything and compares them. While an index is mapped its files may be
        deleted or replaced, but must not be truncated.

    Raises
    ------
    MissingFileError, CorruptIndexError, FormatVersionError, StorageError
        Nothing there; not an index, truncated or altered; written by a newer version; cannot be read.
    """
    return _open(path, mmap)[0]


def _open(path: str | os.PathLike[str], mmap: bool) -> tuple[Index, Manifest]:
    directory = Path(path)
    manifest = read_manifest(directory)
    try:
        segments = _read_segments(directory, manifest, mmap)
    except CorruptIndexError:
        newer = read_manifest(directory)
        if newer == manifest:
            raise
        # A save came between the manifest and its files.
        manifest, segments = newer, _read_segments(directory, newer, mmap)
    index = Index(manifest.codec.dim, metric=manifest.metric, codec=manifest.codec)  # type: ignore[arg-type]
    index._rows = RowSet(manifest.codec, manifest.metric, segments, None, manifest.next_id)
    index._home = os.path.abspath(path), manifest  # noqa: PTH100 (as in save_index)
    return index, manifest


def _read_segments(directory: Path, manifest: Manifest, mmap: bool) -> list[Segment]:
    return [read_segment(directory, entry, manifest.codec, manifest.metric, mmap) for entry in manifest.segments]


@dataclass(frozen=True)
class Verification:
    """What `verify` found in a sound index."""

    manifest: Manifest
    files: int
    bytes: int


def verify(path: str | os.PathLike[str]) -> Verification:
    """Check the manifest, every file's checksum and form, and that ids are distinct.

    Raises
    ------
    MissingFileError, CorruptIndexError, FormatVersionError, StorageError
        As `load`; the message names the first file that fails.
    """
    index, manifest = _open(path, mmap=False)
    ids = np.sort(np.concatenate([np.empty(0, np.int64), *[s.all_ids() for s in index._rows.segments]]))
    repeated = ids[1:][ids[1:] == ids[:-1]]
    if repeated.size:
        raise CorruptIndexError(f"{path} has the id {repeated[0]} twice")
    if ids.size and (ids[0] < 0 or ids[-1] >= manifest.next_id):
        raise CorruptIndexError(f"{path} must have ids from 0 to {manifest.next_id - 1}, got {ids[0]} to {ids[-1]}")
    sizes = {entry.file: entry.bytes for entry in manifest.segments}
    return Verification(manifest, len(sizes), sum(sizes.values()))
