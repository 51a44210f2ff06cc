"""HDF5 files: which dataset is taken, damage, and the exact neighbours beside the queries."""

import os

import h5py
import numpy as np
import pytest

from tqindex.errors import FileFormatError, StorageError
from tqindex.readers import open_vectors

N, DIM = 53, 7


def make(n=N, dtype="float32", seed=0):
    return np.random.default_rng(seed).normal(size=(n, DIM)).astype(dtype)


@pytest.fixture
def ann(tmp_path):
    """A file in ann-benchmarks form."""
    path = tmp_path / "ann.hdf5"
    with h5py.File(path, "w") as file:
        file["train"], file["test"] = make(), make(n=4, seed=1)
        file["neighbors"] = np.arange(12, dtype="int32").reshape(4, 3)
        file["distances"] = np.arange(12, dtype=">f4").reshape(4, 3)
        file.attrs["distance"] = "angular"
    return path


def replace(path, name, data):
    with h5py.File(path, "a") as file:
        if name in file:
            del file[name]
        if data is not None:
            file[name] = data


# --- HDF5: which dataset ---


def test_only_dataset_is_found_in_a_group(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["deep/er/emb"] = make()
        file["ids"], file["deep/labels"] = np.arange(N), np.zeros((N, 2), "int64")
        file["weights"], file["deep/distances"] = np.zeros(N), np.zeros((N, 3))
    for role in ("base", "queries"):
        with open_vectors(path, role=role) as file:
            assert file.name == "deep/er/emb"
            np.testing.assert_array_equal(file[:], make())


def test_ann_benchmarks_names_win(ann):
    replace(ann, "extra", make(n=9))
    with open_vectors(ann) as base, open_vectors(ann, role="queries") as queries:
        assert (base.name, base.shape) == ("train", (N, DIM))
        assert (queries.name, queries.shape) == ("test", (4, DIM))
        assert repr(queries) == f"<HDF5File '{ann}'['test'] (4, 7) float32>"


@pytest.mark.parametrize("name", ["g/b", "/g/b", "distances"])
def test_named_dataset(tmp_path, name):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["train"], file[name] = make(n=3), make()
    with open_vectors(path, dataset=name) as file:
        assert file.name == name.lstrip("/")
        np.testing.assert_array_equal(file[5:9], make()[5:9])


def test_several_candidates_are_listed(tmp_path, refused):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["a"], file["g/b"], file["neighbors"] = make(n=3), make(n=2, dtype="float64"), make()
        file["ids"] = np.arange(3)
    words = "several 2-D float datasets, one must be named (build --dataset): 'a' (3, 7) float32, 'g/b' (2, 7) float64"
    assert refused(path, words).endswith(words)


def test_long_list_of_candidates_is_cut(tmp_path, refused):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for i in range(25):
            file[f"set{i:02}"] = make(n=2)
    assert refused(path).endswith("'set09' (2, 7) float32 and 15 more")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no", "no dataset 'no' in the file; 2-D float datasets: 'a' (3, 7) float32, 'g/b' (2, 7) float32"),
        ("", "no dataset '' in the file"),
        ("dangling", "'dangling' cannot be read: "),
        ("g", "--dataset must name a 2-D float dataset, got the group 'g'; there are: 'a'"),
        ("ids", "got 'ids' (3,) int64; there are: 'a' (3, 7) float32"),
        ("cube", "got 'cube' (2, 3, 4) float64"),
        ("ints", "got 'ints' (3, 2) int32"),
        ("null", "got 'null' None float32"),
        ("time", "got 'time' (2, 2) None"),
    ],
)
def test_named_dataset_is_no_set_of_vectors(tmp_path, name, words, refused):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["a"], file["g/b"], file["ids"], file["cube"] = make(3), make(2), np.arange(3), np.zeros((2, 3, 4))
        file["ints"], file["null"] = np.zeros((3, 2), "int32"), h5py.Empty("float32")
        file["dangling"] = h5py.SoftLink("/nowhere")
        # A type of HDF5 that NumPy has not.
        h5py.h5d.create(file.id, b"time", h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((2, 2)))
    refused(path, words, dataset=name)


@pytest.mark.parametrize(
    ("data", "got"),
    [
        ({}, "none"),
        ({"v": np.zeros(5)}, "'v' (5,) float64"),
        ({"v": np.zeros((2, 3, 4))}, "'v' (2, 3, 4) float64"),
        ({"train": np.zeros((5, 4), "int8")}, "'train' (5, 4) int8"),
        ({"distances": np.zeros((5, 4))}, "'distances' (5, 4) float64"),
    ],
)
def test_no_candidate(tmp_path, data, got, refused):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for name, array in data.items():
            file[name] = array
    assert refused(path).endswith(f"no 2-D float dataset for the base, got {got}")


