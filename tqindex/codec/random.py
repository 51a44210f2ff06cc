"""Random numbers that are part of the format.

A seed must give the same rotation on every machine and with every NumPy version, so only PCG64's raw output is
used (NumPy promises that stream, not its distributions), and everything made from it uses integers, + - * / and
sqrt, which IEEE 754 rounds in one way; no libm.
"""

import numpy as np
import numpy.typing as npt

_LN2 = 0.6931471805599453
_SQRT_HALF = 0.7071067811865476


class RandomStream:
    """Raw 64-bit words of PCG64, addressed by a seed and a key that names what they are for."""

    def __init__(self, seed: int, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key))

    def words(self, n: int) -> npt.NDArray[np.uint64]:
        """Return n words, shape (n,)."""
        return self._bits.random_raw(n)

    def signs(self, n: int) -> npt.NDArray[np.float32]:
        """Return n values of +1 or -1, shape (n,)."""
        return np.where(self.words(n) >> np.uint64(63), np.float32(-1), np.float32(1))

    def permutation(self, n: int) -> npt.NDArray[np.int32]:
        """Return a permutation of 0..n-1 by Fisher-Yates; word * (i + 1) >> 64 picks the partner of i."""
        order = list(range(n))
        for i, word in zip(range(n - 1, 0, -1), self.words(max(n - 1, 0)).tolist(), strict=True):
            j = word * (i + 1) >> 64
            order[i], order[j] = order[j], order[i]
        return np.array(order, dtype=np.int32)

    def gaussians(self, n: int) -> npt.NDArray[np.float64]:
        """Return n independent N(0, 1) values, shape (n,), by Marsaglia's polar method (SIAM Review 6, 1964)."""
        parts: list[npt.NDArray[np.float64]] = []
        found = 0
        while found < n:
            # A pair is accepted with probability pi / 4.
            pairs = int((n - found) * 0.66) + 16
            uniform = (self.words(2 * pairs) >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0
            u, v = uniform[0::2], uniform[1::2]
            w = u * u + v * v
            inside = (w > 0.0) & (w < 1.0)
            u, v, w = u[inside], v[inside], w[inside]
            factor = np.sqrt(-2.0 * _log(w) / w)
            parts.append(np.stack([u * factor, v * factor], axis=1).ravel())
            found += parts[-1].size
        return np.concatenate(parts)[:n] if parts else np.empty(0)


def _log(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Natural logarithm of positive x by 2 artanh((m - 1) / (m + 1)), m in [sqrt(1/2), sqrt(2)), without libm."""
    mantissa, exponent = np.frexp(x)
    low = mantissa < _SQRT_HALF
    mantissa = np.where(low, 2.0 * mantissa, mantissa)
    exponent = np.where(low, exponent - 1, exponent).astype(np.float64)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    square = s * s
    series = np.zeros_like(s)
    # |s| <= .172, so the first term left out is below 1e-17.
    for odd in range(21, 0, -2):
        series = series * square + 1.0 / odd
    return 2.0 * s * series + exponent * _LN2
