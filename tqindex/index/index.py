"""The index that users hold."""

import os
from collections.abc import Callable
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from tqindex.checks import as_array, as_rows, check_choice, check_integer, check_number
from tqindex.codec import Codec
from tqindex.codec.codec import METRICS, Kind, Scale, Sketch
from tqindex.codec.codes import Codes
from tqindex.codec.effort import Effort
from tqindex.codec.packing import repack_planes
from tqindex.errors import ArgumentError, UnknownIdError
from tqindex.index.arguments import MAX_ID, as_ids, as_source, distinct_ids
from tqindex.index.describe import describe
from tqindex.index.filters import allowed_segments
from tqindex.index.ids import IdMap
from tqindex.index.plan import ScanPlan
from tqindex.index.ranges import RangeResult, least_float32, search_range
from tqindex.index.rerank import Fetch
from tqindex.index.rerank import rerank as rerank_candidates
from tqindex.index.search import search_rows
from tqindex.index.segments import NO_IDS, RowSet, Segment
from tqindex.kernels.encoder import encode_rows
from tqindex.kernels.threads import check_threads

if TYPE_CHECKING:
    from tqindex.storage.manifest import Manifest

Float32Array = npt.NDArray[np.float32]
Metric = Literal["ip", "cosine", "l2"]

MAX_K = 2**20
ORIGINALS = ("float16", "float32")
#: Bytes of input that `add` reads at a time.
_BLOCK_BYTES = 32 * 2**20


class SearchResult(NamedTuple):
    """What `Index.search` returns.

    Attributes
    ----------
    scores : float32 (nq, k), or (k,) for a single query
        Estimated inner products or cosines, larger is better; under "l2" estimated squared distances, smaller is
        better (not clamped: an estimate may be slightly negative). Missing entries: -inf, under "l2" +inf.
    ids : int64 of the same shape; -1 where an entry is missing
    """

    scores: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int64]


