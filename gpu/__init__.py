"""Encoding and search on a GPU, through CuPy; the kernels are compiled and checked without one too, see the README."""

from dataclasses import dataclass

from tqindex.errors import DeviceError


@dataclass(frozen=True)
class Availability:
    """Whether a GPU can be used; true if so.

    Attributes
    ----------
    reason : str
        Why not and what to do, empty if it can be.
    """

    reason: str

    def __bool__(self) -> bool:
        return not self.reason


def is_available(device: int = 0) -> Availability:
    """Tell whether device `device` can be used, and if not, why."""
    from tqindex.gpu.cuda import open_device

    try:
        open_device(device)
    except DeviceError as error:
        return Availability(str(error))
    return Availability("")
