"""The LlamaIndex adapter, operation by operation: LlamaIndex publishes no conformance tests for vector stores."""

import asyncio
from zlib import crc32

import fsspec
import numpy as np
import pytest
from llama_index.core import Document, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.schema import ImageNode, IndexNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from llama_index.core.vector_stores.types import VectorStoreQueryMode

from tqindex.adapters.llamaindex import TQIndexVectorStore
from tqindex.errors import ArgumentError, MissingFileError, StorageError, VectorError

DIM = 32


def vector(text):
    drawn = np.random.default_rng(crc32(text.encode())).standard_normal(DIM)
    return (drawn / np.linalg.norm(drawn)).tolist()


def node(key, text, source=None, **metadata):
    relations = {} if source is None else {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=source)}
    return TextNode(id_=key, text=text, metadata=metadata, relationships=relations, embedding=vector(text))


NODES = [
    node("a", "red apple", "book", year=1990, tags=["fruit", "red"], title="Apples"),
    node("b", "red cherry", "book", year=2000, tags=["fruit"], title="Cherries"),
    node("c", "blue sky", "paper", year=2010, tags=[]),
    node("d", "green sea", year=2020, title="Sea"),
]


@pytest.fixture
def store():
    made = TQIndexVectorStore()
    made.add(NODES)
    return made


def query(text, k=4, **options):
    return VectorStoreQuery(query_embedding=vector(text), similarity_top_k=k, **options)


def where(*conditions, condition="and"):
    filters = [
        MetadataFilter(key=key, operator=operator, value=value) if isinstance(key, str) else key
        for key, operator, value in (c if isinstance(c, tuple) else (c, None, None) for c in conditions)
    ]
    return MetadataFilters(filters=filters, condition=condition)


def test_query_finds_the_node_itself(store):
    result = store.query(query("red apple", 2))
    assert result.ids[0] == "a"
    assert result.similarities[0] == pytest.approx(1, abs=0.05)
    assert result.similarities[0] > result.similarities[1]
    found = result.nodes[0]
    assert (found.node_id, found.text, found.ref_doc_id) == ("a", "red apple", "book")
    assert found.metadata == {"year": 1990, "tags": ["fruit", "red"], "title": "Apples"}


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_similarities_fall(metric):
    store = TQIndexVectorStore(metric=metric, bits=8)
    store.add(NODES)
    result = store.query(query("red apple"))
    assert result.similarities == sorted(result.similarities, reverse=True)
    cosine = np.dot(vector("red apple"), vector(result.nodes[-1].text))
    assert result.similarities[-1] == pytest.approx(1 / (3 - 2 * cosine) if metric == "l2" else cosine, abs=0.05)


def test_an_empty_store():
    store = TQIndexVectorStore()
    assert store.add([]) == []
    assert store.client is None
    result = store.query(query("red"))
    assert (result.nodes, result.similarities, result.ids) == ([], [], [])
    assert store.get_nodes() == []
    store.delete("book")
    store.clear()


def test_adding_an_id_again_replaces(store):
    assert store.add([node("a", "grey stone")]) == ["a"]
    assert store.query(query("grey stone", 1)).nodes[0].text == "grey stone"
    assert len(store.client) == 4
    assert sorted(store.query(query("red apple")).ids) == list("abcd")


def test_delete_takes_the_nodes_of_a_document(store):
    store.delete("book")
    assert sorted(store.query(query("red apple")).ids) == ["c", "d"]
    store.delete("book")
    asyncio.run(store.adelete("paper"))
    assert store.query(query("red apple")).ids == ["d"]


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"node_ids": ["a", "z"]}, "bcd"),
        ({"node_ids": []}, "abcd"),
        ({"filters": where(("year", ">", 1995))}, "a"),
        ({"node_ids": ["a", "b"], "filters": where(("year", ">", 1995))}, "acd"),
        ({}, ""),
    ],
)
def test_delete_nodes(store, options, left):
    store.delete_nodes(**options)
    assert sorted(store.query(query("red apple")).ids) == list(left)
    assert len(store.client) == len(left)


def test_clear(store):
    store.clear()
    assert store.query(query("red apple")).ids == []
    store.add(NODES[:1])
    assert store.query(query("red apple")).ids == ["a"]


