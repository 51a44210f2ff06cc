"""turbovec, plain and calibrated on a sample."""

import numpy as np

from tqindex.bench.peers.base import Family, Float32Array, Int64Array, Method, Peer, Setup, pad_columns

#: "Around 1024 rows is enough" (its documentation); they must be drawn at random.
_SAMPLE_ROWS = 4096
_WIDE_K = 1000
_COLUMNS = 8


class Turbovec(Peer):
    """A turbovec.TurboQuantIndex. Its threads are set by RAYON_NUM_THREADS before it is imported."""

    def __init__(self, setup: Setup, calibrated: bool) -> None:
        import turbovec

        self._setup, self._calibrated = setup, calibrated
        self._index = turbovec.TurboQuantIndex(setup.dim + -setup.dim % _COLUMNS, setup.width)

    def prepare(self, rows: Float32Array) -> Float32Array:
        """It takes widths that are multiples of 8."""
        return pad_columns(rows, _COLUMNS)

    def train(self, rows: Float32Array) -> None:
        """Fit shifts and scales of coordinates, where it is to be calibrated."""
        if self._calibrated:
            rng = np.random.default_rng(self._setup.seed)
            picks = rng.choice(len(rows), min(_SAMPLE_ROWS, len(rows)), replace=False)
            self._index.calibrate(rows[picks])

    def add(self, rows: Float32Array) -> None:
        """Encode and append vectors."""
        self._index.add(rows)

    def search(self, queries: Float32Array, k: int) -> Int64Array:
        """Return row numbers: of a shortlist that is not exact, at 2 and 4 bits."""
        return np.asarray(self._index.search(queries, k)[1], np.int64)

    def full_scan(self, queries: Float32Array, k: int) -> Int64Array:
        """Search so wide that the shortlist has all that matter."""
        return self.search(queries, _WIDE_K)[:, :k]

    def stored_bytes(self) -> int:
        """Count what it would write."""
        return len(self._index.to_bytes())


def _method(key: str, label: str, family: Family, calibrated: bool) -> Method:
    return Method(
        key,
        label,
        "turbovec",
        family,
        lambda setup: Turbovec(setup, calibrated),
        (2, 3, 4),
        only="ip",
        sets_threads=False,
    )


METHODS = (
    _method("turbovec", "turbovec", "oblivious", False),
    _method("turbovec-calibrated", "turbovec, calibrated", "centred", True),
)
