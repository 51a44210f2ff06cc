"""Rows of codes: as the encoder writes them, and as an index keeps them for the scans."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.codec import Codec
from tqindex.codec.packing import BLOCK, LEADING, plane_bytes, row_places
from tqindex.kernels.layout import copy_rows, store_rows

Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]

#: The side numbers of a row.
SIDES = ("scales", "sketch_scales", "offsets")


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

    planes: UInt8Array
    scales: Float32Array
    sketch_scales: Float32Array
    offsets: Float32Array

    @classmethod
    def allocate(cls, codec: Codec, metric: str, n: int) -> "EncodedRows":
        """Return zeroed room for n rows; the system gives the memory when it is first written."""
        return cls(np.zeros((n, codec.bits * plane_bytes(codec.dim)), np.uint8), *_sides(codec, metric, n))

    def __len__(self) -> int:
        return len(self.planes)

    @property
    def lead(self) -> UInt8Array:
        """No planes by blocks of rows: what `StoredRows` calls so."""
        return np.empty((0, 0, self.planes.shape[1] * BLOCK), np.uint8)

    @property
    def rest(self) -> UInt8Array:
        """All planes, row by row: what `StoredRows` calls so of some."""
        return self.planes


@dataclass(frozen=True, eq=False)
class StoredRows:
    """Codes as the scans read them, and the side numbers; room for a multiple of 8 rows.

    Attributes
    ----------
    lead : uint8 (L, n / 8, 8 * width), the L = min(bits, 2) most significant planes, each by blocks of 8 rows as
        `tqindex.codec.packing.interleave_rows` makes them; width = ceil(dim / 8)
    rest : uint8 (n, (bits - L) * width), the other planes, row by row
    scales, sketch_scales, offsets : as `EncodedRows`
    """

    lead: UInt8Array
    rest: UInt8Array
    scales: Float32Array
    sketch_scales: Float32Array
    offsets: Float32Array

    @classmethod
    def allocate(cls, codec: Codec, metric: str, n: int) -> "StoredRows":
        """Return zeroed room for n rows, a multiple of 8."""
        leading, width = min(codec.bits, LEADING), plane_bytes(codec.dim)
        return cls(
            np.zeros((leading, n // BLOCK, BLOCK * width), np.uint8),
            np.zeros((n, (codec.bits - leading) * width), np.uint8),
            *_sides(codec, metric, n),
        )

    def __len__(self) -> int:
        return len(self.scales)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays by name."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def write(self, start: int, rows: EncodedRows) -> None:
        """Store encoded rows from row `start` on."""
        store_rows(rows.planes, self.lead, self.rest, start)
        _write_sides(self, start, rows)

    def read(self, rows: npt.NDArray[np.int64]) -> EncodedRows:
        """Return some rows in the encoder's form."""
        places = row_places(self.lead.shape[2] // BLOCK)[rows % BLOCK]
        lead = [plane[(rows // BLOCK)[:, np.newaxis], places] for plane in self.lead]
        sides = (side[rows] if side.size else side for side in (self.scales, self.sketch_scales, self.offsets))
        return EncodedRows(np.concatenate([*lead, self.rest[rows]], axis=1), *sides)

    def copy(self, start: int, source: "StoredRows", rows: npt.NDArray[np.int64]) -> None:
        """Store some rows of `source`, as they are, from row `start` on."""
        copy_rows(*source.planes_read_only(), rows, self.lead, self.rest, start)
        for name in SIDES:
            side = getattr(source, name)
            if side.size:
                getattr(self, name)[start : start + len(rows)] = side[rows]

    def planes_read_only(self) -> tuple[UInt8Array, UInt8Array]:
        """Return lead and rest in the one form that kernels read them in, whosever memory it is."""
        views = self.lead.view(np.ndarray), self.rest.view(np.ndarray)
        for view in views:
            view.flags.writeable = False
        return views

    def grown(self, codec: Codec, metric: str, n: int) -> "StoredRows":
        """Return a copy with room for n rows, a multiple of 8."""
        larger = StoredRows.allocate(codec, metric, n)
        larger.lead[:, : self.lead.shape[1]] = self.lead
        for name in ("rest", *SIDES):
            getattr(larger, name)[: len(getattr(self, name))] = getattr(self, name)
        return larger

    @property
    def code_bytes(self) -> int:
        """Bytes of one row's codes."""
        return int(self.lead.shape[0] * self.lead.shape[2] // BLOCK + self.rest.shape[1])

    @property
    def side_bytes(self) -> int:
        """Bytes of one row's side numbers."""
        return sum(side.itemsize for side in (self.scales, self.sketch_scales, self.offsets) if side.size)


def has_offsets(codec: Codec, metric: str) -> bool:
    """Whether rows carry a part of the score that is stored exactly, such as <c, u> of the centre c."""
    return metric == "l2" or codec.center is not None


def _sides(codec: Codec, metric: str, n: int) -> tuple[Float32Array, Float32Array, Float32Array]:
    """Zeroed scales, sketch scales and offsets."""
    sketch, offset = codec.kind == "prod", has_offsets(codec, metric)
    return np.zeros(n, np.float32), np.zeros(n * sketch, np.float32), np.zeros(n * offset, np.float32)


def _write_sides(target: EncodedRows | StoredRows, start: int, rows: EncodedRows) -> None:
    for name in SIDES:
        getattr(target, name)[start : start + len(rows)] = getattr(rows, name)
