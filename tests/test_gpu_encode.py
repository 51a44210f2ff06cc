"""Encoding on the device gives the bytes of the codec: the kernels run on the host, in three orders of threads."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from tqindex.checks import as_rows
from tqindex.codec import Codec
from tqindex.codec.packing import BLOCK, pad_planes, row_places, unpack_codes
from tqindex.errors import ArgumentError, VectorError
from tqindex.gpu.encode import MAX_DIM, SHARED_BYTES, Encoder, Form, Tables, specialisations
from tqindex.gpu.host import HostRuntime
from tqindex.gpu.host.build import load_module
from tqindex.gpu.host.call import HostKernel
from tqindex.gpu.host.count import CountingRuntime
from tqindex.gpu.sources import define_options, read_source
from tqindex.kernels import encoder as cpu
from tqindex.kernels.queries import encode_queries
from tqindex.kernels.rows import EncodedRows, StoredRows

SCHEDULES: list[Any] = ["forward", "reverse", "shuffled"]
#: What lies around the rows that a call writes.
CANARY = 0xA5


@dataclass(frozen=True)
class Case:
    """A codec's parameters and the type of its vectors; each makes one more module to compile."""

    dim: int
    config: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"

    def __str__(self) -> str:
        return "-".join(str(value) for value in (self.dim, *self.config.values(), self.dtype))

    def codec(self, centred: bool = False, scale: Any = "unbiased") -> Codec:
        # Far from 0, so that the centre matters; exact in float16.
        center = np.random.default_rng(1).standard_normal(self.dim).astype(np.float16) * 0.25 if centred else None
        return Codec(self.dim, center=center, scale=scale, **self.config)


CASES = [
    Case(2, {"bits": 1}),
    Case(7, {"bits": 3, "kind": "prod", "sketch": "gaussian", "rotation": "hadamard"}),
    Case(55, {"bits": 8}),
    Case(64, {"bits": 4}),
    Case(83, {"bits": 2, "kind": "prod"}, "float16"),
    Case(100, {"bits": 3}, "float16"),
    Case(128, {"bits": 4, "kind": "prod", "rotation": "dense"}),
    Case(200, {"bits": 8}, "float64"),
    Case(384, {"bits": 2}),
    Case(768, {"bits": 4, "kind": "prod"}),
    Case(1025, {"bits": 1}),
    Case(1536, {"bits": 4}),
    Case(1536, {"bits": 3, "kind": "prod"}),
    Case(4096, {"bits": 3}),
]
#: (rows, the first one's place, metric, centred, scale)
CALLS: list[tuple[int, int, str, bool, Any]] = [
    (1, 0, "ip", False, "unbiased"),
    (7, 3, "cosine", True, "unbiased"),
    (8, 5, "l2", False, "paper"),
    (9, 16, "cosine", False, "paper"),
    (65, 2, "l2", True, "unbiased"),
    (9, 6, "ip", True, "paper"),
]


