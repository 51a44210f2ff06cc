"""What the leading planes say of a score: the constants by direct integration, the promise on errors by sampling."""

from typing import Any

import numpy as np
import pytest

from tqindex.codec import Codec
from tqindex.codec.refinement import Refinement, refinement

CONFIGS: list[dict[str, Any]] = [
    *({"kind": "mse", "bits": bits, "scale": scale} for bits in (1, 2, 3, 4, 8) for scale in ("unbiased", "paper")),
    *(
        {"kind": "prod", "bits": bits, "sketch": sketch, "scale": scale}
        for bits in (2, 3, 4)
        for sketch in ("orthogonal", "gaussian")
        for scale in ("unbiased", "paper")
    ),
]
COSINES = (0.0, 0.5, 0.9)
#: Standard errors that a measured mean or variance may lie beyond the claim.
SIGMAS = 4.0


def name_of(config: dict[str, Any]) -> str:
    return "-".join(str(value) for value in config.values())


def stages_of(codec: Codec) -> list[Refinement]:
    return [refinement(codec, planes) for planes in range(1, min(codec.codebook.bits, 2) + 1)]


def without_matrix(dim: int, config: dict[str, Any]) -> Codec:
    """A codec for its constants alone: it says "gaussian" and has no such matrix."""
    codec = Codec(dim, **{**config, "sketch": "orthogonal"})
    codec.sketch = config.get("sketch", "orthogonal")
    return codec


def sphere_law(dim: int) -> tuple[Any, Any]:
    """A coordinate's values and their probabilities: (1 - t^2)^((dim - 3) / 2) at t = y / sqrt(dim)."""
    reach = min(np.sqrt(dim), 9.0)
    y = (np.arange(1_000_000) + 0.5) / 500_000 * reach - reach
    density = np.exp((dim - 3) / 2 * np.log1p(-(y**2) / dim))
    return y, density / density.sum()


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
@pytest.mark.parametrize("dim", [64, 100, 1536])
def test_constants_are_the_integrals(dim: int, config: Any) -> None:
    codec = without_matrix(dim, config)
    book = codec.codebook
    y, density = sphere_law(dim)

    def mean(x: Any) -> float:
        return float(density @ x)

    codes = np.searchsorted(book.boundaries, y, side="right")
    z = book.values[codes]
    for known in stages_of(codec):
        group = codes >> (book.bits - known.planes)
        masses = np.bincount(group, density)
        values = np.bincount(group, density * y) / masses
        np.testing.assert_allclose(known.values, values, rtol=0, atol=1e-5)
        v = values[group]
        assert known.power == pytest.approx(mean(v**2), abs=1e-5)
        sketch = 0.0
        if codec.kind == "mse":
            kappa = mean(z * y) / mean(v**2)
            e = z - kappa * v
        else:
            a = 1.0 if codec.scale == "paper" else mean(z * y) / mean(z**2)
            kappa = 1 / (a * mean(v**2))
            e = (y - v / mean(v**2)) / a
            sketch = (np.pi / 2 - (codec.sketch == "orthogonal")) * mean((y - a * z) ** 2) / a**2
        assert known.kappa == pytest.approx(kappa, abs=2e-5)
        # Of a row at cosine c the variance is (1 - c^2) far + c^2 near: the claim is for every c.
        far, near = mean(e**2), mean((y * e) ** 2) - mean(y * e * (y**2 - 1)) ** 2 / 2
        assert known.sigma**2 == pytest.approx(max(far, near), abs=2e-5)
        assert known.sketch**2 == pytest.approx(sketch, abs=2e-5)


def normalised_errors(codec: Codec, cosine: float, n: int) -> list[Any]:
    """Of each stage, (score - partial) / (s |q'| sigma sqrt(d / (d - 1))) of n rows, each with its own query.

    Pairs of a given cosine whose directions are uniform: what the rotation of one pair would do.
    """
    rng = np.random.default_rng([codec.dim, codec.bits, int(100 * cosine), codec.seed])
    rows, others = rng.standard_normal((2, n, codec.dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    others -= (others * rows).sum(axis=1, keepdims=True) * rows
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    queries = (cosine * rows + np.sqrt(1 - cosine**2) * others).astype(np.float32)
    encoded = codec.encode(rows)
    z, signs = codec._levels(encoded)
    rotated = codec.rotate.apply(queries)
    scores = encoded.scales * (rotated * z).sum(axis=1)
    if encoded.sketch_scales is not None and codec.sketch_projection is not None:
        scores += encoded.sketch_scales * (codec.sketch_projection.apply(rotated) * signs).sum(axis=1)
    codes = np.searchsorted(codec.codebook.values, z - 1e-4)
    errors = []
    for known in stages_of(codec):
        v = known.values[codes >> (codec.codebook.bits - known.planes)]
        partial = encoded.scales * known.kappa * (rotated * v).sum(axis=1)
        # 1 bit is its own first plane: the only error is the codebook's rounding, of which no law is claimed.
        sigma = np.hypot(known.sigma, known.sketch) if known.planes < codec.bits else np.inf
        errors.append((scores - partial) / (encoded.scales * sigma * np.sqrt(codec.dim / (codec.dim - 1))))
        assert np.abs(scores - partial).max() <= 1e-5 * encoded.scales.max() or known.sigma > 1e-4
    return errors


def check_errors(dim: int, config: dict[str, Any], n: int, seeds: int) -> None:
    """Mean 0, variance at most 1, no heavier tails than the normal law's, at every cosine."""
    codecs = [Codec(dim, seed=seed, **config) for seed in range(seeds)]
    for cosine in COSINES:
        for errors in zip(*(normalised_errors(codec, cosine, n) for codec in codecs), strict=True):
            e = np.concatenate(errors)
            # In "prod" a row's own a moves its partial score up by some hundredths of sigma, which loses nothing.
            lowest = -0.05 if config["kind"] == "prod" else 0.0
            error = SIGMAS * e.std() / np.sqrt(len(e))
            assert lowest - error <= e.mean() <= error
            squares = e**2
            assert squares.mean() <= 1 + SIGMAS * squares.std() / np.sqrt(len(e))
            for deviations, share in ((1.96, 0.025), (2.81, 0.0025)):
                assert (e > deviations).mean() <= share + SIGMAS * np.sqrt(share / len(e))


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
@pytest.mark.parametrize("dim", [64, 100])
def test_errors_of_partial_scores_do_not_exceed_what_is_said(dim: int, config: Any) -> None:
    check_errors(dim, config, 1000, 2)


@pytest.mark.parametrize("config", [CONFIGS[2], CONFIGS[6], CONFIGS[14]], ids=name_of)
def test_errors_of_partial_scores_at_1536(config: Any) -> None:
    check_errors(1536, config, 300, 1)


@pytest.mark.nightly
@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
@pytest.mark.parametrize(("dim", "n"), [(64, 4000), (100, 4000), (1536, 1000)])
def test_errors_of_partial_scores_at_full_strength(dim: int, n: int, config: Any) -> None:
    check_errors(dim, config, n, 10 if dim < 1000 else 3)
