"""Rows moved as they are, codes and all: compaction, and one index appended to another."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import numpy as np

from tqindex.errors import ArgumentError
from tqindex.index.segments import Int64Array, RowSet, Segment, segment_capacity

#: Rows whose numbers and ids are in memory at a time.
_BLOCK_ROWS = 65_536
#: Saving leaves up to this many segments that are not full as they are: rewriting them at every save would cost more
#: than reading them does.
MAX_SMALL_SEGMENTS = 64


def compacted(rows: RowSet) -> RowSet:
    """Return the live vectors, in the same order, in as few segments as that allows, without the removed rows.

    Full segments without removed rows are kept, and so is one that is not full but stands alone between such.
    """
    capacity = segment_capacity(rows.codec, rows.metric)
    return _rewritten(rows, lambda segment: segment.n >= capacity and _is_whole(segment))


def with_few_segments(rows: RowSet) -> RowSet:
    """Return the same vectors in sealed segments, small neighbours joined if more than 64 segments are small.

    Full segments are kept, whatever was removed from them. If there is nothing to join, `rows` itself comes back.
    """
    capacity = segment_capacity(rows.codec, rows.metric)
    if sum(segment.n < capacity for segment in rows.all_segments()) <= MAX_SMALL_SEGMENTS:
        return rows
    joined = _rewritten(rows, lambda segment: segment.n >= capacity)
    joined.seal_tail()
    return joined


def merged(rows: RowSet, other: RowSet, find: Callable[[Int64Array], Int64Array]) -> RowSet:
    """Return a draft of `rows` with the live vectors of `other` appended.

    Parameters
    ----------
    find : gives the rows of ids in `rows`, -1 for those that are not there

    Raises
    ------
    ArgumentError
        Metric, codec or what is kept of the originals differ, or both have an id.
    """
    _check_alike(rows, other)
    for segment, block in _live_blocks(other.all_segments()):
        ids = segment.ids_of(block)
        if ids.size and ids.min() < rows.next_id:
            known = find(ids) >= 0
            if known.any():
                raise ArgumentError(f"other must have ids that are new here, got {ids[np.argmax(known)]}")
    draft = rows.draft()
    _append(draft, other.all_segments())
    draft.next_id = max(rows.next_id, other.next_id)
    return draft


def _check_alike(rows: RowSet, other: RowSet) -> None:
    """Refuse to mix codes that do not mean the same, naming the first difference."""
    here, there = (
        {"metric": each.metric, "originals": each.originals, **each.codec.get_config()} for each in (rows, other)
    )
    for name, value in here.items():
        if there[name] != value and name in ("center", "codebook"):
            raise ArgumentError(f"other must have the same {name} as this index, got another one")
        if there[name] != value:
            raise ArgumentError(f"other must have {name} {value!r} as this index has, got {there[name]!r}")


def _rewritten(rows: RowSet, keep: Callable[[Segment], bool]) -> RowSet:
    """Keep some segments, and copy the live rows of each run of others to new ones; the last of them can grow."""
    new = RowSet(rows.codec, rows.metric, originals=rows.originals)
    for kept, run in groupby(rows.all_segments(), keep):
        segments = list(run)
        if kept or (len(segments) == 1 and _is_whole(segments[0])):  # copied alone it would come out the same
            new.seal_tail()
            new.segments += segments
        else:
            _append(new, segments)
    if rows.tail is not None and new.tail is None and new.segments and new.segments[-1] is rows.tail:
        new.tail = new.segments.pop()
    new.next_id = rows.next_id
    return new


def _is_whole(segment: Segment) -> bool:
    return segment.n_live == segment.n


def _append(target: RowSet, segments: Sequence[Segment]) -> None:
    """Copy the live rows of segments to the end of a draft; ids that stay consecutive cost nothing."""
    more = sum(segment.n_live for segment in segments)
    for segment, rows in _live_blocks(segments):
        while rows.size:
            # One segment's rows at a time: whether ids are stored is decided segment by segment.
            part, rows = np.split(rows, [target.room()])  # noqa: PLW2901
            more -= len(part)
            for _, tail, at in target.reserve(len(part), _as_range(segment.ids_of(part)), more):
                tail.rows.copy(at, segment.rows, part)
                if tail.originals.size:
                    tail.originals[at : at + len(part)] = segment.originals[part]


def _live_blocks(segments: Sequence[Segment]) -> Iterator[tuple[Segment, Int64Array]]:
    """Yield every segment's live rows, some at a time."""
    for segment in segments:
        for start in range(0, segment.n, _BLOCK_ROWS):
            yield segment, segment.live_rows_of(start, start + _BLOCK_ROWS)


def _as_range(ids: Int64Array) -> Int64Array | range:
    """Return consecutive ids as a range, others as they are."""
    consecutive = (np.diff(ids) == 1).all()
    return range(int(ids[0]), int(ids[0]) + len(ids)) if consecutive else ids
