"""Inner products are right on average over rotations, and the test that says so can tell when they are not.

One sample is the error of the estimated score for one seed, relative to |q'| |u|; its mean over seeds must lie
within four standard errors of zero. The paper's scale, biased by 1 - D_b, must not.
"""

from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tqindex.codec import Codec
from tqindex.codec.codes import QueryCodes
from tqindex.codec.rotation import HadamardRotation, MatrixProjection, gaussian_projection, make_rotation
from tqindex.kernels.encoder import project

Float64Array = npt.NDArray[np.float64]
Projection = HadamardRotation | MatrixProjection

SIGMAS = 4.0
#: Angle between query and vector, both after centring.
COSINE = 0.9
METRICS = ("ip", "cosine", "l2")
DATA = ("gaussian", "one-hot", "sparse", "constant")


class ProjectionPerRow:
    """Applies projection i % N to row i, so that one call of the codec sees N seeds."""

    def __init__(self, projections: Sequence[Projection]) -> None:
        self.projections = projections

    def apply(self, rows: Any) -> Any:
        images = np.empty_like(rows)
        for i, projection in enumerate(self.projections):
            # The kernels equal `apply` bit for bit (test_kernels_encode.py) and take a tenth of the time.
            mine = slice(i, None, len(self.projections))
            image = rows[mine].copy()
            project(projection, image)
            images[mine] = image
        return images


@cache
def projections(kind: str, dim: int, key: int, seeds: int) -> ProjectionPerRow:
    """Return the rotations (key 0) or the sketches (key 1) of the codecs with seeds 0 .. seeds - 1."""
    if kind == "gaussian":
        return ProjectionPerRow([gaussian_projection(dim, seed, key) for seed in range(seeds)])
    return ProjectionPerRow([make_rotation(kind, dim, seed, key) for seed in range(seeds)])


