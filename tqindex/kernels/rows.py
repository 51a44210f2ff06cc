"""Encoded rows as kernels read and write them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tqindex.codec import Codec
from tqindex.codec.packing import plane_bytes

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class EncodedRows:
    """Codes in planes of whole bytes, and the side numbers.

    Attributes
    ----------
    planes : uint8 (n, bits * ceil(dim / 8)), as `tqindex.codec.packing.pad_planes` makes them
    scales : float32 (n,)
    sketch_scales : float32 (n,), or (0,) for kind "mse"
    offsets : float32 (n,), or (0,) where the metric needs none
    """

    planes: npt.NDArray[np.uint8]
    scales: Float32Array
    sketch_scales: Float32Array
    offsets: Float32Array

    @classmethod
    def allocate(cls, codec: Codec, metric: str, n: int) -> "EncodedRows":
        """Return zeroed room for n rows; the system gives the memory when it is first written."""
        return cls(
            np.zeros((n, codec.bits * plane_bytes(codec.dim)), np.uint8),
            np.zeros(n, np.float32),
            np.zeros(n if codec.kind == "prod" else 0, np.float32),
            np.zeros(n if has_offsets(codec, metric) else 0, np.float32),
        )

    def __len__(self) -> int:
        return len(self.planes)

    def __getitem__(self, rows: slice) -> "EncodedRows":
        return EncodedRows(self.planes[rows], self.scales[rows], self.sketch_scales[rows], self.offsets[rows])

    def copy_to(self, other: "EncodedRows") -> None:
        """Copy all rows into `other`, which has as many."""
        other.planes[:] = self.planes
        other.scales[:] = self.scales
        other.sketch_scales[:] = self.sketch_scales
        other.offsets[:] = self.offsets

    @property
    def side_bytes(self) -> int:
        """Bytes of the side numbers."""
        return self.scales.nbytes + self.sketch_scales.nbytes + self.offsets.nbytes


def has_offsets(codec: Codec, metric: str) -> bool:
    """Whether rows carry an exactly stored part of the score (DESIGN, section 2: b_x)."""
    return metric == "l2" or codec.center is not None
