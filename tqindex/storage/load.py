"""Reading and verifying an index on disk."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tqindex.errors import CorruptIndexError
from tqindex.index import Index
from tqindex.index.segments import RowSet, Segment
from tqindex.storage.files import FileEntry, read_content
from tqindex.storage.manifest import LiveEntry, Manifest, read_manifest
from tqindex.storage.segments import parse_segments


def load(path: str | os.PathLike[str], mmap: bool = True, device: str = "cpu") -> Index:
    """Open an index that `Index.save` or `tqindex build` wrote.

    Parameters
    ----------
    path : path of the directory
    mmap : bool
        Map the segment files: opening is quick and memory is shared, but checksums are not compared (use
        `tqindex verify`). False reads everything and compares them. While an index is mapped its files may be
        deleted or replaced, but must not be truncated.
    device : {"cpu", "gpu"} or "gpu:N"
        As for `tqindex.Index`; files say nothing of it.

    Raises
    ------
    MissingFileError, CorruptIndexError, FormatVersionError, StorageError
        Nothing there; not an index, truncated or altered; written by a newer version; cannot be read.
    ArgumentError, DeviceError
        Another name of a device; it cannot be used.
    """
    return _open(path, mmap)[0].to(device)


def _open(path: str | os.PathLike[str], mmap: bool) -> tuple[Index, Manifest]:
    directory = Path(path)
    manifest = read_manifest(directory)
    while True:
        try:
            segments = parse_segments(directory, manifest, _reader(directory, mmap))
            break
        except CorruptIndexError:
            newer = read_manifest(directory)
            if newer == manifest:
                raise
            manifest = newer  # a save came between the manifest and its files
    index = index_of(manifest, segments)
    index._home = os.path.abspath(path), manifest  # noqa: PTH100 (as in save_index)
    return index, manifest


def _reader(directory: Path, mmap: bool) -> Callable[[FileEntry], npt.NDArray[np.uint8]]:
    def read(entry: FileEntry) -> npt.NDArray[np.uint8]:
        return read_content(directory / entry.file, entry, mmap and not isinstance(entry, LiveEntry))

    return read


def index_of(manifest: Manifest, segments: list[Segment]) -> Index:
    """Return the index that a manifest and its segments make."""
    index = Index(manifest.codec.dim, metric=manifest.metric, codec=manifest.codec)  # type: ignore[arg-type]
    index._rows = RowSet(manifest.codec, manifest.metric, segments, None, manifest.next_id, manifest.originals)
    return index


@dataclass(frozen=True)
class Verification:
    """What `verify` found in a sound index."""

    manifest: Manifest
    files: int
    bytes: int


def verify(path: str | os.PathLike[str]) -> Verification:
    """Check the manifest, every file's checksum and form, and that the ids of what is not removed are distinct.

    Raises
    ------
    MissingFileError, CorruptIndexError, FormatVersionError, StorageError
        As `load`; the message names the first file that fails.
    """
    index, manifest = _open(path, mmap=False)
    ids = np.sort(index.ids)
    repeated = ids[1:][ids[1:] == ids[:-1]]
    if repeated.size:
        raise CorruptIndexError(f"{path} has the id {repeated[0]} twice")
    if ids.size and (ids[0] < 0 or ids[-1] >= manifest.next_id):
        raise CorruptIndexError(f"{path} must have ids from 0 to {manifest.next_id - 1}, got {ids[0]} to {ids[-1]}")
    hidden = ids[index._find(index._rows, ids) < 0]
    if hidden.size:
        raise CorruptIndexError(f"{path} has the id {hidden[0]} once more in a later row, which is removed")
    return Verification(manifest, len(manifest.files), sum(entry.bytes for entry in manifest.files.values()))
