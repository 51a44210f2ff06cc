"""From an index's rows to files that are named by their content's checksum, wherever these go."""

import hashlib
from collections.abc import Callable
from dataclasses import replace

from tqindex.index.segments import RowSet, Segment
from tqindex.storage.files import FileEntry
from tqindex.storage.manifest import LiveEntry, Manifest, SegmentEntry
from tqindex.storage.segments import segment_content

#: Takes a file's name, and its content in pieces.
Write = Callable[[str, list[bytes | memoryview]], None]


def write_rows(rows: RowSet, known: dict[str, FileEntry], write: Write) -> tuple[RowSet, Manifest]:
    """Write what is not `known` to be there.

    Returns
    -------
    The rows, their segments with the names of their files, and the manifest, which is still to be written.
    """
    segments, entries = [], []
    for segment in rows.segments:
        entry = _write_segment(segment, known, write)
        entries.append(entry)
        segments.append(replace(segment, file=entry.file, live_file=entry.live.file if entry.live else ""))
    manifest = Manifest(rows.codec, rows.metric, rows.next_id, tuple(entries), rows.originals)
    return replace(rows, segments=segments), manifest


def _write_segment(segment: Segment, known: dict[str, FileEntry], write: Write) -> SegmentEntry:
    stored = known.get(segment.file)
    if stored is None:
        stored = _write(segment_content(segment), "segment-{}.safetensors", write)
    # Two segments may share a file: neither generated ids nor the number of rows are part of its content.
    first_id = None if segment.ids.size else segment.first_id
    live = _write_live(segment, known, write)
    return SegmentEntry(stored.file, stored.bytes, stored.sha256, segment.n, first_id, live)


def _write_live(segment: Segment, known: dict[str, FileEntry], write: Write) -> LiveEntry | None:
    removed = segment.n - segment.n_live
    if not removed:
        return None
    stored = known.get(segment.live_file)
    if stored is None:
        stored = _write([segment.live.data], "live-{}.bin", write)
    return LiveEntry(stored.file, stored.bytes, stored.sha256, removed)


def _write(pieces: list[bytes | memoryview], form: str, write: Write) -> FileEntry:
    checksum = hashlib.sha256()
    for piece in pieces:
        checksum.update(piece)
    digest = checksum.hexdigest()
    name = form.format(digest[:16])
    write(name, pieces)
    return FileEntry(name, sum(map(len, pieces)), digest)
