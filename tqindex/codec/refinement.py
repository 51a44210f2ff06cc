"""What the leading planes of a code say of its score, and how far the whole code's score may lie from that.

The most significant plane of a Lloyd-Max code is its coordinate's sign, the next ones refine it. Let v be the
coordinate's mean given its first m planes, and Z what the whole code's estimate multiplies with the query (z, or with
a sketch a z and its share). For a row with scale s,

    score = s <R q', Z>,        partial = s kappa <R q', v>,        kappa = E[Z y] / E[v y]

kappa makes partial unbiased too: score - partial is then uncorrelated with y, so it does not depend on how near the
row is to the query. Over the random rotation it has mean 0 and variance at most s^2 sigma^2 |q'|^2 d / (d - 1), and a
projection of a vector on a random direction has lighter tails than the normal law. With E[v y] = E[v^2]:

    "mse":   kappa = E[z y] / E[v^2],     sigma^2 = E[z^2] - 2 kappa E[z v] + kappa^2 E[v^2]
    "prod":  kappa = 1 / (a E[v^2]),      sigma^2 = ((1 / E[v^2] - 1) + c D) / a^2,     a = E[z y] / E[z^2]

with D = E (y - a z)^2, and c D the sketch's own variance: c = pi / 2 for "gaussian" (QJL, Lemma 3.5), pi / 2 - 1 for
"orthogonal". With the paper's scale a is 1 in "prod".
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tqindex.codec.codebook import SphereLaw
from tqindex.codec.codec import Codec


@dataclass(frozen=True, eq=False)
class Refinement:
    """What the first `planes` planes of a codec's codes are worth.

    Attributes
    ----------
    planes : int
    values : float64 (2**planes,), v: the mean of a coordinate given these planes, in units of y
    power : float, E[v^2]
    kappa, sigma : float, as above
    """

    planes: int
    values: npt.NDArray[np.float64]
    power: float
    kappa: float
    sigma: float


def refinement(codec: Codec, planes: int) -> Refinement:
    """Return the constants of a codec's first `planes` planes, at most those of its codebook."""
    book = codec.codebook
    masses, moments = SphereLaw(codec.dim).cells(book.boundaries)
    group = np.arange(2**book.bits) >> (book.bits - planes)
    mass, moment = (np.bincount(group, weights) for weights in (masses, moments))
    values = moment / mass
    power = float((values * moment).sum())
    z = book.values
    along, squares = float((z * moments).sum()), float((z**2 * masses).sum())
    if codec.kind == "mse":
        kappa = along / power
        variance = squares - 2 * kappa * float((z * values[group] * masses).sum()) + kappa**2 * power
    else:
        a = 1.0 if codec.scale == "paper" else along / squares
        residual = 1.0 - 2.0 * a * along + a * a * squares
        sketch = np.pi / 2 if codec.sketch == "gaussian" else np.pi / 2 - 1
        kappa = 1.0 / (a * power)
        variance = (1.0 / power - 1.0 + sketch * residual) / a**2
    return Refinement(planes, values, power, kappa, float(np.sqrt(max(variance, 0.0))))