def test_get_nodes(store):
    assert [found.node_id for found in store.get_nodes()] == list("abcd")
    assert [found.text for found in store.get_nodes(["c", "a", "z"])] == ["red apple", "blue sky"]
    assert [found.node_id for found in store.get_nodes(filters=where(("title", "==", "Sea")))] == ["d"]
    assert asyncio.run(store.aget_nodes(["b"]))[0].metadata["year"] == 2000


def test_kinds_of_nodes_come_back():
    store = TQIndexVectorStore()
    store.add(
        [
            IndexNode(id_="i", text="see there", index_id="other", embedding=vector("i")),
            ImageNode(id_="p", text="a picture", image="aGVsbG8=", embedding=vector("p")),
        ]
    )
    index_node, image = store.get_nodes()
    assert isinstance(index_node, IndexNode)
    assert index_node.index_id == "other"
    assert isinstance(image, ImageNode)
    assert image.image == "aGVsbG8="


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (where(("year", "==", 2000)), "b"),
        (where(("year", "!=", 2000)), "acd"),
        (where(("year", ">", 2000)), "cd"),
        (where(("year", ">=", 2000)), "bcd"),
        (where(("year", "<", 2000)), "a"),
        (where(("year", "<=", 2000)), "ab"),
        (where(("year", "in", [1990, 2020])), "ad"),
        (where(("year", "nin", [1990, 2020])), "bc"),
        (where(("tags", "any", ["red", "blue"])), "a"),
        (where(("tags", "all", ["red", "fruit"])), "a"),
        (where(("tags", "contains", "fruit")), "ab"),
        (where(("tags", "is_empty", None)), "cd"),
        (where(("title", "text_match", "err")), "b"),
        (where(("title", "text_match_insensitive", "SEA")), "d"),
        (where(("title", "!=", "Sea")), "abc"),
        (where(("year", ">", 1995), ("title", "==", "Sea")), "d"),
        (where(("year", "<", 1995), ("title", "==", "Sea"), condition="or"), "ad"),
        (where(("year", "<", 1995), ("title", "==", "Sea"), condition="not"), "bc"),
        (where(where(("year", "<", 1995), ("year", ">", 2015), condition="or"), ("title", "==", "Sea")), "d"),
        (where(where(("year", "<", 1995), condition="not"), ("tags", "contains", "fruit")), "b"),
        (where(("absent", "==", 1)), ""),
        (where(), "abcd"),
    ],
)
def test_filters(store, filters, expected):
    assert sorted(store.query(query("red apple", filters=filters)).ids) == list(expected)
    assert len(store.query(query("red apple", 1, filters=filters)).ids) == min(1, len(expected))


def test_every_operator_and_condition_of_the_framework_is_tested():
    tried = [case[0] for case in test_filters.pytestmark[0].args[1]]
    assert {
        part.operator for filters in tried for part in filters.filters[:1] if isinstance(part, MetadataFilter)
    } == set(FilterOperator)
    assert {filters.condition for filters in tried} == set(FilterCondition)


def test_restricted_to_nodes_and_documents(store):
    assert store.query(query("red apple", node_ids=["c", "d", "z"])).ids in (["c", "d"], ["d", "c"])
    assert sorted(store.query(query("red apple", doc_ids=["book"])).ids) == ["a", "b"]
    assert store.query(query("red apple", doc_ids=["book"], node_ids=["b", "c"])).ids == ["b"]
    assert sorted(store.query(query("red apple", node_ids=[], doc_ids=[])).ids) == list("abcd")  # no restriction


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (query("red", mode=VectorStoreQueryMode.HYBRID), "mode must be default, got hybrid"),
        (VectorStoreQuery(query_str="red"), "query_embedding"),
        (query("red", 0), "k must be at least 1"),
        (query("red", filters=where(("title", ">", 3))), "title > 3 does not suit the value"),
    ],
)
def test_wrong_queries_are_refused(store, wrong, word):
    with pytest.raises(ArgumentError, match=word):
        store.query(wrong)


def test_wrong_nodes_change_nothing(store):
    with pytest.raises(ArgumentError, match="'x' twice"):
        store.add([node("x", "one"), node("x", "two")])
    with pytest.raises(ValueError, match="embedding not set"):
        store.add([node("x", "one"), TextNode(text="two")])
    with pytest.raises(VectorError, match="columns"):
        store.add([TextNode(id_="a", text="two", embedding=[1.0, 2.0])])
    assert [found.text for found in store.get_nodes(["a", "x"])] == ["red apple"]
    assert len(store.client) == 4


