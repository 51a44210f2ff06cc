"""The codec in NumPy: rotations, codebooks, quantisation, QJL sketches, bit packing."""

from tqindex.codec.codec import Codec
from tqindex.codec.codes import Codes

__all__ = ["Codec", "Codes"]
