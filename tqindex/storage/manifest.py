"""The manifest: one JSON file that says what an index is made of, and ends with its own checksum."""

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqindex.codec import Codec
from tqindex.codec.codec import METRICS
from tqindex.errors import CorruptIndexError, FormatVersionError, MissingFileError, TQIndexError
from tqindex.index.describe import FORMAT_VERSION, format_version
from tqindex.index.index import ORIGINALS
from tqindex.storage.files import FileEntry, open_plain, storage_errors
from tqindex.storage.folder import LIVE_NAME, MANIFEST, SEGMENT_NAME

_FORMAT = "tqindex"
_CHECKSUM = re.compile(rb',\n  "sha256": "([0-9a-f]{64})"\n}\n\Z')
MAX_MANIFEST = 256 * 2**20
#: From this format version on segments may keep originals and have live files.
_SECOND = 2
#: Characters of a field that a message shows.
_SHOWN = 200


@dataclass(frozen=True)
class LiveEntry(FileEntry):
    """What the manifest says of a live file: one bit for each row of a segment, 1 where it is not removed."""

    removed: int
    """How many rows are."""


@dataclass(frozen=True)
class SegmentEntry(FileEntry):
    """What the manifest says of a segment file."""

    n: int
    first_id: int | None
    """First of n consecutive ids; None where the file holds ids."""
    live: LiveEntry | None = None
    """None where no row is removed."""

    @property
    def removed(self) -> int:
        """Number of rows that are removed."""
        return 0 if self.live is None else self.live.removed

    def to_fields(self) -> dict[str, Any]:
        """Return the entry as JSON types; without removed rows it is what version 1 knows."""
        fields = asdict(self)
        if self.live is None:
            del fields["live"]
        return fields

    @classmethod
    def from_fields(cls, fields: dict[str, Any], version: int) -> "SegmentEntry":
        """Return the entry that some fields stand for; their values are not checked yet."""
        if version >= _SECOND and "live" in fields:
            return cls(**{**fields, "live": LiveEntry(**fields["live"])})
        return cls(**fields)


@dataclass(frozen=True)
class Manifest:
    """The state of an index on disk."""

    codec: Codec
    metric: str
    next_id: int
    segments: tuple[SegmentEntry, ...]
    originals: str | None = None
    """What segments keep of the vectors as they came."""

    @property
    def n(self) -> int:
        """Number of vectors."""
        return sum(segment.n - segment.removed for segment in self.segments)

    @property
    def version(self) -> int:
        """The format version that it is written in."""
        return format_version(self.codec, self.originals is not None or any(segment.live for segment in self.segments))

    @property
    def files(self) -> dict[str, FileEntry]:
        """The files that are named, each once, in the order of the segments."""
        lives = [entry.live for entry in self.segments if entry.live is not None]
        return {entry.file: entry for entry in (*self.segments, *lives)}

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        fields = {
            "format": _FORMAT,
            "version": self.version,
            "metric": self.metric,
            "next_id": self.next_id,
            "codec": self.codec.get_config(),
            **({} if self.originals is None else {"originals": self.originals}),
            "segments": [segment.to_fields() for segment in self.segments],
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
    return parse_manifest(directory, _read(directory))


def parse_manifest(directory: Path, content: bytes) -> Manifest:
    """Check a manifest's content and return what it says; `directory` is for messages."""
    fields = _parse(directory, content)
    version = fields.get("version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        advice = "build it again" if version == 0 else "upgrade tqindex"
        raise FormatVersionError(
            f"{directory} has format version {version!r}; this tqindex reads 1 to {FORMAT_VERSION}: {advice}"
        )
    ending = _CHECKSUM.search(content)
    if ending is None or hashlib.sha256(content[: ending.start()]).hexdigest().encode() != ending[1]:
        raise CorruptIndexError(f"{directory / MANIFEST} is truncated or altered: its checksum does not match")
    try:
        segments = tuple(SegmentEntry.from_fields(entry, version) for entry in fields["segments"])
        codec, originals = Codec.from_config(fields["codec"]), fields.get("originals") if version >= _SECOND else None
        manifest = Manifest(codec, fields["metric"], fields["next_id"], segments, originals)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, TQIndexError) as error:
        raise CorruptIndexError(f"{directory / MANIFEST} has a field that cannot be used: {error}") from error
    _check_fields(directory, manifest)
    return manifest


def _read(directory: Path) -> bytes:
    path = directory / MANIFEST
    with storage_errors(path, "read"):
        if not directory.exists():
            raise MissingFileError(f"{directory} does not exist")
        if path.is_symlink():
            raise CorruptIndexError(f"{path} must be a plain file, not a link")
        if not path.is_file():
            raise CorruptIndexError(f"{directory} is not a tqindex index: it has no {MANIFEST}")
        with os.fdopen(open_plain(path, os.O_RDONLY), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_MANIFEST:
                raise CorruptIndexError(f"{path} must have at most {MAX_MANIFEST} bytes, got {size}")
            return file.read(size)


def _parse(directory: Path, content: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CorruptIndexError(f"{directory / MANIFEST} is truncated or altered: {error}") from error
    if not isinstance(fields, dict) or fields.get("format") != _FORMAT:
        raise CorruptIndexError(f"{directory} is not a tqindex index: {MANIFEST} does not say so")
    return fields


def _check_fields(directory: Path, manifest: Manifest) -> None:
    known = manifest.metric in METRICS and manifest.originals in (None, *ORIGINALS)
    if not known or not _is_count(manifest.next_id):
        raise CorruptIndexError(f"{directory / MANIFEST} has a field that cannot be used: metric, originals or next_id")
    for entry in manifest.segments:
        numbers = [entry.n] + ([] if entry.first_id is None else [entry.first_id])
        usable = _is_file(entry, SEGMENT_NAME) and all(map(_is_count, numbers))
        if not usable or not (entry.live is None or _is_live_file(entry.live, entry.n)):
            raise CorruptIndexError(f"{directory / MANIFEST} has a segment that cannot be used: {str(entry)[:_SHOWN]}")


def _is_file(entry: FileEntry, name: re.Pattern[str]) -> bool:
    texts = isinstance(entry.file, str) and isinstance(entry.sha256, str)
    return texts and name.fullmatch(entry.file) is not None and _is_count(entry.bytes)


def _is_live_file(entry: Any, n: int) -> bool:
    return (
        isinstance(entry, LiveEntry)
        and _is_file(entry, LIVE_NAME)
        and _is_count(entry.removed)
        and 1 <= entry.removed <= n
        and entry.bytes == -(-n // 8)
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63
