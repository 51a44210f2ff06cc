"""An index as one bytes object: a mark, the manifest's length and the manifest, then the files that it names.

The manifest and the files are what `save` writes. Sizes and checksums are in the manifest, and all are compared.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tqindex.errors import ArgumentError, CorruptIndexError
from tqindex.storage.entries import write_rows
from tqindex.storage.files import FileEntry, check_content
from tqindex.storage.load import index_of
from tqindex.storage.manifest import MAX_MANIFEST, Manifest, parse_manifest
from tqindex.storage.segments import parse_segments

if TYPE_CHECKING:
    from tqindex.index import Index
    from tqindex.index.segments import RowSet

_MARK = b"tqindex bytes\n\0\0"
_LENGTH_BYTES = 8
_START = len(_MARK) + _LENGTH_BYTES
#: What messages call the argument.
_DATA = Path("data")


def rows_to_bytes(rows: "RowSet") -> bytes:
    """Return what `Index.to_bytes` does."""
    sealed, files = rows.draft(), dict[str, list[bytes | memoryview]]()
    sealed.seal_tail()
    manifest = write_rows(sealed, {}, files.__setitem__)[1]
    content = manifest.to_bytes()
    pieces = [piece for name in manifest.files for piece in files[name]]
    return b"".join([_MARK, len(content).to_bytes(_LENGTH_BYTES, "little"), content, *pieces])


def index_from_bytes(data: Any) -> "Index":
    """Return what `Index.from_bytes` does."""
    try:
        content = np.frombuffer(data, np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        raise ArgumentError(f"data must be bytes of Index.to_bytes, got {type(data).__name__}: {error}") from error
    manifest, start = _manifest(content)
    places = {}
    for name, entry in manifest.files.items():
        places[name] = slice(start, start + entry.bytes)
        start += entry.bytes
    if start != len(content):
        raise CorruptIndexError(f"{_DATA} is truncated or altered: it must have {start} bytes, got {len(content)}")

    def read(entry: FileEntry) -> npt.NDArray[np.uint8]:
        # A copy: kernels want memory that is aligned, and the caller's may change.
        piece = content[places[entry.file]].copy()
        check_content(_DATA / entry.file, entry, piece)
        return piece

    return index_of(manifest, parse_segments(_DATA, manifest, read))


def _manifest(content: npt.NDArray[np.uint8]) -> tuple[Manifest, int]:
    """Return the manifest, and where it ends."""
    beginning = content[:_START].tobytes()
    if len(beginning) < _START or not beginning.startswith(_MARK):
        raise CorruptIndexError(f"{_DATA} must be what Index.to_bytes returned: it does not begin like that")
    end = _START + int.from_bytes(beginning[len(_MARK) :], "little")
    if end > len(content) or end - _START > MAX_MANIFEST:
        raise CorruptIndexError(f"{_DATA} is truncated or altered: its manifest cannot have {end - _START} bytes")
    return parse_manifest(_DATA, content[_START:end].tobytes()), end
