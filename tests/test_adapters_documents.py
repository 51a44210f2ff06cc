"""Documents and their index: what the adapters share, above all that both fit each other whatever happens."""

import os
import shutil
import threading
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

import tqindex as tq
from tqindex.adapters import documents as documents_module
from tqindex.adapters.documents import DOCUMENTS, Documents
from tqindex.adapters.documents_file import Header, Line, documents_bytes
from tqindex.errors import (
    ArgumentError,
    CorruptIndexError,
    FormatVersionError,
    MissingFileError,
    StorageError,
    VectorError,
)

DIM = 32


@pytest.fixture(autouse=True)
def _no_flushes(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # slow, and tells nothing here


def vector(text):
    return np.random.default_rng(crc32(text.encode(errors="surrogatepass"))).standard_normal(DIM)


def put(documents, **texts):
    documents.put(list(texts), [vector(text) for text in texts.values()], [{"text": text} for text in texts.values()])


def texts(documents):
    return {key: record["text"] for key, record in documents.get(documents.matching())}


def documents_of(**contents):
    documents = Documents("test", metric="cosine")
    put(documents, **contents)
    return documents


def assert_fits(documents, expected):
    """Every document has the vector of its text, and the index has no others."""
    assert texts(documents) == expected
    assert len(documents) == len(documents.index) == len(expected)
    for key, text in expected.items():
        found = documents.vectors([key])[0]
        assert found @ vector(text) > 0.9 * np.linalg.norm(vector(text))  # 4 bits give .99
        assert documents.search(vector(text), 1)[0].key == key


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_tidy(folder):
    """One file of documents and the index that it names."""
    held = names(folder)
    assert held[0] == DOCUMENTS
    assert len(held) == 2
    assert held[1].startswith("index-")
    tq.verify(folder / held[1])


# -- in memory


def test_replacing_takes_a_new_row_and_keeps_the_number():
    documents = documents_of(a="one", b="two")
    put(documents, a="three", c="four")
    assert_fits(documents, {"b": "two", "a": "three", "c": "four"})
    assert documents.index.ids.tolist() == [1, 2, 3]


def test_removing_ignores_what_is_not_there():
    documents = documents_of(a="one", b="two")
    documents.remove(["b", "b", "z"])
    assert_fits(documents, {"a": "one"})
    documents.remove(["a"])
    assert documents.search(vector("one"), 3) == []
    put(documents, a="one")
    assert_fits(documents, {"a": "one"})


@pytest.mark.parametrize(
    ("keys", "vectors", "records", "error", "word"),
    [
        (["a", "a"], np.ones((2, DIM)), [{}, {}], ArgumentError, "twice"),
        (["a", 3], np.ones((2, DIM)), [{}, {}], ArgumentError, "strings, got 3"),
        (["a", "n"], np.ones((1, DIM)), [{}, {}], VectorError, "2 vectors"),
        (["a", "n"], [[1.0] * DIM, [1.0]], [{}, {}], VectorError, "rectangular"),
        (["a", "n"], np.ones((2, DIM + 1)), [{}, {}], VectorError, "columns"),
        (["a", "n"], np.zeros((2, DIM)), [{}, {}], VectorError, "zero"),
        (["a", "n"], np.full((2, DIM), np.nan), [{}, {}], VectorError, "finite"),
        (["n", "a"], np.ones((2, DIM)), [{}, {"when": object()}], ArgumentError, "'a' must have metadata"),
    ],
)
def test_what_is_refused_changes_nothing(keys, vectors, records, error, word):
    documents = documents_of(a="one", b="two")
    with pytest.raises(error, match=word):
        documents.put(keys, vectors, records)
    assert_fits(documents, {"a": "one", "b": "two"})


def test_parameters_are_checked_before_there_are_vectors():
    with pytest.raises(ArgumentError, match="bits"):
        Documents("test", bits=5)
    with pytest.raises(ArgumentError, match="metric"):
        Documents("test", metric="dot")
    index = tq.Index(DIM)
    index.add(np.ones(DIM, np.float32))
    with pytest.raises(ArgumentError, match="empty, got 1 vectors"):
        Documents("test", index)


def test_a_given_index_is_used():
    index = tq.Index(DIM, bits=2, metric="l2", center=np.ones(DIM))
    documents = Documents("test", index)
    put(documents, a="one")
    assert documents.index is index
    assert (documents.bits, documents.metric) == (2, "l2")


def test_k_may_pass_the_number_of_documents():
    documents = documents_of(a="one", b="two")
    assert len(documents.search(vector("one"), 10**9)) == 2
    with pytest.raises(ArgumentError, match="k must be at least 1"):
        Documents("test").search(vector("one"), 0)


def test_a_filter_is_asked_before_the_search():
    documents = documents_of(**{f"d{i}": f"text {i}" for i in range(50)})
    query = vector("text 7")
    worst = documents.search(query, 50)[-1].key
    assert [hit.key for hit in documents.search(query, 1, lambda key, _: key == worst)] == [worst]
    assert documents.search(query, 5, lambda *_: False) == []


def test_what_comes_back_is_a_copy():
    documents = Documents("test")
    record = {"metadata": {"tags": ("x", "y")}}
    documents.put(["a"], [vector("one")], [record])
    record["metadata"]["tags"] = ()
    documents.get(["a"])[0][1]["metadata"].clear()
    documents.search(vector("one"), 1)[0].record["metadata"].clear()
    assert documents.get(["a"]) == [("a", {"metadata": {"tags": ["x", "y"]}})]


def test_whole_numbers_are_vectors_too():
    documents = Documents("test", metric="ip", bits=8)
    documents.put(["a", "b"], [[3, 0], [0, 2]], [{}, {}])
    assert documents.search([0, 1], 1)[0].key == "b"


def test_threads_see_whole_states():
    documents = documents_of(**{f"d{i}": f"text {i}" for i in range(20)})
    stop, lacking = threading.Event(), []

    def search():
        while not stop.is_set():
            lacking.append(20 - len(documents.search(vector("text 3"), 20)))

    reader = threading.Thread(target=search)
    reader.start()
    for _ in range(30):
        put(documents, **{f"d{i}": f"text {i}" for i in range(20)})
    stop.set()
    reader.join()
    assert set(lacking) == {0}


# -- on disk


@pytest.mark.parametrize("mmap", [True, False])
def test_round_trip(tmp_path, mmap):
    documents = Documents("test", metric="l2", bits=8, settings={"deep": [1, None]})
    put(documents, a="one", b="two", c="three")
    documents.remove(["b"])
    put(documents, a="umlaut: \u00e4 \ud800\n\u2028")  # a lone surrogate, and what splits lines
    documents.save(tmp_path / "store")
    loaded = Documents.load(tmp_path / "store", "test", mmap)
    assert texts(loaded) == texts(documents)
    assert loaded.settings == {"deep": [1, None]}
    assert (loaded.bits, loaded.metric) == (8, "l2")
    assert loaded.search(vector("three"), 5) == documents.search(vector("three"), 5)
    assert len(loaded.search(vector("three"), 5)) == 2
    assert_tidy(tmp_path / "store")


def test_a_store_without_vectors(tmp_path):
    documents = Documents("test", bits=2, metric="ip")
    documents.save(tmp_path / "store")
    loaded = Documents.load(tmp_path / "store", "test")
    assert loaded.search(vector("one"), 2) == []
    put(loaded, a="one")
    assert (loaded.index.bits, loaded.index.metric) == (2, "ip")
    loaded.save(tmp_path / "store")
    assert texts(Documents.load(tmp_path / "store", "test")) == {"a": "one"}
    assert_tidy(tmp_path / "store")


def test_saving_again_writes_only_new_segments(tmp_path):
    documents = documents_of(a="one", b="two")
    documents.save(tmp_path / "store")
    before = set((tmp_path / "store").rglob("*.safetensors"))
    put(documents, c="three")
    documents.save(tmp_path / "store")
    after = set((tmp_path / "store").rglob("*.safetensors"))
    assert before < after
    assert_fits(Documents.load(tmp_path / "store", "test"), {"a": "one", "b": "two", "c": "three"})


def test_rows_are_not_used_again_after_loading(tmp_path):
    documents = documents_of(a="one", b="two")
    documents.remove(["b"])
    documents.save(tmp_path / "store")
    loaded = Documents.load(tmp_path / "store", "test")
    put(loaded, c="three")
    assert loaded.index.ids.tolist() == [0, 2]


def test_another_store_is_replaced_only_if_told(tmp_path):
    first, second = documents_of(a="one"), documents_of(a="two")
    first.save(tmp_path / "store")
    with pytest.raises(StorageError, match="exists: pass overwrite"):
        second.save(tmp_path / "store")
    second.save(tmp_path / "store", overwrite=True)
    with pytest.raises(StorageError, match="changed since"):
        first.save(tmp_path / "store")
    assert_fits(Documents.load(tmp_path / "store", "test"), {"a": "two"})
    assert_tidy(tmp_path / "store")
    first.save(tmp_path / "store", overwrite=True)
    assert_fits(Documents.load(tmp_path / "store", "test"), {"a": "one"})


def test_two_that_loaded_the_same_do_not_mix(tmp_path):
    documents_of(a="one").save(tmp_path / "store")
    first, second = (Documents.load(tmp_path / "store", "test") for _ in range(2))
    put(first, b="two")
    put(second, b="three")
    first.save(tmp_path / "store")
    with pytest.raises(StorageError, match="changed since"):
        second.save(tmp_path / "store")
    assert_fits(Documents.load(tmp_path / "store", "test"), {"a": "one", "b": "two"})
    second.save(tmp_path / "store", overwrite=True)
    assert_fits(Documents.load(tmp_path / "store", "test"), {"a": "one", "b": "three"})


def test_loading_while_another_store_is_replaced(tmp_path, monkeypatch):
    documents_of(a="one").save(tmp_path / "store")
    plain, saves = documents_module.load_index, [documents_of(b="two")]

    def load_late(path, mmap):
        if saves:
            saves.pop().save(tmp_path / "store", overwrite=True)
        return plain(path, mmap)

    monkeypatch.setattr(documents_module, "load_index", load_late)
    assert_fits(Documents.load(tmp_path / "store", "test"), {"b": "two"})


def test_other_places_are_left_alone(tmp_path):
    documents = documents_of(a="one")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    (tmp_path / "file").write_text("")
    for name in ("mine", "file"):
        with pytest.raises(StorageError, match="left alone"):
            documents.save(tmp_path / name, overwrite=True)
    with pytest.raises(MissingFileError, match="folder that exists"):
        documents.save(tmp_path / "no" / "store")
    documents.index.save(tmp_path / "index")
    with pytest.raises(StorageError, match="left alone"):
        documents.save(tmp_path / "index", overwrite=True)


def test_loading_what_is_not_there(tmp_path):
    with pytest.raises(MissingFileError):
        Documents.load(tmp_path / "no", "test")
    with pytest.raises(CorruptIndexError, match="no documents"):
        Documents.load(tmp_path, "test")
    documents_of(a="one").save(tmp_path / "store")
    with pytest.raises(ArgumentError, match="documents of other, got those of test"):
        Documents.load(tmp_path / "store", "other")
    shutil.rmtree(next((tmp_path / "store").glob("index-*")))
    with pytest.raises(CorruptIndexError, match="belong together"):
        Documents.load(tmp_path / "store", "test")


def test_damage_is_found(tmp_path):
    documents_of(a="one", b="two").save(tmp_path / "store")
    path = tmp_path / "store" / DOCUMENTS
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(CorruptIndexError):
            Documents.load(tmp_path / "store", "test")
        path.write_bytes(content[:place])
        with pytest.raises(CorruptIndexError):
            Documents.load(tmp_path / "store", "test")
    path.write_bytes(content[:40])
    with pytest.raises(CorruptIndexError):
        documents_of(a="one").save(tmp_path / "store")
    documents_of(c="three").save(tmp_path / "store", overwrite=True)
    assert_fits(Documents.load(tmp_path / "store", "test"), {"c": "three"})


def test_a_newer_version_is_named(tmp_path):
    documents_of(a="one").save(tmp_path / "store")
    path = tmp_path / "store" / DOCUMENTS
    path.write_bytes(path.read_bytes().replace(b'"version": 1', b'"version": 2', 1))
    with pytest.raises(FormatVersionError, match="version 2"):
        Documents.load(tmp_path / "store", "test")


def test_a_name_may_not_lead_elsewhere(tmp_path):
    documents_of(a="one").index.save(tmp_path / "other")
    (tmp_path / "store").mkdir()
    header = Header("test", {}, 4, "cosine", "../other", "state", 1)
    (tmp_path / "store" / DOCUMENTS).write_bytes(documents_bytes(header, [Line(0, "a", {"text": "one"})]))
    with pytest.raises(CorruptIndexError, match=r"\.\./other"):
        Documents.load(tmp_path / "store", "test")


# -- killed while it saves


class Killed(BaseException):
    """The process is gone: no clean-up runs either."""


class Kill:
    """Lets `steps` changes of the file system pass, and strikes before or after the next one is done."""

    def __init__(self, steps, after):
        self.left, self.after, self.struck = steps, after, False

    def guarded(self, step):
        def run(*arguments, **options):
            if self.struck:
                raise Killed
            self.left -= 1
            self.struck = self.left < 0
            if self.struck and not self.after:
                raise Killed
            result = step(*arguments, **options)
            if self.struck:
                if hasattr(result, "close"):
                    result.close()
                raise Killed
            return result

        return run


def save_until(steps, after, documents, folder):
    """Save and be killed at a step; says whether it came to that."""
    kill = Kill(steps, after)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("mkdir", "replace", "rename", "unlink"):
            patch.setattr(Path, name, kill.guarded(getattr(Path, name)))
        plain_open, guarded_open = Path.open, kill.guarded(Path.open)
        patch.setattr(
            Path, "open", lambda self, mode="r", *rest: (guarded_open if "w" in mode else plain_open)(self, mode, *rest)
        )
        patch.setattr(shutil, "rmtree", kill.guarded(shutil.rmtree))
        try:
            documents.save(folder, overwrite=True)
        except Killed:
            return True
    assert not kill.struck
    return False


OLD = {"a": "one", "b": "two", "c": "three"}
CHANGES = {
    "replace, delete, add": ({"a": "four", "d": "five"}, ["b"], {"c": "three", "a": "four", "d": "five"}),
    "add": ({"d": "five"}, [], {**OLD, "d": "five"}),
    "delete": ({}, ["b"], {"a": "one", "c": "three"}),
    "replace": ({"a": "four"}, [], {"b": "two", "c": "three", "a": "four"}),
}


def changed(documents, change):
    given, gone, _ = CHANGES[change]
    put(documents, **given)
    documents.remove(gone)
    return documents


def check_after(folder, *states):
    """One of the states is there, and the store can go on from it."""
    loaded = Documents.load(folder, "test")
    found = texts(loaded)
    assert found in states
    assert_fits(loaded, found)
    put(loaded, z="more")
    loaded.save(folder)
    assert_fits(Documents.load(folder, "test"), {**found, "z": "more"})
    assert_tidy(folder)
    return states.index(found)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_killed_at_any_step(tmp_path, change, after):
    seen = set()
    for steps in range(100):
        folder = tmp_path / str(steps)
        documents_of(**OLD).save(folder)
        if not save_until(steps, after, changed(Documents.load(folder, "test"), change), folder):
            break
        seen.add(check_after(folder, OLD, CHANGES[change][2]))
    assert steps > 4
    assert seen == {0, 1}


@pytest.mark.parametrize("after", [False, True])
def test_killed_while_another_store_is_replaced(tmp_path, after):
    new = {"a": "six", "b": "seven", "c": "eight"}  # as many rows as the old one has, of the same numbers
    for steps in range(100):
        folder = tmp_path / str(steps)
        documents_of(**OLD).save(folder)
        if not save_until(steps, after, documents_of(**new), folder):
            break
        check_after(folder, OLD, new)
    assert steps > 5


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_the_first_save(tmp_path, after):
    for steps in range(100):
        folder = tmp_path / str(steps)
        if not save_until(steps, after, documents_of(**OLD), folder):
            break
        try:
            found = texts(Documents.load(folder, "test"))
        except (MissingFileError, CorruptIndexError):
            documents_of(x="new").save(folder)  # nothing was lost, so nothing is in the way
            assert_tidy(folder)
        else:
            assert found == OLD
            check_after(folder, OLD)
    assert steps > 4


@pytest.mark.parametrize("after", [False, True])
def test_killed_twice(tmp_path, after):
    last = {"a": "nine", "e": "ten"}
    for first in range(100):
        for second in range(100):
            folder = tmp_path / f"{first}-{second}"
            documents_of(**OLD).save(folder)
            killed = save_until(first, after, changed(Documents.load(folder, "test"), "replace, delete, add"), folder)
            loaded = Documents.load(folder, "test")
            between = texts(loaded)
            put(loaded, **last)
            if not killed or not save_until(second, after, loaded, folder):
                break
            check_after(folder, between, {**{k: v for k, v in between.items() if k != "a"}, **last})
        if not killed:
            break
    assert first > 4
