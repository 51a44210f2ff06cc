"""The shim's reading of CUDA's functions, each against the definition in NVIDIA's documents.

Shuffles, votes, barriers, atomics: CUDA C++ Programming Guide, "C++ Language Extensions". Arithmetic: CUDA Math API.
"""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tqindex.errors import ArgumentError, DeviceError
from tqindex.gpu.cuda import open_device
from tqindex.gpu.host.build import load_module
from tqindex.gpu.host.call import HostKernel
from tqindex.gpu.runtime import Kernel
from tqindex.gpu.sources import read_source

SOURCE = Path(__file__).parent / "gpu_kernels" / "intrinsics.cu"
SCHEDULES = ["forward", "reverse", "shuffled"]
ANY, UP, DOWN, XOR = range(4)


def run_on_device(name: str, grid: tuple[int, ...], block: tuple[int, ...], args: Any) -> None:
    """Run a kernel on the first GPU, arrays sent there and brought back."""
    runtime = open_device()
    with runtime.guard():
        sent = [runtime.upload(arg) if isinstance(arg, np.ndarray) else arg for arg in args]
        runtime.function(Kernel(str(SOURCE), name))(grid, block, sent)
        for arg, copy in zip(args, sent, strict=True):
            if isinstance(arg, np.ndarray):
                arg[...] = runtime.download(copy)


