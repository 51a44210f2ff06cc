"""tqindex as a vector store of LangChain."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from uuid import uuid4

import numpy as np

from tqindex.adapters.documents import Documents, Hit
from tqindex.adapters.documents_file import Record
from tqindex.checks import check_integer
from tqindex.errors import ArgumentError, MissingPackageError
from tqindex.index import Index
from tqindex.index.index import Metric

try:
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.vectorstores import VectorStore
    from langchain_core.vectorstores.utils import maximal_marginal_relevance
except ImportError as error:
    raise MissingPackageError(
        "tqindex.adapters.langchain needs langchain-core: pip install 'tqindex[langchain]'"
    ) from error

#: What a search may be restricted to: metadata that must be equal, or a function that says yes or no.
Filter = dict[str, Any] | Callable[[Document], bool]

_ADAPTER = "langchain"


class TQIndexVectorStore(VectorStore):
    """Documents in memory, their vectors in a tqindex index.

    Parameters
    ----------
    embedding : Embeddings
    index : tqindex.Index, optional
        An empty one, for what `bits` and `metric` cannot say (a centre, another codec, a seed). Without it an index
        is made when the first texts tell the dimension.
    bits : {1, 2, 3, 4, 8}
    metric : {"cosine", "ip", "l2"}
    relevance_score_fn : callable, optional
        From a score to a relevance in [0, 1]. Default: (1 + score) / 2 for "cosine" and "ip", which for "ip" supposes
        embeddings of length 1; 1 / (1 + score) for "l2", whose scores are squared distances.

    Metadata must be what JSON can hold, and comes back as JSON gives it: tuples as lists.

    Examples
    --------
    >>> from langchain_core.embeddings import DeterministicFakeEmbedding
    >>> store = TQIndexVectorStore(DeterministicFakeEmbedding(size=64))
    >>> store.add_texts(["first", "second"], [{"page": 1}, {"page": 2}], ids=["a", "b"])
    ['a', 'b']
    >>> [document.id for document in store.similarity_search("second", k=1)]
    ['b']
    >>> [document.id for document in store.similarity_search("second", k=1, filter={"page": 1})]
    ['a']
    """

    def __init__(
        self,
        embedding: Embeddings,
        index: Index | None = None,
        *,
        bits: int = 4,
        metric: Metric = "cosine",
        relevance_score_fn: Callable[[float], float] | None = None,
    ) -> None:
        self._embedding = embedding
        self._documents = Documents(_ADAPTER, index, bits, metric)
        self._relevance = relevance_score_fn

    @property
    def embeddings(self) -> Embeddings:
        """What turns texts into vectors."""
        return self._embedding

    @property
    def index(self) -> Index | None:
        """The index, None before the first texts; change it only through the store."""
        return self._documents.index

    def __len__(self) -> int:
        return len(self._documents)

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,  # noqa: ARG002 (LangChain's `index` passes it)
        **kwargs: Any,
    ) -> list[str]:
        """Embed and add texts; one whose id is in the store replaces that document. All of them or none.

        Parameters
        ----------
        texts : iterable of str
        metadatas : list of dict, one per text, optional
        ids : strings, distinct, one per text, optional; None among them are generated
        batch_size : ignored; embeddings have batches of their own

        Returns
        -------
        The ids.

        Raises
        ------
        ArgumentError
            Ids that come twice or are not strings; metadata that JSON cannot hold; lists of other lengths.
        VectorError
            Embeddings that the index refuses: another width, NaN, under "cosine" zero.
        """
        _refuse(kwargs)
        contents = list(texts)
        fields = _one_each("metadatas", metadatas, len(contents))
        keys = [str(uuid4()) if key is None else key for key in _one_each("ids", ids, len(contents))]
        records = [{"text": text, "metadata": metadata or {}} for text, metadata in zip(contents, fields, strict=True)]
        self._documents.put(keys, self._embedding.embed_documents(contents) if contents else [], records)
        return keys

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Delete documents, without ids all of them; ids that are not in the store are ignored."""
        _refuse(kwargs)
        self._documents.remove(self._documents.matching() if ids is None else ids)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents with these ids that are in the store, in the order of the ids."""
        return [_document(key, record) for key, record in self._documents.get(ids)]

    def similarity_search(
        self,
        query: str,
        k: int = 4,
        filter: Filter | None = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[Document]:
        """Return the k documents most similar to a text, best first.

        Parameters
        ----------
        query : str
        k : int, at least 1
        filter : dict or callable, optional
            Metadata that documents must have, each value equal; or a function of a Document that says whether it may
            be found.
        """
        return [document for document, _ in self.similarity_search_with_score(query, k, filter, **kwargs)]

    def similarity_search_with_score(
        self,
        query: str,
        k: int = 4,
        filter: Filter | None = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[tuple[Document, float]]:
        """As `similarity_search`, with scores: larger is better, under "l2" squared distances, smaller is better."""
        return self.similarity_search_with_score_by_vector(self._embedding.embed_query(query), k, filter, **kwargs)

    def similarity_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        filter: Filter | None = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[Document]:
        """As `similarity_search`, for a vector."""
        return [document for document, _ in self.similarity_search_with_score_by_vector(embedding, k, filter, **kwargs)]

    def similarity_search_with_score_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        filter: Filter | None = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[tuple[Document, float]]:
        """As `similarity_search_with_score`, for a vector."""
        _refuse(kwargs)
        return [(_document(hit.key, hit.record), hit.score) for hit in self._hits(embedding, k, filter)]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[Document]:
        """Return k documents that are similar to a text and unlike each other.

        They are chosen from the fetch_k most similar by cosines of reconstructed vectors: the index does not keep the
        embeddings, so these cosines are estimates.

        Parameters
        ----------
        query : str
        k, fetch_k : int, at least 1
        lambda_mult : float, 0 (most unlike each other) to 1 (most similar)
        filter : as for `similarity_search`
        """
        vector = self._embedding.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(vector, k, fetch_k, lambda_mult, filter, **kwargs)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[Document]:
        """As `max_marginal_relevance_search`, for a vector."""
        _refuse(kwargs)
        check_integer("k", k, 1)
        with self._documents.lock:  # or a hit might be deleted before its vector is read
            hits = self._hits(embedding, max(k, fetch_k), filter)
            vectors = self._documents.vectors(hit.key for hit in hits)
        chosen = maximal_marginal_relevance(np.asarray(embedding, np.float32), vectors.tolist(), lambda_mult, k)
        return [_document(hits[i].key, hits[i].record) for i in chosen]

    def _hits(self, embedding: Any, k: int, wanted: Filter | None) -> list[Hit]:
        return self._documents.search(embedding, k, None if wanted is None else _predicate(wanted))

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        if self._relevance is not None:
            return self._relevance
        if self._documents.metric == "l2":
            return self._documents.similarity
        return lambda score: min(max((1.0 + score) / 2.0, 0.0), 1.0)  # estimates may pass 1 a little

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> "TQIndexVectorStore":
        """Make a store and add texts; other keywords are those of the class."""
        store = cls(embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    def save(self, folder: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write documents and index to a folder, the embedding not; after a crash there is the old state or the new.

        Parameters
        ----------
        folder : path; its parent must exist
        overwrite : bool
            Replace what another store wrote there, or wrote since this one was loaded or saved.

        Raises
        ------
        StorageError, MissingFileError
            Something else is in the way, disk full; no such parent folder.
        """
        self._documents.save(folder, overwrite)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        embedding: Embeddings,
        *,
        relevance_score_fn: Callable[[float], float] | None = None,
        mmap: bool = True,
    ) -> "TQIndexVectorStore":
        """Open what `save` wrote; `mmap` as for `tqindex.load`.

        Raises
        ------
        MissingFileError, CorruptIndexError, FormatVersionError, StorageError
            As `tqindex.load`.
        ArgumentError
            The folder is of another adapter.
        """
        store = cls(embedding, relevance_score_fn=relevance_score_fn)
        store._documents = Documents.load(folder, _ADAPTER, mmap)
        return store


def _document(key: str, record: Record) -> Document:
    return Document(page_content=record["text"], metadata=record["metadata"], id=key)


def _predicate(wanted: Filter) -> Callable[[str, Record], object]:
    """Return a filter as a function of an id and what is stored of a document."""
    if callable(wanted):
        return lambda key, record: wanted(_document(key, record))
    if not isinstance(wanted, dict):
        raise ArgumentError(f"filter must be a dict of metadata or a function of a Document, got {wanted!r}")
    missing = object()
    return lambda _, record: all(record["metadata"].get(name, missing) == value for name, value in wanted.items())


def _one_each(name: str, values: Sequence[Any] | None, n: int) -> list[Any]:
    """Return one value per text; None for each where there are none at all."""
    if values is None:
        return [None] * n
    if len(values) != n:
        raise ArgumentError(f"{name} must be one per text, {n}, got {len(values)}")
    return list(values)


def _refuse(unknown: dict[str, Any]) -> None:
    """Refuse keywords that LangChain's signatures let through and nothing here uses, such as misspelt ones."""
    if unknown:
        raise ArgumentError(f"{sorted(unknown)[0]} is not an argument of this method")
