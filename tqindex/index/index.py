"""The index that users hold."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from tqindex.checks import check_choice
from tqindex.codec import Codec
from tqindex.codec.codec import KINDS, METRICS, Kind, Scale, Sketch
from tqindex.codec.effort import Effort
from tqindex.errors import ArgumentError
from tqindex.index.arguments import MAX_ID, as_ids, distinct_ids
from tqindex.index.compact import compacted, merged
from tqindex.index.decode import decode_rows
from tqindex.index.describe import describe
from tqindex.index.engine import open_engine
from tqindex.index.rerank import Fetch
from tqindex.index.searching import Searching
from tqindex.index.segments import NO_IDS, RowSet

if TYPE_CHECKING:
    from tqindex.storage.manifest import Manifest

Metric = Literal["ip", "cosine", "l2"]

ORIGINALS = ("float16", "float32")


class Index(Searching):
    """A vector index that needs no training: vectors are encoded one by one and searched exhaustively.

    Parameters
    ----------
    dim : int, 2 to 65,536
    bits : {1, 2, 3, 4, 8}; {2, 3, 4} for codecs "prod" and "trellis"
    metric : {"cosine", "ip", "l2"}
    codec : {"mse", "prod", "trellis"} or a Codec
        With a Codec, `dim` and `metric` still count and the other codec parameters must be left alone.
    sketch, scale, center, rotation, seed, effort :
        As for `tqindex.Codec`. Under "cosine" the centre is subtracted after normalisation.
    originals : {"float16", "float32"}, a callable, or None
        Keep the vectors as they came too, for `search(rerank=)`; or fetch them there by a callable, which is given
        ids, int64 (n,), and returns floats (n, dim). A callable is not saved.
    device : {"cpu", "gpu"} or "gpu:N"
        Where vectors are encoded and searched; the codes are the same. See `to`. It is not saved.

    Raises
    ------
    ArgumentError
        A parameter breaks its rule.
    DeviceError
        The GPU cannot be used; the message says why, and what to do.

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
        device: str = "cpu",
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
            check_choice("codec", codec, KINDS)
            self.codec = Codec(dim, bits, codec, sketch, scale, center, rotation, seed, effort)
        kept = None if originals is None or callable(originals) else check_choice("originals", originals, ORIGINALS)
        rows = RowSet(self.codec, self.metric, originals=kept)
        super().__init__(rows, open_engine(device, self.codec), originals if callable(originals) else None)
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
    def device(self) -> str:
        """Where vectors are encoded and searched: "cpu", or as "gpu:0"."""
        return self._engine.device

    def to(self, device: str) -> "Index":
        """Move this index to a device, and return it: no copy is made, and a name for it that was there still holds.

        On a GPU the codes are in its memory from the first search on, as many as fit; the others are sent through it by
        every search. Host memory keeps all of them, so that moving back costs nothing, and saving, loading, removing
        and compacting are what they are on the CPU. Codes of effort "search" and kind "trellis" are searched there, but
        vectors cannot be added. Searches that run meanwhile end on the device they began on.

        Parameters
        ----------
        device : {"cpu", "gpu"} or "gpu:N"

        Raises
        ------
        ArgumentError
            Another name; on a GPU a dim above 8,192.
        DeviceError
            The GPU cannot be used; the index stays where it was.
        """
        engine = open_engine(device, self.codec)
        with self._write_lock:
            if engine.device != self.device:
                self._engine = engine
        return self

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
            dataset, which is read in blocks. On a GPU, arrays in its memory (CuPy, torch and others) are read where
            they are.
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
        DeviceError
            The GPU failed, or is out of memory.
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

    def compact(self) -> None:
        """Drop what removed vectors left behind, and join small segments to full ones, in memory.

        Ids, their order and every score stay as they are, and removed ids are not generated again. Segments that are
        full and have lost nothing are not rewritten. Takes memory for what is rewritten until no search reads the old.
        """
        with self._write_lock:
            self._commit(compacted(self._rows), moved=True)

    def merge(self, other: "Index") -> None:
        """Append all vectors of another index by their codes, with their ids; whole or not at all.

        Parameters
        ----------
        other : Index of an equal codec (centre and seed included) and metric; it stays as it is

        Raises
        ------
        ArgumentError
            Metric, codec or what is kept of the originals differ, or both indexes have an id.
        """
        if not isinstance(other, Index):
            raise ArgumentError(f"other must be an Index, got {type(other).__name__}")
        with self._write_lock:
            self._commit(merged(self._rows, other._rows, lambda ids: self._find(self._rows, ids)))

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
        vectors = decode_rows(held, self._find_all(held, wanted.ravel()))
        return vectors[0] if wanted.ndim == 0 else vectors

    def info(self) -> dict[str, Any]:
        """Return what the index holds and what it costs, as JSON types; bytes are counted, not computed.

        "scan" says how up to 8 queries are answered, "cascade" or "full"; "rows_scored" is the share of rows that the
        latest search scored in full, 1 for a full scan (slightly more where a cascade turned into one), or None.
        "device" is where vectors are encoded and searched, "on_cpu" what the CPU does all the same.
        """
        return describe(self.codec, self.metric, self._rows, self._plan.name, self._scored, self._engine)

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
        # The rooms' order puts storage after index; only this method and the next two look ahead.
        from tqindex.storage.save import save_index

        with self._write_lock:
            save_index(self, path, overwrite)

    def to_bytes(self) -> bytes:
        """Return the index as bytes that `from_bytes` takes, checksums included; pickle and copy work by them.

        The copy belongs to no directory: to save it over the original's, pass `overwrite=True`.
        """
        from tqindex.storage.portable import rows_to_bytes

        with self._write_lock:
            return rows_to_bytes(self._rows)

    @staticmethod
    def from_bytes(data: bytes | bytearray | memoryview) -> "Index":
        """Return the index that `to_bytes` was asked for; every checksum is compared.

        Raises
        ------
        ArgumentError, CorruptIndexError, FormatVersionError
            Not bytes; truncated, altered, or of another kind; written by a newer version.
        """
        from tqindex.storage.portable import index_from_bytes

        return index_from_bytes(data)

    def __reduce__(self) -> tuple[Any, ...]:
        made = Index.from_bytes, (self.to_bytes(),)
        return made if self.fetch is None else (*made, {"fetch": self.fetch})
