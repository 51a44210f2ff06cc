"""An index as bytes: whole, checked, and what pickle and copy go by."""

import copy
import hashlib
import pickle
import random

import numpy as np
import pytest

import tqindex as tq
from tqindex.errors import ArgumentError, CorruptIndexError, FormatVersionError

MARK = b"tqindex bytes\n\0\0"


def rows(n, dim=16, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim), np.float32)


def index_of(n, dim=16, **parameters):
    """An index with removed rows, ids of the caller's, and a tail."""
    index = tq.Index(dim, **parameters)
    index.add(rows(n, dim))
    index._rows.seal_tail()
    index.add(rows(5, dim, 1), ids=[500, 400, 300, 200, 100])
    index.remove([0, 400])
    return index


def assert_same(other, index):
    np.testing.assert_array_equal(other.ids, index.ids)
    assert (other.metric, other.codec) == (index.metric, index.codec)
    for one, two in zip(other.search(rows(4, index.dim, 9), 7), index.search(rows(4, index.dim, 9), 7), strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(other.reconstruct(index.ids), index.reconstruct(index.ids))


COPIES = {
    "bytes": lambda index: tq.Index.from_bytes(index.to_bytes()),
    "bytearray": lambda index: tq.Index.from_bytes(bytearray(index.to_bytes())),
    "memoryview": lambda index: tq.Index.from_bytes(memoryview(b"x" + index.to_bytes())[1:]),
    "pickle": lambda index: pickle.loads(pickle.dumps(index)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"codec": "prod", "bits": 3, "metric": "l2", "center": np.ones(16)},
        {"originals": "float16"},
        {"effort": "search", "seed": 7, "rotation": "hadamard"},
    ],
    ids=" ".join,
)
def test_a_copy_is_the_same_and_its_own(parameters, make):
    index = index_of(80, **parameters)
    made = make(index)
    assert_same(made, index)
    assert made.info() == index.info()
    before = index.to_bytes()
    for changed in (made, index):
        np.testing.assert_array_equal(changed.add(rows(2, seed=3)), [501, 502])
        changed.update([7], rows(1, seed=4))
        if changed is made:
            assert index.to_bytes() == before
    assert_same(made, index)


@pytest.mark.parametrize("n", [0, 1, 64])
def test_small_ones(n):
    index = tq.Index(16)
    index.add(rows(n))
    made = tq.Index.from_bytes(index.to_bytes())
    assert_same(made, index)
    np.testing.assert_array_equal(made.add(rows(1)), [n])


def test_they_are_a_manifest_and_the_files_of_a_directory(tmp_path):
    index = index_of(20)
    index.save(tmp_path / "index")
    content = index.to_bytes()
    manifest = (tmp_path / "index" / "manifest.json").read_bytes()
    start = len(MARK) + 8
    assert content[:start] == MARK + len(manifest).to_bytes(8, "little")
    assert content[start : start + len(manifest)] == manifest
    files = [path.read_bytes() for path in (tmp_path / "index").iterdir() if "-" in path.name]
    assert len(content) == start + len(manifest) + sum(map(len, files))
    assert all(file in content for file in files)


def test_equal_files_are_stored_once():
    index = tq.Index(16)
    sizes = []
    for _ in range(3):
        index.add(rows(1000))
        index._rows.seal_tail()
        sizes.append(len(index.to_bytes()))
    assert sizes[2] - sizes[0] < 1000
    assert_same(tq.Index.from_bytes(index.to_bytes()), index)


def test_mapped_indexes_are_copied_whole(tmp_path):
    index_of(20).save(tmp_path / "index")
    content = pickle.dumps(tq.load(tmp_path / "index"))
    (tmp_path / "index").rename(tmp_path / "gone")
    assert_same(pickle.loads(content), index_of(20))


