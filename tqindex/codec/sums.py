"""The one order in which float64 sums are taken, so that every implementation rounds alike."""

from typing import Any

import numpy as np
import numpy.typing as npt


def tree_sum(terms: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Sum the last axis by a fixed binary tree.

    The axis is thought to be padded with zeros to a power of two, then its upper half is added to its lower
    half until one number is left.

    Parameters
    ----------
    terms : ndarray of shape (..., n), n >= 1

    Returns
    -------
    ndarray of float64, shape (...)
    """
    sums = terms.astype(np.float64, copy=False)
    half = 1 << (sums.shape[-1] - 1).bit_length() >> 1
    while half:
        upper = sums[..., half:]
        sums = sums[..., :half].copy()
        sums[..., : upper.shape[-1]] += upper
        half //= 2
    return sums[..., 0]


def dot(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Inner products along the last axis: float64 products (exact for float32 input), `tree_sum`."""
    return tree_sum(a.astype(np.float64) * b.astype(np.float64))
