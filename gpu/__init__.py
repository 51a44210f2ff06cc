"""Encoding and search on a GPU, through CuPy; the kernels are compiled and checked without one too, see the README."""

from dataclasses import dataclass

from tqindex.errors import ArgumentError, DeviceError
from tqindex.index.engine import check_device


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


def is_available(device: str | int = "gpu") -> Availability:
    """Tell whether a GPU can be used, and if not, why.

    Parameters
    ----------
    device : {"gpu"} or "gpu:N", or the number N
        "gpu" is the first.

    Raises
    ------
    ArgumentError
        The name of no GPU.
    """
    from tqindex.gpu.cuda import open_device

    number = check_device(device if isinstance(device, str) else f"gpu:{device}")
    if device == "cpu":
        raise ArgumentError("device must be 'gpu' or 'gpu:N', got 'cpu'")
    try:
        open_device(number or 0)
    except DeviceError as error:
        return Availability(str(error))
    return Availability("")
