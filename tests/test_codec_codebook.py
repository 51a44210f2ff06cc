"""Codebooks against an independent numerical integration, closed forms and published figures."""

import json

import numpy as np
import numpy.typing as npt
import pytest

from tqindex.codec.codebook import WIDTHS, Codebook, make_codebook
from tqindex.codec.codec import Codec

Float64Array = npt.NDArray[np.float64]
#: Where the integration ends; the normal law's mass beyond is below 1e-32.
FAR = 12.0
POINTS = 4000


def integrate(
    dim: int, boundaries: npt.NDArray[np.float32], values: Float64Array
) -> tuple[Float64Array, Float64Array, float]:
    """Midpoint rule over the density (1 - t^2)^((dim - 3) / 2), y = sqrt(dim) t, cell by cell.

    Returns the cells' masses, their means and the distortion of `values`.
    """
    reach = min(np.sqrt(dim), FAR)
    edges = np.clip(np.concatenate([[-reach], boundaries.astype(np.float64), [reach]]), -reach, reach)
    places = edges[:-1, np.newaxis] + np.diff(edges)[:, np.newaxis] * (np.arange(POINTS) + 0.5) / POINTS
    weights = (1.0 - places**2 / dim) ** ((dim - 3) / 2) * np.diff(edges)[:, np.newaxis]
    weights /= weights.sum()
    masses = weights.sum(axis=1)
    means = (weights * places).sum(axis=1) / np.maximum(masses, 1e-300)
    return masses, means, float((weights * (places - values[:, np.newaxis]) ** 2).sum())


@pytest.mark.parametrize(("bits", "distortion"), [(1, 0.3632), (2, 0.1174), (3, 0.0345), (4, 0.0095)])
def test_distortion_at_1536_is_the_documented_one(bits: int, distortion: float) -> None:
    assert round(make_codebook(1536, bits).distortion, 4) == distortion


def test_eight_bit_step_at_1536_is_the_documented_one() -> None:
    assert round(make_codebook(1536, 8).step, 4) == 0.0307


@pytest.mark.parametrize("dim", [3, 8, 64, 1536])
@pytest.mark.parametrize("bits", WIDTHS)
def test_distortion_agrees_with_independent_integration(dim: int, bits: int) -> None:
    book = make_codebook(dim, bits)
    _, _, distortion = integrate(dim, book.boundaries, book.values)
    assert book.distortion == pytest.approx(distortion, rel=1e-5)


@pytest.mark.parametrize("dim", [3, 8, 64, 1536])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_lloyd_max_centroids_are_means_of_their_cells(dim: int, bits: int) -> None:
    book = make_codebook(dim, bits)
    _, means, _ = integrate(dim, book.boundaries, book.values)
    # Centroids are rounded to 2**-20, and the boundaries are those of the rounded ones.
    np.testing.assert_allclose(book.centroids, means, rtol=0, atol=2.0**-19)


@pytest.mark.parametrize("dim", [2, 3, 8, 65, 1536])
@pytest.mark.parametrize("bits", WIDTHS)
def test_boundaries_are_exact_midpoints(dim: int, bits: int) -> None:
    book = make_codebook(dim, bits)
    assert book.boundaries.dtype == np.float32
    np.testing.assert_array_equal(book.boundaries.astype(np.float64), (book.centroids[1:] + book.centroids[:-1]) / 2.0)


@pytest.mark.parametrize("dim", [2, 3, 7, 64, 1536, 65_536])
@pytest.mark.parametrize("bits", WIDTHS)
def test_form_of_a_codebook(dim: int, bits: int) -> None:
    book = make_codebook(dim, bits)
    assert len(book.centroids) == len(book.levels) == 2**bits
    assert (np.diff(book.centroids) > 0).all()
    np.testing.assert_array_equal(book.centroids, -book.centroids[::-1])
    np.testing.assert_array_equal(book.values, -book.values[::-1])
    units = book.centroids * 2.0**20
    np.testing.assert_array_equal(units, np.rint(units))
    assert book.levels.dtype == np.int8
    if bits == 8:
        np.testing.assert_array_equal(book.levels, np.arange(-128, 128))
        assert book.offset == 0.5
        np.testing.assert_allclose(book.values, book.centroids, rtol=1e-12)
    else:
        assert book.levels.max() == 127
        assert book.offset == 0.0
        assert book.step == book.centroids[-1] / 127.0
        assert np.abs(book.values - book.centroids).max() <= book.step / 2
        assert (np.diff(book.levels.astype(int)) > 0).all()


