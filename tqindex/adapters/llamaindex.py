"""tqindex as a vector store of LlamaIndex."""

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from tqindex.adapters.documents import Documents
from tqindex.adapters.documents_file import Record
from tqindex.errors import ArgumentError, MissingPackageError
from tqindex.index import Index
from tqindex.index.index import Metric

try:
    from fsspec import AbstractFileSystem
    from fsspec.implementations.local import LocalFileSystem
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.schema import BaseNode
    from llama_index.core.vector_stores.simple import DEFAULT_VECTOR_STORE, NAMESPACE_SEP
    from llama_index.core.vector_stores.types import (
        DEFAULT_PERSIST_DIR,
        DEFAULT_PERSIST_FNAME,
        BasePydanticVectorStore,
        FilterCondition,
        MetadataFilter,
        MetadataFilters,
        VectorStoreQuery,
        VectorStoreQueryMode,
        VectorStoreQueryResult,
    )
    from llama_index.core.vector_stores.utils import (
        build_metadata_filter_fn,
        metadata_dict_to_node,
        node_to_metadata_dict,
    )
except ImportError as error:
    raise MissingPackageError(
        "tqindex.adapters.llamaindex needs llama-index-core: pip install 'tqindex[llamaindex]'"
    ) from error

_ADAPTER = "llamaindex"


class TQIndexVectorStore(BasePydanticVectorStore):
    """Nodes in memory, their embeddings in a tqindex index.

    Parameters
    ----------
    index : tqindex.Index, optional
        An empty one, for what `bits` and `metric` cannot say (a centre, another codec, a seed). Without it an index
        is made when the first nodes tell the dimension.
    bits : {1, 2, 3, 4, 8}
    metric : {"cosine", "ip", "l2"}
    stores_text : bool
        False keeps ids and metadata only: LlamaIndex then puts the nodes into its own document store.

    Similarities are estimated cosines or inner products, under "l2" 1 / (1 + squared distance).

    Examples
    --------
    >>> from llama_index.core.schema import TextNode
    >>> from llama_index.core.vector_stores.types import VectorStoreQuery
    >>> store = TQIndexVectorStore()
    >>> east, north = TextNode(id_="e", text="east"), TextNode(id_="n", text="north")
    >>> east.embedding, north.embedding = [1.0, 0.0], [0.0, 1.0]
    >>> store.add([east, north])
    ['e', 'n']
    >>> store.query(VectorStoreQuery(query_embedding=[0.9, 0.1], similarity_top_k=1)).nodes[0].text
    'east'
    """

    stores_text: bool = True
    _documents: Documents = PrivateAttr()

    def __init__(
        self,
        index: Index | None = None,
        *,
        bits: int = 4,
        metric: Metric = "cosine",
        stores_text: bool = True,
    ) -> None:
        super().__init__(stores_text=stores_text)
        self._documents = Documents(_ADAPTER, index, bits, metric, {"stores_text": stores_text})

    @classmethod
    def class_name(cls) -> str:
        """Name of the class for LlamaIndex."""
        return "TQIndexVectorStore"

    @property
    def client(self) -> Index | None:
        """The index, None before the first nodes; change it only through the store."""
        return self._documents.index

    def add(self, nodes: Sequence[BaseNode], **_: Any) -> list[str]:
        """Add nodes that have embeddings; one whose id is in the store replaces that node. All of them or none.

        Raises
        ------
        ArgumentError
            Two nodes of one id.
        VectorError
            Embeddings that the index refuses: another width, NaN, under "cosine" zero.
        ValueError
            A node without an embedding.
        """
        keys = [node.node_id for node in nodes]
        self._documents.put(keys, [node.get_embedding() for node in nodes], [self._record(node) for node in nodes])
        return keys

    def _record(self, node: BaseNode) -> Record:
        """Return what is stored of a node: its metadata as LlamaIndex's stores have them, the node itself in them."""
        record: Record = node_to_metadata_dict(node)
        if not self.stores_text:
            del record["_node_content"]
        return record

    def delete(self, ref_doc_id: str, **_: Any) -> None:
        """Delete the nodes of a document; one that has none is ignored."""
        with self._documents.lock:
            self._documents.remove(self._documents.matching(_predicate(doc_ids=[ref_doc_id])))

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **_: Any,
    ) -> None:
        """Delete the nodes that have one of these ids and pass the filters; without both, all nodes."""
        with self._documents.lock:
            self._documents.remove(self._documents.matching(_predicate(node_ids, filters)))

    def clear(self) -> None:
        """Delete all nodes."""
        self.delete_nodes()

    def get_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
    ) -> list[BaseNode]:
        """Return the nodes that have one of these ids and pass the filters, without embeddings, in order of adding.

        Raises
        ------
        ArgumentError
            The store was made with stores_text=False.
        """
        if not self.stores_text:
            raise ArgumentError("get_nodes needs a store with stores_text=True: this one keeps no nodes")
        with self._documents.lock:
            found = self._documents.get(self._documents.matching(_predicate(node_ids, filters)))
        return [metadata_dict_to_node(record) for _, record in found]

    def query(self, query: VectorStoreQuery, **_: Any) -> VectorStoreQueryResult:
        """Return the nodes most similar to an embedding, of those with the query's filters, node_ids and doc_ids.

        Raises
        ------
        ArgumentError
            A mode other than DEFAULT, no embedding, similarity_top_k below 1, a filter that does not suit metadata.
        VectorError
            An embedding that the index refuses.
        """
        if query.mode != VectorStoreQueryMode.DEFAULT:
            raise ArgumentError(f"mode must be default, got {query.mode.value}")
        if query.query_embedding is None:
            raise ArgumentError("query_embedding must be given: the index finds vectors, not texts")
        # An index over a store with text passes an empty list and means all nodes.
        allows = _predicate(query.node_ids or None, query.filters, query.doc_ids or None)
        hits = self._documents.search(query.query_embedding, query.similarity_top_k, allows)
        return VectorStoreQueryResult(
            nodes=[metadata_dict_to_node(hit.record) for hit in hits] if self.stores_text else None,
            similarities=[self._documents.similarity(hit.score) for hit in hits],
            ids=[hit.key for hit in hits],
        )

    def persist(
        self,
        persist_path: str = str(Path(DEFAULT_PERSIST_DIR) / DEFAULT_PERSIST_FNAME),
        fs: AbstractFileSystem | None = None,
    ) -> None:
        """Write nodes and index to `persist_path`, a folder; after a crash there is the old state or the new one.

        What another TQIndexVectorStore wrote there is replaced.

        Raises
        ------
        StorageError
            Something else is in the way; no permission, disk full.
        ArgumentError
            A file system that is not local.
        """
        _check_local(fs)
        folder = Path(persist_path)
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._documents.save(folder, overwrite=True)

    @classmethod
    def from_persist_path(
        cls, persist_path: str | os.PathLike[str], fs: AbstractFileSystem | None = None
    ) -> "TQIndexVectorStore":
        """Open what `persist` wrote.

        Raises
        ------
        MissingFileError, CorruptIndexError, FormatVersionError, StorageError
            As `tqindex.load`.
        ArgumentError
            A file system that is not local; the folder is of another adapter.
        """
        _check_local(fs)
        documents = Documents.load(persist_path, _ADAPTER)
        store = cls(stores_text=documents.settings["stores_text"])
        store._documents = documents
        return store

    @classmethod
    def from_persist_dir(
        cls,
        persist_dir: str = DEFAULT_PERSIST_DIR,
        namespace: str = DEFAULT_VECTOR_STORE,
        fs: AbstractFileSystem | None = None,
    ) -> "TQIndexVectorStore":
        """Open what `StorageContext.persist(persist_dir)` wrote; else as `from_persist_path`."""
        return cls.from_persist_path(Path(persist_dir) / f"{namespace}{NAMESPACE_SEP}{DEFAULT_PERSIST_FNAME}", fs)