def data_directions(kind: str, dim: int, rng: np.random.Generator) -> Float64Array:
    """Return one unit vector of the named kind."""
    row = np.zeros(dim)
    if kind == "gaussian":
        row = rng.standard_normal(dim)
    elif kind == "one-hot":
        row[rng.integers(dim)] = 1.0
    elif kind == "sparse":
        filled = max(2, dim // 100)
        row[rng.permutation(dim)[:filled]] = rng.standard_normal(filled)
    else:
        row += 1.0
    return row / np.linalg.norm(row)


def vectors_and_queries(
    metric: str, c: Float64Array, dim: int, kinds: Sequence[str]
) -> tuple[Float64Array, Float64Array]:
    """Return x and q, one per kind: u = x - c of that kind, cos(q - c, u) = .9; unit x and q under "cosine"."""
    rng = np.random.default_rng(dim)
    vectors: list[Float64Array] = []
    queries: list[Float64Array] = []
    for kind in kinds:
        u = data_directions(kind, dim, rng)
        across = rng.standard_normal(dim)
        across -= (across @ u) * u
        w = COSINE * u + np.sqrt(1.0 - COSINE**2) * across / np.linalg.norm(across)
        for direction, length, rows in ((u, 2.5, vectors), (w, 1.7, queries)):
            along = direction @ c
            reach = np.sqrt(along**2 + 1.0 - c @ c) - along if metric == "cosine" else length
            rows.append(c + reach * direction)
    return np.array(vectors, np.float32).astype(np.float64), np.array(queries, np.float32).astype(np.float64)


def center_of(centred: bool, dim: int) -> npt.NDArray[np.float32] | None:
    if not centred:
        return None
    center = np.random.default_rng(77).standard_normal(dim)
    return (0.4 * center / np.linalg.norm(center)).astype(np.float32)


def relative_errors(codec: Codec, metric: str, seeds: int, kinds: Sequence[str] = DATA) -> Float64Array:
    """Errors of the estimated scores over |q'| |u|, shape (kinds, seeds); the codec's seed gives way to 0, 1, ..."""
    codec.rotate = projections(codec.rotation, codec.dim, 0, seeds)
    if codec.kind == "prod":
        sketch = "gaussian" if codec.sketch == "gaussian" else codec.rotation
        codec.sketch_projection = projections(sketch, codec.dim, 1, seeds)

    def score(vectors: Float64Array, queries: Float64Array) -> Float64Array:
        codes = codec.encode(np.repeat(vectors, seeds, axis=0), metric)
        encoded = codec.encode_queries(np.repeat(queries, seeds, axis=0), metric)
        # Only a row's own query has its rotation: score in blocks and keep the diagonals.
        step = 10
        blocks = [slice(start, start + step) for start in range(0, len(codes), step)]
        return np.concatenate([np.diagonal(codec._estimate(rows_of(encoded, b), codes[b])) for b in blocks])

    return errors_of(codec, metric, kinds, score)


def relative_errors_seed_by_seed(config: dict[str, Any], metric: str, seeds: int, kinds: Sequence[str]) -> Float64Array:
    """What `relative_errors` gives, by one codec after the other."""

    def score(vectors: Float64Array, queries: Float64Array) -> Float64Array:
        columns = []
        for seed in range(seeds):
            codec = Codec(**config, seed=seed)
            columns.append(np.diagonal(codec.scores(queries, codec.encode(vectors, metric))))
        return np.stack(columns, axis=1)

    return errors_of(Codec(**config), metric, kinds, score)


def errors_of(codec: Codec, metric: str, kinds: Sequence[str], score: Any) -> Float64Array:
    center = np.zeros(codec.dim) if codec.center is None else codec.center.astype(np.float64)
    vectors, queries = vectors_and_queries(metric, center, codec.dim, kinds)
    scores = score(vectors, queries).reshape(len(kinds), -1).astype(np.float64)
    true = -((vectors - queries) ** 2).sum(axis=1) / 2 if metric == "l2" else (vectors * queries).sum(axis=1)
    lengths = np.linalg.norm(vectors - center, axis=1) * np.linalg.norm(queries - center, axis=1)
    errors: Float64Array = (scores - true[:, np.newaxis]) / lengths[:, np.newaxis]
    return errors


def rows_of(queries: QueryCodes, rows: slice) -> QueryCodes:
    arrays = {field.name: getattr(queries, field.name) for field in fields(queries)}
    return QueryCodes(**{name: None if array is None else array[rows] for name, array in arrays.items()})


def deviations(errors: Float64Array) -> Float64Array:
    """Mean errors in units of their standard errors, shape (kinds,)."""
    result: Float64Array = errors.mean(axis=1) / (errors.std(axis=1, ddof=1) / np.sqrt(errors.shape[1]))
    return result


def is_unbiased(errors: Float64Array) -> npt.NDArray[np.bool_]:
    """The claim: per kind of data, the mean error is within four standard errors of zero."""
    return np.abs(deviations(errors)) <= SIGMAS


def config_of(dim: int, bits: int, codec: str, rotation: str, centred: bool = False, scale: str = "unbiased") -> Any:
    """Arguments of Codec by a short name: "mse", "trellis", "orthogonal" or "gaussian"."""
    kind: dict[str, Any] = {"kind": codec} if codec in ("mse", "trellis") else {"kind": "prod", "sketch": codec}
    center = center_of(centred, dim)
    return {"dim": dim, "bits": bits, "scale": scale, "rotation": rotation, "center": center, **kind}


#: Seeds and rotation per dimension; at d = 8 a bias of .6 % takes 2,000 samples to see.
SMALL = {8: (2000, "dense"), 64: (200, "dense"), 100: (200, "hadamard")}
LARGE = {1032: (200, "hadamard"), 1536: (200, "hadamard")}
SIDES = [(metric, centred) for metric in METRICS for centred in (False, True)]
SMALL_CODECS = ("mse", "trellis", "orthogonal", "gaussian")
CASES = (
    [(8, c, m, z) for c in SMALL_CODECS for m, z in (("ip", False), ("cosine", True), ("l2", True))]
    + [(d, c, m, z) for d in (64, 100) for c in SMALL_CODECS for m, z in SIDES]
    + [(d, c, m, m == "l2") for d in LARGE for c in ("mse", "orthogonal") for m in ("ip", "l2")]
    + [(d, "trellis", "ip", False) for d in LARGE]
)  # fmt: skip
NIGHTLY_CASES = [
    (d, c, m, z) for d in LARGE for c in ("mse", "trellis", "orthogonal") for m in METRICS for z in (False, True)
]


def check_unbiased(dim: int, codec: str, metric: str, centred: bool, bits: int, seeds: int, rotation: str) -> None:
    errors = relative_errors(Codec(**config_of(dim, bits, codec, rotation, centred)), metric, seeds)
    assert is_unbiased(errors).all(), dict(zip(DATA, deviations(errors), strict=True))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("dim", "codec", "metric", "centred"), CASES)
def test_scores_are_unbiased(dim: int, codec: str, metric: str, centred: bool, bits: int) -> None:
    check_unbiased(dim, codec, metric, centred, bits, *(SMALL | LARGE)[dim])


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("dim", [*SMALL, *LARGE])
def test_the_same_test_rejects_the_papers_scale(dim: int, bits: int) -> None:
    seeds, rotation = (SMALL | LARGE)[dim]
    errors = relative_errors(Codec(**config_of(dim, bits, "mse", rotation, scale="paper")), "ip", seeds)
    assert not is_unbiased(errors).any(), deviations(errors)
    bias = -COSINE * Codec(dim, bits).codebook.distortion
    assert (np.abs(errors.mean(axis=1) - bias) <= SIGMAS * errors.std(axis=1) / np.sqrt(seeds) + 0.05 * abs(bias)).all()


@pytest.mark.parametrize("bits", [1, 8])
@pytest.mark.parametrize("dim", [*SMALL, 1536])
def test_the_other_widths_are_unbiased_too(dim: int, bits: int) -> None:
    check_unbiased(dim, "mse", "ip", False, bits, *(SMALL | LARGE)[dim])


SEARCHED = [(codec, bits) for codec, widths in (("mse", (2, 3, 4)), ("orthogonal", (3, 4))) for bits in widths]


SEARCHED_CASES = [(dim, metric, *case) for dim, metric in ((8, "ip"), (64, "cosine"), (100, "l2")) for case in SEARCHED]


