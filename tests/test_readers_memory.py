"""What reading vectors costs: memory by the slice and not by the file, and no h5py where it is not needed."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.lib import format as npy_format

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
def test_slices_bound_memory(tmp_path, run_python, name):
    n, dim = 400_000, 128  # 195 MiB; a slice is 2 MiB
    write_large(tmp_path / name, n, dim)
    sliced, whole = json.loads(run_python("-c", MEASURE, str(tmp_path / name)))
    (tmp_path / name).unlink()
    assert whole > 150, "the measure must see an array of the size of the file"
    assert sliced < 40


def test_h5py_is_imported_for_hdf5_only(tmp_path, run_python):
    write_large(tmp_path / "a.fbin", 5, 7)
    code = (
        "import sys; from tqindex.readers import open_vectors\n"
        "with open_vectors(sys.argv[1]) as f: f[:]\n"
        "print('h5py' in sys.modules)"
    )
    done = run_python("-c", code, str(tmp_path / "a.fbin"))
    assert done == "False\n"