def test_integer_train_does_not_make_test_the_base(ann, refused):
    replace(ann, "train", np.zeros((N, DIM), "uint8"))
    refused(ann, "no 2-D float dataset for the base", "'train' (53, 7) uint8")
    with open_vectors(ann, role="queries") as queries:
        assert queries.name == "test"
        with pytest.raises(FileFormatError, match="must name a 2-D float dataset, got 'train'"):
            queries.base()


# --- HDF5: damage ---


@pytest.mark.parametrize("data", [b"", b"not hdf5 at all", b"\x89HDF\r\n\x1a\n"])
def test_not_hdf5(tmp_path, data, refused):
    (tmp_path / "a.h5").write_bytes(data)
    words = "cannot be read as HDF5" if data.startswith(b"\x89") else "not an HDF5 file, though its name ends in .h5"
    refused(tmp_path / "a.h5", words)


@pytest.mark.parametrize("kept", [0.3, 0.99])
def test_truncated_hdf5(ann, kept, refused):
    os.truncate(ann, int(ann.stat().st_size * kept))
    refused(ann, "cannot be read as HDF5", "truncated file")


def test_corrupt_chunk_names_the_rows(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("vectors", data=make(), chunks=(6, 5), compression="gzip", shuffle=True)
    with h5py.File(path) as file:
        chunk = file["vectors"].id.get_chunk_info_by_coord((30, 0))
    with path.open("r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"\0" * chunk.size)
    with open_vectors(path) as file:
        np.testing.assert_array_equal(file[:30], make()[:30])
        with pytest.raises(FileFormatError, match=r"a\.h5: rows 28:33 of 'vectors' cannot be read: .*filter"):
            file[28:33]


def test_locked_hdf5(ann, refused):
    fcntl = pytest.importorskip("fcntl")
    with ann.open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        refused(ann, "locked by another program", error=StorageError)


# --- HDF5: the truth beside the queries ---


@pytest.mark.parametrize(
    ("stated", "metric"),
    [
        ("angular", "cosine"),
        ("Cosine", "cosine"),
        (b"euclidean", "l2"),
        ("l2", "l2"),
        ("dot", "ip"),
        ("ip", "ip"),
        ("inner", "ip"),
        ("inner_product", "ip"),
        ("jaccard", None),
        (3, None),
        (None, None),
    ],
)
def test_metric(ann, stated, metric):
    with h5py.File(ann, "a") as file:
        del file.attrs["distance"]
        if stated is not None:
            file.attrs["distance"] = np.bytes_(stated) if isinstance(stated, bytes) else stated
    for role in ("base", "queries"):
        with open_vectors(ann, role=role) as file:
            assert file.metric == metric


def test_truth(ann):
    with open_vectors(ann, role="queries") as queries:
        np.testing.assert_array_equal(queries.neighbors, np.arange(12, dtype="int32").reshape(4, 3), strict=True)
        np.testing.assert_array_equal(queries.distances, np.arange(12, dtype="float32").reshape(4, 3), strict=True)
        with queries.base() as base:
            assert (base.name, base.shape) == ("train", (N, DIM))
            np.testing.assert_array_equal(base[:], make())
        np.testing.assert_array_equal(queries[:], make(n=4, seed=1))


def test_truth_belongs_to_the_queries(ann):
    replace(ann, "other", make(n=4))
    for options in ({"role": "base"}, {"dataset": "test"}, {"dataset": "other", "role": "queries"}):
        with open_vectors(ann, **options) as file:
            assert (file.neighbors, file.distances) == (None, None)


def test_truth_of_queries_of_another_name(ann):
    replace(ann, "test", None)
    replace(ann, "queries", make(n=4))
    with open_vectors(ann, dataset="queries", role="queries") as file:
        assert file.neighbors.shape == (4, 3)
        assert file.base() is None


def test_half_a_truth(ann):
    replace(ann, "distances", None)
    with open_vectors(ann, role="queries") as queries:
        assert queries.neighbors.shape == (4, 3)
        assert queries.distances is None


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("neighbors", np.zeros((4, 3)), "'neighbors' must be 2-D integer with 4 rows, one a query, got .* float64"),
        ("neighbors", np.zeros((5, 3), "int32"), r"'neighbors' must be .* got 'neighbors' \(5, 3\) int32"),
        ("neighbors", np.zeros(4, "int32"), r"got 'neighbors' \(4,\) int32"),
        ("distances", np.zeros((4, 3), "int32"), "'distances' must be 2-D float with 4 rows"),
        ("distances", np.zeros((4, 2)), r"must have one shape, got .*\(4, 3\).*\(4, 2\)"),
        ("neighbors", h5py.Empty("int32"), "got 'neighbors' None int32"),
    ],
)
def test_broken_truth(ann, name, data, words):
    replace(ann, name, data)
    with open_vectors(ann, role="queries") as queries:
        with pytest.raises(FileFormatError, match=words) as caught:
            getattr(queries, name)
        assert str(caught.value).startswith(str(ann))
