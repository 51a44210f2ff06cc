"""The folder of compiled kernels: found again, refused, damaged, of another CPU, not to be had, full."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tqindex as tq
from tqindex.kernels import compile as compiling


@pytest.fixture
def fresh_cache(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return cache_folder without its memory, under the given environment."""

    def ask(**variables: str) -> Path | None:
        for name in ("TQINDEX_CACHE_DIR", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return compiling.cache_folder.__wrapped__()

    return ask


def test_cache_folder_is_private_and_named_by_the_sources(fresh_cache: Any, tmp_path: Path) -> None:
    folder = fresh_cache(TQINDEX_CACHE_DIR=str(tmp_path / "a"))
    assert folder == tmp_path / "a" / f"kernels-{compiling._source_hash()[:16]}-{compiling.simd_level()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert fresh_cache(XDG_CACHE_HOME=str(tmp_path / "b")).parent == tmp_path / "b" / "tqindex"
    assert fresh_cache(HOME=str(tmp_path / "c")).parent == tmp_path / "c" / ".cache" / "tqindex"


def test_a_folder_that_others_can_write_is_not_used(fresh_cache: Any, tmp_path: Path, caplog: Any) -> None:
    folder = fresh_cache(TQINDEX_CACHE_DIR=str(tmp_path))
    folder.chmod(0o770)
    assert fresh_cache(TQINDEX_CACHE_DIR=str(tmp_path)) is None
    assert "not private and writable" in caplog.text


def test_no_folder_is_said_and_survived(fresh_cache: Any, tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "file").write_text("in the way")
    assert fresh_cache(TQINDEX_CACHE_DIR=str(tmp_path / "file")) is None
    assert "compiled kernels are not kept" in caplog.text


WARM = """
import sys
from tqindex.cli.warmup import compile_kernels
compile_kernels()
print("numba.misc.cffiimpl" in sys.modules)  # which nothing else imports
"""


def test_kept_kernels_run_without_what_compiling_needs(run_python: Any) -> None:
    run_python("-c", WARM)
    assert run_python("-c", WARM) == "False\n"


# Prints what is logged, what a kernel gives for two types, and how often it was found.
KERNEL = """
import logging, sys
import numpy as np
logging.basicConfig(stream=sys.stdout, format="%(message)s")
from tqindex.kernels.encode import fold as kernel
sums = [float(kernel(np.arange(5, dtype=kind), 5)) for kind in (np.float32, np.float64)]
print(sums, sum(kernel.stats.cache_hits.values()))
"""
RESULT = "[10.0, 10.0]"


@pytest.fixture
def run_kernel(run_python: Any, tmp_path: Path) -> Callable[..., list[str]]:
    """Return a runner of KERNEL with a folder of its own, which gives the lines that it printed."""
    return lambda before="", **variables: run_python(
        "-c", before + KERNEL, **{"TQINDEX_CACHE_DIR": str(tmp_path), **variables}
    ).splitlines()


def test_kernels_are_kept_and_found_again(run_kernel: Any, tmp_path: Path) -> None:
    assert run_kernel() == [f"{RESULT} 0"]
    kept = sorted(tmp_path.rglob("*.kernel"))
    assert len(kept) == 2
    assert run_kernel() == [f"{RESULT} 2"]
    assert sorted(tmp_path.rglob("*.*")) == kept


def test_kernels_of_another_cpu_are_left_alone(run_kernel: Any, tmp_path: Path) -> None:
    assert run_kernel(NUMBA_CPU_NAME="generic", TQINDEX_SIMD="portable") == [f"{RESULT} 0"]
    assert run_kernel(TQINDEX_SIMD="portable") == [f"{RESULT} 0"]
    assert len(list(tmp_path.rglob("*.kernel"))) == 4
    for variables in ({}, {"NUMBA_CPU_NAME": "generic"}):
        assert run_kernel(TQINDEX_SIMD="portable", **variables) == [f"{RESULT} 2"]


def flipped(content: bytes) -> bytes:
    """Change a bit in the middle, which is machine code."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_damaged_kernels_are_compiled_again(run_kernel: Any, tmp_path: Path) -> None:
    run_kernel()
    for damage in (lambda _: b"", lambda content: content[:1000], flipped):
        for path in tmp_path.rglob("*.kernel"):
            path.write_bytes(damage(path.read_bytes()))
        *said, result = run_kernel()
        assert result == f"{RESULT} 0"
        assert len(said) == 2
        assert all(line.startswith("a kept kernel is damaged and compiled again: ") for line in said)
    assert run_kernel() == [f"{RESULT} 2"]


def test_a_full_disk_is_said_once_and_survived(run_kernel: Any, tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="no limits on file sizes")
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    said, result = run_kernel(before=full)
    assert said.startswith(f"compiled kernels are not kept: cannot write to {tmp_path}")
    assert said.endswith("(File too large)")
    assert result == f"{RESULT} 0"
    assert not list(tmp_path.rglob("*.*"))


def test_kernels_that_cannot_be_read_are_compiled_again(run_kernel: Any, tmp_path: Path) -> None:
    run_kernel()
    for path in tmp_path.rglob("*.kernel"):
        path.unlink()
        path.mkdir()
    unread, unwritten, result = run_kernel()
    assert unread.startswith("kept kernels are compiled again: cannot read from")
    assert unwritten.startswith("compiled kernels are not kept: cannot write to")
    assert result == f"{RESULT} 0"


READ_ONLY = """
import logging, os, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
from tqindex.kernels import compile
if os.getuid() == 0:
    os.setuid(65534)  # root is not bound by permissions
os.environ["TQINDEX_CACHE_DIR"] = sys.argv[1]
print(compile.cache_folder())
"""


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_read_only_home_is_said_and_survived(run_python: Any, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    said, folder = run_python("-c", READ_ONLY, str(tmp_path)).splitlines()
    assert said.startswith("compiled kernels are not kept: no cache folder can be made ([Errno 13] Permission denied")
    assert folder == "None"


def test_the_command_works_without_a_home(gaussian_rows: Any, tmp_path: Path) -> None:
    index = tq.Index(64)
    index.add(gaussian_rows(100, 64))
    index.save(tmp_path / "index")
    query = gaussian_rows(1, 64, 1)
    np.save(tmp_path / "query.npy", query)
    command = [sys.executable, "-m", "tqindex", "search", "index", "query.npy", "--json"]
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "TQINDEX_CACHE_DIR": str(tmp_path / "query.npy")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("WARNING: compiled kernels are not kept: no cache folder can be made (")
    assert done.stderr.count("\n") == 1
    assert json.loads(done.stdout)["ids"] == index.search(query).ids.tolist()


# LLVM calls back with the machine code; what is raised there goes nowhere.
INTERRUPTED = """
from numba.core.codegen import CPUCodeLibrary
def interrupted(module, buffer):
    raise KeyboardInterrupt
CPUCodeLibrary._object_compiled_hook = interrupted
"""


def test_ctrl_c_while_machine_code_is_made_is_not_lost(run_python: Any, tmp_path: Path) -> None:
    watched = "try:\n    kernel(np.arange(5.0), 5)\nexcept KeyboardInterrupt:\n    print('interrupted')"
    code = INTERRUPTED + KERNEL.partition("sums =")[0] + watched
    assert run_python("-c", code, TQINDEX_CACHE_DIR=str(tmp_path)).splitlines()[-1] == "interrupted"
    assert not list(tmp_path.rglob("*.kernel"))
