"""Kernels of attention on packed keys and values, run on the host: the same numbers as the CPU's kernels.

Logits are compared bit for bit. Sums of values are too where one block has all pages, and else to 1e-6 of the largest:
blocks' sums are added up in the order of pages, where the CPU adds page after page.
"""

import mmap
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tqindex.codec.codebook import make_codebook
from tqindex.errors import ArgumentError, DeviceError
from tqindex.gpu import attention as gpu_attention
from tqindex.gpu.attention import (
    MOST_CODES,
    MOST_QUERIES,
    DeviceStrips,
    count_key_blocks,
    count_queries,
    plan_sums,
    score_keys,
    score_means,
    weigh_values,
)
from tqindex.gpu.attention_cases import attention_cases
from tqindex.gpu.cuda import open_device
from tqindex.gpu.host.build import Sanitizer, load_module
from tqindex.gpu.host.call import SCHEDULES, HostKernel, Schedule
from tqindex.gpu.host.count import CountingRuntime
from tqindex.gpu.host.runtime import HostRuntime
from tqindex.gpu.host.sanitize import RecordingRuntime
from tqindex.gpu.roofline import evaluate
from tqindex.gpu.runtime import Kernel, Launch, Runtime
from tqindex.gpu.sources import define_options, read_source
from tqindex.kernels import kv
from tqindex.kernels.kv_layout import pack_strips
from tqindex.kernels.kv_norms import pack_norms

Float32Array = npt.NDArray[np.float32]
HOST = HostRuntime()
WIDTHS = (1, 2, 3, 4, 8)
#: Of Linux; Python has no name for it.
MAP_NORESERVE = 0x4000


