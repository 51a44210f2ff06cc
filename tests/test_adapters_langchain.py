"""The LangChain adapter: LangChain's own conformance tests, and what they leave out."""

import asyncio
import sys
from zlib import crc32

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_tests.integration_tests import VectorStoreIntegrationTests

import tqindex as tq
from tqindex.adapters.langchain import TQIndexVectorStore
from tqindex.errors import ArgumentError, MissingFileError, StorageError, VectorError

DIM = 32


class TestConformance(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self):
        return TQIndexVectorStore(self.get_embeddings())


class TestConformanceL2(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self):
        return TQIndexVectorStore(self.get_embeddings(), bits=8, metric="l2")


class Words(Embeddings):
    """The sum of a random unit vector per word, of length 1."""

    def embed_query(self, text):
        words = [np.random.default_rng(crc32(word.encode())).standard_normal(DIM) for word in text.split()]
        total = np.sum([word / np.linalg.norm(word) for word in words], axis=0)
        return (total / np.linalg.norm(total)).tolist()

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]


TEXTS = ["red apple", "red cherry", "green apple", "blue sky"]
METADATAS = [{"fruit": True, "n": 1}, {"fruit": True, "n": 2}, {"fruit": True, "n": 3}, {"fruit": False, "n": 4}]


def make(**options):
    return TQIndexVectorStore.from_texts(TEXTS, Words(), METADATAS, ids=list("abcd"), **options)


def keys(documents):
    return [document.id for document in documents]


def cosine(query, text):
    return float(np.dot(Words().embed_query(query), Words().embed_query(text)))


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_scores_are_those_of_the_metric(metric):
    found = make(metric=metric, bits=8).similarity_search_with_score("red apple", k=4)
    assert found[0][0] == Document(id="a", page_content="red apple", metadata={"fruit": True, "n": 1})
    for document, score in found:
        true = cosine("red apple", document.page_content)
        assert score == pytest.approx(2 - 2 * true if metric == "l2" else true, abs=0.05)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_relevance_is_from_0_to_1_and_falls(metric):
    found = make(metric=metric).similarity_search_with_relevance_scores("red apple", k=4)
    relevances = [relevance for _, relevance in found]
    assert relevances == sorted(relevances, reverse=True)
    assert relevances[0] == pytest.approx(1, abs=0.05)
    assert all(0 <= relevance <= 1 for relevance in relevances)
    true = cosine("red apple", found[-1][0].page_content)
    assert relevances[-1] == pytest.approx(1 / (3 - 2 * true) if metric == "l2" else (1 + true) / 2, abs=0.05)


def test_an_own_relevance_function():
    store = make(relevance_score_fn=lambda score: 0.25)
    assert [relevance for _, relevance in store.similarity_search_with_relevance_scores("sky", k=2)] == [0.25, 0.25]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"fruit": True}, "abc"),
        ({"fruit": True, "n": 2}, "b"),
        ({"fruit": None}, ""),
        ({"absent": None}, ""),
        ({}, "abcd"),
        (lambda document: document.metadata["n"] > 2, "cd"),
        (lambda document: "red" in document.page_content and document.id != "a", "b"),
        (lambda document: False, ""),
    ],
)
def test_filters(wanted, expected):
    store = make()
    assert sorted(keys(store.similarity_search("red apple", k=4, filter=wanted))) == list(expected)
    assert keys(store.similarity_search("red apple", k=1, filter=wanted)) == list(expected[:1])
    assert len(store.max_marginal_relevance_search("red apple", k=4, filter=wanted)) == len(expected)


def test_marginal_relevance_prefers_what_is_different():
    store = TQIndexVectorStore.from_texts(["red apple", "red apple pie", "red sky"], Words(), ids=list("abc"))
    assert keys(store.similarity_search("red apple", k=2)) == ["a", "b"]
    assert keys(store.max_marginal_relevance_search("red apple", k=2, lambda_mult=0.1)) == ["a", "c"]
    assert keys(store.max_marginal_relevance_search("red apple", k=2, lambda_mult=1.0)) == ["a", "b"]
    assert keys(store.max_marginal_relevance_search("red apple", k=2, fetch_k=1, lambda_mult=1.0)) == ["a", "b"]
    assert TQIndexVectorStore(Words()).max_marginal_relevance_search("red") == []


def test_search_by_vector():
    store = make()
    assert keys(store.similarity_search_by_vector(Words().embed_query("blue sky"), k=1)) == ["d"]
    assert keys(store.similarity_search_by_vector(np.float32(Words().embed_query("blue sky")), k=1)) == ["d"]


