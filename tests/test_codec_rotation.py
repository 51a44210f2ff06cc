"""Rotations and the Gaussian projection: orthogonality, inverse, law."""

import numpy as np
import numpy.typing as npt
import pytest

from tqindex.codec import Codec
from tqindex.codec.rotation import (
    HadamardRotation,
    MatrixProjection,
    dense_rotation,
    gaussian_projection,
    make_rotation,
)
from tqindex.codec.sums import dot, tree_sum

SIGMAS = 4.0
HADAMARD_DIMS = [2, 3, 7, 31, 33, 64, 65, 100, 1032]
DENSE_DIMS = [2, 3, 7, 31, 33, 64, 65]


def as_matrix(projection: HadamardRotation | MatrixProjection, dim: int) -> npt.NDArray[np.float64]:
    """Return the matrix M with apply(x) = M x."""
    return projection.apply(np.eye(dim, dtype=np.float32)).T.astype(np.float64)


@pytest.mark.parametrize(("kind", "dim"), [("hadamard", d) for d in HADAMARD_DIMS] + [("dense", d) for d in DENSE_DIMS])
class TestRotation:
    def test_is_orthogonal(self, kind: str, dim: int) -> None:
        matrix = as_matrix(make_rotation(kind, dim, 5, 0), dim)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(dim), rtol=0, atol=2e-6)

    def test_transpose_is_the_inverse(self, kind: str, dim: int, gaussian_rows) -> None:
        rotation, rows = make_rotation(kind, dim, 5, 0), gaussian_rows(4, dim)
        before = rows.copy()
        np.testing.assert_allclose(rotation.transpose(rotation.apply(rows)), rows, rtol=0, atol=1e-5)
        np.testing.assert_allclose(rotation.apply(rotation.transpose(rows)), rows, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(rows, before)

    def test_depends_on_seed_and_key(self, kind: str, dim: int) -> None:
        # Two coordinates allow only a handful of Hadamard rotations: any of ten others must differ.
        matrix = as_matrix(make_rotation(kind, dim, 5, 0), dim)
        np.testing.assert_array_equal(matrix, as_matrix(make_rotation(kind, dim, 5, 0), dim))
        tries = 10 if dim < 10 else 1
        others = [as_matrix(make_rotation(kind, dim, 6 + i, 0), dim) for i in range(tries)]
        assert any(np.abs(matrix - other).max() > 0.1 for other in others)
        others = [as_matrix(make_rotation(kind, dim, 5, 1 + i), dim) for i in range(tries)]
        assert any(np.abs(matrix - other).max() > 0.1 for other in others)

    def test_rows_do_not_depend_on_their_neighbours(self, kind: str, dim: int, gaussian_rows) -> None:
        rotation, rows = make_rotation(kind, dim, 5, 0), gaussian_rows(9, dim)
        one_by_one = np.concatenate([rotation.apply(row[np.newaxis]) for row in rows])
        np.testing.assert_array_equal(rotation.apply(rows), one_by_one)


@pytest.mark.parametrize("dim", [3, 5])
def test_dense_rotations_have_haar_moments(dim: int) -> None:
    n = 2000
    matrices = np.array([as_matrix(dense_rotation(dim, seed, 0), dim) for seed in range(n)])
    # Entries of a Haar matrix: mean 0, E R_ij^2 = 1/d, E R_ij^4 = 3 / (d (d + 2)).
    variance = 1.0 / dim
    fourth = 3.0 / (dim * (dim + 2))
    assert np.abs(matrices.mean(axis=0)).max() <= SIGMAS * np.sqrt(variance / n)
    assert np.abs((matrices**2).mean(axis=0) - variance).max() <= SIGMAS * np.sqrt((fourth - variance**2) / n)
    # E tr R = 0, E (tr R)^2 = 1 and E (tr R)^4 <= 3 on O(d) (Diaconis and Shahshahani 1994); both determinants are
    # equally likely.
    traces = np.trace(matrices, axis1=1, axis2=2)
    assert abs(traces.mean()) <= SIGMAS / np.sqrt(n)
    assert abs((traces**2).mean() - 1.0) <= SIGMAS * np.sqrt(2.0 / n)
    assert abs(np.sign(np.linalg.det(matrices)).mean()) <= SIGMAS / np.sqrt(n)


def test_entries_of_dense_rotations_in_three_dimensions_are_uniform() -> None:
    n = 2000
    matrices = np.array([as_matrix(dense_rotation(3, seed, 1), 3) for seed in range(n)])
    heights = (np.sort(matrices, axis=0) + 1.0) / 2.0
    steps = (np.arange(n + 1) / n)[:, np.newaxis, np.newaxis]
    distances = np.maximum(np.abs(heights - steps[1:]), np.abs(heights - steps[:-1])).max(axis=0)
    # Kolmogorov's statistic exceeds 1.95 / sqrt(n) with probability .001.
    assert distances.max() <= 1.95 / np.sqrt(n)


def test_rotated_coordinates_follow_the_sphere_law_in_any_dimension() -> None:
    # |y_1|^2 of a uniform point: E = 1/d, E y^4 = 3 / (d (d + 2)); one-hot input is the first column.
    dim, n = 33, 150
    columns = np.array([dense_rotation(dim, seed, 0).columns[0] for seed in range(n)], np.float64)
    fourths = (columns**4).mean(axis=1)
    error = fourths.mean() - 3.0 / (dim * (dim + 2))
    assert abs(error) <= SIGMAS * fourths.std() / np.sqrt(n)


def test_gaussian_projection_has_independent_normal_entries() -> None:
    dim = 300
    entries = gaussian_projection(dim, 1, 1).columns.astype(np.float64)
    n = dim * dim
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (4, 3, 96)):
        assert abs((entries**power).mean() - expected) <= SIGMAS * np.sqrt(variance / n)
    # Off the diagonal, columns are uncorrelated: the largest of d^2/2 products stays below 5.5 deviations.
    products = entries.T @ entries / np.sqrt(dim)
    assert np.abs(products - np.diag(np.diag(products))).max() <= 5.5


