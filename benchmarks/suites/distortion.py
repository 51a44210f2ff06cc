"""Squared error and variance of inner products against what theory says, for random unit vectors."""

import time
from typing import Any

import numpy as np

from tqindex import Codec
from tqindex.bench.config import Config
from tqindex.bench.peers import Method
from tqindex.bench.sets import Source
from tqindex.bench.suites.base import Group, Job, Suite, row_of
from tqindex.codec.codebook import make_codebook
from tqindex.codec.codec import normalise

_QUERIES = 200
#: With the paper's scale the error is the quantiser's own, with nothing adapted to the vector.
_CODECS: dict[str, dict[str, Any]] = {
    "tqindex-mse-paper": {"kind": "mse", "scale": "paper"},
    "tqindex-prod": {"kind": "prod", "sketch": "orthogonal", "scale": "paper"},
    "tqindex-prod-gaussian": {"kind": "prod", "sketch": "gaussian", "scale": "paper"},
}
#: d times the variance of <q, x>, over the distortion of the bits that are not the sketch's: TurboQuant, Theorem 2,
#: for the Gaussian sketch; a rotation of the residual keeps its length, which takes 1 off.
_SKETCH_FACTORS = {"tqindex-prod": np.pi / 2 - 1, "tqindex-prod-gaussian": np.pi / 2}


class Distortion(Suite):
    """Measured distortion beside the codebook's own and Shannon's bound."""

    name = "distortion"
    timed = False

    def groups(self, config: Config, methods: list[Method], source: Source | None) -> list[Group]:
        """One codec, width and dimension each."""
        del source
        return [
            Group((method,), bits, {"dim": dim})
            for dim in config.dims
            for method in methods
            for bits in config.bits
            if bits in method.widths
        ]

    def measure(self, job: Job, group: Group) -> list[dict[str, Any]]:
        """Encode random vectors with a few rotations."""
        (method,), bits, dim = group.methods, group.bits or 0, group.parameters["dim"]
        start = time.perf_counter()
        rng = np.random.default_rng(dim)
        vectors = normalise(rng.standard_normal((job.config.vectors, dim), dtype=np.float32), "vectors")
        queries = normalise(rng.standard_normal((_QUERIES, dim), dtype=np.float32), "queries")
        products = queries.astype(np.float64) @ vectors.astype(np.float64).T
        errors, variances = [], []
        for seed in range(job.config.seeds_of(method.key)):
            codec = Codec(dim, bits, seed=seed, **_CODECS[method.key])
            codes = codec.encode(vectors)
            if codec.kind == "mse":
                errors.append(((vectors - codec.decode(codes).astype(np.float64)) ** 2).sum(axis=1).mean())
            else:
                variances.append(dim * ((codec.inner_product(queries, codes) - products) ** 2).mean())
        factor = _SKETCH_FACTORS.get(method.key)
        row = row_of(method, bits) | {
            "seconds": round(time.perf_counter() - start, 3),
            "dim": dim,
            "mse": _mean(errors),
            "mse_bound": make_codebook(dim, bits).distortion if factor is None else None,
            "shannon": 4.0**-bits,
            "product_variance": _mean(variances),
            "product_bound": None if factor is None else factor * make_codebook(dim, bits - 1).distortion,
        }
        return [row]


def _mean(values: list[Any]) -> float | None:
    return float(np.mean(values)) if values else None
