"""Building needs memory for the index and a few blocks, whatever the size of the file."""

import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

import tqindex as tq

MB = 2**20
DIM = 512
#: What the program, a few blocks, and one segment being written may take beside the index.
ALLOWANCE = 500 * MB
# ru_maxrss starts at the peak of the parent that forked the process; VmHWM is of this program alone.
BUILD = """
import json, re, sys
from pathlib import Path
from tqindex.cli.command import run
code = run(["build", sys.argv[1], "-o", sys.argv[2], "--bits", "2"])
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
print(json.dumps({"code": code, "peak": 1024 * int(peak)}))
"""


def write_file(path, size):
    """Write `size` bytes of float32 vectors in blocks."""
    block = np.random.default_rng(0).standard_normal((4096, DIM), np.float32)
    n = size // (4 * DIM)
    with h5py.File(path, "w") as file:
        rows = file.create_dataset("v", (n, DIM), np.float32)
        for start in range(0, n, len(block)):
            rows[start : start + len(block)] = block[: n - start]


def build(folder, size):
    """Build an index of a new file of `size` bytes in a process of its own: (peak memory, bytes of the index)."""
    path, target = folder / f"{size}.h5", folder / f"{size}.tq"
    write_file(path, size)
    command = [sys.executable, "-c", BUILD, str(path), str(target)]
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    path.unlink()
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["code"] == 0, done.stderr
    info = tq.load(target).info()
    assert info["n"] == size // (4 * DIM)
    return found["peak"], info["total_bytes"]


def check_growth(folder, small, large, slack):
    """Twice the file may take as much more memory as the index grows, and `slack` for copies of a segment."""
    small_peak, small_index = build(folder, small)
    large_peak, large_index = build(folder, large)
    assert large_peak - small_peak <= large_index - small_index + slack
    assert large_peak <= large_index + ALLOWANCE


def test_memory_follows_the_index(tmp_path):
    check_growth(tmp_path, 128 * MB, 256 * MB, slack=40 * MB)


@pytest.mark.nightly
def test_memory_follows_the_index_of_a_large_file(tmp_path):
    check_growth(tmp_path, 1024 * MB, 2048 * MB, slack=128 * MB)
