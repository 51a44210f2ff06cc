"""Trellis kernels give the codec's numbers: the paths that it finds, the levels that it reads."""

from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tqindex as tq
from tqindex.codec import Codec
from tqindex.codec.packing import BLOCK, LEADING, interleave_rows, pad_planes, plane_bytes
from tqindex.codec.sums import dot
from tqindex.codec.trellis import FARTHEST, LIMIT, WINDOW, TrellisCodebook, trellis_codebook, windows_of, with_starts
from tqindex.kernels.compile import kernel
from tqindex.kernels.cpu import available_levels
from tqindex.kernels.product import TILE, _place_row, expand_tile, multiply_row
from tqindex.kernels.rows import EncodedRows, StoredRows
from tqindex.kernels.simd import OPERATIONS
from tqindex.kernels.simd_rows import make_expand_row
from tqindex.kernels.simd_trellis import WindowLevels
from tqindex.kernels.simd_viterbi import ROWS
from tqindex.kernels.trellis_encode import TrellisQuantiser

BITS = (2, 3, 4)
# Parts of kernels, callable from here.
_expand_tile, _multiply_row, _find_row = (kernel(part.py_func) for part in (expand_tile, multiply_row, _place_row))


def codebook(bits: int, kind: str = "any") -> TrellisCodebook:
    """Return the codec's own codebook, or one that nobody would choose: "any" levels, or "few", for ties."""
    if kind == "codec":
        return trellis_codebook(bits)
    choices = np.arange(-127, 128) if kind == "any" else np.array([-16, 0, 16, 32])
    levels = np.random.default_rng(bits).choice(choices, 2**WINDOW).astype(np.int8)
    return TrellisCodebook(bits, levels, 2.0**-5, 4, 0.1)


def encode(y: Any, book: TrellisCodebook, norms: Any = None, unbiased: bool = True) -> tuple[Any, Any]:
    """Return the kernel's planes and scales."""
    n, dim = y.shape
    planes, scales = np.full((n, book.bits * plane_bytes(dim)), 0xA5, np.uint8), np.empty(n, np.float32)
    TrellisQuantiser(dim, book)(y, np.ones(n) if norms is None else norms, unbiased, planes, scales)
    return planes, scales


def assert_encoded(y: Any, book: TrellisCodebook) -> None:
    """Compare codes with the codec's, and scales with what their levels make them."""
    planes, scales = encode(y, book)
    (codes, starts), dim = book.quantise(y), y.shape[1]
    np.testing.assert_array_equal(planes, pad_planes(codes, book.bits))
    along = dot(y, book.expand(codes, starts)) * book.step
    factors = np.divide(float(dim), along, out=np.zeros_like(along), where=along != 0.0)
    np.testing.assert_array_equal(scales, with_starts((1.0 / np.sqrt(dim) * factors).astype(np.float32), starts))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ["codec", "any", "few"])
@pytest.mark.parametrize("dim", [2, 3, 7, 8, 17, 31, 33, 64, 65, 100, 257])
def test_the_best_path_is_the_codecs(dim: int, kind: str, bits: int, gaussian_rows: Any) -> None:
    y = gaussian_rows(ROWS + 5, dim)
    y[1], y[2], y[3] = 0.0, -0.0, 1.5  # paths of equal cost, of which the first is to be taken
    y[4] *= 1e6  # beyond the largest integer
    y[5, ::2] = -1e30
    y[6] = np.where(y[6] > 0, 1.0, -1.0)
    assert_encoded(y, codebook(bits, kind))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.sampled_from(BITS),
    st.sampled_from(["codec", "any", "few"]),
    st.integers(1, 2 * ROWS + 1),
    st.integers(2, 70),
    st.floats(0.01, 100.0),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_any_rows_are_encoded_as_by_the_codec(
    bits: int, kind: str, n: int, dim: int, size: float, coarse: bool, seed: int
) -> None:
    y = (np.random.default_rng(seed).standard_normal((n, dim)) * size).astype(np.float32)
    assert_encoded(np.rint(y) if coarse else y, codebook(bits, kind))


