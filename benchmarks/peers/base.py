"""What a benchmark asks of a method of a package: build and query, timed apart, on the same rows and threads."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
#: What a method learns from the data: nothing; a centre (or shifts and scales); codebooks. "exact" has no codes.
Family = Literal["oblivious", "centred", "trained", "other", "exact"]


@dataclass(frozen=True)
class Setup:
    """What an index is made for.

    Attributes
    ----------
    dim, n : int
        Width and number of the vectors that will come.
    bits : int or None
        Per coordinate; None where the method keeps the vectors themselves.
    metric : "ip" or "l2"
    unit : bool
        All vectors and queries have length 1: cosine, which is "ip" then.
    threads : int
    seed : int
        Of rotations and of training.
    device : str
        "cpu", "gpu" or "gpu:N", as for `tqindex.Index`.
    """

    dim: int
    n: int
    bits: int | None
    metric: Literal["ip", "l2"]
    unit: bool
    threads: int
    seed: int = 0
    device: str = "cpu"

    @property
    def width(self) -> int:
        """Bits per coordinate of a method that has codes."""
        return self.bits or 0


class Peer(ABC):
    """One index that is being measured."""

    #: Whether the first index of a process takes longer to build than the later ones.
    warms_up = True

    def prepare(self, rows: Float32Array) -> Float32Array:
        """Bring vectors or queries into the form that the package takes; not timed."""
        return rows

    def train(self, rows: Float32Array) -> None:  # noqa: B027 (most methods learn nothing)
        """Learn what the method learns from the vectors that will be added."""

    @abstractmethod
    def add(self, rows: Float32Array) -> None:
        """Encode and append vectors, (n, dim)."""

    @abstractmethod
    def search(self, queries: Float32Array, k: int) -> Int64Array:
        """Return row numbers, (nq, k), best first, as the package's users search."""

    def full_scan(self, queries: Float32Array, k: int) -> Int64Array | None:
        """Return what scoring every code in full would find; None where the method cannot."""
        return self.search(queries, k)

    @abstractmethod
    def stored_bytes(self) -> int:
        """Return the bytes of the index as it stands, shared parts such as codebooks included."""


@dataclass(frozen=True)
class Method:
    """A way to index vectors, before it is given any.

    Attributes
    ----------
    key, label : str
        Its stable name in result files, and what a table prints.
    peer : str
        The package.
    family : Family
    make : callable
        Returns an empty index.
    widths : tuple of int, or (None,)
        Bits per coordinate that it has; (None,) where it keeps the vectors themselves.
    divides : int
        `dim * bits` must be a multiple of it.
    only : {"unit", "ip", None}
        Unit vectors only, inner products only, or any metric.
    least_dim : int
    sets_threads : bool
        Whether the number of threads can be set while the package runs.
    on_gpu : bool
        Whether it is measured on a GPU too.
    """

    key: str
    label: str
    peer: str
    family: Family
    make: Callable[[Setup], Peer]
    widths: tuple[int | None, ...]
    divides: int = 1
    only: Literal["unit", "ip"] | None = None
    least_dim: int = 1
    sets_threads: bool = True
    on_gpu: bool = False

    def refusal(self, setup: Setup) -> str | None:
        """Say why the method does not do what is asked; None if it does."""
        if setup.device != "cpu" and not self.on_gpu:
            return "is measured on the CPU only"
        if setup.dim < self.least_dim:
            return f"takes vectors of at least {self.least_dim} dimensions"
        if setup.bits is not None and (setup.dim * setup.bits) % self.divides:
            return f"{setup.dim} dimensions of {setup.bits} bits do not split into whole codes"
        if self.only == "unit" and not setup.unit:
            return "takes vectors of length 1 only"
        if self.only == "ip" and setup.metric != "ip":
            return "takes inner products only"
        return None


def pad_columns(rows: Float32Array, multiple: int) -> Float32Array:
    """Append zero columns, which change no inner product, up to a multiple."""
    return np.ascontiguousarray(np.pad(rows, ((0, 0), (0, -rows.shape[1] % multiple))))
