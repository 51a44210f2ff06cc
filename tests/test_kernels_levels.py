"""Every SIMD level that the machine has gives the same numbers; levels are chosen and refused as documented."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tqindex as tq
from tqindex.errors import ArgumentError
from tqindex.kernels import cpu

HERE = Path(__file__).parent
FILES = ("scan", "encode", "trellis", "queries", "coarse", "cascade", "kv")


@pytest.mark.parametrize("level", [level for level in cpu.available_levels() if level != cpu.simd_level()])
def test_kernel_tests_pass_at_every_level(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQINDEX_SIMD", level)
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not nightly", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *(str(HERE / f"test_kernels_{name}.py") for name in FILES)],
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE.parent,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


def test_portable_is_always_there() -> None:
    assert cpu.available_levels()[-1] == "portable"
    assert tq.Index(8).info()["simd"] == cpu.simd_level()


def test_unknown_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQINDEX_SIMD", "sse9")
    cpu.simd_level.cache_clear()
    try:
        with pytest.raises(ArgumentError, match=r"TQINDEX_SIMD must be one of .*portable on this machine, got 'sse9'"):
            cpu.simd_level()
    finally:
        cpu.simd_level.cache_clear()


def levels_of(monkeypatch: pytest.MonkeyPatch, *features: str, platform: str = "linux", machine: str = "") -> Any:
    """Return the levels of a CPU with these features."""
    monkeypatch.setattr(cpu.llvm, "get_host_cpu_features", lambda: dict.fromkeys(features, True) | {"sve": False})
    monkeypatch.setattr(cpu.sys, "platform", platform)
    monkeypatch.setattr(cpu.platform, "machine", lambda: machine)
    return cpu.available_levels.__wrapped__()


def test_a_process_without_tile_permission_gets_the_next_level(monkeypatch: pytest.MonkeyPatch) -> None:
    features = set().union(*(cpu._FEATURES[level] for level in ("amx", "avx512", "avx2")))
    for allowed, best in ((True, "amx"), (False, "avx512")):
        monkeypatch.setattr(cpu, "_may_use_tiles", lambda allowed=allowed: allowed)
        assert levels_of(monkeypatch, *features)[0] == best
    assert levels_of(monkeypatch, *features - {"avx512vnni"}) == ("avx2", "portable")
    assert levels_of(monkeypatch, "sse2") == ("portable",)


def test_levels_of_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    assert levels_of(monkeypatch, "neon", "dotprod", "i8mm", "sve2") == ("i8mm", "dotprod", "portable")
    assert levels_of(monkeypatch, "neon", "dotprod") == ("dotprod", "portable")
    assert levels_of(monkeypatch, "neon") == ("portable",)
    assert levels_of(monkeypatch, platform="darwin", machine="arm64") == ("dotprod", "portable")
    assert levels_of(monkeypatch, platform="darwin", machine="x86_64") == ("portable",)


GENERIC = """
import numpy as np, tqindex as tq
rows = np.random.default_rng(0).standard_normal((200, 100), dtype=np.float32)
for codec in ("mse", "prod"):
    index = tq.Index(100, codec=codec)
    index.add(rows)
    scores = index.codec.scores(rows[:3], index.codec.encode(rows, "cosine"))
    for nq in (1, 3):
        found = index.search(rows[:nq], 5).scores
        np.testing.assert_array_equal(found, -np.sort(-scores[:nq], axis=1)[:, :5])
print(index.info()["simd"])
"""


def test_portable_kernels_need_no_instruction_of_this_cpu(run_python: Any, tmp_path: Path) -> None:
    # Compiled for the oldest x86-64, where AVX2 code would end the process.
    environment = {"NUMBA_CPU_NAME": "generic", "TQINDEX_CACHE_DIR": str(tmp_path)}
    assert run_python("-c", GENERIC, **environment) == "portable\n"