class Case:
    """Random packed keys and values, queries and weights; what the CPU and a runtime make of them."""

    def __init__(self, bits: int, dim: int, heads: int = 2, n: int = 3, page: int = 64, pages: int = 3, left: int = 0):
        self.rng, book = np.random.default_rng([bits, dim, n]), make_codebook(dim, bits)
        self.bits, self.dim, self.heads, self.n, self.page, self.pages = bits, dim, heads, n, page, pages
        whole = page * pages
        self.tokens, self.at, columns = whole - left, 5, whole + 11
        codes = self.rng.integers(0, 2**bits, (heads, whole, dim)).astype(np.uint8)
        self.norms = pack_norms(self.rng.lognormal(sigma=2, size=(heads, whole)).astype(np.float32))
        self.norms[:, ::7] = 0
        table = np.tile(np.resize((book.levels.astype(np.int16) + 128).astype(np.uint8), 16), 4)
        self.reading = table, 255 if book.offset else 256, float(book.step)
        self.key_words = pack_strips(codes, bits)
        self.value_words = pack_strips(codes.reshape(heads, pages, page, dim).swapaxes(2, 3), bits)
        self.queries, self.plain = self.floats(heads, n, dim), self.floats(heads, n, dim)
        self.queries[0, 0] = 0
        self.means = (self.floats(heads, pages, dim).view(np.uint32) >> 16).astype(np.uint16)
        # What is beyond the tokens must not be read: as after a crop, there are columns of others.
        self.weights = np.full((heads, n, columns), np.nan, np.float32)
        counted = self.rng.standard_exponential((heads, n, self.tokens)).astype(np.float32)
        self.weights[:, :, self.at : self.at + self.tokens] = counted / counted.sum(axis=2, keepdims=True)
        self.logits, self.sums = self.floats(heads, n, columns), self.floats(heads, n, dim)

    def floats(self, *shape: int) -> Float32Array:
        return self.rng.standard_normal(shape, dtype=np.float32)

    def strips(self, runtime: Runtime, words: Any) -> DeviceStrips:
        return DeviceStrips.send(runtime, self.bits, words, self.norms, self.reading)

    def logits_there(self, runtime: Runtime, centred: bool) -> Float32Array:
        with runtime.guard():
            queries, plain, means, out = map(runtime.upload, (self.queries, self.plain, self.means, self.logits))
            keys = self.strips(runtime, self.key_words)
            scores = score_means(runtime, keys, means, plain) if centred else None
            score_keys(runtime, keys, queries, self.at, self.tokens, out, scores, self.page)
            return runtime.download(out)

    def sums_there(self, runtime: Runtime, start: Float32Array) -> Float32Array:
        with runtime.guard():
            weights, out = map(runtime.upload, (self.weights, start))
            weigh_values(runtime, self.strips(runtime, self.value_words), weights, self.at, self.tokens, out)
            return runtime.download(out)

    def logits_here(self, centred: bool) -> Float32Array:
        out = self.logits.copy()
        if centred:
            kv.score_means(self.means, self.page, self.plain, self.at, self.tokens, out)
        score = kv.make_score_keys(self.bits)
        score(self.key_words, self.norms, self.reading, self.queries, self.at, self.tokens, out)
        return out

    def sums_here(self, start: Float32Array) -> Float32Array:
        out = start.copy()
        weigh = kv.make_sum_values(self.bits)
        weigh(self.value_words, self.norms, self.reading, self.weights, self.at, self.tokens, out)
        return out

    def check(self, runtime: Runtime = HOST) -> None:
        for centred in (True, False):
            assert_same_bits(self.logits_there(runtime, centred), self.logits_here(centred))
        zeros = np.zeros_like(self.sums)
        one_block = plan_sums(-(-self.tokens // self.page), self.heads, self.dim).blocks == 1
        assert_same_sums(self.sums_there(runtime, zeros), self.sums_here(zeros), exact=one_block)
        assert_same_sums(self.sums_there(runtime, self.sums), self.sums_here(self.sums))


def assert_same_bits(found: Float32Array, expected: Float32Array) -> None:
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def assert_same_sums(found: Float32Array, expected: Float32Array, exact: bool = False) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.0 if exact else 1e-6 * np.abs(expected).max())


# --- the same numbers ---


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
def test_every_width_and_head_dim(bits: int, dim: int) -> None:
    Case(bits, dim, n=4 if dim > 80 else 3, left=13).check()


@pytest.mark.parametrize("n", [1, 2, 4, 5, 8, 11, 16])
def test_any_number_of_queries_shares_a_launch(n: int) -> None:
    Case(4, 64, n=n).check()


@pytest.mark.parametrize(("bits", "dim"), [(4, 2), (3, 33), (1, 50), (8, 7), (2, 512)])
def test_odd_dims_and_the_largest(bits: int, dim: int) -> None:
    Case(bits, dim, heads=3, pages=2, left=1).check()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_schedule_changes_a_result(schedule: Schedule) -> None:
    runtime = HostRuntime(schedule, seed=4)
    Case(4, 128, heads=4, n=2, pages=9, left=30).check(runtime)
    Case(3, 80, n=5, page=32, pages=11, left=3).check(runtime)
    # More pages than are staged at once, of a length that is no power of two.
    Case(2, 20, n=1, page=96, pages=8).check(runtime)
    Case(8, 40, n=2, page=MOST_CODES, pages=5, left=100).check(runtime)


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 63, 64, 65, 128, 129])
def test_ragged_last_pages(tokens: int) -> None:
    case = Case(4, 64, pages=4, left=4 * 64 - tokens)
    assert case.tokens == tokens
    case.check()


def test_nothing_but_the_tokens_columns_is_written() -> None:
    case = Case(4, 64, left=20)
    for centred in (True, False):
        out = case.logits_there(HOST, centred)
        assert_same_bits(out[:, :, : case.at], case.logits[:, :, : case.at])
        assert_same_bits(out[:, :, case.at + case.tokens :], case.logits[:, :, case.at + case.tokens :])


def test_rows_of_a_batch_are_heads_of_their_own() -> None:
    case = Case(4, 64, heads=6)
    whole = case.logits_there(HOST, True), case.sums_there(HOST, case.sums)
    for row in range(3):
        part, heads = Case(4, 64, heads=6), slice(2 * row, 2 * row + 2)
        for name in ("norms", "key_words", "value_words", "queries", "plain", "means", "weights", "logits", "sums"):
            setattr(part, name, np.ascontiguousarray(getattr(case, name)[heads]))
        assert_same_bits(part.logits_there(HOST, True), whole[0][heads])
        assert_same_bits(part.sums_there(HOST, part.sums), whole[1][heads])


