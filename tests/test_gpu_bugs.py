"""The host run catches bugs that a GPU would have: each one is put into a kernel that is right without it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tqindex.errors import DeviceError
from tqindex.gpu.host.build import Sanitizer, load_module
from tqindex.gpu.host.call import SCHEDULES, HostKernel
from tqindex.gpu.host.sanitize import RecordedLaunch

TEXT = (Path(__file__).parent / "gpu_kernels" / "bugs.cu").read_text()
SOURCE = f'#line 1 "bugs.cu"\n{TEXT}'
DIM, ROWS, BLOCK = 200, 5, 64


def arguments(name: str) -> tuple[Any, ...]:
    rng = np.random.default_rng(1)
    codes, query = rng.integers(0, 256, (ROWS, DIM // 2), np.uint8), rng.integers(-127, 128, DIM, np.int8)
    return {
        "score": (codes, query, np.zeros(ROWS, np.int32), np.int32(DIM)),
        "histogram": (codes, np.int64(codes.size), np.zeros(16, np.uint32)),
        "rotate": (np.arange(32, dtype=np.int32), np.zeros(32, np.int32)),
    }[name]


def expected(name: str) -> Any:
    codes = arguments("histogram")[0]
    pairs = np.stack([codes & 15, codes >> 4], axis=-1)
    if name == "histogram":
        return np.bincount(pairs.ravel(), minlength=16)
    if name == "rotate":
        return (np.arange(32) + 1) % 32
    return (16 * pairs.reshape(ROWS, DIM).astype(int) - 120) @ arguments("score")[1].astype(int)


def outputs(name: str, args: Any) -> Any:
    return args[2] if name != "rotate" else args[1]


def launch_sizes(name: str) -> tuple[tuple[int], tuple[int]]:
    return ((ROWS,), (BLOCK,)) if name == "score" else ((3,), (BLOCK,)) if name == "histogram" else ((1,), (32,))


def run_host(name: str, schedule: Any, *bugs: str, block: int | None = None) -> Any:
    library = load_module(SOURCE, tuple(f"-D{bug}" for bug in bugs))
    grid, usual = launch_sizes(name)
    args = arguments(name)
    HostKernel(library, name, schedule, seed=1)(grid, (block or usual[0],), args)
    return outputs(name, args)


def sanitized(name: str, sanitizer: Sanitizer, *bugs: str) -> tuple[str, Any]:
    defines = tuple(f"-D{bug}" for bug in bugs)
    report, arrays = RecordedLaunch(SOURCE, defines, name, *launch_sizes(name), arguments(name)).run(sanitizer)
    return report, outputs(name, arrays)


def line_of(text: str) -> int:
    lines = [number for number, line in enumerate(TEXT.splitlines(), 1) if text in line]
    assert len(lines) == 1, text
    return lines[0]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["score", "histogram", "rotate"])
def test_right_kernels_pass(name: str, schedule: str) -> None:
    np.testing.assert_array_equal(run_host(name, schedule), expected(name))


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
@pytest.mark.parametrize("name", ["score", "histogram", "rotate"])
def test_right_kernels_pass_the_sanitizers(name: str, sanitizer: Sanitizer) -> None:
    report, out = sanitized(name, sanitizer)
    assert report == ""
    np.testing.assert_array_equal(out, expected(name))


def test_a_missing_barrier_makes_results_depend_on_the_schedule() -> None:
    results = [run_host("score", schedule, "BUG_NO_BARRIER") for schedule in SCHEDULES]
    assert any(not np.array_equal(result, results[0]) for result in results)


def test_a_barrier_in_a_branch_is_an_error() -> None:
    with pytest.raises(DeviceError, match=r"barrier not reached by all 64 threads: 32 have ended"):
        run_host("score", "forward", "BUG_DIVERGENT_BARRIER")


def test_a_block_that_is_no_multiple_of_a_warp_cannot_use_the_full_mask() -> None:
    with pytest.raises(DeviceError, match="the lanes of the warp mask never meet"):
        run_host("score", "forward", block=48)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_shared_memory_that_was_not_set_changes_results(schedule: str) -> None:
    assert not np.array_equal(run_host("score", schedule, "BUG_SHARED_NOT_SET"), expected("score"))


@pytest.mark.parametrize(
    ("bug", "name", "place"),
    [
        ("BUG_NO_BARRIER", "score", "if (thread < 16) levels[thread] ="),
        ("BUG_SHARED_NOT_ATOMIC", "histogram", "mine[codes[i] & 15] += 1;"),
        ("BUG_GLOBAL_NOT_ATOMIC", "histogram", "counts[threadIdx.x] += mine"),
        ("BUG_SHUFFLE_FOR_SYNC", "rotate", "kept[threadIdx.x] = values"),
    ],
)
def test_races_are_found_by_tsan_where_they_are(bug: str, name: str, place: str) -> None:
    report, _ = sanitized(name, "thread", bug)
    assert "WARNING: ThreadSanitizer: data race" in report
    assert f"bugs.cu:{line_of(place)}" in report


@pytest.mark.parametrize("bug", ["BUG_SHARED_NOT_ATOMIC", "BUG_GLOBAL_NOT_ATOMIC", "BUG_SHUFFLE_FOR_SYNC"])
def test_some_races_give_the_right_answer_here(bug: str) -> None:
    """Why schedules alone do not do."""
    name = "rotate" if bug == "BUG_SHUFFLE_FOR_SYNC" else "histogram"
    for schedule in SCHEDULES:
        np.testing.assert_array_equal(run_host(name, schedule, bug), expected(name))


@pytest.mark.parametrize(
    ("bug", "message", "place"),
    [
        ("BUG_GLOBAL_OUT_OF_BOUNDS", "heap-buffer-overflow", "sum = __dp4a"),
        ("BUG_SHARED_OUT_OF_BOUNDS", "runtime error: index 2 out of bounds", "total += partial[warp];"),
        ("BUG_MISALIGNED", "runtime error: load of misaligned address", "const unsigned c = "),
    ],
)
def test_bad_addresses_are_found_by_asan_and_ubsan(bug: str, message: str, place: str) -> None:
    report, _ = sanitized("score", "address", bug)
    assert message in report
    assert f"bugs.cu:{line_of(place)}" in report
