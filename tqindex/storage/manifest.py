"""The manifest: one JSON file that says what an index is made of, and ends with its own checksum."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqindex.codec import Codec
from tqindex.codec.codec import METRICS
from tqindex.errors import CorruptIndexError, FormatVersionError, MissingFileError, TQIndexError
from tqindex.index.describe import FORMAT_VERSION
from tqindex.storage.files import storage_errors

MANIFEST = "manifest.json"
SEGMENT_NAME = re.compile(r"segment-[0-9a-f]{16}\.safetensors")
_FORMAT = "tqindex"
_BEGINNING = b'{\n  "format": "tqindex",'
_CHECKSUM = re.compile(rb',\n  "sha256": "([0-9a-f]{64})"\n}\n\Z')
_MAX_BYTES = 256 * 2**20


@dataclass(frozen=True)
class SegmentEntry:
    """What the manifest says of a segment file."""

    file: str
    bytes: int
    sha256: str
    n: int
    first_id: int | None
    """First of n consecutive ids; None where the file holds ids."""


@dataclass(frozen=True)
class Manifest:
    """The state of an index on disk."""

    codec: Codec
    metric: str
    next_id: int
    segments: tuple[SegmentEntry, ...]

    @property
    def n(self) -> int:
        """Number of vectors."""
        return sum(segment.n for segment in self.segments)

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        fields = {
            "format": _FORMAT,
            "version": FORMAT_VERSION,
            "metric": self.metric,
            "next_id": self.next_id,
            "codec": self.codec.get_config(),
            "segments": [vars(segment) for segment in self.segments],
        }
        body = json.dumps(fields, indent=2).encode().removesuffix(b"\n}")
        return body + b',\n  "sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'


def read_manifest(directory: Path) -> Manifest:
    """Read and check the manifest of an index.

    Raises
    ------
    MissingFileError
        There is nothing at `directory`.
    CorruptIndexError
        It is not an index, or the manifest is truncated or altered.
    FormatVersionError
        It was written by a newer version of tqindex, or by one before the format settled.
    """
    content = _read(directory)
    fields = _parse(directory, content)
    version = fields.get("version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        advice = "build it again" if version == 0 else "upgrade tqindex"
        readable = " to ".join(str(v) for v in sorted({1, FORMAT_VERSION}))
        raise FormatVersionError(f"{directory} has format version {version!r}; this tqindex reads {readable}: {advice}")
    ending = _CHECKSUM.search(content)
    if ending is None or hashlib.sha256(content[: ending.start()]).hexdigest().encode() != ending[1]:
        raise CorruptIndexError(f"{directory / MANIFEST} is truncated or altered: its checksum does not match")
    try:
        segments = tuple(SegmentEntry(**entry) for entry in fields["segments"])
        manifest = Manifest(Codec.from_config(fields["codec"]), fields["metric"], fields["next_id"], segments)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, TQIndexError) as error:
        raise CorruptIndexError(f"{directory / MANIFEST} has a field that cannot be used: {error}") from error
    _check_fields(directory, manifest)
    return manifest


def is_manifest(path: Path) -> bool:
    """Say whether a file is, or was before it was damaged, the manifest of an index: others use the name too."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_BEGINNING)) == _BEGINNING


def _read(directory: Path) -> bytes:
    path = directory / MANIFEST
    with storage_errors(path, "read"):
        if not directory.exists():
            raise MissingFileError(f"{directory} does not exist")
        if not path.is_file():
            raise CorruptIndexError(f"{directory} is not a tqindex index: it has no {MANIFEST}")
        if path.stat().st_size > _MAX_BYTES:
            raise CorruptIndexError(f"{path} must have at most {_MAX_BYTES} bytes, got {path.stat().st_size}")
        return path.read_bytes()


def _parse(directory: Path, content: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CorruptIndexError(f"{directory / MANIFEST} is truncated or altered: {error}") from error
    if not isinstance(fields, dict) or fields.get("format") != _FORMAT:
        raise CorruptIndexError(f"{directory} is not a tqindex index: {MANIFEST} does not say so")
    return fields


def _check_fields(directory: Path, manifest: Manifest) -> None:
    if manifest.metric not in METRICS or not _is_count(manifest.next_id):
        raise CorruptIndexError(f"{directory / MANIFEST} has a field that cannot be used: metric or next_id")
    for entry in manifest.segments:
        texts = isinstance(entry.file, str) and isinstance(entry.sha256, str)
        numbers = [entry.bytes, entry.n] + ([] if entry.first_id is None else [entry.first_id])
        if not texts or not all(map(_is_count, numbers)) or not SEGMENT_NAME.fullmatch(entry.file):
            raise CorruptIndexError(f"{directory / MANIFEST} has a segment that cannot be used: {entry}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63
