"""Documents whose ids are strings, and the index of their vectors: what the adapters share.

A document is a JSON object, which an adapter makes its framework's documents of. In the index it is a row with a
generated id, here called its row. A row never gets another vector: a document that is replaced takes a new one.

`save` writes a folder:

    documents.jsonl    the documents and their rows, see `documents_file`
    index-xxxxxxxx/    the index, of the name that documents.jsonl gives

Each of the two is replaced atomically by itself; so that they fit each other after a crash between the two, the new
documents are first written as documents.next.jsonl, then the index is saved, then the file is renamed. Since rows
are never used again, the index holds every row of documents.next.jsonl only if its save came through (or nothing
was to be added). `load` then takes that file, otherwise documents.jsonl, and leaves out rows that no document has.
A folder that another store wrote, or that changed since, gets an index of a new name: rows of two histories never
meet in one.
"""

import copy
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tqindex.adapters.documents_file import Header, Line, Record, documents_bytes, read_documents, read_header
from tqindex.checks import as_array, check_integer
from tqindex.errors import ArgumentError, CorruptIndexError, MissingFileError, StorageError, VectorError
from tqindex.index import Index
from tqindex.index.index import Metric
from tqindex.storage import load as load_index
from tqindex.storage.files import check_parent, storage_errors, sync_folder, write_file

DOCUMENTS = "documents.jsonl"
#: Documents whose index is being saved.
NEXT = "documents.next.jsonl"
_INDEX_NAME = re.compile(r"index-[0-9a-f]{8}")


class Hit(NamedTuple):
    """A document that a search found."""

    key: str
    record: Record
    score: float