def _check_local(fs: AbstractFileSystem | None) -> None:
    if fs is not None and not isinstance(fs, LocalFileSystem):
        raise ArgumentError(f"fs must be the local file system, got {type(fs).__name__}")


def _predicate(
    node_ids: Collection[str] | None = None,
    filters: MetadataFilters | None = None,
    doc_ids: Collection[str] | None = None,
) -> Callable[[str, Record], bool] | None:
    """Return what a node must be, as a function of its id and metadata; None where every node will do."""
    tests: list[Callable[[str, Record], bool]] = []
    if node_ids is not None:
        nodes = frozenset(node_ids)
        tests.append(lambda key, _: key in nodes)
    if doc_ids is not None:
        sources = frozenset(doc_ids)
        tests.append(lambda _, record: record["ref_doc_id"] in sources)
    if filters is not None and filters.filters:
        passes = _combined(filters)
        tests.append(lambda _, record: passes(record))
    return (lambda key, record: all(test(key, record) for test in tests)) if tests else None


def _combined(filters: MetadataFilters) -> Callable[[Record], bool]:
    """Return filters, which may hold others, as a function of metadata."""
    parts = [_combined(part) if isinstance(part, MetadataFilters) else _single(part) for part in filters.filters]
    if filters.condition == FilterCondition.OR:
        return lambda metadata: any(part(metadata) for part in parts)
    if filters.condition == FilterCondition.NOT:
        return lambda metadata: not any(part(metadata) for part in parts)
    return lambda metadata: all(part(metadata) for part in parts)


def _single(wanted: MetadataFilter) -> Callable[[Record], bool]:
    # LlamaIndex's own function decides; it looks metadata up by node id, for which they stand here themselves.
    matches: Any = build_metadata_filter_fn(_itself, MetadataFilters(filters=[wanted]))

    def passes(metadata: Record) -> bool:
        try:
            return bool(matches(metadata))
        except TypeError as error:
            rule = f"{wanted.key} {wanted.operator.value} {wanted.value!r}"
            raise ArgumentError(f"filter {rule} does not suit the value {metadata.get(wanted.key)!r}") from error

    return passes


def _itself(metadata: Any) -> Any:
    return metadata