def varied_rows(case: Case, n: int, metric: str, center: Any) -> Any:
    """Rows of every temper: Gaussian, one-hot, constant, tiny, large, denormal, half zeros, the centre itself, zero."""
    rng = np.random.default_rng(n)
    rows = rng.standard_normal((n, case.dim), dtype=np.float32)
    half = case.dtype == "float16"
    tempers = [
        -7.0 * np.eye(case.dim)[case.dim // 2],
        np.full(case.dim, 1.5),
        rows[0] * (1e-4 if half else 1e-30),
        rows[0] * (1e4 if half else 1e17) / np.sqrt(case.dim),
        np.where(rows[0] > 0, 1.0, -1.0),
        (1e-7 if half else 1e-42) * np.eye(case.dim)[0],
        rows[0] * (np.arange(case.dim) < case.dim // 2 + 1),
    ]
    if center is not None:
        tempers.append(center)
    if metric != "cosine":
        tempers += [np.zeros(case.dim), np.full(case.dim, -0.0)]
    places = range(n - 1, max(n - 1 - len(tempers), 0), -1)
    for place, temper in zip(places, tempers, strict=False):
        rows[place] = temper
    return rows.astype(case.dtype)


def canary_rows(codec: Codec, metric: str, n: int) -> StoredRows:
    rows = StoredRows.allocate(codec, metric, -(-n // BLOCK) * BLOCK)
    for array in rows.arrays().values():
        array.view(np.uint8)[...] = CANARY
    return rows


def encoded(codec: Codec, rows: Any, metric: str) -> EncodedRows:
    """What the codec makes of rows, in the form that `StoredRows.write` takes."""
    codes = codec.encode(rows, metric)
    none = np.empty(0, np.float32)
    return EncodedRows(
        pad_planes(unpack_codes(codes.packed, codec.dim, codec.bits), codec.bits),
        codes.scales,
        none if codes.sketch_scales is None else codes.sketch_scales,
        none if codes.offsets is None else codes.offsets,
    )


def assert_same_bytes(found: Any, expected: Any, what: str) -> None:
    """Bytes, so that -0 and 0 differ."""
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found.view(np.uint8), expected.view(np.uint8), err_msg=what)


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Compile for all cases, two at a time."""
    kernels = {Form.of(case.codec(), case.dtype == "float16").kernel("encode_rows") for case in CASES}
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(HostRuntime().function, kernels))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_are_encoded_as_the_codec_does(case: Case, schedule: Any) -> None:
    runtime = HostRuntime(schedule, seed=case.dim)
    for n, at, metric, centred, scale in CALLS:
        codec = case.codec(centred, scale)
        rows = varied_rows(case, n, metric, codec.center)
        before = rows.copy()
        out, expected = (canary_rows(codec, metric, at + n + 9) for _ in range(2))
        Encoder(runtime, codec, metric).encode_rows(rows, out, at=at)
        expected.write(at, encoded(codec, rows, metric))
        for name, array in out.arrays().items():
            assert_same_bytes(array, getattr(expected, name), f"{name} of {n} rows at {at}, {metric}")
        assert_same_bytes(rows, before, "the input")


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("case", [case for case in CASES if case.dtype == "float32"], ids=str)
def test_queries_are_encoded_as_the_codec_does(case: Case, schedule: Any) -> None:
    runtime = HostRuntime(schedule, seed=case.dim)
    for n, _, metric, centred, scale in CALLS:
        codec = case.codec(centred, scale)
        rows = varied_rows(case, n, metric, codec.center)
        found = Encoder(runtime, codec, metric).encode_queries(rows)
        expected = codec.encode_queries(rows, metric)
        for name in ("levels", "sketch_levels"):
            levels, oracle = getattr(found, name), getattr(expected, name)
            assert (levels is None) == (oracle is None)
            if oracle is not None:
                np.testing.assert_array_equal(levels, oracle)
        for name in ("steps", "sums", "biases", "sketch_steps"):
            side, oracle = getattr(found, name), getattr(expected, name)
            assert (side is None) == (oracle is None)
            if oracle is not None:
                assert_same_bytes(side, oracle, f"{name} of {n} queries, {metric}")


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_queries_of_other_dtypes_are_cast_before_all_else(dtype: str) -> None:
    codec = Codec(64)
    rows = np.random.default_rng(0).standard_normal((3, 64)).astype(dtype)
    found, expected = Encoder(HostRuntime(), codec, "ip").encode_queries(rows), codec.encode_queries(rows)
    np.testing.assert_array_equal(found.levels, expected.levels)
    np.testing.assert_array_equal(found.steps, expected.steps)


def test_sums_keep_the_sign_of_zero() -> None:
    """All products of the offset are -0, and so is their sum: padding must not turn it into 0."""
    center, rows = np.zeros(7, np.float32), np.full((1, 7), -2.0, np.float32)
    center[0] = rows[0, 0] = -1.0
    codec = Codec(7, 3, "prod", "gaussian", rotation="hadamard", center=center)
    encoder, out = Encoder(HostRuntime(), codec, "ip"), canary_rows(codec, "ip", 1)
    encoder.encode_rows(rows, out)
    assert codec.encode(rows).offsets.tobytes() == out.offsets[:1].tobytes() == np.float32(-0.0).tobytes()
    rows[0, 0] = 0.0
    assert encoder.encode_queries(rows).biases.tobytes() == codec.encode_queries(rows).biases.tobytes()


def test_stored_numbers_of_a_codebook_win() -> None:
    config = Codec(64, 4).get_config()
    config["codebook"]["centroids"] = [c + 3000 * (c > 0) - 3000 * (c < 0) for c in config["codebook"]["centroids"]]
    codec = Codec.from_config(config)
    rows = np.random.default_rng(0).standard_normal((9, 64), np.float32)
    out, expected = canary_rows(codec, "ip", 9), canary_rows(codec, "ip", 9)
    Encoder(HostRuntime(), codec, "ip").encode_rows(rows, out)
    expected.write(0, encoded(codec, rows, "ip"))
    assert_same_bytes(out.lead, expected.lead, "lead")
    assert_same_bytes(out.scales, expected.scales, "scales")


# -- parts of the kernels, called from kernels of this test

PARTS = """
extern "C" __global__ void find_codes(const float* y, const float* book, float step, int n, int* codes) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) codes[i] = find_code(y[i], book, step, [](int, bool) {});
}
extern "C" __global__ void convert(const unsigned short* halves, float* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = to_float(halves[i]);
}
extern "C" __global__ void find_places(int width, int* out) {
  for (int i = threadIdx.x; i < 8 * width; i += blockDim.x) out[i] = lead_place(i % width, i / width, width);
}
"""


def load_parts(form: Form, name: str) -> HostKernel:
    kernel = form.kernel("encode_rows")
    return HostKernel(load_module(read_source(kernel.source) + PARTS, define_options(kernel)), name)


@pytest.mark.parametrize("bits", [4, 8])
def test_coordinates_on_a_boundary_take_the_upper_code(bits: int) -> None:
    find_codes = load_parts(Form.of(Codec(64, bits)), "find_codes")
    rng = np.random.default_rng(0)
    for dim in (2, 3, 7, 33, 64, 100, 300, 768, 1536, 4096):
        codec = Codec(dim, bits, rotation="hadamard")
        boundaries = codec.codebook.boundaries
        near = [np.nextafter(boundaries, np.float32(side)) for side in (-np.inf, np.inf)]
        ends = np.array([-20, 20, 0, -0.0, 1e30, -1e30], np.float32)
        y = np.concatenate([boundaries, *near, ends, rng.standard_normal(500, np.float32)])
        codes = np.full(len(y), -1, np.int32)
        arguments = y, Tables.of(codec).book, np.float32(codec.codebook.step), np.int32(len(y)), codes
        find_codes((-(-len(y) // 64),), (64,), arguments)
        np.testing.assert_array_equal(codes, np.searchsorted(boundaries, y, side="right"))


def test_leading_planes_lie_where_the_packing_puts_them() -> None:
    find_places = load_parts(Form.of(Codec(64, 4)), "find_places")
    for width in [*range(1, 34), 192, 1023]:
        found = np.zeros((BLOCK, width), np.int32)
        find_places((1,), (64,), (np.int32(width), found))
        np.testing.assert_array_equal(found, row_places(width))


def test_every_float16_is_converted_exactly() -> None:
    halves, found = np.arange(2**16, dtype=np.uint16), np.zeros(2**16, np.float32)
    load_parts(Form.of(Codec(64, 4)), "convert")((256,), (256,), (halves, found))
    with np.errstate(invalid="ignore"):
        expected = halves.view(np.float16).astype(np.float32)
    number = ~np.isnan(expected)
    assert_same_bytes(found[number], expected[number], "numbers")
    assert np.isnan(found[~number]).all()


# -- what is refused


def refusal(call: Any, *arguments: Any) -> str | None:
    """What a call refuses its vectors with, or None."""
    try:
        call(*arguments)
    except VectorError as error:
        return str(error)
    return None


BROKEN: list[dict[int, float]] = [
    {8: np.nan},
    {0: np.inf},
    {64: -np.inf, 3: 0.0},
    {5: 2.0**60},
    {1: 2.0**59, 9: 2.0**58, 0: 2.0**61},
    {7: 2.0**61, 6: np.nan, 40: np.inf},
    {2: 3e38, 30: np.nan},
    {12: 0.0, 11: 0.0},
    {33: 0.0, 2: 3e38},
]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
@pytest.mark.parametrize("centred", [False, True])
def test_rows_and_queries_are_refused_as_on_the_cpu(metric: str, centred: bool, schedule: Any) -> None:
    codec = Codec(64, center=np.full(64, -(2.0**56)) if centred else None)
    ours = Encoder(HostRuntime(schedule, seed=1), codec, metric)
    refused = []
    for broken in BROKEN:
        rows = np.random.default_rng(2).standard_normal((65, 64), np.float32)
        for row, value in broken.items():
            rows[row] = rows[row] if np.isnan(value) else value
            rows[row, 63] = value
        out, theirs = canary_rows(codec, metric, 70), canary_rows(codec, metric, 70)
        refused.append(refusal(cpu.encode_rows, codec, rows, metric, theirs, 1, 1000, 3))
        assert refusal(ours.encode_rows, rows, out, 1000, 3) == refused[-1]
        if np.isfinite(list(broken.values())).all():  # the CPU's kernels are given finite queries alone
            expected = refusal(encode_queries, codec, rows, metric, 1000)
        else:
            expected = refusal(as_rows, rows, 64, "queries", 1000)
        assert refusal(ours.encode_queries, rows, 1000) == expected
    assert len(set(refused) - {None}) >= 5


def test_float64_that_overflows_float32_is_refused() -> None:
    rows = np.ones((3, 64))
    rows[2, 5] = 1e39
    codec = Codec(64)
    message = refusal(Encoder(HostRuntime(), codec, "ip").encode_rows, rows, canary_rows(codec, "ip", 3))
    assert message is not None
    assert message == refusal(codec.encode, rows)


@pytest.mark.parametrize("rows", [np.ones((3, 63), np.float32), np.ones((3, 64), np.int32), np.ones((1, 1, 64))])
def test_wrong_shapes_and_dtypes_are_refused_as_on_the_cpu(rows: Any) -> None:
    codec = Codec(64)
    ours = Encoder(HostRuntime(), codec, "ip")
    messages = refusal(codec.encode, rows), refusal(codec.encode_queries, rows)
    assert None not in messages
    assert (
        refusal(ours.encode_rows, rows, canary_rows(codec, "ip", 8)),
        refusal(ours.encode_queries, rows),
    ) == messages


def test_effort_search_encodes_on_the_cpu_alone_but_its_queries_are_encoded() -> None:
    codec = Codec(64, effort="search")
    ours = Encoder(HostRuntime(), codec, "ip")
    rows = np.random.default_rng(0).standard_normal((3, 64), np.float32)
    with pytest.raises(ArgumentError, match=r"effort must be 'plain' to encode on a GPU, got 'search'"):
        ours.encode_rows(rows, canary_rows(codec, "ip", 8))
    np.testing.assert_array_equal(ours.encode_queries(rows).levels, codec.encode_queries(rows).levels)


def test_no_rows_are_no_launch() -> None:
    codec = Codec(64)
    ours = Encoder(HostRuntime(), codec, "ip")
    out = canary_rows(codec, "ip", 8)
    ours.encode_rows(np.empty((0, 64), np.float32), out)
    assert (out.lead == CANARY).all()
    assert len(ours.encode_queries(np.empty((0, 64), np.float32))) == 0


# -- launch arithmetic


def test_every_form_fits_a_block() -> None:
    for dim in [*range(2, 130), *range(130, MAX_DIM, 97), 1024, 1025, 1536, 2048, 2049, 4096, 4097, MAX_DIM]:
        for bits, sketch in ((8, -1), (3, 0), (4, -1)):
            form = Form(dim, bits, 0, sketch)
            assert form.shared_bytes <= SHARED_BYTES
            assert form.rows in (1, 2, 4, 8)
            assert form.rows * dim <= MAX_DIM


@pytest.mark.parametrize(
    ("dim", "rows"), [(2, 8), (1024, 8), (1025, 4), (2048, 4), (2049, 1), (4096, 1), (4097, 1), (8192, 1)]
)
def test_grids_cover_all_rows_by_whole_blocks(dim: int, rows: int) -> None:
    form = Form(dim, 4, 0)
    assert form.rows == rows
    for n in (1, 7, 8, 9, 65):
        for at in range(17):
            first, last = at // rows, (at + n - 1) // rows
            assert form.grid(n, at) == (last - first + 1,)


def test_a_dim_that_does_not_fit_is_refused() -> None:
    assert Form.of(Codec(MAX_DIM)).dim == MAX_DIM
    with pytest.raises(ArgumentError, match=rf"dim must be at most {MAX_DIM} on a GPU, got {MAX_DIM + 1}"):
        Encoder(HostRuntime(), Codec(MAX_DIM + 1), "ip")


def test_specialisations_hold_every_form() -> None:
    kernels = list(specialisations((64, 1536)))
    assert len(kernels) == len(set(kernels))
    for case in CASES:
        if case.dim in (64, 1536):
            form = Form.of(case.codec(), case.dtype == "float16")
            assert {form.kernel("encode_rows"), form.kernel("encode_queries")} <= set(kernels)


# -- traffic


def test_vectors_are_read_once_and_codes_written_once() -> None:
    codec, runtime = Codec(1536, 4), CountingRuntime()
    rows = np.random.default_rng(0).standard_normal((8, 1536), np.float32)
    out = StoredRows.allocate(codec, "ip", 8)
    Encoder(runtime, codec, "ip").encode_rows(rows, out)
    counts = runtime.counts[0]
    read, written = counts.loads[0], [counts.stores[i] for i in (12, 14, 15)]
    assert read.asked_bytes == read.request_bytes == rows.nbytes
    for traffic, array in zip(written, (out.lead, out.rest, out.scales), strict=True):
        assert traffic.asked_bytes == array.nbytes
    # The tables of rotation and codebook stay in cache: every block reads them.
    tables = sum(counts.array_bytes[i] for i in (3, 4, 5, 6, 7))
    least = rows.nbytes + out.lead.nbytes + out.rest.nbytes + out.scales.nbytes
    moved = sum(traffic.distinct_bytes for traffic in (*counts.loads, *counts.stores))
    assert least <= moved <= least + tables + 64
    # Blocks of 2 rows share the sectors of the leading planes; without any cache it would still be near the least.
    assert least <= sum(traffic.block_bytes for traffic in (read, *written)) <= 1.1 * least