def test_gaussian_projection_and_transpose_are_adjoint(gaussian_rows) -> None:
    projection = gaussian_projection(65, 2, 1)
    x, y = gaussian_rows(3, 65, 1), gaussian_rows(3, 65, 2)
    left = (projection.apply(x).astype(np.float64) * y).sum(axis=1)
    right = (x.astype(np.float64) * projection.transpose(y)).sum(axis=1)
    np.testing.assert_allclose(left, right, rtol=1e-4)


@pytest.mark.parametrize(("dim", "kind"), [(2, "dense"), (63, "dense"), (64, "hadamard"), (1536, "hadamard")])
def test_default_rotation_changes_at_64(dim: int, kind: str) -> None:
    assert Codec(dim).rotation == kind


def test_rotation_and_sketch_are_different_projections() -> None:
    codec = Codec(33, bits=3, kind="prod")
    assert isinstance(codec.rotate, MatrixProjection)
    assert isinstance(codec.sketch_projection, MatrixProjection)
    assert np.abs(codec.rotate.columns - codec.sketch_projection.columns).max() > 0.1


@pytest.mark.parametrize("n", [1, 2, 3, 5, 64, 65, 1000])
def test_tree_sum_adds_upper_halves_to_lower_ones(n: int) -> None:
    terms = np.random.default_rng(n).standard_normal(n) * 10.0 ** np.random.default_rng(1).integers(-9, 9, n)

    def fold(values: list[float]) -> float:
        half = len(values) // 2
        return values[0] if half == 0 else fold([a + b for a, b in zip(values[:half], values[half:], strict=True)])

    padded = terms.tolist() + [0.0] * ((1 << (n - 1).bit_length()) - n)
    assert float(tree_sum(terms)) == fold(padded)
    rows = np.stack([terms, terms[::-1]])
    np.testing.assert_array_equal(tree_sum(rows), [tree_sum(rows[0]), tree_sum(rows[1])])


def test_dot_multiplies_in_float64() -> None:
    a = np.array([1.0 + 2.0**-20, 2.0**-40], np.float32)
    assert float(dot(a, a)) == (1.0 + 2.0**-20) ** 2 + 2.0**-80
