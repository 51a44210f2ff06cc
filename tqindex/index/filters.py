"""Filters: which ids a search may return, as bits of every segment's rows."""

from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.errors import ArgumentError
from tqindex.index.arguments import as_host_array, as_ids
from tqindex.index.ids import IdMap
from tqindex.index.segments import RowSet, Segment, live_bits

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

#: Ids that a callable is asked about at a time.
CALL_IDS = 65_536


def allowed_segments(given: Any, rows: RowSet, find: Callable[[], IdMap]) -> list[Segment]:
    """Return the segments with the rows that a filter allows as their live ones.

    Parameters
    ----------
    given : array-like of integers, of bools, or a callable; see `Index.search`
    rows : the state that is searched
    find : gives the state's id map

    Raises
    ------
    ArgumentError
        The filter is of another form.
    """
    segments = rows.all_segments()
    if callable(given):
        flags = [_ask(given, segment.all_ids()[segment.live_rows()]) for segment in segments]
    else:
        array = as_host_array(list(given) if isinstance(given, Set) else given, "filter")
        if array.dtype == np.bool_:
            flags = _split_mask(array, segments)
        else:
            return _only(segments, rows, find().find(np.atleast_1d(as_ids(array, "filter"))))
    return [_where(segment, allowed) for segment, allowed in zip(segments, flags, strict=True)]


def _ask(allows: Callable[[Int64Array], Any], ids: Int64Array) -> BoolArray:
    answers = [np.empty(0, np.bool_)]
    for start in range(0, len(ids), CALL_IDS):
        block = ids[start : start + CALL_IDS]
        answer = np.asarray(allows(block))
        if answer.dtype != np.bool_ or answer.shape != block.shape:
            raise ArgumentError(
                f"filter must return one bool per id, shape {block.shape}, got {answer.dtype} {answer.shape}"
            )
        answers.append(answer)
    return np.concatenate(answers)


def _split_mask(mask: BoolArray, segments: Sequence[Segment]) -> list[BoolArray]:
    n = sum(segment.n_live for segment in segments)
    if mask.shape != (n,):
        raise ArgumentError(f"filter must have one bool per vector, shape ({n},), got {mask.shape}")
    return np.split(mask, np.cumsum([segment.n_live for segment in segments])[:-1]) if segments else []


def _only(segments: Sequence[Segment], rows: RowSet, wanted: Int64Array) -> list[Segment]:
    """Of the rows `wanted`, -1 for none, keep those that are live."""
    none = np.empty(0, np.int64)
    own_rows = {i: own for i, _, own in rows.split(wanted[rows.are_live(wanted)])}
    return [replace(segment, live=live_bits(own_rows.get(i, none), segment.n)) for i, segment in enumerate(segments)]


def _where(segment: Segment, allowed: BoolArray) -> Segment:
    """Keep some of a segment's live rows."""
    if segment.live.size:
        return replace(segment, live=live_bits(segment.live_rows()[allowed], segment.n))
    return replace(segment, live=np.packbits(allowed, bitorder="little"))