def test_without_text():
    store = TQIndexVectorStore(stores_text=False)
    store.add(NODES)
    result = store.query(query("red apple", 2, filters=where(("tags", "contains", "fruit"))))
    assert (result.nodes, result.ids) == (None, ["a", "b"])
    with pytest.raises(ArgumentError, match="keeps no nodes"):
        store.get_nodes()


@pytest.mark.parametrize("stores_text", [True, False])
def test_round_trip(tmp_path, stores_text):
    store = TQIndexVectorStore(metric="l2", stores_text=stores_text)
    store.add(NODES)
    store.delete_nodes(["b"])
    path = str(tmp_path / "deep" / "er" / "store")
    store.persist(path, fs=fsspec.filesystem("file"))
    loaded = TQIndexVectorStore.from_persist_path(path)
    assert loaded.stores_text is stores_text
    assert loaded.query(query("red apple")) == store.query(query("red apple"))
    assert sorted(loaded.query(query("red apple")).ids) == ["a", "c", "d"]
    loaded.add([node("e", "white snow")])
    loaded.persist(path)
    assert TQIndexVectorStore.from_persist_path(path).query(query("white snow", 1)).ids == ["e"]
    store.persist(path)  # LlamaIndex's way: the latest wins
    assert TQIndexVectorStore.from_persist_path(path).query(query("white snow")).ids.count("e") == 0


def test_other_places(tmp_path, store):
    with pytest.raises(ArgumentError, match="local file system, got MemoryFileSystem"):
        store.persist(str(tmp_path / "store"), fs=fsspec.filesystem("memory"))
    with pytest.raises(MissingFileError):
        TQIndexVectorStore.from_persist_path(tmp_path / "none")
    (tmp_path / "vectors.json").write_text("{}")
    with pytest.raises(StorageError, match="left alone"):
        store.persist(str(tmp_path / "vectors.json"))


class Letters(BaseEmbedding):
    """How often each letter occurs."""

    def _get_text_embedding(self, text):
        return [text.lower().count(chr(ord("a") + i)) + 0.01 for i in range(26)]

    def _get_query_embedding(self, text):
        return self._get_text_embedding(text)

    async def _aget_query_embedding(self, text):
        return self._get_text_embedding(text)


@pytest.mark.parametrize("stores_text", [True, False])
def test_under_a_vector_store_index(tmp_path, stores_text):
    context = StorageContext.from_defaults(vector_store=TQIndexVectorStore(stores_text=stores_text))
    documents = [Document(doc_id=word, text=word, metadata={"n": len(word)}) for word in ("zebra", "fox", "jumble")]
    index = VectorStoreIndex.from_documents(documents, storage_context=context, embed_model=Letters())
    context.persist(str(tmp_path))
    context = StorageContext.from_defaults(
        persist_dir=str(tmp_path), vector_store=TQIndexVectorStore.from_persist_dir(str(tmp_path))
    )
    index = load_index_from_storage(context, embed_model=Letters())
    retriever = index.as_retriever(similarity_top_k=1)
    assert retriever.retrieve("foxx")[0].node.get_content() == "fox"
    assert asyncio.run(retriever.aretrieve("zzebra"))[0].node.metadata == {"n": 5}
    filtered = index.as_retriever(similarity_top_k=3, filters=where(("n", ">", 3)))
    assert [found.node.get_content() for found in filtered.retrieve("fox")].count("fox") == 0
    index.delete_ref_doc("fox", delete_from_docstore=True)
    assert retriever.retrieve("fox")[0].node.get_content() != "fox"


def test_the_package_is_named_if_it_is_missing(run_python):
    code = """
import sys
sys.modules["llama_index"] = sys.modules["llama_index.core"] = None
try:
    import tqindex.adapters.llamaindex
except ImportError as error:
    print(type(error).__name__, error)
"""
    assert run_python("-c", code).strip() == (
        "MissingPackageError tqindex.adapters.llamaindex needs llama-index-core: pip install 'tqindex[llamaindex]'"
    )
