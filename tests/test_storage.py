"""Indexes on disk: what is saved is loaded, and a folder holds what it should and no more."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import tqindex as tq
from tqindex.codec.packing import row_places
from tqindex.errors import MissingFileError, StorageError

CODECS = [("mse", bits) for bits in (1, 2, 3, 4, 8)] + [("prod", bits) for bits in (2, 3, 4)]
DIMS = (2, 3, 7, 31, 33, 65)
SIZES = (0, 1, 64, 130)


@pytest.fixture
def place(tmp_path):
    return tmp_path / "index"


def rows(n, dim=16, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim), np.float32)


def index_of(n, dim=16, **parameters):
    index = tq.Index(dim, **parameters)
    index.add(rows(n, dim))
    return index


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir() if path.name != "lock")


def stamps(folder):
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("segment-*")}


def assert_same(loaded, index, k=5):
    """Same content, and the same answers to the same queries."""
    queries = rows(4, index.dim, seed=9)
    for one, other in zip(loaded.search(queries, k), index.search(queries, k), strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(loaded) == len(index)
    assert (loaded.metric, loaded.codec) == (index.metric, index.codec)


# --- round trip ---


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
@pytest.mark.parametrize(("codec", "bits"), CODECS)
def test_round_trip(tmp_path, codec, bits, metric, centred):
    for i, n in enumerate(SIZES):
        dim = DIMS[(CODECS.index((codec, bits)) + i) % len(DIMS)]
        center = np.full(dim, 0.25) if centred else None
        index = index_of(n, dim, codec=codec, bits=bits, metric=metric, center=center, seed=i)
        index.save(tmp_path / str(n))
        for mmap in (True, False):
            loaded = tq.load(tmp_path / str(n), mmap=mmap)
            assert_same(loaded, index)
            ids = np.arange(n)
            np.testing.assert_array_equal(loaded.reconstruct(ids), index.reconstruct(ids))
            assert loaded.info() == index.info()
        assert tq.verify(tmp_path / str(n)).manifest.n == n


@pytest.mark.parametrize(
    "parameters", [{"sketch": "gaussian", "codec": "prod"}, {"scale": "paper"}, {"rotation": "hadamard"}], ids=str
)
def test_every_parameter_survives(place, parameters):
    index = index_of(70, seed=2**62, **parameters)
    index.save(place)
    assert tq.load(place).codec == index.codec
    assert_same(tq.load(place), index)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("kept", ["float16", "float32"])
def test_originals_survive(place, kept, mmap):
    index = index_of(130, 33, originals=kept)
    index.save(place)
    assert tq.verify(place).manifest.version == index.info()["format_version"] == 2
    loaded = tq.load(place, mmap=mmap)
    for grown in (index, loaded):
        grown.update([7], rows(1, 33, seed=1))
        grown.add(rows(3, 33, seed=2))
    loaded.save(place)
    for again in (tq.load(place, mmap=mmap), loaded):
        for one, other in zip(
            again.search(rows(4, 33), 5, rerank=50), index.search(rows(4, 33), 5, rerank=50), strict=True
        ):
            np.testing.assert_array_equal(one, other)
        assert again.info() == index.info()
    found = tq.verify(place).manifest
    assert (found.originals, found.version) == (kept, 2)


def test_no_originals_are_no_originals(place):
    index_of(10, originals=lambda ids: rows(10)[ids]).save(place)
    assert tq.verify(place).manifest.version == 1
    loaded = tq.load(place)
    with pytest.raises(tq.errors.ArgumentError, match="rerank needs originals"):
        loaded.search(rows(1), 3, rerank=5)


@pytest.mark.parametrize("mmap", [True, False])
def test_loaded_index_can_be_added_to(place, mmap):
    index = index_of(130)
    index.save(place)
    loaded = tq.load(place, mmap=mmap)
    for grown in (index, loaded):
        np.testing.assert_array_equal(grown.add(rows(70, seed=1)), np.arange(130, 200))
        grown.add(rows(2, seed=2), ids=[1000, 7000])
        np.testing.assert_array_equal(grown.add(rows(1, seed=3)), [7001])
    assert_same(loaded, index)
    loaded.save(place)
    assert_same(tq.load(place), index)
    np.testing.assert_array_equal(tq.load(place).add(rows(1)), [7002])


def test_next_id_survives_though_no_row_has_it(place):
    index = index_of(3)
    index.add(rows(1), ids=[2**62])
    index.save(place)
    np.testing.assert_array_equal(tq.load(place).add(rows(1)), [2**62 + 1])


def test_equal_batches_share_a_file_and_keep_their_ids(place):
    index = tq.Index(16)
    for _ in range(3):
        index.add(rows(100))
        index.save(place)
    assert len(list(place.glob("segment-*"))) == 1
    assert (tq.verify(place).manifest.n, tq.verify(place).files) == (300, 1)
    loaded = tq.load(place)
    np.testing.assert_array_equal(loaded.search(rows(1), 3).ids, [[0, 100, 200]])
    loaded.save(place)
    assert_same(tq.load(place), index)


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
def test_a_zero_row_is_not_taken_for_padding(place, first, second):
    index = tq.Index(4, metric="ip")
    for n in (first, second):
        index.add(np.vstack([np.ones((1, 4)), np.zeros((n - 1, 4))]).astype(np.float32))
        index.save(place)
    index.add(rows(1, 4))
    index.save(place)
    assert [entry.n for entry in tq.verify(place).manifest.segments] == [first, second, 1]


def test_failed_add_leaves_no_rows_in_the_file(tmp_path):
    dim = 4096
    index = index_of(10, dim)
    bad = rows(600, dim)  # the first block, of 512 rows, still fits where the index has room
    bad[-1, 0] = np.nan
    with pytest.raises(tq.errors.VectorError, match="row 599"):
        index.add(bad)
    left = index._rows.tail.rows
    strange = row_places(dim // 8)[2:]  # of rows 10 to 15, whose block the index's last rows share
    assert left.lead[:, 1, strange].any(axis=(0, 2)).all(), "the failed add must have left something"
    assert left.lead[:, 2:8].any(axis=(0, 2)).all()
    assert left.rest[10:64].any(axis=1).all()
    index.save(tmp_path / "after")
    index_of(10, dim).save(tmp_path / "plain")
    assert contents(tmp_path / "after") == contents(tmp_path / "plain")


# --- what is written ---


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


def test_files_are_deterministic(tmp_path):
    def build(name, cuts, threads):
        index = tq.Index(33, codec="prod", bits=3, metric="l2", center=np.ones(33))
        for part in np.split(rows(3000, 33), cuts):
            index.add(part, threads=threads)
        index.save(tmp_path / name)
        return contents(tmp_path / name)

    assert build("a", [], 1) == build("b", [], 2) == build("c", [1, 64, 65, 2999], 2)


def test_segments_are_safetensors_with_aligned_arrays(place):
    index = index_of(130, dim=33, codec="prod", metric="l2")
    index.add(rows(3, 33), ids=[500, 300, 400])
    index.save(place)
    (path,) = place.glob("segment-*")
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    fields = json.loads(content[8:start])
    assert set(fields) == {"lead", "rest", "scales", "sketch_scales", "offsets", "ids"}
    assert start % 64 == 0
    assert {tensor["data_offsets"][0] % 64 for tensor in fields.values()} == {0}
    stored = load_file(path)
    lead = stored.pop("lead")
    assert lead.shape == (2, 192 // 8, 8 * 5)
    assert {name: len(tensor) for name, tensor in stored.items()} == dict.fromkeys(stored, 192)
    np.testing.assert_array_equal(stored["ids"][:133], [*range(130), 500, 300, 400])
    assert not any(tensor[133:].any() for tensor in stored.values())
    by_row = lead[:, :, row_places(5)].reshape(2, 192, 5)
    assert by_row[:, :133].any(axis=(0, 2)).all()
    assert not by_row[:, 133:].any()


def test_mapped_arrays_are_the_file(place):
    index_of(130).save(place)
    loaded = tq.load(place)
    stored = loaded._rows.segments[0].rows
    for planes in (stored.lead, stored.rest):
        assert isinstance(planes, np.memmap)
        assert planes.ctypes.data % 64 == 0
        assert not planes.flags.writeable


def test_saving_again_writes_what_is_new(place):
    index = index_of(100)
    index.save(place)
    before = stamps(place)
    for files in (2, 3):
        index.add(rows(10, seed=files))
        index.save(place)
        assert {name: stamp for name, stamp in stamps(place).items() if name in before} == before
        assert len(stamps(place)) == files
        index = tq.load(place)
    assert tq.verify(place).manifest.n == 120


def test_what_another_index_wrote_is_not_replaced_unasked(place):
    first = index_of(100)
    first.save(place)
    second = tq.load(place)
    second.add(rows(10, seed=1))
    second.save(place)
    with pytest.raises(StorageError, match="was changed since it was loaded or saved: pass overwrite=True"):
        first.save(place)
    assert len(tq.load(place)) == 110
    first.save(place, overwrite=True)
    first.save(place)
    assert len(tq.load(place)) == 100


def test_saving_without_a_change_changes_no_byte(place):
    index = index_of(100)
    index.save(place)
    before, files = stamps(place), contents(place)
    index.save(place)
    tq.load(place).save(place)
    assert (stamps(place), contents(place)) == (before, files)


# --- where it is written ---


def test_saved_elsewhere_and_back(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    index_of(100).save(a)
    index = tq.load(a)
    index.save(b)
    assert contents(a) == contents(b)
    index.add(rows(10, seed=1))
    index.save(b)  # where it was saved last
    assert (len(tq.load(a)), len(tq.load(b))) == (100, 110)
    with pytest.raises(StorageError, match=r"a exists: pass overwrite=True \(--force\)"):
        index.save(a)
    index.save(a, overwrite=True)  # into the files that it is mapped from
    assert contents(a) == contents(b)
    assert_same(tq.load(a), index)
    assert tq.verify(a).manifest.n == 110


def test_overwriting_another_index(place):
    index_of(100).save(place)
    reader = tq.load(place)
    expected = reader.search(rows(4), 5)
    other = index_of(50, dim=7, metric="l2")
    with pytest.raises(StorageError, match="exists: pass overwrite"):
        other.save(place)
    other.save(place, overwrite=True)
    assert_same(tq.load(place), other)
    assert len(names(place)) == 2
    for one, still in zip(reader.search(rows(4), 5), expected, strict=True):  # files are gone, the map is not
        np.testing.assert_array_equal(one, still)


@pytest.mark.parametrize("spoil", ["truncate", "alter", "remove segment"])
def test_overwriting_a_damaged_index(place, spoil):
    index_of(100).save(place)
    manifest = place / "manifest.json"
    if spoil == "truncate":
        os.truncate(manifest, 200)
    elif spoil == "alter":
        manifest.write_bytes(manifest.read_bytes().replace(b"cosine", b"cosinf"))
    else:
        next(place.glob("segment-*")).unlink()
    index = index_of(50)
    index.save(place, overwrite=True)
    assert tq.verify(place).manifest.n == 50
    assert len(names(place)) == 2


def test_own_folder_that_was_damaged_is_made_whole(place):
    index = index_of(100)
    index.save(place)
    next(place.glob("segment-*")).unlink()
    index.save(place)
    assert tq.verify(place).manifest.n == 100


def test_own_folder_that_was_deleted_is_made_anew(place):
    index_of(100).save(place)
    loaded = tq.load(place)
    for path in place.iterdir():
        path.unlink()
    place.rmdir()
    loaded.save(place)
    assert tq.verify(place).manifest.n == 100


def test_an_empty_folder_will_do(place):
    place.mkdir()
    index_of(10).save(place)
    assert tq.verify(place).manifest.n == 10


def make_folder(place):
    place.mkdir()
    (place / "notes.txt").write_text("mine")


def make_foreign_manifest(place):
    place.mkdir()
    (place / "manifest.json").write_text('{"name": "a web page"}')


@pytest.mark.parametrize(
    "occupy",
    [
        make_folder,
        make_foreign_manifest,
        lambda place: place.write_text("mine"),
        lambda place: place.symlink_to("nowhere"),
        os.mkfifo,
    ],
    ids=["folder", "foreign manifest", "file", "dangling link", "pipe"],
)
@pytest.mark.parametrize("overwrite", [True, False])
def test_what_is_no_index_is_left_alone(tmp_path, place, snapshot, occupy, overwrite):
    occupy(place)
    before = snapshot(tmp_path)
    with pytest.raises(StorageError, match="index exists and is not a tqindex index: it is left alone"):
        index_of(10).save(place, overwrite=overwrite)
    assert snapshot(tmp_path) == before


def test_foreign_files_beside_the_segments_stay(place):
    index_of(10).save(place)
    (place / "segment-notes.safetensors").write_text("mine")
    index_of(20).save(place, overwrite=True)
    assert (place / "segment-notes.safetensors").read_text() == "mine"
    assert len(names(place)) == 3


@pytest.mark.parametrize("path", ["no/index", "file/index"])
def test_the_parent_must_be_a_folder(tmp_path, snapshot, path):
    (tmp_path / "file").touch()
    before = snapshot(tmp_path)
    with pytest.raises(MissingFileError, match="must be a folder that exists, to write index into"):
        index_of(10).save(tmp_path / path)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("path", ["index", "./index", "index/", "sub/../index", Path("index")], ids=repr)
def test_forms_of_a_path(tmp_path, monkeypatch, path):
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    index_of(10).save(path)
    loaded = tq.load(path)
    monkeypatch.chdir("/")
    loaded.add(rows(1))
    loaded.save(tmp_path / "index")  # the same place, so no overwrite is needed
    assert names(tmp_path) == ["index", "sub"]
    assert len(tq.load(tmp_path / "index")) == 11


def test_a_link_to_an_index_stays_a_link(tmp_path, place):
    index_of(10).save(place)
    link = tmp_path / "link"
    link.symlink_to("index")
    loaded = tq.load(link)
    loaded.add(rows(1))
    loaded.save(link)
    assert link.is_symlink()
    assert (len(tq.load(place)), names(tmp_path)) == (11, ["index", "link"])


def test_home_is_not_expanded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError, match="~ must be a folder that exists"):
        index_of(1).save("~/index")


def test_a_failed_save_keeps_the_home(tmp_path, place):
    index = index_of(10)
    index.save(place)
    with pytest.raises(MissingFileError):
        index.save(tmp_path / "no" / "index")
    index.add(rows(1))
    index.save(place)
    assert len(tq.load(place)) == 11
