"""tqindex itself, in every form that a benchmark compares."""

from typing import Any

import tqindex as tq
from tqindex.bench.peers.base import Float32Array, Int64Array, Method, Peer, Setup

#: Rows whose mean is the centre, as `tqindex build` takes it.
_CENTER_ROWS = 4096
#: Key, label, parameters of the index, widths.
_FORMS: tuple[tuple[str, str, dict[str, Any], tuple[int, ...]], ...] = (
    ("tqindex-mse", "tqindex mse", {}, (1, 2, 3, 4, 8)),
    ("tqindex-mse-search", "tqindex mse, effort search", {"effort": "search"}, (2, 3, 4)),
    ("tqindex-trellis", "tqindex trellis", {"codec": "trellis"}, (2, 3, 4)),
    ("tqindex-mse-paper", "tqindex mse, paper's scale", {"scale": "paper"}, (1, 2, 3, 4, 8)),
    ("tqindex-prod", "tqindex prod, orthogonal sketch", {"codec": "prod"}, (2, 3, 4)),
    ("tqindex-prod-gaussian", "tqindex prod, Gaussian sketch", {"codec": "prod", "sketch": "gaussian"}, (2, 3, 4)),
)


class Ours(Peer):
    """A tqindex.Index; with a centre, which training takes from a sample of the rows, or without."""

    def __init__(self, setup: Setup, centred: bool, parameters: dict[str, Any]) -> None:
        self._setup, self._centred, self._parameters = setup, centred, parameters
        self._index = self._make(None)

    def _make(self, center: Float32Array | None) -> tq.Index:
        setup = self._setup
        parameters = self._parameters | {"center": center, "seed": setup.seed, "device": setup.device}
        return tq.Index(setup.dim, setup.width, setup.metric, **parameters)

    def train(self, rows: Float32Array) -> None:
        """Take the centre, where there is to be one."""
        if self._centred:
            self._index = self._make(rows[:: max(1, len(rows) // _CENTER_ROWS)].mean(axis=0))

    def add(self, rows: Float32Array) -> None:
        """Encode and append vectors."""
        self._index.add(rows, threads=self._setup.threads)

    def search(self, queries: Float32Array, k: int) -> Int64Array:
        """Return row numbers: up to 8 queries by the cascade, more by a full scan."""
        return self._index.search(queries, k, threads=self._setup.threads).ids

    def full_scan(self, queries: Float32Array, k: int) -> Int64Array:
        """Score every row in full."""
        return self._index.search(queries, k, threads=self._setup.threads, exact_scan=True).ids

    def stored_bytes(self) -> int:
        """Return the counted bytes, and those of the codebook and the centre."""
        codec = self._index.codec
        shared = codec.codebook.nbytes + (0 if codec.center is None else codec.center.nbytes)
        return int(self._index.info()["total_bytes"]) + shared


def _method(key: str, label: str, parameters: dict[str, Any], widths: tuple[int, ...], centred: bool) -> Method:
    return Method(
        key=f"{key}-centred" if centred else key,
        label=f"{label}, centred" if centred else label,
        peer="tqindex",
        family="centred" if centred else "oblivious",
        make=lambda setup: Ours(setup, centred, parameters),
        widths=widths,
        # The CPU alone makes such codes.
        on_gpu=parameters.get("effort") != "search" and parameters.get("codec") != "trellis",
    )


METHODS = tuple(_method(*form, centred) for form in _FORMS for centred in (False, True))