def test_a_copy_belongs_to_no_directory(tmp_path):
    index = index_of(20)
    index.save(tmp_path / "index")
    made = copy.copy(index)
    with pytest.raises(tq.errors.StorageError, match="index exists: pass overwrite=True"):
        made.save(tmp_path / "index")
    made.save(tmp_path / "index", overwrite=True)
    assert tq.verify(tmp_path / "index").manifest.n == 23


def fetch(ids):
    return rows(1000)[ids]


def test_a_callable_for_originals_goes_along():
    index = tq.Index(16, originals=fetch)
    index.add(rows(100))
    assert pickle.loads(pickle.dumps(index)).fetch is fetch
    local = copy.copy(tq.Index(16, originals=lambda ids: rows(100)[ids]))
    assert local.fetch([3]).shape == (1, 16)
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(local)  # better than to lose it


# --- damage ---


@pytest.mark.parametrize(
    "data", [None, 3, "text", [1, 2], np.ones((3, 4))[:, ::2]], ids=lambda data: type(data).__name__
)
def test_what_is_no_bytes(data):
    with pytest.raises(ArgumentError, match=rf"data must be bytes of Index.to_bytes, got {type(data).__name__}"):
        tq.Index.from_bytes(data)


def test_a_flip_in_any_byte_and_a_cut_at_any_is_found():
    content = index_of(5, 3, bits=1, metric="ip").to_bytes()
    for i in range(len(content)):
        changed = bytearray(content)
        changed[i] ^= 1 << i % 8
        for data in (changed, content[:i]):
            with pytest.raises(CorruptIndexError) as caught:
                tq.Index.from_bytes(data)
            assert str(caught.value).startswith("data")
            assert "\n" not in str(caught.value)
    with pytest.raises(CorruptIndexError, match=f"must have {len(content)} bytes, got {len(content) + 1}"):
        tq.Index.from_bytes(content + b"\0")
    assert len(tq.Index.from_bytes(content)) == 8


def test_random_damage():
    content, rng = index_of(5, 3, bits=1, metric="ip").to_bytes(), random.Random(3)
    for _ in range(500):
        i, j = sorted(rng.sample(range(len(content) + 1), 2))
        changed = content[:i] + rng.randbytes(rng.choice([0, j - i])) + content[j:]
        with pytest.raises(CorruptIndexError):
            tq.Index.from_bytes(changed)


def forge(content, old, new):
    """Exchange a text of the manifest, and make its checksum and its length right."""
    start = len(MARK) + 8
    end = start + int.from_bytes(content[len(MARK) : start], "little")
    assert old in content[start:end]
    body = content[start:end].replace(old, new, 1).rpartition(b',\n  "sha256": ')[0]
    manifest = body + b',\n  "sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'
    return MARK + len(manifest).to_bytes(8, "little") + manifest + content[end:]


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        (b'"version": 2', b'"version": 4', FormatVersionError),
        (b'"version": 2', b'"version": 1', CorruptIndexError),
        (b'"bytes": 1', b'"bytes": 9223372036854775807', CorruptIndexError),
        (b'"bytes": 1', b'"bytes": 1e3', CorruptIndexError),
        (b'"n": 5', b'"n": 4611686018427387904', CorruptIndexError),
        (b'"n": 5', b'"n": 70', CorruptIndexError),
        (b'"removed": 1', b'"removed": 2', CorruptIndexError),
    ],
)
def test_a_forged_manifest(old, new, error):
    content = index_of(5, 3, bits=1, metric="ip").to_bytes()
    assert len(tq.Index.from_bytes(forge(content, b"", b""))) == 8
    with pytest.raises(error):
        tq.Index.from_bytes(forge(content, old, new))


@pytest.mark.parametrize("length", [0, 2**20, 2**40, 2**64 - 1])
def test_lengths_of_the_manifest(length):
    with pytest.raises(CorruptIndexError, match=r"^data"):
        tq.Index.from_bytes(MARK + length.to_bytes(8, "little") + b"{}")
