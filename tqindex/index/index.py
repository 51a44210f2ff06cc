"""The index that users hold."""

import os
from collections.abc import Callable
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from tqindex.checks import as_array, as_rows, check_choice, check_finite, check_integer
from tqindex.codec import Codec
from tqindex.codec.codec import METRICS, Kind, Scale, Sketch
from tqindex.codec.codes import Codes
from tqindex.codec.effort import Effort
from tqindex.codec.packing import repack_planes
from tqindex.errors import ArgumentError, UnknownIdError, VectorError
from tqindex.index.ids import IdMap
from tqindex.index.plan import ScanPlan
from tqindex.index.search import FEW_QUERIES, QUERY_BLOCK, search_segments
from tqindex.index.segments import RowSet, Segment
from tqindex.kernels.compile import cache_folder
from tqindex.kernels.cpu import simd_level
from tqindex.kernels.encoder import encode_rows
from tqindex.kernels.scan import NO_ID
from tqindex.kernels.threads import available_threads, check_threads

if TYPE_CHECKING:
    from tqindex.storage.manifest import Manifest

Float32Array = npt.NDArray[np.float32]
Metric = Literal["ip", "cosine", "l2"]

MAX_K = 2**20
#: The largest number stands for no id at all while a search runs.
MAX_ID = NO_ID - 1
#: Of the directories that `save` writes; from 1 on, files are read for ever.
FORMAT_VERSION = 1
_SORTED_RESULTS = 2**21
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
        self._rows = RowSet(self.codec, self.metric)
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

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, row_id: object) -> bool:
        if isinstance(row_id, bool) or not isinstance(row_id, int | np.integer):
            return False
        if not 0 <= row_id < 2**63:
            return False
        return bool(self._map(self._rows).find(np.array([row_id], np.int64))[0] >= 0)

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
        workers = check_threads(threads)
        source = _as_source(vectors, self.dim)
        n = source.shape[0]
        if not n:
            as_rows(source[:0], self.dim)  # refuses a wrong dtype, as it would for the first block
        with self._write_lock:
            given = None if ids is None else self._check_ids(ids, n)
            draft = self._rows.draft()
            if given is None and draft.next_id + n - 1 > MAX_ID:
                raise ArgumentError(f"ids must be given: generated ones would pass 2**63 - 2 after {draft.next_id - 1}")
            first_id = draft.next_id
            step = max(1, _BLOCK_BYTES // (4 * self.dim))
            for start in range(0, n, step):
                block = as_rows(source[start : start + step], self.dim, first_row=start, finite=False)
                block_ids = None if given is None else given[start : start + step]
                for part, stored, at in draft.reserve(len(block), block_ids, n - start - len(block)):
                    encode_rows(self.codec, block[part], self.metric, stored, workers, start + part.start, at)
                if progress is not None:
                    progress(start + len(block))
            self._commit(draft)
        return np.arange(first_id, first_id + n, dtype=np.int64) if given is None else given

    @cached_property
    def _plan(self) -> ScanPlan:
        return ScanPlan(self.codec, self.metric)

    def search(self, queries: Any, k: int = 10, threads: int | None = None, exact_scan: bool = False) -> SearchResult:
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

        Returns
        -------
        SearchResult
            Best first; equal scores by the smaller id. Where k exceeds the number of vectors, ids are -1 at the end.

        Raises
        ------
        VectorError
            Wrong width or dtype, NaN or inf, a norm above 2**60, a zero query under "cosine".
        ArgumentError
            k or threads out of range.
        """
        k = check_integer("k", k, 1, MAX_K)
        workers = check_threads(threads)
        queries = as_array(queries, "queries")
        rows, segments = as_rows(queries, self.dim, "queries", finite=False), self._rows.all_segments()
        if len(rows) <= FEW_QUERIES:  # the kernel that encodes them looks for what is not finite
            scores, ids, self._scored = search_segments(self._plan, segments, rows, k, workers, exact_scan)
        else:
            check_finite(rows, "queries")
            scores, ids = self._search_blocks(rows, k, workers, exact_scan)
        if self.metric == "l2":
            scores *= np.float32(-2.0)
        return SearchResult(scores[0], ids[0]) if queries.ndim == 1 else SearchResult(scores, ids)

    def _search_blocks(self, rows: Float32Array, k: int, workers: int, exact_scan: bool) -> SearchResult:
        """Find the k best for each of many queries, finite float32 (nq, dim); under "l2" scores are still scores."""
        plan, segments = self._plan, self._rows.all_segments()
        scores, ids = np.empty((len(rows), k), np.float32), np.empty((len(rows), k), np.int64)
        # Of many results per query fewer queries go together: sorting theirs cannot be interrupted.
        step = max(1, min(QUERY_BLOCK, _SORTED_RESULTS // k))
        for first in range(0, len(rows), step):
            block = slice(first, first + step)
            found = search_segments(plan, segments, rows[block], k, workers, exact_scan, first_row=first)
            scores[block], ids[block], self._scored = found
        return SearchResult(scores, ids)

    def reconstruct(self, ids: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Return the vectors that the codes stand for, float32 (n, dim), or (dim,) for a single id.

        Under "cosine" these are estimates of the normalised vectors.

        Raises
        ------
        UnknownIdError
            An id is not in the index.
        """
        wanted = _as_ids(ids)
        held = self._rows
        rows = self._map(held).find(wanted.ravel())
        if rows.size and rows.min() < 0:
            raise UnknownIdError(f"ids must be in the index, got {wanted.ravel()[np.argmin(rows)]}")
        vectors = np.empty((len(rows), self.dim), np.float32)
        first_row = 0
        for segment in held.all_segments():
            here = np.flatnonzero((rows >= first_row) & (rows < first_row + segment.n))
            vectors[here] = self.codec.decode(self._codes(segment, rows[here] - first_row))
            first_row += segment.n
        return vectors[0] if wanted.ndim == 0 else vectors

    def info(self) -> dict[str, Any]:
        """Return what the index holds and what it costs, as JSON types; bytes are counted, not computed.

        "scan" says how up to 8 queries are answered, "cascade" or "full"; "rows_scored" is the share of rows that the
        latest search scored in full, 1 for a full scan (slightly more where a cascade turned into one), or None.
        """
        segments = self._rows.all_segments()
        n = len(self)
        code_bytes = sum(segment.n * segment.rows.code_bytes for segment in segments)
        side_bytes = sum(segment.n * segment.rows.side_bytes for segment in segments)
        id_bytes = sum(segment.id_bytes for segment in segments)
        total = code_bytes + side_bytes + id_bytes
        folder = cache_folder()
        return {
            "n": n,
            "dim": self.dim,
            "metric": self.metric,
            "bits": self.bits,
            "codec": self.codec.kind,
            "sketch": self.codec.sketch if self.codec.kind == "prod" else None,
            "scale": self.codec.scale,
            "centered": self.codec.center is not None,
            "rotation": self.codec.rotation,
            "seed": self.codec.seed,
            "effort": self.codec.effort,
            "code_bytes": code_bytes,
            "side_bytes": side_bytes,
            "id_bytes": id_bytes,
            "total_bytes": total,
            "bytes_per_vector": total / n if n else None,
            "float32_bytes_per_vector": 4 * self.dim,
            "segments": len(segments),
            "format_version": FORMAT_VERSION,
            "scan": self._plan.name,
            "rows_scored": self._scored,
            "simd": simd_level(),
            "threads": available_threads(),
            "kernel_cache": None if folder is None else str(folder),
        }

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

    def _check_ids(self, ids: npt.ArrayLike, n: int) -> npt.NDArray[np.int64]:
        """Return ids as int64 (n,) if they may be added."""
        checked = np.atleast_1d(_as_ids(ids)).copy()
        if checked.shape != (n,):
            raise ArgumentError(f"ids must have one id per vector, shape ({n},), got {checked.shape}")
        if not n:
            return checked
        if checked.min() < 0 or checked.max() > MAX_ID:
            wrong = checked.min() if checked.min() < 0 else checked.max()
            raise ArgumentError(f"ids must be from 0 to 2**63 - 2, got {wrong}")
        ordered = np.sort(checked)
        repeated = ordered[1:][ordered[1:] == ordered[:-1]]
        if repeated.size:
            raise ArgumentError(f"ids must be distinct, got {repeated[0]} twice")
        if ordered[0] < self._rows.next_id:  # else none of them can be there
            known = self._map(self._rows).find(checked) >= 0
            if known.any():
                raise ArgumentError(f"ids must be new, got {checked[np.argmax(known)]}, which is in the index")
        return checked

    def _commit(self, rows: RowSet) -> None:
        """Make a draft the state that readers see; an id map that was built grows with it."""
        before = self._rows
        if self._id_map is not None and self._id_map[0] is before:
            self._id_map = rows, self._id_map[1].extended(rows.all_segments(), len(before))
        self._rows = rows

    def _map(self, rows: RowSet) -> IdMap:
        """Return the id map of a state of the rows, built on first use."""
        built = self._id_map
        if built is None or built[0] is not rows:
            built = rows, IdMap.of(rows.all_segments())
            self._id_map = built
        return built[1]

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


def _as_source(vectors: Any, dim: int) -> Any:
    """Return something of shape (n, dim) that gives rows by slices."""
    if not (hasattr(vectors, "shape") and hasattr(vectors, "__getitem__") and len(vectors.shape) == 2):
        return as_rows(vectors, dim)
    if vectors.shape[1] != dim:
        raise VectorError(f"vectors must have {dim} columns (n, {dim}), got shape {tuple(vectors.shape)}")
    return vectors


def _as_ids(ids: npt.ArrayLike) -> npt.NDArray[np.int64]:
    array = np.asarray(ids)
    if array.size == 0 and array.dtype.kind == "f":
        array = array.astype(np.int64)  # an empty list has no integer type of its own
    if array.dtype.kind not in "iu" or array.ndim > 1:
        raise ArgumentError(f"ids must be a one-dimensional array of integers, got {array.dtype}, shape {array.shape}")
    if array.dtype == np.uint64 and array.size and array.max() > 2**63 - 1:
        raise ArgumentError(f"ids must fit int64, got {array.max()}")
    return array.astype(np.int64)
