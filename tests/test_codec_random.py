"""Random numbers of the format: golden values, laws, and no call of a mathematical library."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from tqindex.codec import random
from tqindex.codec.random import RandomStream

#: A statistic may lie this many standard errors from what the law says.
SIGMAS = 4.0


def test_words_are_the_committed_ones() -> None:
    words = [hex(word) for word in RandomStream(7, 1).words(4).tolist()]
    assert words == ["0x7b076c1dae6ffa92", "0xf3e21c06626baa4", "0x39022472712dca00", "0x222fbe3d632a1721"]
    assert [hex(word) for word in RandomStream(0, 0).words(2).tolist()] == ["0xf1645affcd5f76ee", "0x50fb78bc01675596"]


def test_gaussians_are_the_committed_ones() -> None:
    assert [value.hex() for value in RandomStream(7, 1).gaussians(6).tolist()] == [
        "-0x1.ffeca2f2d1b9dp-6",
        "-0x1.6adfce6c7d4d1p-1",
        "-0x1.66e7ef56d9675p-2",
        "-0x1.da48d39639af5p-2",
        "-0x1.907bf6d2f4dccp-1",
        "-0x1.df016dee75ebfp-3",
    ]


def test_permutation_and_signs_are_the_committed_ones() -> None:
    assert RandomStream(7, 1).permutation(10).tolist() == [3, 5, 2, 9, 7, 6, 8, 1, 0, 4]
    assert RandomStream(7, 1).signs(12).tolist() == [1, 1, 1, 1, 1, 1, 1, -1, 1, 1, 1, 1]


@pytest.mark.parametrize("other", [(8, 1), (7, 2), (7,), (2**63 - 1, 1)])
def test_seed_and_key_both_address_the_stream(other: tuple[int, ...]) -> None:
    assert not (RandomStream(*other).words(4) == RandomStream(7, 1).words(4)).any()


def test_a_stream_goes_on_where_it_stopped() -> None:
    stream = RandomStream(3, 0)
    parts = np.concatenate([stream.words(5), stream.words(1), stream.words(4)])
    np.testing.assert_array_equal(parts, RandomStream(3, 0).words(10))


def test_gaussians_call_no_mathematical_library(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = RandomStream(5, 0).gaussians(1000)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("not a function that IEEE 754 rounds in one way")

    for name in ("log", "log1p", "log2", "exp", "sin", "cos", "tan", "arcsin", "power", "arctanh", "cbrt"):
        monkeypatch.setattr(random.np, name, refuse)
    monkeypatch.setattr(random.np.random, "default_rng", refuse)
    np.testing.assert_array_equal(RandomStream(5, 0).gaussians(1000), expected)


def test_logarithm_is_right_to_a_few_roundings() -> None:
    x = np.concatenate([np.logspace(-30, 0, 20_000), 1.0 - np.logspace(-12, -1, 2000), np.sqrt([0.5])])
    expected = np.array([math.log(value) for value in x])
    np.testing.assert_allclose(random._log(x), expected, rtol=2e-15, atol=1e-300)


def test_gaussians_have_the_normal_moments() -> None:
    n = 400_000
    values = RandomStream(11, 0).gaussians(n)
    assert values.shape == (n,)
    # Variances of the powers of N(0, 1): 1, 2, 15, 96, 10170.
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10_170)):
        error = float((values**power).mean()) - expected
        assert abs(error) <= SIGMAS * np.sqrt(variance / n), f"moment {power} is off by {error}"


@pytest.mark.parametrize("threshold", [-2.5, -1.0, -0.1, 0.0, 0.5, 2.0, 3.0])
def test_gaussians_have_the_normal_distribution_function(threshold: float) -> None:
    n = 400_000
    below = float((RandomStream(12, 0).gaussians(n) < threshold).mean())
    expected = 0.5 * (1.0 + math.erf(threshold / math.sqrt(2.0)))
    assert abs(below - expected) <= SIGMAS * math.sqrt(expected * (1.0 - expected) / n)


def test_neighbouring_gaussians_are_uncorrelated() -> None:
    n = 400_000
    values = RandomStream(13, 0).gaussians(n)
    for a, b in ((values[:-1], values[1:]), (values[:-1] ** 2 - 1.0, (values[1:] ** 2 - 1.0) / 2.0)):
        assert abs(float((a * b).mean())) <= SIGMAS / np.sqrt(n)


@pytest.mark.parametrize("n", [0, 1, 2, 5, 33])
def test_gaussians_give_as_many_as_asked(n: int) -> None:
    assert RandomStream(1, 0).gaussians(n).shape == (n,)


def test_signs_are_fair() -> None:
    n = 400_000
    signs = RandomStream(14, 0).signs(n)
    assert signs.dtype == np.float32
    np.testing.assert_array_equal(np.abs(signs), np.float32(1))
    assert abs(float(signs.mean(dtype=np.float64))) <= SIGMAS / np.sqrt(n)
    assert abs(float((signs[1:] * signs[:-1]).mean(dtype=np.float64))) <= SIGMAS / np.sqrt(n)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 1000])
def test_permutation_is_one(n: int) -> None:
    order = RandomStream(15, 0).permutation(n)
    assert order.dtype == np.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


@pytest.mark.parametrize(("n", "critical"), [(2, 10.83), (3, 20.52), (4, 49.73)])
def test_permutations_are_uniform(n: int, critical: float) -> None:
    # critical: the chi-square law with n! - 1 degrees of freedom exceeds it with probability .001.
    stream, cells = RandomStream(16, 0), math.factorial(n)
    expected = 800
    counts = Counter(tuple(stream.permutation(n).tolist()) for _ in range(expected * cells))
    assert len(counts) == cells
    assert sum((count - expected) ** 2 / expected for count in counts.values()) <= critical
