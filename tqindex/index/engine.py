"""Where vectors are encoded and codes are searched: on the CPU, or on a GPU by `tqindex.gpu`.

An index's rows stay in host memory wherever its engine is: ids, removal, compaction and files know nothing of it.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tqindex.checks import as_array, as_rows, check_finite, check_integer
from tqindex.codec import Codec
from tqindex.errors import ArgumentError
from tqindex.index.plan import ScanPlan
from tqindex.index.ranges import RangeResult, search_range
from tqindex.index.search import Found, search_rows
from tqindex.index.segments import Segment
from tqindex.kernels.encoder import encode_rows
from tqindex.kernels.rows import StoredRows

#: The largest device number that is asked for; which of them are there the driver knows.
_LAST_DEVICE = 255


class Engine(Protocol):
    """What an index asks of the device that it is on. Arrays are NumPy's, or the device's where that is said.

    Attributes
    ----------
    device : str
        "cpu", or as "gpu:0".
    on_cpu : tuple of str
        What the CPU does all the same.
    """

    device: str
    on_cpu: tuple[str, ...]

    def as_array(self, vectors: Any, name: str) -> Any:
        """Return vectors as an array: the device's own, where they are in its memory already, else NumPy's."""

    def as_rows(self, vectors: Any, dim: int, name: str = "vectors", first_row: int = 0) -> Any:
        """Return them as (n, dim), checked as by `tqindex.checks.as_rows`, but for being finite; where they are."""

    def as_host(self, array: Any) -> npt.NDArray[Any]:
        """Return an array, the device's or NumPy's, as NumPy's."""

    def as_output(self, array: npt.NDArray[Any]) -> Any:
        """Return a NumPy array as the device's."""

    def as_distances(self, scores: Any) -> Any:
        """Return scores of the metric "l2", the device's or NumPy's, as squared distances, in their place."""

    def encode(
        self, codec: Codec, rows: Any, metric: str, out: StoredRows, threads: int, first_row: int, at: int
    ) -> None:
        """As `tqindex.kernels.encoder.encode_rows`."""

    def search(
        self, plan: ScanPlan, segments: Sequence[Segment], queries: Any, k: int, threads: int, exact_scan: bool
    ) -> Found:
        """As `tqindex.index.search.search_rows`; the results are the device's."""

    def search_range(
        self, plan: ScanPlan, segments: Sequence[Segment], queries: Any, threshold: float, threads: int
    ) -> RangeResult:
        """As `tqindex.index.ranges.search_range`; queries need not be finite. The results are NumPy's."""


class CpuEngine:
    """The Numba kernels."""

    device = "cpu"
    on_cpu: tuple[str, ...] = ()

    def as_array(self, vectors: Any, name: str) -> npt.NDArray[Any]:
        """Return `tqindex.checks.as_array`."""
        return as_array(vectors, name)

    def as_rows(self, vectors: Any, dim: int, name: str = "vectors", first_row: int = 0) -> npt.NDArray[np.float32]:
        """Return `tqindex.checks.as_rows`."""
        return as_rows(vectors, dim, name, first_row, finite=False)

    def as_host(self, array: Any) -> npt.NDArray[Any]:
        """Return the array itself."""
        host: npt.NDArray[Any] = array
        return host

    def as_output(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the array itself."""
        return array

    def as_distances(self, scores: Any) -> Any:
        """Multiply by -2."""
        scores *= np.float32(-2.0)
        return scores

    def encode(
        self, codec: Codec, rows: Any, metric: str, out: StoredRows, threads: int, first_row: int, at: int
    ) -> None:
        """Encode rows."""
        encode_rows(codec, rows, metric, out, threads, first_row, at)

    def search(
        self, plan: ScanPlan, segments: Sequence[Segment], queries: Any, k: int, threads: int, exact_scan: bool
    ) -> Found:
        """Find the k best."""
        return search_rows(plan, segments, queries, k, threads, exact_scan)

    def search_range(
        self, plan: ScanPlan, segments: Sequence[Segment], queries: Any, threshold: float, threads: int
    ) -> RangeResult:
        """Find all that reach a threshold."""
        check_finite(queries, "queries")
        return search_range(plan, segments, queries, threshold, threads)


def open_engine(device: str, codec: Codec | None = None) -> Engine:
    """Return the engine of a device, "cpu", "gpu" (the first) or "gpu:N", for an index of a codec, or of any.

    Raises
    ------
    ArgumentError
        Another name; a dim that the device has no kernels for.
    DeviceError
        The GPU cannot be used.
    """
    number = check_device(device)
    if device == "cpu":
        return CpuEngine()
    # Nothing of it is imported before a GPU is asked for.
    from tqindex.gpu.engine import GpuEngine

    return GpuEngine.open(number, codec)


def check_device(device: Any) -> int | None:
    """Return the number that a device's name gives, None without one; refuses names of no device."""
    name, colon, number = device.partition(":") if isinstance(device, str) else ("", "", "")
    if name in ("cpu", "gpu") and not colon:
        return None
    if name != "gpu" or not (number.isascii() and number.isdigit()):
        hint = f"; write {device.lower().replace('cuda', 'gpu')!r}" if name.lower() in ("cuda", "gpu") else ""
        raise ArgumentError(f"device must be 'cpu', 'gpu' or 'gpu:N', got {device!r}{hint}")
    return check_integer("device number", int(number), 0, _LAST_DEVICE)
