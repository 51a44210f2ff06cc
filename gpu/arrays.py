"""Vectors that are in device memory already: CuPy's, torch's and others', taken without a copy."""

from typing import Any

from tqindex.checks import as_array, is_on_gpu
from tqindex.errors import VectorError
from tqindex.gpu.runtime import Runtime


def take_array(runtime: Runtime, vectors: Any, name: str) -> Any:
    """Return vectors as the device's array if they are in CUDA memory, by their own word, else as NumPy's.

    Raises
    ------
    VectorError
        Their owner does not hand them out, or they are on another device.
    """
    if not is_on_gpu(vectors):
        return as_array(vectors, name)
    try:
        by_interface = hasattr(vectors, "__cuda_array_interface__")
        array = runtime.xp.asarray(vectors) if by_interface else runtime.xp.from_dlpack(vectors)
    except (TypeError, RuntimeError, BufferError) as error:  # torch: bfloat16, or a gradient is asked for
        raise VectorError(f"{name} cannot be taken from {type(vectors).__name__}: {error}") from error
    number = getattr(array.device, "id", None)  # NumPy's device has none
    if number is not None and runtime.name != f"cuda:{number}":
        raise VectorError(f"{name} must be on the index's device {runtime.name}, got an array on cuda:{number}")
    return array
