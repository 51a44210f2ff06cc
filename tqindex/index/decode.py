"""Rows of an index as the vectors that their codes stand for."""

import numpy as np
import numpy.typing as npt

from tqindex.codec.codes import Codes
from tqindex.codec.packing import repack_planes
from tqindex.index.segments import Int64Array, RowSet, Segment


def decode_rows(rows: RowSet, numbers: Int64Array) -> npt.NDArray[np.float32]:
    """Return the vectors of some rows, float32 (n, dim)."""
    return rows.gather(numbers, lambda segment, own: rows.codec.decode(_codes(rows, segment, own)))


def _codes(rows: RowSet, segment: Segment, numbers: Int64Array) -> Codes:
    """Return rows of a segment in the codec's own packing."""
    encoded = segment.rows.read(numbers)
    return Codes(
        repack_planes(encoded.planes, rows.codec.dim, rows.codec.bits),
        encoded.scales,
        encoded.sketch_scales if segment.rows.sketch_scales.size else None,
        encoded.offsets if segment.rows.offsets.size else None,
        rows.metric,
    )
