"""Files of vectors: every format reads back what was written, in slices, and every fault is named."""

import os
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


def test_role_and_dataset_are_checked(tmp_path, refused):
    write_fbin(tmp_path / "a.fbin", make())
    with pytest.raises(ArgumentError, match=r"role must be one of \('base', 'queries'\), got 'query'"):
        open_vectors(tmp_path / "a.fbin", role="query")
    refused(tmp_path / "a.fbin", "dataset applies to HDF5", "'train'", error=ArgumentError, dataset="train")


# --- files that are no files of vectors ---


@pytest.mark.parametrize("name", ["no.h5", "no.npy", "no.fbin", "no.fvecs", "no.xyz", "no/no.h5"])
def test_missing(tmp_path, name, refused):
    refused(tmp_path / name, "no such file", error=MissingFileError)


def test_file_as_directory_is_missing(tmp_path, refused):
    write_fbin(tmp_path / "a.fbin", make())
    refused(tmp_path / "a.fbin" / "b.fbin", "no such file", error=MissingFileError)


@pytest.mark.parametrize("name", ["d.h5", "d.npy", "d"])
def test_directory(tmp_path, name, refused):
    (tmp_path / name).mkdir()
    refused(tmp_path / name, "got a directory")


def test_pipe_is_refused_without_waiting(tmp_path, refused):
    os.mkfifo(tmp_path / "a.fbin")
    refused(tmp_path / "a.fbin", "a regular file is needed, got p")


def test_unreadable(tmp_path, monkeypatch, refused):
    # Tests may run as root, whom no file mode stops.
    def deny(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    for name in ("a.fbin", "a.h5"):
        (tmp_path / name).touch()
        monkeypatch.setattr(Path, "open", deny)
        refused(tmp_path / name, "cannot be read: Permission denied", error=StorageError)
        monkeypatch.undo()


@pytest.mark.parametrize(("name", "got"), [("a.txt", "'.txt'"), ("a", "''")])
def test_unknown_extension(tmp_path, name, got, refused):
    (tmp_path / name).write_bytes(b"1 2 3\n")
    refused(tmp_path / name, f"the extension must be one of .npy, .fbin, .fvecs, .h5, .hdf5, got {got}")


# --- .fbin, .fvecs, .npy ---


@pytest.mark.parametrize("size", [0, 7])
def test_fbin_without_header(tmp_path, size, refused):
    (tmp_path / "a.fbin").write_bytes(b"\1" * size)
    refused(tmp_path / "a.fbin", f"header has 8 bytes, got a file of {size} bytes")


@pytest.mark.parametrize(("form", "header"), [("fbin", 8), ("npy", 128), ("npy-fortran", 128)])
@pytest.mark.parametrize("change", [-1, -600, 1])
def test_size_must_match_the_header(tmp_path, form, header, change, refused):
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
def test_empty_set(tmp_path, form, refused):
    name, write, _ = FORMATS[form]
    write(tmp_path / name, np.empty((0, 100), "float32"))
    refused(tmp_path / name, "is empty: at least one vector is needed, got shape (0, 100)")


@pytest.mark.parametrize("form", ["fbin", "npy", "h5"])
def test_vectors_without_dimensions(tmp_path, form, refused):
    name, write, _ = FORMATS[form]
    write(tmp_path / name, np.empty((5, 0), "float32"))
    refused(tmp_path / name, "at least one dimension, got shape (5, 0)")


def test_fvecs_empty(tmp_path, refused):
    (tmp_path / "a.fvecs").touch()
    refused(tmp_path / "a.fvecs", "is empty: at least one vector is needed, got 0 bytes")


@pytest.mark.parametrize(("data", "got"), [(b"\1\0", "a file of 2 bytes"), (b"\0" * 8, "0"), (b"\xff" * 8, "-1")])
def test_fvecs_first_dimension(tmp_path, data, got, refused):
    (tmp_path / "a.fvecs").write_bytes(data)
    refused(tmp_path / "a.fvecs", f"row 0 must start with a dimension of at least 1 as int32, got {got}")


@pytest.mark.parametrize("change", [-1, -4, 3])
def test_fvecs_of_no_whole_rows(tmp_path, change, refused):
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
def test_npy_of_another_form(tmp_path, array, words, refused):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    refused(tmp_path / "a.npy", words)


def test_npy_damaged_header(tmp_path, refused):
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
