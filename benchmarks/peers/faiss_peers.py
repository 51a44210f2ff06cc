"""Methods of faiss, each at the best settings known for the size of its codes."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tqindex.bench.peers.base import Family, Float32Array, Int64Array, Method, Peer, Setup

_WIDE_K = 1000
_FAST_ROWS, _LONGEST_BITS = 65_536, 10
_HNSW_LINKS, _HNSW_BUILD_BEAM, _HNSW_BEAM = 32, 80, 128
#: One in so many lists of an inverted file is searched.
_PROBED = 8


class Faiss(Peer):
    """A faiss index made by a function that is given the module, so that faiss is imported only when it is used."""

    warms_up = False

    def __init__(self, setup: Setup, make: Callable[[Any, Setup], Any]) -> None:
        import faiss

        self._faiss: Any = faiss
        self._threads = setup.threads
        self._index = make(faiss, setup)

    def train(self, rows: Float32Array) -> None:
        """Train on all rows; faiss takes a sample of them where it is enough."""
        self._faiss.omp_set_num_threads(self._threads)
        self._index.train(rows)

    def add(self, rows: Float32Array) -> None:
        """Encode and append vectors."""
        self._faiss.omp_set_num_threads(self._threads)
        self._index.add(rows)

    def search(self, queries: Float32Array, k: int) -> Int64Array:
        """Return row numbers."""
        self._faiss.omp_set_num_threads(self._threads)
        ids: Int64Array = self._index.search(queries, k)[1]
        return ids

    def stored_bytes(self) -> int:
        """Count what faiss would write to a file."""
        counted = 0

        def count(block: bytes) -> int:
            nonlocal counted
            counted += len(block)
            return len(block)

        self._faiss.write_index(self._index, self._faiss.PyCallbackIOWriter(count))
        return counted


class Quantiser(Faiss):
    """Codebooks of 8 bits, which faiss trains some ten times as fast on 65,536 rows as on a few thousand less.

    A smaller base is repeated up to so many rows, which leaves the k-means the same. One thread: two, which wait for
    each other at every step of a small k-means, take longer.
    """

    def train(self, rows: Float32Array) -> None:
        """Train the codebooks."""
        repeated = rows if len(rows) >= _FAST_ROWS else np.tile(rows, (-(-_FAST_ROWS // len(rows)), 1))
        self._faiss.omp_set_num_threads(1)
        self._index.train(repeated)


class Shortlist(Faiss):
    """Scans with bounds first; a wider search leaves its best ones in no question."""

    def full_scan(self, queries: Float32Array, k: int) -> Int64Array:
        """Search wide and keep the best."""
        return self.search(queries, _WIDE_K)[:, :k]


class Graph(Faiss):
    """HNSW, which has no full scan."""

    def full_scan(self, queries: Float32Array, k: int) -> None:
        """There is none."""


class Lists(Quantiser):
    """An inverted file: a full scan visits all lists."""

    def full_scan(self, queries: Float32Array, k: int) -> Int64Array:
        """Visit all lists."""
        inverted = self._faiss.extract_index_ivf(self._index)
        probed, inverted.nprobe = inverted.nprobe, inverted.nlist
        ids = self.search(queries, k)
        inverted.nprobe = probed
        return ids


def _metric(faiss: Any, setup: Setup) -> Any:
    return faiss.METRIC_INNER_PRODUCT if setup.metric == "ip" else faiss.METRIC_L2


def _best_metric(faiss: Any, setup: Setup) -> Any:
    """Embeddings are found by distance more often than by inner product where the two agree, on unit vectors."""
    return faiss.METRIC_L2 if setup.unit else _metric(faiss, setup)


def _seeded(index: Any, setup: Setup) -> Any:
    index.pq.cp.seed = 1234 + setup.seed
    return index


def _inner_product(faiss: Any, setup: Setup) -> Any:
    del setup
    return faiss.METRIC_INNER_PRODUCT


def _pq(metric: Callable[[Any, Setup], Any], more: int = 0) -> Callable[[Any, Setup], Any]:
    """Return a maker of codes of 8 bits for every 8 / width coordinates.

    more : bits of a vector besides those of its coordinates, by which the codes are longer as far as they go round and
        training does not take minutes
    """

    def make(faiss: Any, setup: Setup) -> Any:
        parts = setup.dim * setup.width // 8
        bits = min((setup.dim * setup.width + more) // parts, _LONGEST_BITS)
        return _seeded(faiss.IndexPQ(setup.dim, parts, bits, metric(faiss, setup)), setup)

    return make


def _pqfs(metric: Callable[[Any, Setup], Any]) -> Callable[[Any, Setup], Any]:
    """Return a maker of codes of 4 bits."""

    def make(faiss: Any, setup: Setup) -> Any:
        index = faiss.IndexPQFastScan(setup.dim, setup.dim * setup.width // 4, 4, metric(faiss, setup))
        return _seeded(index, setup)

    return make


def _rotated(description: str) -> Callable[[Any, Setup], Any]:
    """Return a maker of codes behind a random rotation, which faiss keeps outside of them."""

    def make(faiss: Any, setup: Setup) -> Any:
        index = faiss.index_factory(setup.dim, f"RR,{description}{setup.bits}", _metric(faiss, setup))
        faiss.downcast_VectorTransform(index.chain.at(0)).init(setup.seed)
        return index

    return make


def _hnsw(faiss: Any, setup: Setup) -> Any:
    index = faiss.IndexHNSWFlat(setup.dim, _HNSW_LINKS, _metric(faiss, setup))
    index.hnsw.efConstruction, index.hnsw.efSearch = _HNSW_BUILD_BEAM, _HNSW_BEAM
    return index


def _ivf_pq(faiss: Any, setup: Setup) -> Any:
    lists = max(16, int(4 * setup.n**0.5) // 16 * 16)
    codes = f"PQ{setup.dim * setup.width // 8}"
    index = _seeded(faiss.index_factory(setup.dim, f"IVF{lists},{codes}", _best_metric(faiss, setup)), setup)
    index.cp.seed, index.nprobe = index.pq.cp.seed, lists // _PROBED
    return index


def _flat(faiss: Any, setup: Setup) -> Any:
    return faiss.IndexFlat(setup.dim, _metric(faiss, setup))


def _method(
    key: str,
    label: str,
    family: Family,
    make: Callable[[Any, Setup], Any],
    widths: tuple[int | None, ...],
    kind: type[Faiss] = Faiss,
    **rules: Any,
) -> Method:
    return Method(f"faiss-{key}", f"faiss {label}", "faiss", family, lambda setup: kind(setup, make), widths, **rules)


# Codes of 8 bits for parts of 4 or 2 coordinates, of 4 bits for parts of 2 or 1.
_PQ_WIDTHS = (2, 4)
_PQ_IP, _PQ_BEST = _pq(_inner_product), _pq(_best_metric)
# Our centred codes have two float32 besides.
_PQ_LONG, _LONG_LABEL = _pq(_best_metric, 64), "PQ (L2), as many bytes as tqindex with its scales"
_FAST_IP, _FAST_BEST = _pqfs(_inner_product), _pqfs(_best_metric)
METHODS = (
    _method("pq-ip", "PQ (inner product)", "trained", _PQ_IP, _PQ_WIDTHS, Quantiser, divides=8, only="ip"),
    _method("pq-l2", "PQ (L2)", "trained", _PQ_BEST, _PQ_WIDTHS, Quantiser, divides=8, only="unit"),
    _method("pq-long", _LONG_LABEL, "trained", _PQ_LONG, _PQ_WIDTHS, Quantiser, divides=8, only="unit"),
    _method("pqfs", "PQ fast-scan", "trained", _FAST_BEST, _PQ_WIDTHS, divides=4),
    _method("pqfs-ip", "PQ fast-scan (inner product)", "trained", _FAST_IP, _PQ_WIDTHS, divides=4, only="ip"),
    _method("sqtq", "TurboQuant prod (RR,SQtq)", "oblivious", _rotated("SQtq"), (2, 3, 4), only="unit"),
    _method("sqtqmse", "TurboQuant mse (RR,SQtqmse)", "oblivious", _rotated("SQtqmse"), (1, 2, 3, 4, 8), only="unit"),
    _method("eden", "RR,EDEN", "oblivious", _rotated("EDEN"), (1, 2, 3, 4, 8)),
    # Its training is the mean of the vectors.
    _method("rabitq", "RR,RaBitQ", "centred", _rotated("RaBitQ"), (1, 2, 3, 4, 8)),
    _method("rabitqfs", "RR,RaBitQ fast-scan", "centred", _rotated("RaBitQfs"), (1, 2, 3, 4, 8), Shortlist),
    _method("hnsw", f"HNSW-flat (M {_HNSW_LINKS}, efSearch {_HNSW_BEAM})", "other", _hnsw, (None,), Graph),
    _method("ivfpq", f"IVF-PQ (1/{_PROBED} of the lists)", "trained", _ivf_pq, _PQ_WIDTHS, Lists, divides=8),
    _method("flat", "flat", "exact", _flat, (None,)),
)
