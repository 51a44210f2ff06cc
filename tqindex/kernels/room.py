"""Room that starts a cache line: vectors that lie across two take twice as long to load."""

from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.kernels.compile import inner_kernel

#: Bytes of a cache line.
LINE = 64


def make_room(size: int, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """Return room for `size` numbers, of any content."""
    room = np.empty(size * np.dtype(dtype).itemsize + LINE, np.uint8)
    start = -room.__array_interface__["data"][0] % LINE
    return room[start : start + room.size - LINE].view(dtype)


@inner_kernel
def first_line(room: Any) -> int:
    """Return where in u8 room the first whole cache line begins; room has LINE bytes more than are needed."""
    place: int = -room.ctypes.data % LINE
    return place
