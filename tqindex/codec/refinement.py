"""What the leading planes of a code say of its score, and how far the whole code's score may lie from that.

The most significant plane of a Lloyd-Max code is its coordinate's sign, the next ones refine it. Let v be the
coordinate's mean given its first m planes, and Z what the whole code's estimate multiplies with the query (z, or with
a sketch a z and its share). For a row with scale s,

    score = s <R q', Z>,        partial = s kappa <R q', v>,        kappa = E[Z y] / E[v y]

kappa makes partial unbiased too. What is left, e = Z - kappa v, is uncorrelated with y. Over the random rotation
score - partial therefore has mean 0; its variance is s^2 |q'|^2 d / (d - 1) times

    (1 - c^2) E[e^2] + c^2 (E[y^2 e^2] - E[y e (y^2 - 1)]^2 / 2)

for a row at cosine c to the query: across y the error is e on a random direction, along y it is how far <y, e> is from
0, of which a part moves the scale s instead. sigma^2 is the larger of both ends, so the claim holds for every c; a
projection on a random direction has lighter tails than the normal law. With E[v y] = E[v^2]:

    "mse":   kappa = E[z y] / E[v^2],     e = z - kappa v
    "prod":  kappa = 1 / (a E[v^2]),      e = (y - v / E[v^2]) / a,     a = E[z y] / E[z^2]

A centroid's error y - z is uncorrelated with z and v, so in "mse" the best scores are no likelier than others to have a
low bound. In "prod" they are: the sketch adds an error of its own to the score, of mean 0 and variance sketch^2 in the
same units, and the best scores are those where it is high. It needs a margin of its own, for all rows and not for the
k best. sketch^2 = c_S E (y - a z)^2 / a^2 with c_S = pi / 2 for "gaussian" (QJL, arXiv 2406.03482, Lemma 3.5) and
pi / 2 - 1 for "orthogonal". With the paper's scale a is 1; else each row has its own, which moves the partial scores of
near rows up by some hundredths of sigma: the side that loses nothing.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tqindex.codec.codebook import Codebook, SphereLaw
from tqindex.codec.codec import Codec


@dataclass(frozen=True, eq=False)
class Refinement:
    """What the first `planes` planes of a codec's codes are worth.

    Attributes
    ----------
    planes : int
    values : float64 (2**planes,), v: the mean of a coordinate given these planes, in units of y
    power : float, E[v^2]
    kappa, sigma, sketch : float, as above; no sketch: 0
    """

    planes: int
    values: npt.NDArray[np.float64]
    power: float
    kappa: float
    sigma: float
    sketch: float


def refinement(codec: Codec, planes: int) -> Refinement:
    """Return the constants of a codec's first `planes` planes, at most those of its codebook.

    Raises
    ------
    TypeError
        The planes of kind "trellis" do not refine each other.
    """
    book = codec.codebook
    if not isinstance(book, Codebook):
        raise TypeError(f"planes of kind {codec.kind!r} do not refine each other")
    y, weights = SphereLaw(codec.dim).quadrature(book.boundaries)
    z = book.values[:, np.newaxis]

    def mean(x: npt.NDArray[np.float64]) -> float:
        return float((weights * x).sum())

    group = np.arange(2**book.bits) >> (book.bits - planes)
    mass, moment = (np.bincount(group, (weights * x).sum(axis=1)) for x in (np.ones_like(y), y))
    values = moment / mass
    v = values[group][:, np.newaxis]
    power, sketch = mean(v * y), 0.0
    if codec.kind == "mse":
        kappa = mean(z * y) / power
        e = z - kappa * v
    else:
        a = 1.0 if codec.scale == "paper" else mean(z * y) / mean(z**2)
        kappa, e = 1.0 / (a * power), (y - v / power) / a
        sketch = (np.pi / 2 - (codec.sketch == "orthogonal")) * mean((y - a * z) ** 2) / a**2
    far, near = mean(e**2), mean((y * e) ** 2) - mean(y * e * (y**2 - 1)) ** 2 / 2
    return Refinement(planes, values, power, kappa, float(np.sqrt(max(far, near))), float(np.sqrt(sketch)))
