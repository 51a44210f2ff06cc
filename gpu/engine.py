"""`GpuEngine`: what an index on a GPU encodes and searches with."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.checks import check_rows
from tqindex.codec import Codec
from tqindex.errors import DeviceError
from tqindex.gpu.arrays import take_array
from tqindex.gpu.cuda import open_device
from tqindex.gpu.encode import Encoder, Form
from tqindex.gpu.rows import DeviceStore
from tqindex.gpu.runtime import Runtime
from tqindex.gpu.search import DeviceSearch
from tqindex.gpu.transfer import encode_to_host
from tqindex.index.plan import ScanPlan
from tqindex.index.ranges import RangeResult
from tqindex.index.search import Found
from tqindex.index.segments import Segment
from tqindex.kernels.rows import StoredRows

#: What the engines that are opened run on, in the place of a CUDA device. Only `run_on` sets it.
_given: ContextVar[Runtime | None] = ContextVar("runtime", default=None)


@contextmanager
def run_on(runtime: Runtime) -> Iterator[None]:
    """Have every GPU that is opened inside be this runtime: for tests, which have none; `Index.device` tells it."""
    token = _given.set(runtime)
    try:
        yield
    finally:
        _given.reset(token)


def given_runtime() -> Runtime | None:
    """Return what `run_on` has set, if anything."""
    return _given.get()


class GpuEngine:
    """One index's use of one device; `tqindex.index.engine.Engine` describes the methods.

    Rows and queries are checked, encoded and scored on the device. Arrays that come from host memory are sent there.
    """

    on_cpu: tuple[str, ...] = ("filter bits", "range order", "rerank", "reconstruct", "remove", "compact", "merge")

    def __init__(self, runtime: Runtime) -> None:
        self.device = runtime.name.replace("cuda", "gpu")
        self._runtime = runtime
        self._lock = Lock()  # streams and copies of segments are for one call at a time
        self._store = DeviceStore(runtime)
        self._encoder: tuple[Codec, str, Encoder] | None = None

    @classmethod
    def open(cls, number: int | None, codec: Codec | None = None) -> "GpuEngine":
        """Return an engine on a device, by default on the first, for an index of a codec, or of any.

        Raises
        ------
        ArgumentError
            The dim is too large for the kernels.
        DeviceError
            The device cannot be used; the message says why, and what to do.
        """
        if codec is not None:
            Form.of(codec)
        return cls(given_runtime() or open_device(number or 0))

    def as_array(self, vectors: Any, name: str) -> Any:
        """Return device memory as the device's array, anything else as NumPy's."""
        return take_array(self._runtime, vectors, name)

    def as_rows(self, vectors: Any, dim: int, name: str = "vectors", first_row: int = 0) -> Any:
        """Return the array as (n, dim), where it is; float64 of the host as float32, to send half as much."""
        del first_row  # what would name a row is left to the device
        rows = check_rows(self.as_array(vectors, name), dim, name)
        if isinstance(rows, np.ndarray) and rows.dtype == np.float64:
            with np.errstate(over="ignore"):  # the device refuses what becomes inf
                return rows.astype(np.float32)
        return rows

    def as_host(self, array: Any) -> npt.NDArray[Any]:
        """Return an array as NumPy's."""
        if isinstance(array, np.ndarray):
            return array
        with self._runtime.guard():
            return self._runtime.download(array)

    def as_output(self, array: npt.NDArray[Any]) -> Any:
        """Send a NumPy array to the device."""
        with self._runtime.guard():
            return self._runtime.upload(array)

    def as_distances(self, scores: Any) -> Any:
        """Multiply by -2, in order with what has queued the scores."""
        with self._runtime.guard():
            scores *= np.float32(-2.0)
        return scores

    def encode(
        self, codec: Codec, rows: Any, metric: str, out: StoredRows, threads: int, first_row: int, at: int
    ) -> None:
        """Encode on the device, and bring the codes to `out`."""
        del threads
        with self._one_call():
            encode_to_host(self._runtime, self._encoder_of(codec, metric), rows, out, first_row, at)

    def search(
        self, plan: ScanPlan, segments: Sequence[Segment], queries: Any, k: int, threads: int, exact_scan: bool
    ) -> Found:
        """Find the k best, as the device's arrays."""
        del threads
        with self._one_call():
            return self._search_by(plan).search(segments, queries, k, exact_scan)

    def search_range(
        self, plan: ScanPlan, segments: Sequence[Segment], queries: Any, threshold: float, threads: int
    ) -> RangeResult:
        """Find all that reach a threshold, as NumPy's arrays."""
        del threads
        with self._one_call():
            return self._search_by(plan).search_range(segments, queries, threshold)

    @contextmanager
    def _one_call(self) -> Iterator[None]:
        """Give the device to one call; one that the device fails gives up its copies, for the sake of the next."""
        with self._lock:
            try:
                with self._runtime.guard():
                    yield
            except DeviceError:
                self._store.clear()
                raise

    def _search_by(self, plan: ScanPlan) -> DeviceSearch:
        return DeviceSearch(self._runtime, self._store, self._encoder_of(plan.codec, plan.metric), plan)

    def _encoder_of(self, codec: Codec, metric: str) -> Encoder:
        known = self._encoder
        if known is None or known[0] is not codec or known[1] != metric:
            known = codec, metric, Encoder(self._runtime, codec, metric)
            self._encoder = known
        return known[2]
