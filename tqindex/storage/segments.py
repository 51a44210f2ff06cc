"""Segment files: safetensors whose arrays start at multiples of 64 bytes, so that they can be mapped.

The safetensors library writes them. Its reader copies, so the header is read here: eight bytes of length, JSON,
then the data.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from tqindex.codec.packing import BLOCK, row_places
from tqindex.errors import CorruptIndexError
from tqindex.index.segments import NO_IDS, ROW_MULTIPLE, Segment
from tqindex.kernels.rows import StoredRows
from tqindex.storage.files import FileEntry
from tqindex.storage.manifest import Manifest, SegmentEntry

UInt8Array = npt.NDArray[np.uint8]

_ALIGNMENT = 64
_LENGTH_BYTES = 8
_MAX_HEADER = 2**20
_DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("<u1"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
}


def segment_content(segment: Segment) -> list[bytes | memoryview]:
    """Return a segment as the content of a file, in pieces; rows are padded with zeros to a multiple of 64."""
    padded = -(-segment.n // ROW_MULTIPLE) * ROW_MULTIPLE
    arrays = {**segment.rows.arrays(), "ids": segment.ids, "originals": segment.originals}
    tensors = {name: _pad_rows(name, tensor, segment.n, padded) for name, tensor in arrays.items() if tensor.size}
    content = memoryview(save(tensors))
    start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    spaces = b" " * (-start % _ALIGNMENT)  # the format allows them at the end of the header
    length = start - _LENGTH_BYTES + len(spaces)
    return [length.to_bytes(_LENGTH_BYTES, "little"), content[_LENGTH_BYTES:start], spaces, content[start:]]


def _pad_rows(name: str, tensor: npt.NDArray[Any], n: int, padded: int) -> npt.NDArray[Any]:
    """Cut to `padded` rows; rows past n may hold what an add that failed left there."""
    if name == "lead":
        return _pad_blocks(tensor, n, padded)
    rows = tensor[:padded]
    if rows[n:].any():
        rows = rows.copy()
        rows[n:] = 0
    return rows


def _pad_blocks(lead: UInt8Array, n: int, padded: int) -> UInt8Array:
    """The same for planes by blocks of rows."""
    used, width = -(-n // BLOCK), lead.shape[2] // BLOCK
    blocks = np.ascontiguousarray(lead[:, : padded // BLOCK])
    strange = row_places(width)[n % BLOCK :].ravel() if n % BLOCK else np.empty(0, np.int64)
    if blocks[:, used:].any() or blocks[:, used - 1, strange].any():
        blocks = blocks.copy()
        blocks[:, used:] = 0
        blocks[:, used - 1, strange] = 0
    return blocks


def parse_segments(directory: Path, manifest: Manifest, read: Callable[[FileEntry], UInt8Array]) -> list[Segment]:
    """Return the segments that a manifest names; `read` gives a file's content, `directory` is for messages.

    Raises
    ------
    CorruptIndexError
        What a file holds is not of the form that the manifest says.
    """
    return [_parse_segment(directory, entry, manifest, read) for entry in manifest.segments]


def _parse_segment(
    directory: Path, entry: SegmentEntry, manifest: Manifest, read: Callable[[FileEntry], UInt8Array]
) -> Segment:
    path = directory / entry.file
    tensors = _parse(path, read(entry))
    padded = -(-entry.n // ROW_MULTIPLE) * ROW_MULTIPLE
    arrays = {}
    for name, one in StoredRows.allocate(manifest.codec, manifest.metric, BLOCK).arrays().items():
        shape = list(one.shape)
        shape[1 if name == "lead" else 0] *= padded // BLOCK
        arrays[name] = _take(path, tensors, name, one.dtype, tuple(shape))
    rows = StoredRows(**arrays)
    ids = NO_IDS if entry.first_id is not None else _take(path, tensors, "ids", np.int64, (padded,))
    segment = Segment(rows, ids, entry.first_id or 0, entry.n, entry.file)
    if manifest.originals is not None:
        originals = _take(path, tensors, "originals", manifest.originals, (padded, manifest.codec.dim))
        segment = replace(segment, originals=originals)
    if entry.live is None:
        return segment
    # Not before the segment's own file has shown that it has n rows: that bounds the size of this one.
    live = read(entry.live)
    _check_live(directory / entry.live.file, live, entry)
    return replace(segment, live=live, live_file=entry.live.file)


def _check_live(path: Path, live: UInt8Array, entry: SegmentEntry) -> None:
    spare = -entry.n % 8
    if spare and live[-1] >> (8 - spare):
        raise CorruptIndexError(f"{path} is altered: it has bits past the segment's {entry.n} rows")
    removed = entry.n - int(np.bitwise_count(live).sum())
    if removed != entry.removed:
        raise CorruptIndexError(f"{path} is altered: {entry.removed} rows must be removed in it, got {removed}")


def _parse(path: Path, content: UInt8Array) -> dict[str, npt.NDArray[Any]]:
    """Return the file's arrays as views of its content; every number is checked before it is used."""
    length = int.from_bytes(content[:_LENGTH_BYTES].tobytes(), "little")
    start = _LENGTH_BYTES + length
    if length > _MAX_HEADER or start > len(content):
        raise CorruptIndexError(f"{path} is altered: its header cannot have {length} bytes")
    if start % _ALIGNMENT:
        raise CorruptIndexError(f"{path} is altered: its data must start at a multiple of {_ALIGNMENT}, got {start}")
    try:
        header = json.loads(content[_LENGTH_BYTES:start].tobytes())
        return {name: _view(content[start:], **fields) for name, fields in header.items() if name != "__metadata__"}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CorruptIndexError(f"{path} is altered: its header cannot be used ({error})") from error


def _view(data: UInt8Array, dtype: str, shape: list[int], data_offsets: list[int]) -> npt.NDArray[Any]:
    first, last = data_offsets
    if not 0 <= first <= last <= len(data) or first % _ALIGNMENT or any(size < 0 for size in shape):
        raise ValueError(f"data_offsets {data_offsets} and shape {shape} do not fit {len(data)} bytes")
    tensor: npt.NDArray[Any] = data[first:last].view(_DTYPES[dtype])
    return tensor.reshape(shape)


def _take(
    path: Path, tensors: dict[str, npt.NDArray[Any]], name: str, dtype: npt.DTypeLike, shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    if 0 in shape:
        return np.empty(shape, dtype)
    tensor = tensors.get(name)
    if tensor is None or tensor.shape != shape or tensor.dtype != dtype:
        found = "nothing" if tensor is None else f"{tensor.dtype} {tensor.shape}"
        raise CorruptIndexError(f"{path} must hold {name} as {np.dtype(dtype)} {shape}, got {found}")
    return tensor
