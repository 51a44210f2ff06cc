"""rabitqlib, the library of RaBitQ's authors, as a full scan: an inverted file of one list around the mean."""

import tempfile
from pathlib import Path

import numpy as np

from tqindex.bench.peers.base import Float32Array, Int64Array, Method, Peer, Setup


class RaBitQ(Peer):
    """A rabitqlib.IvfIndex of one cluster."""

    def __init__(self, setup: Setup) -> None:
        import rabitqlib

        self._threads = setup.threads
        self._index = rabitqlib.IvfIndex(setup.dim, setup.n, 1, setup.width, setup.metric)

    def train(self, rows: Float32Array) -> None:
        """Take the mean, which is the only centroid."""
        self._center = rows.mean(axis=0, keepdims=True)

    def add(self, rows: Float32Array) -> None:
        """Encode all vectors; there is no empty index to append to."""
        self._index.build(rows, self._center, np.zeros(len(rows), np.uint32), self._threads)

    def search(self, queries: Float32Array, k: int) -> Int64Array:
        """Return row numbers."""
        found = self._index.search(queries, k, 1, num_threads=self._threads)
        return np.asarray(found[0], np.int64)

    def stored_bytes(self) -> int:
        """Count what it would write."""
        if not self._index.is_built:
            return int(self._center.nbytes)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "index"
            self._index.save(str(path))
            return path.stat().st_size


METHODS = (Method("rabitqlib", "rabitqlib (one list)", "rabitqlib", "centred", RaBitQ, (1, 2, 3, 4, 8), least_dim=64),)
