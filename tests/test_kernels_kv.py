"""Strips, norms of 16 bits, and the kernels of the KV cache, against plain NumPy."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tqindex.codec.codebook import make_codebook
from tqindex.codec.trellis import WINDOW, trellis_codebook, windows_of
from tqindex.errors import VectorError
from tqindex.kernels.kv import (
    make_decode_keys,
    make_decode_values,
    make_score_keys,
    make_sum_values,
    score_means,
)
from tqindex.kernels.kv_layout import pack_strips, strips_shape, unpack_strips
from tqindex.kernels.kv_norms import pack_norms

Float32Array = npt.NDArray[np.float32]

HEADS, PAGE, PAGES = 2, 64, 3
TOKENS = PAGE * PAGES


class Case:
    """Random codes of (HEADS, TOKENS, dim), norms, and what they stand for, in float64."""

    def __init__(self, bits: int, dim: int, trellis: bool = False) -> None:
        rng, book = np.random.default_rng(bits), trellis_codebook(bits) if trellis else make_codebook(dim, bits)
        self.rng, self.dim = rng, dim
        self.codes = rng.integers(0, 2**bits, (HEADS, TOKENS, dim)).astype(np.uint8)
        exact, places = rng.lognormal(size=(HEADS, TOKENS)).astype(np.float32), self.codes
        self.norms, table = pack_norms(exact), (book.levels.astype(np.int16) + 128).astype(np.uint8)
        if trellis:
            starts = rng.integers(0, 2 ** (WINDOW - bits), (HEADS, TOKENS)).astype(np.uint8)
            self.norms = pack_norms(exact, starts, WINDOW - bits)
            places = windows_of(self.codes.reshape(-1, dim), starts.reshape(-1), bits).reshape(self.codes.shape)
        else:
            table = np.tile(np.resize(table, 16), 4)
        self.reading = table, 255 if book.offset else 256, float(book.step)
        self.rows = book.values[places] * unpack(self.norms)[:, :, np.newaxis]
        self.keys = pack_strips(self.codes, bits)
        paged = self.codes.reshape(HEADS, PAGES, PAGE, dim).swapaxes(2, 3)
        self.values = pack_strips(paged, bits)

    def floats(self, *shape: int) -> Float32Array:
        return self.rng.standard_normal(shape, dtype=np.float32)


def unpack(norms: npt.NDArray[np.uint16]) -> npt.NDArray[np.float64]:
    """Return what norms of 16 bits stand for, from their definition."""
    exponents, mantissas = norms.astype(np.int64) >> 10, norms & 1023
    return np.where(norms == 0, 0.0, np.ldexp(1.0 + mantissas / 1024.0, exponents - 32))


def assert_near(found: Any, expected: Any) -> None:
    """Vectors are rounded by at most 2**-15 of their largest number, and so are products, but for a few times that."""
    np.testing.assert_allclose(found, expected, atol=2.0**-13 * np.abs(expected).max())


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("lanes", "depth"), [(16, 64), (5, 7), (33, 80), (64, 32)])
def test_strips_come_back(bits: int, lanes: int, depth: int) -> None:
    codes = np.random.default_rng(0).integers(0, 2**bits, (2, 3, lanes, depth)).astype(np.uint8)
    strips = pack_strips(codes, bits)
    assert strips.shape == (2, 3, *strips_shape(bits, lanes, depth))
    np.testing.assert_array_equal(unpack_strips(strips, bits, lanes, depth), codes)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_whole_strips_take_no_more_than_their_bits(bits: int) -> None:
    assert pack_strips(np.zeros((32, 64), np.uint8), bits).nbytes == 32 * 64 * bits // 8


def test_norms_keep_11_bits() -> None:
    norms = np.float32(2.0) ** np.linspace(-31.9, 31.9, 999, dtype=np.float32)
    kept = unpack(pack_norms(norms))
    assert np.abs(kept / norms - 1.0).max() <= 2.0**-11
    np.testing.assert_array_equal(pack_norms(np.array([0.0, 1e-30], np.float32)), [0, 0])


@pytest.mark.parametrize("start_bits", [4, 5, 6])
def test_norms_hold_starts(start_bits: int) -> None:
    rng = np.random.default_rng(start_bits)
    norms = np.exp2(rng.uniform(-31.9, 31.9, (3, 999))).astype(np.float32)
    starts = rng.integers(0, 2**start_bits, norms.shape).astype(np.uint8)
    packed = pack_norms(norms, starts, start_bits)
    np.testing.assert_array_equal(packed & ((1 << start_bits) - 1), starts)
    # The nearest that holds it: half of the distance to the next, of numbers from 1 to 2.
    assert np.abs(unpack(packed) / norms - 1.0).max() <= 2.0 ** (start_bits - 11)


def test_largest_and_least_norms_hold_starts_too() -> None:
    norms, starts = np.array([2.0**32 * (1 - 2.0**-11), 0.0, 0.0], np.float32), np.array([0, 0, 63], np.uint8)
    np.testing.assert_array_equal(pack_norms(norms, starts, 6), [1023 << 6, 0, 63])


@pytest.mark.parametrize("norm", [2.0**32, np.inf, np.nan])
def test_norms_that_do_not_fit_are_refused(norm: float) -> None:
    with pytest.raises(VectorError, match=r"norms below 2\*\*32"):
        pack_norms(np.array([1.0, norm], np.float32))


#: Bits, dimension, vectors, and whether codes are of a trellis.
TRELLIS = [(2, 20, 1, True), (3, 80, 5, True), (4, 33, 3, True)]
SCALAR = [(4, 64, 3, False), (3, 80, 5, False), (8, 33, 1, False), (1, 64, 1, False), (2, 20, 4, False)]


@pytest.mark.parametrize(("bits", "dim", "n", "trellis"), SCALAR + TRELLIS)
def test_scores_are_products(bits: int, dim: int, n: int, trellis: bool) -> None:
    case, tokens, at = Case(bits, dim, trellis), TOKENS - 5, 3
    queries, out = case.floats(HEADS, n, dim), case.floats(HEADS, n, TOKENS + 9)
    queries[0, 0] = 0
    expected = out.astype(np.float64)
    expected[:, :, at : at + tokens] += queries @ case.rows[:, :tokens].swapaxes(1, 2)
    make_score_keys(bits, trellis)(case.keys, case.norms, case.reading, queries, at, tokens, out)
    assert_near(out, expected)


@pytest.mark.parametrize(("bits", "dim", "n", "trellis"), [*SCALAR[1:3], *TRELLIS[1:]])
def test_sums_are_weighted(bits: int, dim: int, n: int, trellis: bool) -> None:
    case, tokens, at = Case(bits, dim, trellis), TOKENS - 5, 3
    weights, out = np.abs(case.floats(HEADS, n, TOKENS + 9)), case.floats(HEADS, n, dim)
    expected = out + weights[:, :, at : at + tokens].astype(np.float64) @ case.rows[:, :tokens]
    make_sum_values(bits, trellis)(case.values, case.norms, case.reading, weights, at, tokens, out)
    assert_near(out, expected)


@pytest.mark.parametrize(("bits", "dim", "trellis"), [(3, 80, False), (8, 33, False), (2, 33, True), (4, 20, True)])
def test_decoding_adds_the_rows(bits: int, dim: int, trellis: bool) -> None:
    case, tokens = Case(bits, dim, trellis), TOKENS - 5
    for make, words in ((make_decode_keys, case.keys), (make_decode_values, case.values)):
        out = np.ones((HEADS, tokens, dim), np.float32)
        make(bits, trellis)(words, case.norms, case.reading, out)
        np.testing.assert_allclose(out, 1 + case.rows[:, :tokens], rtol=1e-6, atol=1e-6)


def test_means_are_multiplied_page_by_page() -> None:
    case = Case(4, 20)
    means, queries = case.floats(HEADS, PAGES, 20), case.floats(HEADS, 3, 20)
    bits = (means.view(np.uint32) >> 16).astype(np.uint16)
    kept, tokens = (bits.astype(np.uint32) << 16).view(np.float32), TOKENS - 5
    out = np.zeros((HEADS, 3, TOKENS), np.float32)
    score_means(bits, PAGE, queries, 2, tokens, out)
    expected = np.repeat(queries @ kept.swapaxes(1, 2), PAGE, axis=2)[:, :, :tokens]
    np.testing.assert_allclose(out[:, :, 2 : 2 + tokens], expected, rtol=1e-4, atol=1e-5)
    assert not out[:, :, :2].any()
    assert not out[:, :, 2 + tokens :].any()
