"""Files of vectors, read in slices: HDF5, ``.npy``, ``.fbin`` and ``.fvecs``."""

from tqindex.readers.base import Metric, Role, VectorFile
from tqindex.readers.opening import open_vectors

__all__ = ["Metric", "Role", "VectorFile", "open_vectors"]
