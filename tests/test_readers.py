"""Files of vectors: every format reads back what was written, in slices, and every fault is named."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib import format as npy_format

from tqindex.errors import ArgumentError, FileFormatError, MissingFileError, StorageError
from tqindex.readers import open_vectors

FLOATS = ("float16", "float32", "float64")
N, DIM = 53, 7
ODD_SLICES = [(0, 1), (0, N), (1, 2), (3, 20), (20, 53), (52, 53), (-5, None), (None, None), (40, 999), (9, 4)]


def make(n=N, dim=DIM, dtype="float32", seed=0):
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(dtype)


def write_fbin(path, vectors):
    path.write_bytes(np.array(vectors.shape, "<u4").tobytes() + vectors.astype("<f4").tobytes())


def write_fvecs(path, vectors):
    dims = np.full((len(vectors), 1), vectors.shape[1], "<i4")
    path.write_bytes(np.hstack([dims, vectors.astype("<f4").view("<i4")]).tobytes())


def write_npy_fortran(path, vectors):
    np.save(path, np.asfortranarray(vectors))


def write_npy_2(path, vectors):
    with path.open("wb") as file:
        npy_format.write_array(file, vectors, version=(2, 0))


def write_h5(path, vectors, **options):
    with h5py.File(path, "w") as file:
        file.create_dataset("vectors", data=vectors, **options)


def write_h5_chunked(path, vectors):
    write_h5(path, vectors, chunks=(min(6, len(vectors)), min(5, vectors.shape[1])), compression="gzip", shuffle=True)


# name of the file, how to write it, the dtypes it can hold
FORMATS = {
    "fbin": ("a.fbin", write_fbin, ("float32",)),
    "fvecs": ("a.fvecs", write_fvecs, ("float32",)),
    "npy": ("a.npy", np.save, (*FLOATS, ">f2", ">f4", ">f8")),
    "npy-fortran": ("a.npy", write_npy_fortran, (*FLOATS, ">f8")),
    "npy-2.0": ("a.npy", write_npy_2, ("float32",)),
    "h5": ("a.h5", write_h5, (*FLOATS, ">f2", ">f4", ">f8")),
    "h5-chunked": ("a.hdf5", write_h5_chunked, (*FLOATS, ">f4")),
    "h5-by-signature": ("a.dat", write_h5, ("float32",)),
}
CASES = [(name, dtype) for name, (_, _, dtypes) in FORMATS.items() for dtype in dtypes]


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


def refused(path, *words, error=FileFormatError, **options):
    """Check that opening fails with one line that starts with the file and has these words."""
    with pytest.raises(error) as caught:
        open_vectors(path, **options)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


# --- what is written is read ---


@pytest.mark.parametrize(("form", "dtype"), CASES)
def test_slices_equal_the_array(tmp_path, form, dtype):
    name, write, _ = FORMATS[form]
    vectors = make(dtype=dtype)
    write(tmp_path / name, vectors)
    with open_vectors(tmp_path / name) as file:
        assert (file.shape, len(file), file.path) == ((N, DIM), N, tmp_path / name)
        assert file.dtype == vectors.dtype.newbyteorder("=")
        for start, stop in ODD_SLICES:
            rows = file[start:stop]
            assert rows.dtype == file.dtype
            assert rows.dtype.isnative
            assert rows.flags.c_contiguous
            np.testing.assert_array_equal(rows, vectors[start:stop], strict=False)
            assert rows.shape == vectors[start:stop].shape


@pytest.mark.parametrize("shape", [(1, 1), (1, 33), (65, 1)])
@pytest.mark.parametrize("form", FORMATS)
def test_thin_shapes(tmp_path, form, shape):
    name, write, _ = FORMATS[form]
    vectors = make(*shape)
    write(tmp_path / name, vectors)
    with open_vectors(tmp_path / name) as file:
        assert file.shape == shape
        np.testing.assert_array_equal(file[:], vectors)


@pytest.mark.parametrize("form", FORMATS)
def test_any_partition_concatenates_to_the_array(tmp_path, form):
    name, write, _ = FORMATS[form]
    vectors = make()
    write(tmp_path / name, vectors)

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.integers(0, N), max_size=12))
    def check(cuts):
        bounds = [0, *sorted(cuts), N]
        parts = [file[a:b] for a, b in pairwise(bounds)]
        np.testing.assert_array_equal(np.concatenate(parts), vectors)

    with open_vectors(tmp_path / name) as file:
        check()


def test_nan_and_inf_come_through_bit_for_bit(tmp_path):
    vectors = make()
    vectors[3, :3] = np.nan, np.inf, -0.0
    for name, write, _ in FORMATS.values():
        write(tmp_path / name, vectors)
        with open_vectors(tmp_path / name) as file:
            assert file[:].tobytes() == vectors.tobytes()


def test_a_slice_is_its_own_writable_array(tmp_path):
    write_fbin(tmp_path / "a.fbin", make())
    with open_vectors(tmp_path / "a.fbin") as file:
        file[:5][:] = 0
        np.testing.assert_array_equal(file[:5], make()[:5])


def test_extension_may_be_in_capitals_and_path_a_string(tmp_path):
    write_fbin(tmp_path / "A.FBIN", make())
    with open_vectors(str(tmp_path / "A.FBIN")) as file:
        assert file.name is None
        assert repr(file) == f"<RowMajorFile '{tmp_path}/A.FBIN' (53, 7) float32>"
        assert (file.metric, file.neighbors, file.distances, file.base()) == (None, None, None, None)


# --- use of the object ---


@pytest.mark.parametrize("key", [3, slice(0, 9, 2), slice(None, None, -1), (slice(0, 1), 0), [1, 2]], ids=repr)
def test_only_plain_slices(tmp_path, key):
    write_fbin(tmp_path / "a.fbin", make())
    with (
        open_vectors(tmp_path / "a.fbin") as file,
        pytest.raises(ArgumentError, match=r"a\.fbin: rows are read by a slice with step 1, got "),
    ):
        file[key]


@pytest.mark.parametrize("form", ["fbin", "npy", "h5"])
def test_closed_file_is_refused(tmp_path, form):
    name, write, _ = FORMATS[form]
    write(tmp_path / name, make())
    with open_vectors(tmp_path / name) as file:
        pass
    file.close()
    with pytest.raises(ArgumentError, match="got one that is closed"):
        file[:1]


def test_role_and_dataset_are_checked(tmp_path):
    write_fbin(tmp_path / "a.fbin", make())
    with pytest.raises(ArgumentError, match=r"role must be one of \('base', 'queries'\), got 'query'"):
        open_vectors(tmp_path / "a.fbin", role="query")
    refused(tmp_path / "a.fbin", "dataset applies to HDF5", "'train'", error=ArgumentError, dataset="train")


def test_h5py_is_imported_for_hdf5_only(tmp_path):
    write_fbin(tmp_path / "a.fbin", make())
    code = (
        "import sys; from tqindex.readers import open_vectors\n"
        "with open_vectors(sys.argv[1]) as f: f[:]\n"
        "print('h5py' in sys.modules)"
    )
    done = run_python(code, tmp_path / "a.fbin")
    assert done == "False"


# --- files that are no files of vectors ---


@pytest.mark.parametrize("name", ["no.h5", "no.npy", "no.fbin", "no.fvecs", "no.xyz", "no/no.h5"])
def test_missing(tmp_path, name):
    refused(tmp_path / name, "no such file", error=MissingFileError)


def test_file_as_directory_is_missing(tmp_path):
    write_fbin(tmp_path / "a.fbin", make())
    refused(tmp_path / "a.fbin" / "b.fbin", "no such file", error=MissingFileError)


@pytest.mark.parametrize("name", ["d.h5", "d.npy", "d"])
def test_directory(tmp_path, name):
    (tmp_path / name).mkdir()
    refused(tmp_path / name, "got a directory")


def test_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "a.fbin")
    refused(tmp_path / "a.fbin", "a regular file is needed, got p")


def test_unreadable(tmp_path, monkeypatch):
    # Tests may run as root, whom no file mode stops.
    def deny(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    for name in ("a.fbin", "a.h5"):
        (tmp_path / name).touch()
        monkeypatch.setattr(Path, "open", deny)
        refused(tmp_path / name, "cannot be read: Permission denied", error=StorageError)
        monkeypatch.undo()


@pytest.mark.parametrize(("name", "got"), [("a.txt", "'.txt'"), ("a", "''")])
def test_unknown_extension(tmp_path, name, got):
    (tmp_path / name).write_bytes(b"1 2 3\n")
    refused(tmp_path / name, f"the extension must be one of .npy, .fbin, .fvecs, .h5, .hdf5, got {got}")


# --- .fbin, .fvecs, .npy ---


@pytest.mark.parametrize("size", [0, 7])
def test_fbin_without_header(tmp_path, size):
    (tmp_path / "a.fbin").write_bytes(b"\1" * size)
    refused(tmp_path / "a.fbin", f"header has 8 bytes, got a file of {size} bytes")


@pytest.mark.parametrize(("form", "header"), [("fbin", 8), ("npy", 128), ("npy-fortran", 128)])
@pytest.mark.parametrize("change", [-1, -600, 1])
def test_size_must_match_the_header(tmp_path, form, header, change):
    name, write, _ = FORMATS[form]
    write(tmp_path / name, make())
    size = header + N * DIM * 4
    os.truncate(tmp_path / name, size + change)
    fault = "truncated" if change < 0 else "too long"
    refused(tmp_path / name, f"is {fault}: expected {size} bytes", f"got {size + change}")


@pytest.mark.parametrize(("form", "row_bytes"), [("fbin", 28), ("npy", 28), ("npy-fortran", 4 * 33), ("fvecs", 32)])
def test_file_cut_while_open(tmp_path, form, row_bytes):
    name, write, _ = FORMATS[form]
    write(tmp_path / name, make())
    with open_vectors(tmp_path / name) as file:
        os.truncate(tmp_path / name, (tmp_path / name).stat().st_size - 4)
        with pytest.raises(FileFormatError, match=rf"{name}: rows 20:53 end early: expected \d+ bytes, got \d+"):
            file[20:]


@pytest.mark.parametrize("form", ["fbin", "npy", "npy-fortran", "h5"])
def test_empty_set(tmp_path, form):
    name, write, _ = FORMATS[form]
    write(tmp_path / name, np.empty((0, 100), "float32"))
    refused(tmp_path / name, "is empty: at least one vector is needed, got shape (0, 100)")


@pytest.mark.parametrize("form", ["fbin", "npy", "h5"])
def test_vectors_without_dimensions(tmp_path, form):
    name, write, _ = FORMATS[form]
    write(tmp_path / name, np.empty((5, 0), "float32"))
    refused(tmp_path / name, "at least one dimension, got shape (5, 0)")


def test_fvecs_empty(tmp_path):
    (tmp_path / "a.fvecs").touch()
    refused(tmp_path / "a.fvecs", "is empty: at least one vector is needed, got 0 bytes")


@pytest.mark.parametrize(("data", "got"), [(b"\1\0", "a file of 2 bytes"), (b"\0" * 8, "0"), (b"\xff" * 8, "-1")])
def test_fvecs_first_dimension(tmp_path, data, got):
    (tmp_path / "a.fvecs").write_bytes(data)
    refused(tmp_path / "a.fvecs", f"row 0 must start with a dimension of at least 1 as int32, got {got}")


@pytest.mark.parametrize("change", [-1, -4, 3])
def test_fvecs_of_no_whole_rows(tmp_path, change):
    write_fvecs(tmp_path / "a.fvecs", make())
    size = N * 32 + change
    os.truncate(tmp_path / "a.fvecs", size)
    refused(tmp_path / "a.fvecs", "whole number of rows of 32 bytes (dimension 7 in row 0)", f"got {size} bytes")


def test_fvecs_row_of_another_dimension(tmp_path):
    path = tmp_path / "a.fvecs"
    write_fvecs(path, make())
    with path.open("r+b") as file:
        file.seek(41 * 32)
        file.write(b"\x08")
    with open_vectors(path) as file:
        np.testing.assert_array_equal(file[:41], make()[:41])
        with pytest.raises(FileFormatError, match=r"a\.fvecs: row 41 must have dimension 7 like row 0, got 8"):
            file[30:50]
        np.testing.assert_array_equal(file[42:], make()[42:])


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(5, "float32"), "must be 2-D, one vector a row, got shape (5,)"),
        (np.zeros((2, 3, 4), "float32"), "got shape (2, 3, 4)"),
        (np.zeros((5, 4), "int32"), "must hold float16, float32 or float64, got dtype int32"),
        (np.zeros((5, 4), "complex64"), "got dtype complex64"),
        (np.full((5, 4), None), "got dtype object"),
        (np.zeros((5, 4), np.longdouble), f"got dtype {np.dtype(np.longdouble)}"),
        (np.zeros((5, 4), [("x", "f4")]), "got dtype [('x', '<f4')]"),
    ],
    ids=["1-D", "3-D", "int", "complex", "object", "longdouble", "structured"],
)
def test_npy_of_another_form(tmp_path, array, words):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    refused(tmp_path / "a.npy", words)


def test_npy_damaged_header(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, make())
    good = path.read_bytes()
    for data, words in [
        (b"", "not a .npy file"),
        (b"\x93NUMPZ" + good[6:], "not a .npy file"),
        (good[:6] + b"\3" + good[7:], "the .npy version must be 1.0 or 2.0, got 3.0"),
        (good[:50], "the .npy header cannot be read"),
        (good[:10] + b"(" + good[11:], "the .npy header cannot be read"),
        (good.replace(b"}", b" "), "the .npy header cannot be read"),
        (good.replace(b"(53, 7)", b"(-3, 7)"), "got shape (-3, 7)"),
    ]:
        path.write_bytes(data)
        assert len(refused(path, words)) < len(str(path)) + 260


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


def test_several_candidates_are_listed(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["a"], file["g/b"], file["neighbors"] = make(n=3), make(n=2, dtype="float64"), make()
        file["ids"] = np.arange(3)
    words = "several 2-D float datasets, name one with --dataset: 'a' (3, 7) float32, 'g/b' (2, 7) float64"
    assert refused(path, words).endswith(words)


def test_long_list_of_candidates_is_cut(tmp_path):
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
def test_named_dataset_is_no_set_of_vectors(tmp_path, name, words):
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
def test_no_candidate(tmp_path, data, got):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for name, array in data.items():
            file[name] = array
    assert refused(path).endswith(f"no 2-D float dataset for the base, got {got}")


def test_integer_train_does_not_make_test_the_base(ann):
    replace(ann, "train", np.zeros((N, DIM), "uint8"))
    refused(ann, "no 2-D float dataset for the base", "'train' (53, 7) uint8")
    with open_vectors(ann, role="queries") as queries:
        assert queries.name == "test"
        with pytest.raises(FileFormatError, match="must name a 2-D float dataset, got 'train'"):
            queries.base()


# --- HDF5: damage ---


@pytest.mark.parametrize("data", [b"", b"not hdf5 at all", b"\x89HDF\r\n\x1a\n"])
def test_not_hdf5(tmp_path, data):
    (tmp_path / "a.h5").write_bytes(data)
    words = "cannot be read as HDF5" if data.startswith(b"\x89") else "not an HDF5 file, though its name ends in .h5"
    refused(tmp_path / "a.h5", words)


@pytest.mark.parametrize("kept", [0.3, 0.99])
def test_truncated_hdf5(ann, kept):
    os.truncate(ann, int(ann.stat().st_size * kept))
    refused(ann, "cannot be read as HDF5", "truncated file")


def test_corrupt_chunk_names_the_rows(tmp_path):
    path = tmp_path / "a.h5"
    write_h5_chunked(path, make())
    with h5py.File(path) as file:
        chunk = file["vectors"].id.get_chunk_info_by_coord((30, 0))
    with path.open("r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"\0" * chunk.size)
    with open_vectors(path) as file:
        np.testing.assert_array_equal(file[:30], make()[:30])
        with pytest.raises(FileFormatError, match=r"a\.h5: rows 28:33 of 'vectors' cannot be read: .*filter"):
            file[28:33]


def test_locked_hdf5(ann):
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


# --- memory ---

MEASURE = """
import json, re, sys
from pathlib import Path
import numpy as np
from tqindex.readers import open_vectors