@pytest.mark.parametrize(
    ("search_type", "options"),
    [("similarity", {}), ("mmr", {"fetch_k": 4}), ("similarity_score_threshold", {"score_threshold": 0.6})],
)
def test_retrievers(search_type, options):
    retriever = make().as_retriever(
        search_type=search_type, search_kwargs={"k": 2, "filter": {"fruit": True}, **options}
    )
    assert keys(retriever.invoke("green apple"))[0] == "c"
    assert keys(asyncio.run(retriever.ainvoke("green apple")))[0] == "c"


def test_under_the_indexing_api():
    store, records = TQIndexVectorStore(Words()), InMemoryRecordManager("test")
    records.create_schema()
    documents = [Document(page_content=text, metadata={"source": text[:3]}) for text in TEXTS]
    options = {"cleanup": "full", "source_id_key": "source", "key_encoder": "sha256"}
    assert index(documents, records, store, **options)["num_added"] == 4
    done = index(documents[1:], records, store, **options)
    assert (done["num_skipped"], done["num_deleted"]) == (3, 1)
    assert len(store) == len(store.index) == 3


def test_delete_without_ids_takes_all():
    store = make()
    assert store.delete([]) is True
    assert len(store) == 4
    store.delete()
    assert len(store) == len(store.index) == 0
    assert store.add_texts(["red"], ids=["a"]) == ["a"]


def test_nothing_to_add():
    store = TQIndexVectorStore(Words())
    assert store.add_texts([]) == []
    assert store.add_documents([]) == []
    assert store.index is None


def test_texts_may_come_from_a_generator():
    assert len(TQIndexVectorStore(Words()).add_texts(word for word in ("red", "green"))) == 2


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"ids": ["x", "x"]}, "'x' twice"),
        ({"ids": ["x"]}, "ids must be one per text, 2, got 1"),
        ({"ids": ["x", 5]}, "strings, got 5"),
        ({"metadatas": [{}]}, "metadatas must be one per text"),
        ({"metadatas": [{}, {"when": {1, 2}}]}, "JSON"),
        ({"metadata": [{}, {}]}, "metadata is not an argument"),
    ],
)
def test_wrong_texts_change_nothing(options, word):
    store = make()
    with pytest.raises(ArgumentError, match=word):
        store.add_texts(["new", "newer"], **options)
    assert len(store) == len(store.index) == 4


def test_wrong_searches_are_refused():
    store = make()
    with pytest.raises(ArgumentError, match="k must be at least 1"):
        store.similarity_search("red", k=0)
    with pytest.raises(ArgumentError, match="k must be at least 1"):
        store.max_marginal_relevance_search("red", k=0)
    with pytest.raises(ArgumentError, match="filter must be a dict"):
        store.similarity_search("red", filter=["fruit"])
    with pytest.raises(ArgumentError, match="filtre"):
        store.similarity_search("red", filtre={"fruit": True})
    with pytest.raises(VectorError, match="32 columns"):
        store.similarity_search_by_vector([1.0, 2.0])


def test_round_trip(tmp_path):
    store = make(metric="l2")
    store.delete(["b"])
    store.save(tmp_path / "store")
    loaded = TQIndexVectorStore.load(tmp_path / "store", Words())
    assert loaded.similarity_search_with_score("red apple", k=4) == store.similarity_search_with_score("red apple", k=4)
    assert keys(loaded.get_by_ids(["d", "b", "a"])) == ["d", "a"]
    loaded.add_texts(["red wine"], ids=["e"])
    loaded.save(tmp_path / "store")
    assert keys(TQIndexVectorStore.load(tmp_path / "store", Words()).similarity_search("red wine", k=1)) == ["e"]
    with pytest.raises(StorageError, match="changed since"):
        store.save(tmp_path / "store")
    with pytest.raises(MissingFileError):
        TQIndexVectorStore.load(tmp_path / "none", Words())


def test_a_given_index():
    given = tq.Index(DIM, bits=3, seed=5)
    store = make(index=given)
    assert store.index is given
    assert len(given) == 4


def test_the_package_is_named_if_it_is_missing(run_python):
    code = """
import sys
sys.modules["langchain_core"] = sys.modules["langchain_core.documents"] = None
try:
    import tqindex.adapters.langchain
except ImportError as error:
    print(type(error).__name__, error)
"""
    assert run_python("-c", code).strip() == (
        "MissingPackageError tqindex.adapters.langchain needs langchain-core: pip install 'tqindex[langchain]'"
    )


def test_the_framework_is_imported_only_when_asked_for(run_python):
    printed = run_python("-c", "import tqindex, tqindex.adapters, sys; print(*sys.modules)").split()
    assert not {"langchain_core", "llama_index", "pydantic", "numba"} & set(printed)
    assert "tqindex.adapters" in printed
    assert "langchain_core" in sys.modules