@pytest.mark.parametrize("bits", BITS)
def test_long_rows_and_the_costliest_paths(bits: int, gaussian_rows: Any) -> None:
    # All levels but one are as far as counts: costs of states spread as wide as they can.
    levels = np.full(2**WINDOW, 127, np.int8)
    levels[0] = -127
    book = TrellisCodebook(bits, levels, 2.0**-5, 16, 0.1)
    assert 2 * 127 * book.fineness > FARTHEST
    assert 127 * book.fineness < LIMIT
    y = gaussian_rows(3, 1536)
    assert_encoded(y, codebook(bits, "codec"))
    assert_encoded(np.float32(127 * book.step) * np.sign(y), book)
    assert_encoded(np.full((1, 40), -127 * book.step, np.float32), book)


@pytest.mark.parametrize("bits", BITS)
def test_rows_without_a_direction_are_zeros_and_the_papers_scale_is_the_norm(bits: int, gaussian_rows: Any) -> None:
    y, norms = gaussian_rows(ROWS + 1, 33), np.linspace(0.5, 2.0, ROWS + 1)
    norms[3] = norms[ROWS] = 0.0
    for unbiased in (True, False):
        planes, scales = encode(y, codebook(bits, "codec"), norms, unbiased)
        assert not planes[norms == 0.0].any()
        assert not scales[norms == 0.0].any()
        assert planes[norms > 0.0].any(axis=1).all()
    starts = np.where(norms > 0.0, codebook(bits, "codec").quantise(y)[1], 0).astype(np.uint8)
    np.testing.assert_array_equal(scales, with_starts((norms / np.sqrt(33)).astype(np.float32), starts))


