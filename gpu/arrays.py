"""Vectors that are in device memory already: CuPy's, torch's and others', taken without a copy."""

from typing import Any

from tqindex.checks import TAKING_ERRORS, as_array, is_on_gpu, not_taken
from tqindex.errors import VectorError
from tqindex.gpu.runtime import Runtime


def take_array(runtime: Runtime, vectors: Any, name: str) -> Any:
    """Return vectors as the device's array if they are in CUDA memory, by their own word, else as NumPy's.

    Raises
    ------
    VectorError
        Their owner does not hand them out, or they are on another device.
    DeviceError
        The device failed.
    """
    if not is_on_gpu(vectors):
        return as_array(vectors, name)
    with runtime.guard():
        array = _take(runtime, vectors, name)
    number = getattr(array.device, "id", None)  # NumPy's device has none
    if number is not None and runtime.name != f"cuda:{number}":
        raise VectorError(f"{name} must be on the index's device {runtime.name}, got an array on cuda:{number}")
    return array


def _take(runtime: Runtime, vectors: Any, name: str) -> Any:
    """Return the memory as the runtime's array, on whichever device it is."""
    xp = runtime.xp
    if isinstance(vectors, xp.ndarray):  # `asarray` would copy one of another device
        return vectors
    try:
        # DLPack first: it waits for what the owner has queued, on whatever stream, where torch's interface does not.
        return xp.from_dlpack(vectors) if hasattr(vectors, "__dlpack__") else xp.asarray(vectors)
    except TAKING_ERRORS as error:
        if type(error).__module__.startswith("cupy"):  # the device's own errors are RuntimeErrors too
            raise
        raise not_taken(vectors, name, error) from error