def peak():  # of this program alone; ru_maxrss starts at the peak of the parent that forked it
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

with open_vectors(sys.argv[1]) as file:
    file[:1]
    start = peak()
    for row in range(0, len(file), 4096):
        file[row : row + 4096]
    sliced = peak()
    whole = np.ones(file.shape, file.dtype)
    print(json.dumps([sliced - start, peak() - start]))
"""


def run_python(code, *arguments):
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def write_large(path, n, dim):
    """Write zeros with as few bytes on the disk as the format allows."""
    size = n * dim * 4
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            large = file.create_dataset("v", (n, dim), "float32", chunks=(1024, dim))
            for row in range(0, n, 1024):
                large[row : row + 1024] = np.ones((min(1024, n - row), dim), "float32")
        return
    if path.suffix == ".fvecs":
        rows = np.zeros((n, dim + 1), "<i4")
        rows[:, 0] = dim
        rows.tofile(path)
        return
    with path.open("wb") as file:
        if path.suffix == ".npy":
            fortran = path.stem == "fortran"
            npy_format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": fortran, "shape": (n, dim)})
        else:
            file.write(np.array([n, dim], "<u4").tobytes())
        file.truncate(file.tell() + size)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("name", ["a.fbin", "a.npy", "fortran.npy", "a.fvecs", "a.h5"])
def test_slices_bound_memory(tmp_path, name):
    n, dim = 400_000, 128  # 195 MiB; a slice is 2 MiB
    write_large(tmp_path / name, n, dim)
    sliced, whole = json.loads(run_python(MEASURE, tmp_path / name))
    (tmp_path / name).unlink()
    assert whole > 150, "the measure must see an array of the size of the file"
    assert sliced < 40