@pytest.mark.parametrize("n", [1, ROWS - 1, ROWS, ROWS + 1, 3 * ROWS + 7])
def test_rows_do_not_depend_on_their_neighbours(n: int, gaussian_rows: Any) -> None:
    y, book = gaussian_rows(n, 50), codebook(3, "codec")
    planes, scales = encode(y, book)
    for r in {0, n // 2, n - 1}:
        alone = encode(y[r : r + 1], book)
        np.testing.assert_array_equal(planes[r : r + 1], alone[0])
        np.testing.assert_array_equal(scales[r : r + 1], alone[1])


def test_values_that_are_refused_later_do_no_harm() -> None:
    y = np.array([[np.nan, np.inf, -np.inf, 1e38, -1e38, 0.5, 1.0] * 5], np.float32)
    planes, _ = encode(np.vstack([y, np.ones_like(y)]), codebook(2, "codec"))
    np.testing.assert_array_equal(planes[1:], encode(np.ones_like(y), codebook(2, "codec"))[0])


def stored_codes(codes: Any, starts: Any, bits: int, first: int) -> StoredRows:
    """Return an index's rows with codes from row `first` on, and what must not be read around them."""
    n, dim = codes.shape
    stored = StoredRows.allocate(Codec(dim, bits, rotation="hadamard"), "ip", 16)
    stored.lead[:], stored.rest[:] = 0x5A, 0x5A
    none = np.empty(0, np.float32)
    scales = with_starts(np.linspace(0.1, 3.0, n, dtype=np.float32), starts)
    stored.write(first, EncodedRows(pad_planes(codes, bits), scales, none, none))
    return stored


def rows_of(levels: Any) -> Any:
    """A tile's rows, wherever the SIMD level puts their steps of 64."""
    flat, depth = levels.reshape(-1), levels.shape[1]
    places = [_find_row(r, depth) for r in range(len(levels))]
    return np.array([np.concatenate([flat[at + i * step :][:64] for i in range(depth // 64)]) for at, step in places])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dim", [2, 7, 8, 33, 56, 57, 64, 65, 100, 120, 128, 129, 257, 1536])
def test_windows_become_their_levels(dim: int, bits: int) -> None:
    rng = np.random.default_rng(dim)
    codes = rng.integers(0, 2**bits, (11, dim)).astype(np.uint8)
    codes[9], codes[10] = 2**bits - 1, 0
    starts = rng.integers(0, 2 ** (WINDOW - bits), 11).astype(np.uint8)
    starts[7:] = 0, 2 ** (WINDOW - bits) - 1, 0, 2 ** (WINDOW - bits) - 1
    stored = stored_codes(codes, starts, bits, 3)
    depth = -(-dim // 64) * 64
    table, query = rng.permutation(2**WINDOW).astype(np.uint8), np.zeros(depth, np.int8)
    query[:dim] = rng.integers(-127, 128, dim)
    work = np.zeros(min(bits, LEADING) * -(-stored.lead.shape[2] // 64) * 8, np.uint8)
    levels, one = np.zeros((TILE, depth), np.uint8), np.zeros(depth, np.uint8)
    _expand_tile(stored.lead, stored.rest, np.arange(8, 14), 6, 0, bits, table, levels, work, stored.scales)
    expected = table[windows_of(codes, starts, bits)]
    np.testing.assert_array_equal(rows_of(levels)[:6, :dim], expected[5:])
    assert not rows_of(levels)[6:].any()
    shape = *stored.lead.shape, stored.rest.shape[1]
    flat = stored.lead.reshape(-1), stored.rest.reshape(-1)
    for row in range(11):
        place = flat[0], shape, row + 3, 0, bits, flat[1]
        product = _multiply_row(*place, table, query, work, one, int(starts[row]))
        assert product == expected[row].astype(np.int32) @ query[:dim].astype(np.int32)


@pytest.mark.parametrize("bits", BITS)
def test_every_window_is_looked_up(bits: int) -> None:
    # A stream in which every window comes: that of a counter's digits, four coordinates for each number.
    numbers = np.arange(2**WINDOW)
    digits = -(-WINDOW // bits)
    codes = np.stack([numbers >> (bits * i) & (2**bits - 1) for i in reversed(range(digits))], axis=1)
    codes = codes.reshape(1, -1).astype(np.uint8)
    starts = np.zeros(1, np.uint8)
    assert len(np.unique(windows_of(codes, starts, bits)[0, digits - 1 :: digits])) == 2**WINDOW
    stored, table = (
        stored_codes(codes, starts, bits, 0),
        np.random.default_rng(bits).permutation(2**WINDOW).astype(np.uint8),
    )
    levels = np.zeros((TILE, -(-codes.shape[1] // 64) * 64), np.uint8)
    work = np.zeros(LEADING * -(-plane_bytes(codes.shape[1]) // 8) * 8, np.uint8)
    _expand_tile(stored.lead, stored.rest, np.arange(1), 1, 0, bits, table, levels, work, stored.scales)
    np.testing.assert_array_equal(rows_of(levels)[0, : codes.shape[1]], table[windows_of(codes, starts, bits)][0])


@pytest.mark.parametrize("level", [level for level in ("avx512", "avx2") if level in available_levels()])
def test_cpus_without_bit_matrices_look_up_by_shuffles(level: str) -> None:
    expand_row = make_expand_row(OPERATIONS[level], WindowLevels)

    @numba.njit
    def expand(block: Any, rest: Any, others: int, width: int, table: Any, levels: Any, start: int) -> None:
        expand_row(block, 0, BLOCK * width, 3, 2, rest, 0, others, width, table, levels, 0, 64, start)

    rng, width = np.random.default_rng(0), 200 // 8
    for bits in BITS:
        codes = rng.integers(0, 2**bits, (BLOCK, 8 * width)).astype(np.uint8)
        planes = pad_planes(codes, bits).reshape(BLOCK, bits, width)
        block = np.concatenate([interleave_rows(planes[:, plane]).ravel() for plane in range(2)])
        table, levels = rng.permutation(2**WINDOW).astype(np.uint8), np.empty(256, np.uint8)
        starts = rng.integers(0, 2 ** (WINDOW - bits), BLOCK).astype(np.uint8)
        expand(block, planes[3, 2:].ravel(), bits - 2, width, table, levels, starts[3])
        np.testing.assert_array_equal(levels[: 8 * width], table[windows_of(codes, starts, bits)[3]])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dim", [7, 33, 100])
def test_range_search_and_filters_see_the_codecs_scores(dim: int, bits: int, gaussian_rows: Any) -> None:
    rows, queries = gaussian_rows(300, dim, 1), gaussian_rows(12, dim, 2)
    index = tq.Index(dim, bits, "ip", "trellis")
    ids = index.add(rows)
    scores = index.codec.scores(queries, index.codec.encode(rows, "ip"))
    threshold = float(np.median(scores))
    found = index.range_search(queries, threshold)
    assert found.lims[-1] == (scores >= threshold).sum()
    np.testing.assert_array_equal(found.scores, np.concatenate([-np.sort(-row[row >= threshold]) for row in scores]))
    for nq in (1, 12):
        for allowed in (ids[::7], ids[:290]):
            best = index.search(queries[:nq], 5, filter=allowed)
            np.testing.assert_array_equal(best.scores, -np.sort(-scores[:nq, allowed], axis=1)[:, :5])