@pytest.mark.parametrize("dim", [2, 3, 64, 1536])
@pytest.mark.parametrize("factor", [0.98, 1.02])
def test_eight_bit_step_is_the_best(dim: int, factor: float) -> None:
    book = make_codebook(dim, 8)
    if dim == 2:  # the density has no bound at its ends: sample it evenly in the angle
        y = np.sqrt(2.0) * np.sin((np.arange(400_000) + 0.5) / 400_000 * np.pi - np.pi / 2)
        other = np.clip(np.floor(y / (book.step * factor)), -128, 127) + 0.5
        distortion = float(np.mean((y - other * book.step * factor) ** 2))
    else:
        _, _, distortion = integrate(dim, book.boundaries * np.float32(factor), book.values * factor)
    assert book.distortion < distortion


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_three_dimensions_are_uniform(bits: int) -> None:
    # A coordinate of the sphere in R^3 is uniform (Archimedes): equal cells of [-sqrt 3, sqrt 3].
    width = 2.0 * np.sqrt(3.0) / 2**bits
    centroids = (np.arange(2**bits) - (2**bits - 1) / 2) * width
    book = make_codebook(3, bits)
    np.testing.assert_allclose(book.centroids, centroids, rtol=0, atol=2.0**-20)
    rounding = np.mean((book.values - centroids) ** 2)
    assert book.distortion == pytest.approx(0.25**bits + rounding, rel=1e-5)


def test_two_dimensions_one_bit() -> None:
    # y = sqrt 2 sin(theta), theta uniform: E|y| = 2 sqrt 2 / pi.
    book = make_codebook(2, 1)
    assert book.centroids[1] == pytest.approx(2.0 * np.sqrt(2.0) / np.pi, abs=2.0**-20)
    assert book.distortion == pytest.approx(1.0 - 8.0 / np.pi**2, abs=1e-9)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_two_dimensions_meet_the_centroid_condition(bits: int) -> None:
    book = make_codebook(2, bits)
    edges = np.concatenate([[-np.sqrt(2.0)], book.boundaries.astype(np.float64), [np.sqrt(2.0)]])
    theta = np.arcsin(np.clip(edges / np.sqrt(2.0), -1.0, 1.0))
    means = np.sqrt(2.0) * -np.diff(np.cos(theta)) / np.diff(theta)
    np.testing.assert_allclose(book.centroids, means, rtol=0, atol=2.0**-19)


@pytest.mark.parametrize(("bits", "limit"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_lloyd_max_distortion_tends_to_the_normal_laws(bits: int, limit: float) -> None:
    # Max 1960, table I, for the unrounded centroids.
    distances = []
    for dim in (64, 1024, 65_536):
        book = make_codebook(dim, bits)
        _, _, distortion = integrate(dim, book.boundaries, book.centroids)
        distances.append(abs(distortion - limit))
    assert distances[-1] <= 5e-5 * (1 if bits == 1 else limit / 0.1)
    assert distances[0] > distances[1] > distances[2]


def test_int8_levels_cost_little() -> None:
    book = make_codebook(1536, 4)
    _, _, unrounded = integrate(1536, book.boundaries, book.centroids)
    assert round(unrounded, 5) == 0.00949
    assert round(book.distortion, 5) == 0.00952


def test_codebooks_are_cached() -> None:
    assert make_codebook(1536, 4) is make_codebook(1536, 4)
    assert Codec(1536, 4).codebook is Codec(1536, 4, seed=1).codebook


@pytest.mark.parametrize("dim", [2, 65, 1536])
@pytest.mark.parametrize("bits", WIDTHS)
def test_config_round_trip_through_json(dim: int, bits: int) -> None:
    book = make_codebook(dim, bits)
    stored = Codebook.from_config(bits, **json.loads(json.dumps(book.get_config())))
    for name in ("centroids", "boundaries", "levels"):
        ours, theirs = getattr(book, name), getattr(stored, name)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert (book.step, book.offset, book.distortion) == (stored.step, stored.offset, stored.distortion)


def test_a_stored_codebook_wins_over_the_computed_one() -> None:
    config = Codec(16, bits=2).get_config()
    config["codebook"]["centroids"] = [-(2**21), -(2**19), 2**19, 2**21]
    book = Codec.from_config(config).codebook
    np.testing.assert_array_equal(book.centroids, [-2.0, -0.5, 0.5, 2.0])
    np.testing.assert_array_equal(book.boundaries, [-1.25, 0.0, 1.25])
    assert Codec.from_config(config) != Codec(16, bits=2)