@pytest.mark.parametrize(("dim", "metric", "codec", "bits"), [*SEARCHED_CASES, (1032, "ip", "mse", 4)])
def test_scores_are_unbiased_with_search(dim: int, metric: str, codec: str, bits: int) -> None:
    seeds, rotation = (SMALL | LARGE)[dim]
    config = config_of(dim, bits, codec, rotation, centred=metric == "l2")
    errors = relative_errors(Codec(**config, effort="search"), metric, seeds)
    assert is_unbiased(errors).all(), deviations(errors)


@pytest.mark.parametrize("dim", [8, 64, 100])
def test_the_papers_prod_is_unbiased(dim: int) -> None:
    seeds, rotation = SMALL[dim]
    errors = relative_errors(Codec(**config_of(dim, 3, "gaussian", rotation, scale="paper")), "ip", seeds)
    assert is_unbiased(errors).all(), deviations(errors)


@pytest.mark.parametrize(
    ("codec", "bits", "effort"),
    [(codec, bits, "plain") for codec in SMALL_CODECS for bits in (2, 3, 4)]
    + [("mse", bits, "search") for bits in (2, 3, 4)],
)
def test_scores_are_unbiased_on_many_vectors(codec: str, bits: int, effort: Any) -> None:
    # A hundred pairs per seed show a bias ten times smaller: 1 % of the sketch's share at 2 bits.
    rng, seeds, dim = np.random.default_rng(4), 100, 64
    u, across = rng.standard_normal((2, 100, dim))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    across -= (across * u).sum(axis=1, keepdims=True) * u
    q = COSINE * u + np.sqrt(1.0 - COSINE**2) * across / np.linalg.norm(across, axis=1, keepdims=True)
    means = []
    for seed in range(seeds):
        estimator = Codec(**config_of(dim, bits, codec, "hadamard"), seed=seed, effort=effort)
        means.append(float(np.diagonal(estimator.inner_product(q, estimator.encode(u))).mean()) - COSINE)
    error = float(np.std(means)) / np.sqrt(seeds)
    assert SIGMAS * error <= 0.004
    assert abs(np.mean(means)) <= SIGMAS * error


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("codec", "rotation"), [("mse", "dense"), ("orthogonal", "hadamard"), ("gaussian", "dense")])
def test_many_seeds_in_one_call_are_codecs_one_by_one(codec: str, rotation: str, metric: str) -> None:
    config = config_of(33, 3, codec, rotation, centred=True)
    together = relative_errors(Codec(**config), metric, 50)[:, :7]
    np.testing.assert_array_equal(together, relative_errors_seed_by_seed(config, metric, 7, DATA))


@pytest.mark.nightly
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("dim", "codec", "metric", "centred"), NIGHTLY_CASES)
def test_scores_are_unbiased_in_large_dimensions(dim: int, codec: str, metric: str, centred: bool, bits: int) -> None:
    check_unbiased(dim, codec, metric, centred, bits, 400, "hadamard")


@pytest.mark.nightly
@pytest.mark.parametrize(("codec", "bits"), SEARCHED)
@pytest.mark.parametrize("dim", LARGE)
def test_scores_are_unbiased_with_search_in_large_dimensions(dim: int, codec: str, bits: int) -> None:
    errors = relative_errors(Codec(**config_of(dim, bits, codec, "hadamard"), effort="search"), "ip", 400)
    assert is_unbiased(errors).all(), deviations(errors)


@pytest.mark.nightly
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("codec", ["mse", "orthogonal", "gaussian"])
@pytest.mark.parametrize(("dim", "rotation"), [(64, "hadamard"), (100, "dense")])
def test_scores_are_unbiased_under_the_other_rotation(
    dim: int, rotation: str, codec: str, metric: str, bits: int
) -> None:
    check_unbiased(dim, codec, metric, metric == "cosine", bits, 400, rotation)


@pytest.mark.nightly
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("dim", [1032, 1536])
def test_gaussian_sketch_is_unbiased_in_large_dimensions(dim: int, bits: int) -> None:
    config = config_of(dim, bits, "gaussian", "hadamard")
    errors = relative_errors_seed_by_seed(config, "ip", 200, DATA)
    assert is_unbiased(errors).all(), deviations(errors)


@pytest.mark.nightly
@pytest.mark.parametrize("dim", [64, 100, 1032])
def test_hadamard_bias_is_below_half_a_percent(dim: int) -> None:
    rng = np.random.default_rng(dim)
    rows = np.array([data_directions(kind, dim, rng) for kind in ("gaussian", "one-hot", "constant")])
    total, seeds = np.zeros_like(rows), 20_000
    for seed in range(seeds):
        codec = Codec(dim, 2, rotation="hadamard", seed=seed)
        # Undo the shrinking of `decode`: s R' z is what inner products are taken with.
        total += codec.decode(codec.encode(rows)) / (1.0 - codec.codebook.distortion)
    # Sampling alone leaves sqrt(D / (1 - D) / seeds) = .0026 of it.
    assert (np.linalg.norm(total / seeds - rows, axis=1) <= 0.005).all()
