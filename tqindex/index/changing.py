"""The rows of an index, the ids that they are found by, and how both change."""

from collections.abc import Callable
from threading import Lock
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tqindex.errors import ArgumentError, UnknownIdError
from tqindex.index.arguments import MAX_ID, as_source, distinct_ids
from tqindex.index.engine import Engine
from tqindex.index.ids import IdMap
from tqindex.index.segments import NO_IDS, RowSet
from tqindex.kernels.threads import check_threads

Int64Array = npt.NDArray[np.int64]

#: Bytes of input that are read at a time.
_BLOCK_BYTES = 32 * 2**20


class Changing:
    """What `Index` is built on: a state of rows that readers take whole, and that one writer at a time replaces."""

    def __init__(self, rows: RowSet, engine: Engine) -> None:
        self._rows, self._engine = rows, engine
        self._id_map: tuple[RowSet, IdMap] | None = None  # the rows that it is of, and the map
        self._write_lock = Lock()

    def _write(
        self,
        vectors: Any,
        ids: npt.ArrayLike | None,
        how: Literal["add", "update", "upsert"],
        threads: int | None,
        progress: Callable[[int], None] | None = None,
    ) -> Int64Array:
        workers = check_threads(threads)
        dim = self._rows.codec.dim
        source = as_source(vectors, dim, self._engine.as_rows)
        n = source.shape[0]
        if not n:
            self._engine.as_rows(source[:0], dim)  # refuses a wrong dtype, as it would for the first block
        with self._write_lock:
            engine = self._engine
            draft = self._rows.draft()
            given = None if ids is None else distinct_ids(ids, n)
            if given is None and draft.next_id + n - 1 > MAX_ID:
                raise ArgumentError(f"ids must be given: generated ones would pass 2**63 - 2 after {draft.next_id - 1}")
            if given is not None:
                draft.remove(self._replaced(given, how))
            first_id = draft.next_id
            step = max(1, _BLOCK_BYTES // (4 * dim))
            for start in range(0, n, step):
                block = engine.as_rows(source[start : start + step], dim, first_row=start)
                block_ids = None if given is None else given[start : start + step]
                for part, segment, at in draft.reserve(len(block), block_ids, n - start - len(block)):
                    first_row = start + part.start
                    engine.encode(draft.codec, block[part], draft.metric, segment.rows, workers, first_row, at)
                    if segment.originals.size:
                        originals = engine.as_host(block[part]).astype(np.float32, copy=False)
                        segment.keep_originals(originals, at, first_row)
                if progress is not None:
                    progress(start + len(block))
            self._commit(draft)
        return np.arange(first_id, first_id + n, dtype=np.int64) if given is None else given

    def _replaced(self, ids: Int64Array, how: str) -> Int64Array:
        """Return the rows that vectors with these ids take the place of."""
        if how == "update":
            return self._find_all(self._rows, ids)
        if not ids.size or ids.min() >= self._rows.next_id:  # none of them can be there
            return NO_IDS
        found = self._find(self._rows, ids)
        known = found >= 0
        if how == "add" and known.any():
            raise ArgumentError(f"ids must be new, got {ids[np.argmax(known)]}, which is in the index")
        return found[known]

    def _commit(self, rows: RowSet, moved: bool = False) -> None:
        """Make a draft the state that readers see; an id map that was built grows with it, unless rows have moved."""
        before = self._rows
        if moved:
            self._id_map = None
        elif self._id_map is not None and self._id_map[0] is before:
            self._id_map = rows, self._id_map[1].extended(rows.all_segments(), before.n_rows)
        self._rows = rows

    def _map(self, rows: RowSet) -> IdMap:
        """Return the id map of a state of the rows, built on first use."""
        built = self._id_map
        if built is None or built[0] is not rows:
            built = rows, IdMap.of(rows.all_segments())
            self._id_map = built
        return built[1]

    def _find(self, rows: RowSet, ids: Int64Array) -> Int64Array:
        """Return the rows of ids, -1 for those that are not in the index."""
        found = self._map(rows).find(ids)
        return np.where(rows.are_live(found), found, -1)

    def _find_all(self, rows: RowSet, ids: Int64Array) -> Int64Array:
        """Return the rows of ids that must be in the index."""
        found = self._find(rows, ids)
        if found.size and found.min() < 0:
            raise UnknownIdError(f"ids must be in the index, got {ids[np.argmin(found)]}")
        return found
