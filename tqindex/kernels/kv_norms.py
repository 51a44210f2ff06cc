"""Norms in 16 bits: float32 without its sign, with 6 of its 8 bits of exponent and 10 of its 23 of mantissa.

As accurate as float16 (2**-11), but from 2**-32 to 2**32: a float16 ends at 65,504, which the norm of a float16 vector
may pass. 0 stands for 0, and for what is smaller.

A trellis code's start takes no room of its own: it is the lowest bits of its row's norm, which is the nearest that has
them there, and is used as it is. That moves norms by 2**-5, 2**-6 or 2**-7 of their size at most for codes of 2, 3 or 4
bits, which adds .2 % to their squared error; a byte of its own would be .125 bits of a value at 64 channels, and
starts of zeros would add 15 %.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.errors import VectorError
from tqindex.kernels.compile import inner_kernel

_CUT = 13
#: What the exponent field of 2**-32 becomes.
_LEAST = (127 - 32) << 10
_LARGEST = 2.0**32 * (1 - 2.0**-12)
_uint32: Any = np.uint32


def pack_norms(
    norms: npt.NDArray[np.float32], starts: npt.NDArray[np.uint8] | None = None, start_bits: int = 0
) -> npt.NDArray[np.uint16]:
    """Round norms, float32 of any shape and at least 0, to 16 bits.

    Parameters
    ----------
    norms : float32, of any shape
    starts : uint8, of the same shape, optional
        What the lowest bits of the results are to be.
    start_bits : int
        How many of them.

    Raises
    ------
    VectorError
        A norm of 2**32 or more.
    """
    if norms.size and not norms.max() < _LARGEST:
        raise VectorError(f"keys and values must have norms below 2**32, got {norms.max():.3g}")
    bits = np.ascontiguousarray(norms, np.float32).view(np.uint32).astype(np.int64)
    held = np.zeros(norms.shape, np.int64) if starts is None else starts.astype(np.int64)
    cut = _CUT + start_bits
    kept = (bits - ((held + _LEAST) << _CUT) + (1 << (cut - 1))) >> cut
    packed: npt.NDArray[np.uint16] = (kept.clip(0, 2 ** (16 - start_bits) - 1) << start_bits | held).astype(np.uint16)
    return packed


@inner_kernel
def unpack_norm(norm: Any) -> Any:
    """Return the bits of the float32 that a norm in 16 bits stands for, as u32."""
    return (_uint32(norm) + _uint32(_LEAST)) << _uint32(_CUT) if norm > 0 else _uint32(0)