class Index:
    """A vector index that needs no training: vectors are encoded one by one and searched exhaustively.

    Parameters
    ----------
    dim : int, 2 to 65,536
    bits : {1, 2, 3, 4, 8}; {2, 3, 4} for codec "prod"
    metric : {"cosine", "ip", "l2"}
    codec : {"mse", "prod"} or a Codec
        With a Codec, `dim` and `metric` still count and the other codec parameters must be left alone.
    sketch, scale, center, rotation, seed, effort :
        As for `tqindex.Codec`. Under "cosine" the centre is subtracted after normalisation.
    originals : {"float16", "float32"}, a callable, or None
        Keep the vectors as they came too, for `search(rerank=)`; or fetch them there by a callable, which is given
        ids, int64 (n,), and returns floats (n, dim). A callable is not saved.

    Raises
    ------
    ArgumentError
        A parameter breaks its rule.

    Examples
    --------
    >>> import numpy as np
    >>> import tqindex as tq
    >>> vectors = np.random.default_rng(0).standard_normal((1000, 64), dtype=np.float32)
    >>> index = tq.Index(64, bits=4, metric="cosine")
    >>> ids = index.add(vectors)
    >>> scores, ids = index.search(vectors[:2], k=3)
    >>> ids[:, 0]
    array([0, 1])
    """

    def __init__(
        self,
        dim: int,
        bits: int = 4,
        metric: Metric = "cosine",
        codec: Kind | Codec = "mse",
        sketch: Sketch = "orthogonal",
        scale: Scale = "unbiased",
        center: npt.ArrayLike | None = None,
        rotation: Literal["hadamard", "dense"] | None = None,
        seed: int = 0,
        effort: Effort = "plain",
        originals: Literal["float16", "float32"] | Fetch | None = None,
    ) -> None:
        self.metric: Metric = check_choice("metric", metric, METRICS)
        if isinstance(codec, Codec):
            if dim != codec.dim:
                raise ArgumentError(f"dim must equal the codec's dim {codec.dim}, got {dim!r}")
            given = (bits, sketch, scale, rotation, seed, effort)
            if center is not None or given != (4, "orthogonal", "unbiased", None, 0, "plain"):
                names = "bits, sketch, scale, center, rotation, seed, effort"
                raise ArgumentError(f"{names} come with {codec!r}; leave them out")
            self.codec = codec
        else:
            check_choice("codec", codec, ("mse", "prod"))
            self.codec = Codec(dim, bits, codec, sketch, scale, center, rotation, seed, effort)
        kept = None if originals is None or callable(originals) else check_choice("originals", originals, ORIGINALS)
        self._rows = RowSet(self.codec, self.metric, originals=kept)
        #: Gives the vectors of ids, int64 (n,), to `search(rerank=)` where the index keeps none itself.
        self.fetch: Fetch | None = originals if callable(originals) else None
        self._scored: float | None = None  # share of rows that the latest search scored in full
        self._id_map: tuple[RowSet, IdMap] | None = None  # the rows that it is of, and the map
        self._write_lock = Lock()
        #: The directory that this index was loaded from or last saved to, absolute, and its manifest as it was then.
        self._home: tuple[str, Manifest] | None = None

    @property
    def dim(self) -> int:
        """Number of coordinates of a vector."""
        return self.codec.dim

    @property
    def bits(self) -> int:
        """Bits per coordinate, sketch included."""
        return self.codec.bits

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """All ids, int64 (n,), in the order in which their vectors came; an updated vector comes last."""
        return np.concatenate(
            [NO_IDS, *(segment.all_ids()[segment.live_rows()] for segment in self._rows.all_segments())]
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, row_id: object) -> bool:
        if isinstance(row_id, bool) or not isinstance(row_id, int | np.integer):
            return False
        if not 0 <= row_id <= MAX_ID:
            return False
        return bool(self._find(self._rows, np.array([row_id], np.int64))[0] >= 0)

    def __repr__(self) -> str:
        return f"<tqindex.Index: {len(self):,} vectors, metric={self.metric!r}, {self.codec!r}>"

    def add(
        self,
        vectors: Any,
        ids: npt.ArrayLike | None = None,
        threads: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> npt.NDArray[np.int64]:
        """Encode vectors and append them; the whole call takes effect or nothing does.

        Parameters
        ----------
        vectors : float16/32/64 of shape (n, dim) or (dim,)
            An array, anything with DLPack or `__array__`, or something with `shape` and slices such as an h5py
            dataset, which is read in blocks.
        ids : int64-compatible integers (n,), optional
            From 0 to 2**63 - 2, distinct, and not in the index. Without them ids continue after the largest one so far.
        threads : int, optional
            Default: every CPU that the process may use. The codes do not depend on it.
        progress : callable, optional
            Called with the number of vectors encoded so far, after every block.

        Returns
        -------
        int64 (n,), the ids of the vectors.

        Raises
        ------
        VectorError
            Wrong width or dtype, NaN or inf, a norm above 2**60, a zero vector under "cosine".
        ArgumentError
            Ids of another type or number, out of range, repeated, or already in the index.
        """
        return self._write(vectors, ids, "add", threads, progress)

    def update(self, ids: npt.ArrayLike, vectors: Any, threads: int | None = None) -> None:
        """Replace the vectors of ids that are in the index, all of them or none.

        Parameters
        ----------
        ids : int64-compatible integers (n,), distinct
        vectors : as for `add`
        threads : int, optional

        Raises
        ------
        UnknownIdError
            An id is not in the index.
        VectorError, ArgumentError
            As `add`.
        """
        self._write(vectors, ids, "update", threads)

    def upsert(self, ids: npt.ArrayLike, vectors: Any, threads: int | None = None) -> None:
        """Add vectors, or replace those whose ids are in the index; else as `update`."""
        self._write(vectors, ids, "upsert", threads)

    def remove(self, ids: npt.ArrayLike) -> None:
        """Take vectors out, all of them or none. Other ids stay as they are, and a removed id may be added again.

        Parameters
        ----------
        ids : int64-compatible integers (n,), distinct

        Raises
        ------
        UnknownIdError
            An id is not in the index.
        ArgumentError
            Ids of another type, out of range or repeated.
        """
        wanted = distinct_ids(ids)
        with self._write_lock:
            draft = self._rows.draft()
            draft.remove(self._find_all(self._rows, wanted))
            self._commit(draft)

    def _write(
        self,
        vectors: Any,
        ids: npt.ArrayLike | None,
        how: Literal["add", "update", "upsert"],
        threads: int | None,
        progress: Callable[[int], None] | None = None,
    ) -> npt.NDArray[np.int64]:
        workers = check_threads(threads)
        source = as_source(vectors, self.dim)
        n = source.shape[0]
        if not n:
            as_rows(source[:0], self.dim)  # refuses a wrong dtype, as it would for the first block
        with self._write_lock:
            draft = self._rows.draft()
            given = None if ids is None else distinct_ids(ids, n)
            if given is None and draft.next_id + n - 1 > MAX_ID:
                raise ArgumentError(f"ids must be given: generated ones would pass 2**63 - 2 after {draft.next_id - 1}")
            if given is not None:
                draft.remove(self._replaced(self._rows, given, how))
            first_id = draft.next_id
            step = max(1, _BLOCK_BYTES // (4 * self.dim))
            for start in range(0, n, step):
                block = as_rows(source[start : start + step], self.dim, first_row=start, finite=False)
                block_ids = None if given is None else given[start : start + step]
                for part, segment, at in draft.reserve(len(block), block_ids, n - start - len(block)):
                    encode_rows(self.codec, block[part], self.metric, segment.rows, workers, start + part.start, at)
                    segment.keep_originals(block[part], at, start + part.start)
                if progress is not None:
                    progress(start + len(block))
            self._commit(draft)
        return np.arange(first_id, first_id + n, dtype=np.int64) if given is None else given

    def _replaced(self, rows: RowSet, ids: npt.NDArray[np.int64], how: str) -> npt.NDArray[np.int64]:
        """Return the rows that vectors with these ids take the place of."""
        if how == "update":
            return self._find_all(rows, ids)
        if not ids.size or ids.min() >= rows.next_id:  # none of them can be there
            return NO_IDS
        found = self._find(rows, ids)
        known = found >= 0
        if how == "add" and known.any():
            raise ArgumentError(f"ids must be new, got {ids[np.argmax(known)]}, which is in the index")
        return found[known]

    @cached_property
    def _plan(self) -> ScanPlan:
        return ScanPlan(self.codec, self.metric)

    def search(
        self,
        queries: Any,
        k: int = 10,
        threads: int | None = None,
        exact_scan: bool = False,
        filter: npt.ArrayLike | Callable[[npt.NDArray[np.int64]], npt.ArrayLike] | None = None,  # noqa: A002
        rerank: int | None = None,
    ) -> SearchResult:
        """Find the k best vectors for each query by a scan over all codes.

        Up to 8 queries are answered by reading the codes' leading bit planes first and scoring in full only the rows
        that these leave in question. Over the random rotation, the probability that any of a query's k best codes is
        lost that way is at most 1e-6.

        Parameters
        ----------
        queries : float16/32/64 of shape (nq, dim) or (dim,)
        k : int, 1 to 2**20
        threads : int, optional
            Default: every CPU that the process may use. The result does not depend on it, except by that 1e-6.
        exact_scan : bool
            Score every row in full.
        filter : array-like or callable, optional
            The ids that may be found: an array of them (those that are not in the index are ignored); or bools (n,),
            one per vector in the order of `ids`; or a callable that is given ids, int64, in blocks, and returns bools.
        rerank : int, optional
            Find so many candidates first, at least k, and give the k best of them by the exact scores of their
            original vectors (`originals`).

        Returns
        -------
        SearchResult
            Best first; equal scores by the smaller id. Where k exceeds the number of vectors, ids are -1 at the end.

        Raises
        ------
        VectorError
            Wrong width or dtype, NaN or inf, a norm above 2**60, a zero query under "cosine".
        ArgumentError
            k, threads or rerank out of range, a filter of another form, `rerank` without originals.
        """
        k = check_integer("k", k, 1, MAX_K)
        wanted = k if rerank is None else check_integer("rerank", rerank, k, MAX_K)
        workers = check_threads(threads)
        queries = as_array(queries, "queries")
        rows, held = as_rows(queries, self.dim, "queries", finite=False), self._rows
        segments = self._allowed(held, filter)
        scores, ids, self._scored = search_rows(self._plan, segments, rows, wanted, workers, exact_scan)
        if rerank is not None:
            scores, ids = rerank_candidates(rows, ids, k, self.metric, self._originals(held))
        if self.metric == "l2":
            scores *= np.float32(-2.0)
        return SearchResult(scores[0], ids[0]) if queries.ndim == 1 else SearchResult(scores, ids)

    def range_search(
        self,
        queries: Any,
        threshold: float,
        filter: npt.ArrayLike | Callable[[npt.NDArray[np.int64]], npt.ArrayLike] | None = None,  # noqa: A002
        threads: int | None = None,
    ) -> RangeResult:
        """Find all vectors whose scores are at least `threshold`; under "l2" whose distances are at most that.

        Parameters
        ----------
        queries : float16/32/64 of shape (nq, dim) or (dim,)
        threshold : float; inf and -inf are allowed
        filter, threads : as for `search`

        Returns
        -------
        RangeResult
            (lims, scores, ids) as faiss gives them; each query's best first, equal scores by the smaller id.

        Raises
        ------
        VectorError, ArgumentError
            As `search`; a threshold that is not a number.
        """
        workers, least = check_threads(threads), check_number("threshold", threshold)
        rows, held = as_rows(queries, self.dim, "queries"), self._rows
        segments = self._allowed(held, filter)
        if self.metric == "l2":
            found = search_range(self._plan, segments, rows, least_float32(-least / 2), workers)
            return found._replace(scores=found.scores * np.float32(-2.0))
        return search_range(self._plan, segments, rows, least_float32(least), workers)

    def _allowed(self, rows: RowSet, given: Any) -> list[Segment]:
        """Return the segments with the rows that a filter allows."""
        return rows.all_segments() if given is None else allowed_segments(given, rows, lambda: self._map(rows))

    def reconstruct(self, ids: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Return the vectors that the codes stand for, float32 (n, dim), or (dim,) for a single id.

        Under "cosine" these are estimates of the normalised vectors.

        Raises
        ------
        UnknownIdError
            An id is not in the index.
        """
        wanted = as_ids(ids)
        held = self._rows
        rows, segments = self._find_all(held, wanted.ravel()), held.all_segments()
        vectors = np.empty((len(rows), self.dim), np.float32)
        for i, here, own in held.split(rows):
            vectors[here] = self.codec.decode(self._codes(segments[i], own))
        return vectors[0] if wanted.ndim == 0 else vectors

    def info(self) -> dict[str, Any]:
        """Return what the index holds and what it costs, as JSON types; bytes are counted, not computed.

        "scan" says how up to 8 queries are answered, "cascade" or "full"; "rows_scored" is the share of rows that the
        latest search scored in full, 1 for a full scan (slightly more where a cascade turned into one), or None.
        """
        return describe(self.codec, self.metric, self._rows, self._plan.name, self._scored)

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the index to a directory, atomically: after a crash there is the old state or the new one.

        Saving again to the directory that the index was loaded from or last saved to writes only what is new.

        Parameters
        ----------
        path : path of the directory
        overwrite : bool
            Replace another index that is there.

        Raises
        ------
        StorageError
            Something else is in the way, or the directory was written by someone else since; no permission, disk full.
        """
        # The rooms' order puts storage after index; only this method looks ahead.
        from tqindex.storage.save import save_index

        with self._write_lock:
            save_index(self, path, overwrite)

    def _commit(self, rows: RowSet) -> None:
        """Make a draft the state that readers see; an id map that was built grows with it."""
        before = self._rows
        if self._id_map is not None and self._id_map[0] is before:
            self._id_map = rows, self._id_map[1].extended(rows.all_segments(), before.n_rows)
        self._rows = rows

    def _map(self, rows: RowSet) -> IdMap:
        """Return the id map of a state of the rows, built on first use."""
        built = self._id_map
        if built is None or built[0] is not rows:
            built = rows, IdMap.of(rows.all_segments())
            self._id_map = built
        return built[1]

    def _find(self, rows: RowSet, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the rows of ids, -1 for those that are not in the index."""
        found = self._map(rows).find(ids)
        return np.where(rows.are_live(found), found, -1)

    def _find_all(self, rows: RowSet, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the rows of ids that must be in the index."""
        found = self._find(rows, ids)
        if found.size and found.min() < 0:
            raise UnknownIdError(f"ids must be in the index, got {ids[np.argmin(found)]}")
        return found

    def _originals(self, rows: RowSet) -> Fetch:
        """Return what gives the original vectors of ids."""
        if rows.originals is None:
            if self.fetch is None:
                raise ArgumentError("rerank needs originals: tq.Index(..., originals='float16'), or a callable")
            return self.fetch

        def fetch(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
            segments, vectors = rows.all_segments(), np.empty((len(ids), self.dim), np.float32)
            for i, here, own in rows.split(self._find_all(rows, ids)):
                vectors[here] = segments[i].originals[own]
            return vectors

        return fetch

    def _codes(self, segment: Segment, rows: npt.NDArray[np.int64]) -> Codes:
        """Return rows of a segment in the codec's own packing."""
        encoded = segment.rows.read(rows)
        return Codes(
            repack_planes(encoded.planes, self.dim, self.bits),
            encoded.scales,
            encoded.sketch_scales if segment.rows.sketch_scales.size else None,
            encoded.offsets if segment.rows.offsets.size else None,
            self.metric,
        )