@pytest.mark.parametrize("where", ["cupy", pytest.param("device", marks=pytest.mark.gpu)])
def test_cupys_arrays(where: str, fake_cupy: Any, request: pytest.FixtureRequest) -> None:
    if where == "device":
        request.getfixturevalue("needs_gpu")
        Case(4, 128, n=4, pages=9, left=30).check(open_device())
        return
    with fake_cupy():
        Case(4, 128, n=4, pages=9, left=30).check(open_device())


def test_blocks_take_tokens_in_turn_and_several_share_a_heads_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_attention, "_BLOCKS", 6)
    assert count_key_blocks(1000, 2) == 3
    Case(4, 64, pages=13, left=50).check()
    monkeypatch.setattr(gpu_attention, "_LEAST_PAGES", 1)
    assert plan_sums(13, 2, 64).blocks == 3
    Case(4, 64, pages=13, left=50).check()


def test_products_are_exact_integers() -> None:
    case = Case(4, 128, n=2)
    codes, levels = case.rng.integers(0, 16, (2, 192, 128)).astype(np.uint8), np.arange(16) * 17
    case.key_words, case.norms = pack_strips(codes, 4), pack_norms(np.ones((2, 192), np.float32))
    case.reading = np.tile(levels.astype(np.uint8), 4), 256, 2.0
    case.queries = case.rng.integers(-127, 128, (2, 2, 128)).astype(np.float32)
    case.queries[:, :, 0] = 127
    case.logits[:] = 0
    exact = np.einsum("hqd,htd->hqt", case.queries.astype(np.int64), levels[codes] - 128)
    found = case.logits_there(HOST, False)[:, :, case.at : case.at + case.tokens]
    np.testing.assert_array_equal(found, 2 * exact)


def test_signs_of_a_sketch_are_keys_of_one_bit() -> None:
    case = Case(1, 64)
    case.reading = np.tile(np.resize(np.array([0, 1], np.uint8), 16), 4), 1, 2.0
    case.check()


@pytest.mark.parametrize("size", [1e-38, 1e-31, 1e-30, 1e25])
def test_queries_of_any_size(size: float) -> None:
    case = Case(4, 64)
    case.queries[0] *= np.float32(size)
    case.weights *= np.float32(size)
    case.check()


def test_a_query_that_is_not_a_number_gives_none() -> None:
    case = Case(4, 64)
    case.queries[1, 2, 3] = np.nan
    found = case.logits_there(HOST, False)
    assert np.isnan(found[1, 2, case.at : case.at + case.tokens]).sum() == case.tokens
    assert not np.isnan(found[1, :2]).any()


