"""The best k on the device: selected from candidates, kept in order; the launches of `best.cu`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tqindex.gpu.runtime import Kernel, Runtime
from tqindex.kernels.scan import NO_ID

_SELECT, _SORT_RUNS, _MERGE_RUNS = (Kernel("best.cu", name) for name in ("select_best", "sort_runs", "merge_runs"))
_THREADS = 256
#: What a block sorts in shared memory.
RUN = 2048
#: Where there are fewer queries than so many blocks, the candidates of one are cut into slices, one for a block, of at
#: least so many scores, and so many times k.
_BLOCKS, _SLICE, _SLICE_RESULTS = 256, 1024, 8
#: Bits of `form` in best.cu.
_HAS_NUMBERS, _HAS_ENTRY_IDS, _HAS_IDS, _HAS_COUNTS = 1, 2, 4, 8


class Best(NamedTuple):
    """The best of each query so far, best first, ties by the smaller id.

    Attributes
    ----------
    scores : float32 (nq, k) of the device, -inf where there are fewer
    ids : int64 (nq, k) of the device, `tqindex.kernels.scan.NO_ID` there
    """

    scores: Any
    ids: Any


@dataclass(frozen=True, eq=False)
class Candidates:
    """Scores to select from.

    Attributes
    ----------
    scores : float32 (nq, m) of the device, -inf for none
    numbers : uint32 (nq, m) or (m,), their rows, `NO_ROW` for none; None: they are of rows 0, 1, ...
    entry_ids : int64 (nq, m), their ids, instead of those of rows
    ids : int64, ids of rows, or of size 0 where row i has id first_id + i
    first_id : int
    counts : uint32 (nq,), how many of each query's are there; None: all
    """

    scores: Any
    numbers: Any = None
    entry_ids: Any = None
    ids: Any = None
    first_id: int = 0
    counts: Any = None


def specialisations() -> Iterator[Kernel]:
    """Yield every kernel of this module."""
    yield from (_SELECT, _SORT_RUNS, _MERGE_RUNS)


def no_best(runtime: Runtime, nq: int, k: int) -> Best:
    """Return room for the k best of nq queries, empty."""
    xp = runtime.xp
    return Best(xp.full((nq, k), -np.inf, np.float32), xp.full((nq, k), NO_ID, np.int64))


def keep_best(runtime: Runtime, best: Best, candidates: Candidates) -> Best:
    """Return the best of both."""
    (nq, k), m = best.scores.shape, candidates.scores.shape[1]
    if not nq or not k or not m:
        return best
    if candidates.counts is None:
        slices = count_slices(nq, m, k)
        if slices > 1:
            nothing = no_best(runtime, nq, 0)
            found = _select(runtime, nothing, candidates, k, slices)
            candidates = Candidates(found.scores.reshape(nq, -1), entry_ids=found.ids.reshape(nq, -1))
    found = _select(runtime, best, candidates, k, 1)
    return found if k <= RUN else _sort(runtime, found)


def join_best(runtime: Runtime, parts: Sequence[Best]) -> Best:
    """Return the best of several, of the same queries and k."""
    if len(parts) == 1:
        return parts[0]
    scores, ids = (runtime.xp.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
    return keep_best(runtime, no_best(runtime, *parts[0].scores.shape), Candidates(scores, entry_ids=ids))


def count_slices(nq: int, m: int, k: int) -> int:
    """Return into how many slices m scores of each of nq queries are cut to select the k best of each."""
    return max(1, min(_BLOCKS // nq, m // max(_SLICE, _SLICE_RESULTS * k)))


def _select(runtime: Runtime, best: Best, candidates: Candidates, k: int, slices: int) -> Best:
    """Return the k best of each slice, (nq, slices * k), those so far with the first; in order where k <= RUN."""
    xp, (nq, m) = runtime.xp, candidates.scores.shape
    numbers, entry_ids, ids, counts = candidates.numbers, candidates.entry_ids, candidates.ids, candidates.counts
    has_ids = ids is not None and ids.size > 0
    forms = (_HAS_NUMBERS, numbers is not None), (_HAS_ENTRY_IDS, entry_ids is not None), (_HAS_IDS, has_ids)
    form = sum(bit for bit, is_there in (*forms, (_HAS_COUNTS, counts is not None)) if is_there)
    stride = m if numbers is not None and numbers.ndim > 1 else 0
    nothing = {name: xp.empty(0, name) for name in ("uint32", "int64")}
    out = Best(xp.empty((nq, slices * k), np.float32), xp.empty((nq, slices * k), np.int64))
    arguments = (
        candidates.scores,
        nothing["uint32"] if numbers is None else numbers,
        np.int64(stride),
        nothing["int64"] if entry_ids is None else entry_ids,
        ids if has_ids else nothing["int64"],
        nothing["uint32"] if counts is None else counts,
        np.int32(form),
        np.int64(candidates.first_id),
        np.int64(m),
        np.int64(-(-m // slices)),
        *best,
        np.int64(best.scores.shape[1]),
        np.int32(k),
        *out,
    )
    runtime.function(_SELECT)((nq, slices), (_THREADS,), arguments)
    return out


def _sort(runtime: Runtime, best: Best) -> Best:
    """Put more than RUN entries of each query in order: runs, then merges of two, four, ... of them."""
    xp, (nq, k) = runtime.xp, best.scores.shape
    runtime.function(_SORT_RUNS)((nq, -(-k // RUN)), (_THREADS,), (*best, np.int64(k)))
    merge, run = runtime.function(_MERGE_RUNS), RUN
    other = Best(xp.empty((nq, k), np.float32), xp.empty((nq, k), np.int64))
    while run < k:
        merge((-(-k // _THREADS), nq), (_THREADS,), (*best, np.int64(k), np.int64(run), *other))
        best, other, run = other, best, 2 * run
    return best