class Documents:
    """Documents by their ids, called keys here, and the index of their vectors. Threads may share it.

    Parameters
    ----------
    adapter : str
        Whose documents these are; `load` refuses those of another adapter.
    index : Index, optional
        An empty one, for what `bits` and `metric` cannot say. Without it an index is made for the first vectors.
    bits, metric :
        As for `tqindex.Index`.
    settings : dict, optional
        What the adapter wants to find again after `load`; JSON.

    Attributes
    ----------
    index : Index or None while there were no vectors
    lock : held by every method; hold it to have several see one state
    """

    def __init__(
        self,
        adapter: str,
        index: Index | None = None,
        bits: int = 4,
        metric: Metric = "cosine",
        settings: Record | None = None,
    ) -> None:
        if index is None:
            Index(2, bits, metric)  # refuses wrong ones now, not when the first vectors come
        elif len(index):
            raise ArgumentError(f"index must be empty, got {len(index)} vectors, which have no documents")
        self.adapter, self.settings = adapter, settings or {}
        self.index = index
        self.bits, self.metric = (bits, metric) if index is None else (index.bits, index.metric)
        self._rows: dict[str, int] = {}
        self._lines: dict[int, Line] = {}  # by row, in the order of adding
        self.lock = RLock()
        self._home: tuple[str, Header] | None = None  # the folder loaded from or last saved to, and its state then

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, keys: Sequence[str], vectors: Any, records: Sequence[Record]) -> None:
        """Add documents, or replace those whose keys are there; the whole call takes effect or nothing does.

        Raises
        ------
        VectorError
            Vectors that the index refuses, or another number of them.
        ArgumentError
            Keys that are not strings or come twice; a document that JSON cannot hold.
        """
        _check_keys(keys)
        plain = [_as_json(key, record) for key, record in zip(keys, records, strict=True)]
        if not keys:
            return
        matrix = _as_matrix(vectors, len(keys))
        with self.lock:
            index = self.index if self.index is not None else Index(matrix.shape[1], self.bits, self.metric)
            rows = index.add(matrix)
            self.index = index
            self._take_out([key for key in keys if key in self._rows])
            for row, key, record in zip(rows.tolist(), keys, plain, strict=True):
                self._rows[key] = row
                self._lines[row] = Line(row, key, record)

    def remove(self, keys: Iterable[str]) -> None:
        """Take documents out; keys that are not there are ignored."""
        with self.lock:
            self._take_out({key for key in keys if key in self._rows})

    def _take_out(self, keys: Collection[str]) -> None:
        if not keys or self.index is None:
            return
        rows = [self._rows.pop(key) for key in keys]
        for row in rows:
            del self._lines[row]
        self.index.remove(np.array(rows, np.int64))

    def get(self, keys: Iterable[str]) -> list[tuple[str, Record]]:
        """Return the documents with these keys that are there, in the order of the keys."""
        with self.lock:
            return [(key, copy.deepcopy(self._lines[self._rows[key]].record)) for key in keys if key in self._rows]

    def matching(self, allows: Callable[[str, Record], object] | None = None) -> list[str]:
        """Return the keys of all documents, or of those that `allows` says true of, in the order of adding."""
        with self.lock:
            return [line.key for line in self._lines.values() if allows is None or allows(line.key, line.record)]

    def search(self, vector: Any, k: int, allows: Callable[[str, Record], object] | None = None) -> list[Hit]:
        """Return the k best documents for a query, best first; with `allows`, of those that it says true of.

        Scores are those of `Index.search`: distances under "l2".
        """
        k = check_integer("k", k, 1)
        with self.lock:
            if self.index is None or not self._rows:
                return []
            chosen = None if allows is None else [self._rows[key] for key in self.matching(allows)]
            rows = None if chosen is None else np.array(chosen, np.int64)
            found = self.index.search(_as_matrix([vector], 1)[0], min(k, len(self._rows)), filter=rows)
            hits = zip(found.ids.tolist(), found.scores.tolist(), strict=True)
            lines = [(self._lines[row], score) for row, score in hits if row in self._lines]
            return [Hit(line.key, copy.deepcopy(line.record), score) for line, score in lines]

    def vectors(self, keys: Iterable[str]) -> npt.NDArray[np.float32]:
        """Return what the codes of documents that are there stand for, float32 (n, dim)."""
        with self.lock:
            rows = np.array([self._rows[key] for key in keys], np.int64)
            return np.empty((0, 0), np.float32) if self.index is None else self.index.reconstruct(rows)

    def similarity(self, score: float) -> float:
        """Return a score as one of which larger is better: under "l2" 1 / (1 + squared distance)."""
        return 1.0 / (1.0 + max(score, 0.0)) if self.metric == "l2" else score

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write documents and index to a folder; after a crash there is the old state or the new one.

        Parameters
        ----------
        path : path of the folder; its parent must exist
        overwrite : bool
            Replace what another store wrote there, or wrote since this one was loaded or saved.

        Raises
        ------
        StorageError
            Something else is in the way; no permission, disk full.
        MissingFileError
            The parent folder does not exist.
        """
        folder = Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would follow a link that is to stay)
        with self.lock, storage_errors(folder, "written"):
            _check_target(folder)
            found = self._replaceable(folder, overwrite)
            header = self._next_header(found)
            self._write(folder, header)
            self._home = str(folder), header

    def _replaceable(self, folder: Path, overwrite: bool) -> Header | None:
        """Return the state in a folder if this store goes on from it; refuse another one unless told otherwise."""
        known = self._home[1] if self._home is not None and self._home[0] == str(folder) else None
        try:
            found = _settle(folder)
        except CorruptIndexError:
            if not overwrite:
                raise
            return None
        if found is None or found == known:
            return found
        if not overwrite:
            reason = "exists" if known is None else "was changed since it was loaded or saved"
            raise StorageError(f"{folder} {reason}: pass overwrite=True to replace it")
        return None

    def _next_header(self, before: Header | None) -> Header:
        name = before.index if before is not None else ""
        if self.index is not None and not name:
            name = f"index-{secrets.token_hex(4)}"
        return Header(self.adapter, self.settings, self.bits, self.metric, name, secrets.token_hex(16), len(self))

    def _write(self, folder: Path, header: Header) -> None:
        folder.mkdir(exist_ok=True)
        write_file(folder / NEXT, documents_bytes(header, self._lines.values()))
        sync_folder(folder)
        if self.index is not None:
            self.index.save(folder / header.index, overwrite=True)
        (folder / NEXT).replace(folder / DOCUMENTS)
        sync_folder(folder)
        _remove_all_but(folder, {DOCUMENTS, header.index})

    @classmethod
    def load(cls, path: str | os.PathLike[str], adapter: str, mmap: bool = True) -> "Documents":
        """Open what `save` wrote; `mmap` as for `tqindex.load`.

        Raises
        ------
        MissingFileError, CorruptIndexError, FormatVersionError, StorageError
            As `tqindex.load`.
        ArgumentError
            Another adapter wrote it.
        """
        folder = Path(os.path.abspath(path))  # noqa: PTH100 (as in save)
        with storage_errors(folder, "read"):
            if not folder.exists():
                raise MissingFileError(f"{folder} does not exist")
            # Twice: a save may come between the looks.
            opened = next(filter(None, (_open(folder / name, mmap) for name in (NEXT, DOCUMENTS) * 2)), None)
        if opened is None:
            raise CorruptIndexError(f"{folder} holds no documents and index that belong together")
        header, lines, index = opened
        if header.adapter != adapter:
            raise ArgumentError(f"{folder} must hold documents of {adapter}, got those of {header.adapter}")
        documents = cls(adapter, None, header.bits, header.metric, header.settings)
        documents.index = index
        documents._lines = {line.row: line for line in lines}
        documents._rows = {line.key: line.row for line in lines}
        documents._home = str(folder), header
        return documents


def _open(path: Path, mmap: bool) -> tuple[Header, list[Line], Index | None] | None:
    """Open documents and their index; None if there are none, or the index lacks rows of theirs."""
    try:
        header, lines = read_documents(path)
    except FileNotFoundError:
        return None
    if not header.index:
        return None if lines else (header, lines, None)
    if not _INDEX_NAME.fullmatch(header.index):
        raise CorruptIndexError(f"{path} has a field that cannot be used: index {header.index!r}")
    try:
        index = load_index(path.parent / header.index, mmap)
    except MissingFileError:
        return None
    rows, held = np.array([line.row for line in lines], np.int64), index.ids
    if not np.isin(rows, held).all():
        return None
    surplus = np.setdiff1d(held, rows)
    if surplus.size:
        index.remove(surplus)
    return header, lines, index


def _check_target(folder: Path) -> None:
    """Refuse a place without a parent, and a folder of other things."""
    check_parent(folder)
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir() or not all(_is_ours(entry.name) for entry in folder.iterdir()):
        raise StorageError(f"{folder} exists and is not a store of tqindex documents: it is left alone")


def _settle(folder: Path) -> Header | None:
    """Return the state that `load` would find, with its documents under their final name; None where there is none."""
    opened = _open(folder / NEXT, mmap=True)
    if opened is not None:
        (folder / NEXT).replace(folder / DOCUMENTS)
        sync_folder(folder)
        return opened[0]
    return read_header(folder / DOCUMENTS) if (folder / DOCUMENTS).exists() else None


def _remove_all_but(folder: Path, kept: Collection[str]) -> None:
    """Remove what older states and killed saves left in a folder of ours; what stays does no harm."""
    for path in folder.iterdir():
        if path.name in kept or not _is_ours(path.name):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def _is_ours(name: str) -> bool:
    ours = name in (DOCUMENTS, NEXT) or _INDEX_NAME.fullmatch(name)
    return bool(ours) or re.fullmatch(r"\..*\.[0-9a-f]{8}\.(tmp|partial)", name) is not None


def _check_keys(keys: Sequence[str]) -> None:
    seen: set[str] = set()
    for key in keys:
        if not isinstance(key, str):
            raise ArgumentError(f"ids must be strings, got {key!r}")
        if key in seen:
            raise ArgumentError(f"ids must be distinct, got {key!r} twice")
        seen.add(key)


def _as_json(key: str, record: Record) -> Record:
    """Return a copy of a document as it would be after save and load, so that neither changes anything later."""
    try:
        plain: Record = json.loads(json.dumps(record))
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(f"document {key!r} must have metadata that JSON can hold: {error}") from error
    return plain


def _as_matrix(vectors: Any, n: int) -> npt.NDArray[Any]:
    """Return embeddings as an array (n, dim); frameworks pass lists, sometimes of whole numbers."""
    matrix = as_array(vectors, "embeddings")
    if matrix.ndim != 2 or len(matrix) != n:
        raise VectorError(f"embeddings must be {n} vectors of one width, got shape {matrix.shape}")
    return matrix.astype(np.float64) if matrix.dtype.kind in "iu" else matrix