def test_logits_beyond_32_bits() -> None:
    """Two rows of columns in memory that is never touched but where logits are."""
    case = Case(4, 64, n=1)
    expected = case.logits_there(HOST, True)[:, :, case.at : case.at + case.tokens]
    columns, case.at = 2**31 + 64, 2**31 - 150
    room = mmap.mmap(-1, 2 * columns * 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    case.logits = np.frombuffer(room, np.float32).reshape(2, 1, columns)
    keys = case.strips(HOST, case.key_words)
    means = score_means(HOST, keys, case.means, case.plain)
    score_keys(HOST, keys, case.queries, case.at, case.tokens, case.logits, means, case.page)
    assert_same_bits(case.logits[:, :, case.at : case.at + case.tokens].copy(), expected)


# --- what is read ---


def test_the_queries_of_a_head_share_one_read_of_its_codes() -> None:
    case, runtime = Case(4, 128, heads=2, n=4, pages=8), CountingRuntime()
    case.logits_there(runtime, True)
    case.sums_there(runtime, case.sums)
    keys, values = (counts for counts in runtime.counts if counts.kernel.name in ("score_keys", "weigh_values"))
    for counts, words in ((keys, case.key_words), (values, case.value_words)):
        assert counts.loads[0].block_bytes == words.nbytes
        assert counts.loads[1].block_bytes == case.norms.nbytes
    assert keys.stores[16].distinct_bytes <= 1.1 * 4 * case.heads * case.n * case.tokens


@pytest.mark.parametrize(
    "case", [case for case in attention_cases() if case.codec.bits == 4], ids=lambda case: case.name
)
def test_little_more_is_moved_than_must_be(case: Any) -> None:
    result = evaluate(case)
    assert result.moved_bytes() <= 1.25 * result.least_bytes
    assert result.deviation < 0.05


# --- bugs are caught, and there are none that sanitizers see ---

#: A text of attend.cu, and what a bug makes of it.
BUGS = {
    "queries are used before they are staged": ("to, sides + q);\n  }\n  __syncthreads();", "to, sides + q);\n  }"),
    "weights are staged before those of before are read": ("__syncthreads();  // what was staged before", "//"),
    "weights beyond the tokens are read": ("(int)min((long long)page, tokens - start)", "page"),
    "the mean of another page": ("pages + token / page]", "pages + token / LANES % pages]"),
    "norms of the first head": ("norms[head * strips * LANES + token]", "norms[token]"),
    "the second group's queries are the first's": ("staged + group * steps * STEP_WORDS", "staged"),
    "a lost second part": ("(float)(2 * parts[q][1] + side.shift[1]) * side.factor[1]", "0.f"),
    "a norm whose exponent is off": ("(127 - 32) << 10", "(127 - 31) << 10"),
}


class BuggyRuntime(HostRuntime):
    """The host run of a source that was changed."""

    def __init__(self, right: str, wrong: str, schedule: Schedule) -> None:
        super().__init__(schedule, seed=2)
        self.change, self.order = (right, wrong), schedule

    def function(self, kernel: Kernel) -> Launch:
        text = read_source(kernel.source)
        assert text.count(self.change[0]) == 1
        return HostKernel(load_module(text.replace(*self.change), define_options(kernel)), kernel.name, self.order, 2)


@pytest.mark.parametrize("bug", BUGS)
def test_bugs_are_caught(bug: str) -> None:
    caught = []
    for schedule in SCHEDULES:
        case = Case(4, 64, heads=2, n=9, page=256, pages=5, left=70)
        try:
            case.check(BuggyRuntime(*BUGS[bug], schedule))
        except (AssertionError, DeviceError):
            caught.append(schedule)
    assert caught


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_kernels_run_clean(sanitizer: Sanitizer) -> None:
    runtime = RecordingRuntime()
    Case(3, 50, n=9, page=256, pages=5, left=70).check(runtime)
    launches = list({launch.name: launch for launch in runtime.launches}.values())
    assert {launch.name for launch in launches} == {"score_means", "score_keys", "weigh_values", "add_sums"}
    for launch in launches:
        assert launch.run(sanitizer)[0] == "", launch.name


def test_the_sanitizer_sees_a_missing_barrier() -> None:
    runtime = RecordingRuntime()
    Case(4, 64, n=2).logits_there(runtime, False)
    launch = runtime.launches[-1]
    broken = launch.source.replace(*BUGS["queries are used before they are staged"])
    assert broken != launch.source
    report, _ = type(launch)(broken, launch.defines, launch.name, launch.grid, launch.block, launch.args).run("thread")
    assert "WARNING: ThreadSanitizer: data race" in report


# --- launch arithmetic ---


def test_launch_arithmetic() -> None:
    assert [count_queries(n) for n in (1, 2, 4, 5, 9, 16)] == [1, 4, 4, 8, 8, 8]
    assert [count_key_blocks(tokens, 8) for tokens in (1, 128, 129, 8192, 10**6)] == [1, 1, 2, 64, 256]
    assert count_key_blocks(1000, 10_000) == 1
    for pages, heads, dim in ((1, 1, 1), (128, 8, 128), (16, 8, 80), (2000, 32, 256), (4096, 8, 512)):
        grid = plan_sums(pages, heads, dim)
        assert grid.threads % 32 == 0
        assert grid.threads <= 128
        assert (grid.channel_blocks - 1) * grid.threads < dim <= grid.channel_blocks * grid.threads
        assert (grid.blocks - 1) * grid.block_pages < pages <= grid.blocks * grid.block_pages
    assert plan_sums(128, 8, 128) == (32, 1, 128, 4)


@pytest.mark.parametrize("n", [0, MOST_QUERIES + 1])
def test_other_numbers_of_queries_are_refused(n: int) -> None:
    with pytest.raises(ArgumentError, match=f"queries of a head must be 1 to 16, got {n}"):
        count_queries(n)


def test_vectors_longer_than_shared_memory_are_refused() -> None:
    with pytest.raises(ArgumentError, match="head_dim and page must be at most 512 on a GPU, got 520"):
        Case(4, 520).logits_there(HOST, False)
