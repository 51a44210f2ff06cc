"""The file of documents: JSON lines, a header first and a checksum of everything before it last.

{"format": "tqindex documents", "version": 1, "adapter": "langchain", ..., "n": 2}
{"row": 0, "key": "a", "record": {"text": "first", "metadata": {}}}
{"row": 1, "key": "b", "record": {"text": "second", "metadata": {}}}
{"sha256": "..."}
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tqindex.errors import CorruptIndexError, FormatVersionError

Record = dict[str, Any]

_FORMAT = "tqindex documents"
_VERSION = 1
_CHECKSUM = b'{"sha256": "%s"}\n'
_CHECKSUM_BYTES = len(_CHECKSUM % (b"0" * 64))
#: Only settings of an adapter are of any length.
_MAX_HEADER = 2**20


@dataclass(frozen=True)
class Header:
    """What the first line says.

    Attributes
    ----------
    adapter, settings : whose documents these are, and what that adapter wants to know again
    bits, metric : of the index; they count while there is none
    index : name of the index's folder, empty while there is none
    state : random; no two saves have the same
    n : number of documents
    """

    adapter: str
    settings: Record
    bits: int
    metric: Any
    index: str
    state: str
    n: int


class Line(NamedTuple):
    """A document and the row of its vector in the index."""

    row: int
    key: str
    record: Record


def documents_bytes(header: Header, lines: Iterable[Line]) -> bytes:
    """Return the content of a file."""
    fields = {"format": _FORMAT, "version": _VERSION, **vars(header)}
    body = b"".join(json.dumps(item).encode() + b"\n" for item in (fields, *(line._asdict() for line in lines)))
    return body + _CHECKSUM % hashlib.sha256(body).hexdigest().encode()


def read_header(path: Path) -> Header:
    """Read the first line alone, whose content no checksum vouches for.

    Raises
    ------
    CorruptIndexError
        It is not the beginning of such a file.
    FormatVersionError
        It was written by a newer version of tqindex.
    """
    with path.open("rb") as file:
        return _parse_header(path, file.readline(_MAX_HEADER))


def read_documents(path: Path) -> tuple[Header, list[Line]]:
    """Read and check a file.

    Raises
    ------
    CorruptIndexError, FormatVersionError
        As `read_header`; also where the file is truncated or altered.
    """
    content = path.read_bytes()
    header = _parse_header(path, content[: content.find(b"\n") + 1])
    body, ending = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
    if ending != _CHECKSUM % hashlib.sha256(body).hexdigest().encode():
        raise CorruptIndexError(f"{path} is truncated or altered: its checksum does not match")
    try:
        lines = [Line(**json.loads(line)) for line in body.splitlines()[1:]]
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptIndexError(f"{path} has a line that cannot be used: {error}") from error
    if not len({line.row for line in lines}) == len({line.key for line in lines}) == len(lines) == header.n:
        raise CorruptIndexError(f"{path} must hold {header.n} documents with keys and rows of their own")
    return header, lines


def _parse_header(path: Path, line: bytes) -> Header:
    try:
        fields = json.loads(line)
        form, version = fields.pop("format"), fields.pop("version")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CorruptIndexError(f"{path} is not a file of tqindex documents, or is altered: {error}") from error
    if form != _FORMAT:
        raise CorruptIndexError(f"{path} is not a file of tqindex documents: its first line does not say so")
    if version != _VERSION:
        raise FormatVersionError(f"{path} has version {version!r}; this tqindex reads {_VERSION}: upgrade tqindex")
    try:
        return Header(**fields)
    except TypeError as error:
        raise CorruptIndexError(f"{path} has a header that cannot be used: {error}") from error
