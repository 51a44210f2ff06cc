"""The counts of the host run are those of kernels whose traffic and operations are known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tqindex.gpu.host.count import CountingRuntime, Counts
from tqindex.gpu.runtime import Kernel


@pytest.fixture
def count() -> Any:
    source = str(Path(__file__).parent / "gpu_kernels" / "counts.cu")

    def run(name: str, grid: int, block: int, *args: Any) -> Counts:
        runtime = CountingRuntime()
        runtime.function(Kernel(source, name))((grid,), (block,), args)
        return runtime.counts[0]

    return run


@pytest.mark.parametrize(("name", "threads"), [("copy", 1024), ("copy_vectors", 256)])
def test_a_copy_reads_and_writes_each_byte_once(count: Any, name: str, threads: int) -> None:
    values, out = np.arange(1024, dtype=np.float32), np.zeros(1024, np.float32)
    counts = count(name, threads // 64, 64, values, out)
    np.testing.assert_array_equal(out, values)
    for traffic in (counts.loads[0], counts.stores[1]):
        assert traffic.asked_bytes == traffic.request_bytes == traffic.block_bytes == traffic.distinct_bytes == 4096
    assert counts.stores[0].asked_bytes == counts.loads[1].asked_bytes == 0
    assert counts.operations == {
        "loads": threads // 32,
        "stores": threads // 32,
        "dp4a": 0,
        "shuffles": 0,
        "votes": 0,
        "barriers": 0,
        "mma": 0,
    }
    assert counts.global_wavefronts == 2 * 4096 // 128
    assert counts.array_bytes == (4096, 4096)


def test_strided_loads_take_a_sector_each_and_a_turn_where_they_are_far_apart(count: Any) -> None:
    values, table, out = np.zeros(64 * 16, np.float32), np.zeros(32, np.int32), np.zeros(64, np.float32)
    counts = count("gather", 2, 32, values, table, out, np.int32(16))
    strided = counts.loads[0]
    assert (strided.asked_bytes, strided.request_bytes, strided.distinct_bytes) == (64 * 4, 64 * 32, 64 * 32)
    # Of 64 bytes two fit in a turn; each block reads the table in one, and so it writes.
    assert counts.global_wavefronts == 2 * (32 // 2 + 1 + 1)


@pytest.mark.parametrize(("blocks", "times"), [(2, 1), (64, 1), (65, 2)])
def test_what_blocks_far_from_each_other_touch_moves_again(count: Any, blocks: int, times: int) -> None:
    counts = count("ends", blocks, 32, np.zeros(32, np.float32))
    for traffic in (counts.loads[0], counts.stores[0]):
        assert (traffic.asked_bytes, traffic.block_bytes, traffic.distinct_bytes) == (2 * 128, times * 128, 128)


@pytest.mark.parametrize(("stride", "turns"), [(1, 1), (2, 2), (8, 8), (32, 32), (33, 1)])
def test_bank_conflicts(count: Any, stride: int, turns: int) -> None:
    counts = count("banks", 1, 32, np.zeros(32, np.float32), np.int32(stride))
    assert counts.shared_wavefronts == 2 * turns
    assert counts.shared_bytes == 2 * 128


def test_instructions_are_those_of_warps(count: Any) -> None:
    def run(turns: int) -> Counts:
        args = np.ones(64, np.float32), np.zeros(64, np.float32), np.zeros(64), np.zeros(64, np.int32), np.int32(turns)
        return count("arithmetic", 1, 64, *args)

    few, many = run(10), run(110)
    # Half of the warp 0 goes through the second loop, nobody of warp 1: a warp's turn, whoever takes part.
    assert many.instructions["float32"] - few.instructions["float32"] == 100 * (2 * 3 + 1)
    assert many.instructions["float64"] - few.instructions["float64"] == 100 * 2
    assert many.operations["dp4a"] - few.operations["dp4a"] == 100 * 2
    assert (few.operations["shuffles"], few.operations["votes"]) == (2, 2)
    assert 100 * 3 <= many.instructions["integer"] - few.instructions["integer"] <= 100 * 9  # the loops themselves


def test_functions_of_one_instruction_count_as_one(count: Any) -> None:
    def integers(turns: int) -> int:
        args = np.arange(32, dtype=np.uint32), np.zeros(32, np.uint32), np.int32(turns)
        found: int = count("permute", 1, 32, *args).instructions["integer"]
        return found

    assert 100 * 2 <= integers(110) - integers(10) <= 100 * (2 + 3)  # and the loop


def test_an_atomic_change_is_a_store(count: Any) -> None:
    total = np.zeros(1, np.int32)
    counts = count("add_up", 2, 32, np.ones(32, np.int32), total)
    assert total[0] == 64
    assert (counts.stores[1].asked_bytes, counts.stores[1].request_bytes) == (64 * 4, 2 * 32)
    assert counts.loads[1].asked_bytes == 0


def test_counting_changes_no_result_and_starts_anew(count: Any) -> None:
    total, ones = np.zeros(1, np.int32), np.ones(32, np.int32)
    assert count("add_up", 2, 32, ones, total).loads == count("add_up", 2, 32, ones, total).loads
    assert total[0] == 128