@pytest.fixture(scope="module", params=["host", pytest.param("device", marks=pytest.mark.gpu)])
def either(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Return kernels of the shim, and of a GPU: what is said of CUDA's functions holds there."""
    if request.param == "host":
        library = load_module(read_source(str(SOURCE)))
        return lambda name, schedule="shuffled": HostKernel(library, name, schedule, seed=3)
    request.getfixturevalue("needs_gpu")
    return lambda name, _="": functools.partial(run_on_device, name)


@pytest.fixture(scope="module")
def kernel() -> Callable[..., HostKernel]:
    library = load_module(read_source(str(SOURCE)))
    return lambda name, schedule="shuffled": HostKernel(library, name, schedule, seed=3)


@pytest.fixture(scope="module")
def compile_body() -> Callable[[str], HostKernel]:
    """Compile `one(out)` with this body."""

    def make(body: str) -> HostKernel:
        return HostKernel(load_module(f'extern "C" __global__ void one(int* out) {{{body}}}'), "one")

    return make


def shuffled(kind: int, width: int, operands: list[int], values: list[int]) -> list[int]:
    """What each lane gets: lanes of one width are a group of their own, numbered from 0."""
    out = []
    for lane, operand in enumerate(operands):
        group, logical = divmod(lane, width)
        if kind == ANY:  # "srcLane modulo width"
            source = group * width + operand % width
        elif kind == UP:  # "the lower delta lanes will be unchanged"
            source = lane if logical - operand < 0 else lane - operand
        elif kind == DOWN:  # "the upper delta lanes will remain unchanged"
            source = lane if logical + operand >= width else lane + operand
        else:  # "later groups: their own value of var will be returned"
            source = lane if (lane ^ operand) // width > group else lane ^ operand
        out.append(values[source])
    return out


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("width", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("kind", [ANY, UP, DOWN, XOR])
def test_shuffles_read_the_lane_of_the_guide(either: Any, kind: int, width: int, schedule: str) -> None:
    values = np.arange(100, 132, dtype=np.int32)
    shuffle = either("shuffle", schedule)
    for operand in [*range(32), *([40, -1] if kind == ANY else [])]:
        operands, out = np.full(32, operand, np.int32), np.zeros(32, np.int32)
        shuffle((1,), (32,), (np.int32(kind), np.int32(width), operands, values, out))
        assert out.tolist() == shuffled(kind, width, operands.tolist(), values.tolist()), operand


def test_shuffle_takes_each_lanes_own_operand(either: Any) -> None:
    operands = np.random.default_rng(0).integers(0, 32, 32).astype(np.int32)
    values, out = np.arange(32, dtype=np.int32), np.zeros(32, np.int32)
    either("shuffle")((1,), (32,), (np.int32(ANY), np.int32(8), operands, values, out))
    assert out.tolist() == shuffled(ANY, 8, operands.tolist(), values.tolist())


def test_shuffle_of_eight_bytes(either: Any) -> None:
    values, out = np.random.default_rng(0).standard_normal(32), np.zeros(32)
    either("shuffle_wide")((1,), (32,), (values, out))
    np.testing.assert_array_equal(out, values[np.arange(32) ^ 5])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("out[0] = __shfl_sync(0xffffffffu, 1, 0, 12);", "width must be a power of two"),
        ("out[0] = __shfl_down_sync(0xffffffffu, 1, 32);", "distance must be 0 to 31"),
        ("if (threadIdx.x < 16) out[0] = __shfl_sync(0xffffu, 1, 20);", "lane 20, which is not in the mask"),
        ("out[0] = __shfl_sync(0xffffu, 1, 0);", "not in its own mask"),
        ("if (threadIdx.x < 8) out[0] = __ballot_sync(0xffffu, 1);", "never meet"),
        ("__syncwarp(threadIdx.x < 8 ? 0xffffffffu : 0xffffff00u);", "never meet"),
    ],
)
def test_undefined_uses_of_warp_operations_are_errors(compile_body: Any, body: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        compile_body(body)((1,), (32,), (np.zeros(1, np.int32),))


@pytest.mark.parametrize(
    "body",
    [
        "out[0] = __activemask();",
        "extern __shared__ int room[]; out[0] = room[0];",
        "out[0] = (int)rsqrtf(2.f);",
        "out[0] = (int)expf(2.f);",
        'asm("bar.sync 0;");',
        "signed char small = 1; out[0] = __shfl_sync(0xffffffffu, small, 0);",
        "unsigned char small[4] = {}; atomicAdd(small, 1);",
    ],
)
def test_functions_whose_result_is_not_defined_are_not_offered(compile_body: Any, body: str) -> None:
    with pytest.raises(DeviceError, match=r"refused a kernel's source"):
        compile_body(body)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("mask", [0xFFFFFFFF, 0x0000FFFF, 0x80000001, 0x12345678])
def test_votes_are_of_the_lanes_in_the_mask(either: Any, mask: int, schedule: str) -> None:
    lanes = [lane for lane in range(32) if mask >> lane & 1]
    for chosen in ([], lanes, lanes[:1], lanes[::2]):
        values, out = np.zeros(32, np.int32), np.zeros((3, 32), np.uint32)
        values[chosen] = [4 + lane for lane in chosen]  # any number but 0 is true
        values[[lane for lane in range(32) if lane not in lanes]] = 1
        either("vote", schedule)((1,), (32,), (np.uint32(mask), values, out))
        assert set(out[0, lanes].tolist()) == {sum(1 << lane for lane in chosen)}
        assert set(out[1, lanes].tolist()) == {int(bool(chosen))}
        assert set(out[2, lanes].tolist()) == {int(chosen == lanes)}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("holding", [0, 1, 69, 70])
def test_barrier_votes(either: Any, holding: int, schedule: str) -> None:
    values, out = np.zeros(70, np.int32), np.zeros((3, 70), np.int32)
    values[:holding] = 2
    either("barrier_vote", schedule)((1,), (70,), (values, out))
    assert [set(row) for row in out.tolist()] == [{holding}, {int(holding == 70)}, {int(holding > 0)}]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_warp_sees_what_its_lanes_wrote_before_syncwarp(either: Any, schedule: str) -> None:
    values, out = np.arange(64, dtype=np.int32), np.zeros(64, np.int32)
    either("meet", schedule)((1,), (64,), (values, out))
    assert out.tolist() == [*range(1, 32), 0, *range(33, 64), 32]


def dot4(a: int, b: int, signed: bool) -> int:
    """Sum of the products of four bytes."""
    parts = [np.array([word], "<u4").view(np.int8 if signed else np.uint8).astype(int) for word in (a, b)]
    return int(parts[0] @ parts[1])


def leading_zeros(value: int, bits: int) -> int:
    return bits - value.bit_length()


def first_set(value: int) -> int:
    return (value & -value).bit_length()


def chosen_bytes(x: int, y: int, s: int) -> int:
    """The byte that each nibble's three low bits name, of the eight bytes of y:x."""
    source = x.to_bytes(4, "little") + y.to_bytes(4, "little")
    return int.from_bytes(bytes(source[s >> 4 * i & 7] for i in range(4)), "little")


def signed(value: int) -> int:
    return value - (value >> 31 << 32)


INTEGERS: list[Callable[[int, int, int], int]] = [
    lambda a, b, c: signed(c) + dot4(a, b, signed=True),
    lambda a, b, c: c + dot4(a, b, signed=False),
    lambda a, b, c: a.bit_count(),
    lambda a, b, c: a.bit_count() + b.bit_count(),
    lambda a, b, c: leading_zeros(a, 32),
    lambda a, b, c: leading_zeros(b << 32 | a, 64),
    lambda a, b, c: first_set(a),
    lambda a, b, c: first_set(b << 32 | a),
    lambda a, b, c: int(f"{a:032b}"[::-1], 2),
    chosen_bytes,
    lambda a, b, c: ((b << 32 | a) << (c & 31)) >> 32,
    lambda a, b, c: (b << 32 | a) >> (c & 31),
    lambda a, b, c: a * b >> 32,
    lambda a, b, c: min(a, b),
    lambda a, b, c: max(signed(a), signed(b)),
]


def test_integer_functions(either: Any) -> None:
    edges = [0, 1, 2, 31, 32, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x80808080, 0x7F7F7F7F, 0x76543210, 0xFEDCBA98]
    triples = [*itertools.product(edges, repeat=3)]
    triples += [tuple(row) for row in np.random.default_rng(1).integers(0, 2**32, (500, 3)).tolist()]
    columns = [np.array(column, np.uint32) for column in zip(*triples, strict=True)]
    n, out = len(triples), np.zeros((len(INTEGERS), len(triples)), np.uint32)
    either("integers")((-(-n // 96),), (96,), (*columns, out, np.int32(n)))
    for number, wanted in enumerate(INTEGERS):
        assert out[number].tolist() == [wanted(*triple) & 0xFFFFFFFF for triple in triples], number


@pytest.mark.parametrize("least", [-128, 127, None])
def test_products_of_matrices(either: Any, least: int | None) -> None:
    """PTX ISA, "Matrix Fragments for mma.m16n8k32" with .s8: where each number is."""
    rng = np.random.default_rng(4)
    low, high = (least, least + 1) if least is not None else (-128, 128)
    rows, columns = rng.integers(low, high, (16, 32), np.int8), rng.integers(low, high, (32, 8), np.int8)
    before = rng.integers(-(2**20), 2**20, (16, 8), np.int32)
    of_rows, of_columns = np.empty((32, 4, 4), np.int8), np.empty((32, 2, 4), np.int8)
    of_sums = np.empty((32, 4), np.int32)
    for lane in range(32):
        group, member = lane // 4, lane % 4
        for i in range(4):
            first = member * 4 + 16 * (i // 2)
            of_rows[lane, i] = rows[group + 8 * (i % 2), first : first + 4]
            of_sums[lane, i] = before[group + 8 * (i // 2), member * 2 + i % 2]
        for i in range(2):
            of_columns[lane, i] = columns[member * 4 + 16 * i :, group][:4]
    either("multiply")((1,), (32,), (of_rows.view(np.uint32), of_columns.view(np.uint32), of_sums))
    after = before + rows.astype(np.int32) @ columns.astype(np.int32)
    for lane, i in itertools.product(range(32), range(4)):
        assert of_sums[lane, i] == after[lane // 4 + 8 * (i // 2), lane % 4 * 2 + i % 2]


def test_floats_are_rounded_to_nearest_and_not_contracted(either: Any) -> None:
    rng = np.random.default_rng(2)
    a, b = (rng.standard_normal(200).astype(np.float32) for _ in range(2))
    a, c = np.abs(a), -(a * b).astype(np.float32)  # a * b + c differs from the fused result everywhere
    out, rounded = np.zeros((9, 200), np.float32), np.zeros(200, np.int32)
    either("floats")((1,), (224,), (a, b, c, out, rounded, np.int32(200)))
    exact = a.astype(np.float64) * b + c  # the product and the sum of these fit float64's 53 bits
    wanted = [a + b, a - b, a * b, a / b, np.sqrt(a), exact.astype(np.float32), a * b + c, a]
    np.testing.assert_array_equal(out[:8], wanted)
    np.testing.assert_array_equal(out[8], (a.astype(np.float64) * b - c).astype(np.float32))
    np.testing.assert_array_equal(rounded, np.rint(a).astype(np.int32))
    assert (out[5] != out[6]).any()


def test_conversion_to_int_saturates_and_rounds_ties_to_even(either: Any) -> None:
    a = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 3e9, -3e9, 2147483520, np.inf, -np.inf, np.nan], np.float32)
    n, top, low = len(a), 2**31 - 1, -(2**31)
    out, rounded, ones = np.zeros((9, n), np.float32), np.zeros(n, np.int32), np.ones(n, np.float32)
    either("floats")((1,), (32,), (a, ones, ones, out, rounded, np.int32(n)))
    assert rounded.tolist() == [0, 2, 2, 0, -2, top, low, 2147483520, top, low, 0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_atomics(either: Any, schedule: str) -> None:
    words, total = np.array([5, 9, 9, 1, 6, 1, 0, 7], np.uint32), np.zeros(1, np.float32)
    wide = np.array([5, 2**63, 9, 1, 2**34, 1, 0, 7], np.uint64)
    before, n = words.tolist(), 3 * 40
    either("atomics", schedule)((3,), (40,), (words, wide, total))
    operands = range(1, n + 1)
    every = [0, 0]
    for operand in operands:
        every = [every[0] | operand, every[1] ^ operand]
    assert words[:6].tolist() == [before[0] + sum(operands), 1, n, 1 | every[0], 0, 1 ^ every[1]]
    assert wide[:4].tolist() == [5 + (sum(operands) << 33), 1 << 33, n << 33, 1 | every[0] << 33]
    assert words[6] in operands
    assert words[7] in operands
    assert total[0] == n


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_thread_of_a_grid_runs_once_in_its_place(either: Any, schedule: str) -> None:
    grid, block = (3, 2, 2), (4, 3, 2)
    out = np.full((2, 2, 3, 2, 3, 4, 6), -1, np.int32)
    either("place", schedule)(grid, block, (out,))
    places = np.stack(np.meshgrid(*(np.arange(n) for n in out.shape[:6]), indexing="ij"), axis=-1)
    np.testing.assert_array_equal(out, places[..., [5, 4, 3, 2, 1, 0]])


def test_vector_loads(either: Any) -> None:
    values, out = np.arange(16, dtype=np.float32), np.zeros(16, np.float32)
    either("vectors")((1,), (4,), (values, out))
    np.testing.assert_array_equal(out.reshape(4, 4), values.reshape(4, 4)[:, ::-1])


def test_shared_memory_is_poisoned_before_every_block(kernel: Any) -> None:
    out = np.zeros(8, np.int32)
    kernel("uninitialised", "forward")((8,), (1,), (out,))
    assert set(out.view(np.uint8).tolist()) == {0xCB}


@pytest.mark.parametrize("grid", [(0,), (1, 65536), (1, 1, 65536)])
def test_grids_that_a_device_refuses(kernel: Any, grid: tuple[int, ...]) -> None:
    with pytest.raises(DeviceError, match="the grid is empty or too large"):
        kernel("uninitialised")(grid, (1,), (np.zeros(1, np.int32),))


@pytest.mark.parametrize("block", [(0,), (1025,), (32, 33), (1, 1, 65)])
def test_blocks_that_a_device_refuses(kernel: Any, block: tuple[int, ...]) -> None:
    with pytest.raises(DeviceError, match="1 to 1024 threads"):
        kernel("uninitialised")((1,), block, (np.zeros(1, np.int32),))


def read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("place", "given", "message"),
    [
        (0, np.float64(1), "must be of type i4, got f8"),
        (0, 1, r"must be an array or a NumPy scalar \(i4\), got int"),
        (0, np.zeros(1, np.int32), "must be of type i4, got "),
        (2, np.zeros(32, np.int64), "must be of type .i4, got .i8"),
        (2, np.zeros(32, np.uint32), "must be of type .i4, got .u4"),
        (2, np.int32(1), "must be of type .i4, got i4"),
        (3, np.zeros(64, np.int32)[::2], "must be C-contiguous"),
        (4, read_only(np.zeros(32, np.int32)), "got a read-only array"),
    ],
)
def test_arguments_are_checked_against_the_kernels_types(kernel: Any, place: int, given: Any, message: str) -> None:
    zeros = np.zeros(32, np.int32)
    args: list[Any] = [np.int32(0), np.int32(32), zeros, zeros, zeros.copy()]
    args[place] = given
    with pytest.raises(ArgumentError, match=f"shuffle: argument {place} .*{message}"):
        kernel("shuffle")((1,), (32,), args)


def test_calls_that_no_kernel_takes(kernel: Any) -> None:
    out = np.zeros(1, np.int32)
    with pytest.raises(ArgumentError, match="takes 1 arguments, got 2"):
        kernel("uninitialised")((1,), (1,), (out, out))
    with pytest.raises(ArgumentError, match="shared_mem must be 0"):
        kernel("uninitialised")((1,), (1,), (out,), shared_mem=64)
    with pytest.raises(ArgumentError, match="kernel must be in the source, got 'nothing'"):
        kernel("nothing")
    with pytest.raises(ArgumentError, match="schedule must be one of forward, reverse, shuffled, got 'sideways'"):
        kernel("uninitialised", "sideways")
