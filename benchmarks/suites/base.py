"""What suites share: groups of rows that are measured together, and what tells whether they were."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tqindex.bench.config import Config
from tqindex.bench.environment import cpu_name, describe_device, gpu_sources_hash, installed_version, sources_hash
from tqindex.bench.peers import Method, Peer, Setup, package_version
from tqindex.bench.sets import DataSet, Float32Array, Source
from tqindex.bench.timing import timed
from tqindex.bench.truth import Truth, find_truth
from tqindex.kernels.cpu import simd_level

#: The method that ratios are to.
REFERENCE = "tqindex-mse"
#: Counts up when rows get another meaning.
_FORMAT = 1


@dataclass(frozen=True)
class Group:
    """Methods that are measured together, in turns where it is about time; its rows are written at once.

    Attributes
    ----------
    methods : tuple of Method
    bits : int or None
    parameters : dict
        What else tells it from other groups, such as n.
    """

    methods: tuple[Method, ...]
    bits: int | None
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What a progress line calls it."""
        names = self.methods[0].key if len(self.methods) == 1 else f"{len(self.methods)} methods"
        width = "" if self.bits is None else f", {self.bits} bits"
        return f"{names}{width}" + "".join(f", {name} {value:,}" for name, value in self.parameters.items())


@dataclass(frozen=True)
class Job:
    """A suite on a data set, as it runs."""

    config: Config
    threads: int
    source: Source | None
    loaded: DataSet | None
    device: str = "cpu"

    @property
    def data(self) -> DataSet:
        """The vectors."""
        if self.loaded is None:
            raise TypeError("this suite has no data set")
        return self.loaded

    @cached_property
    def truth(self) -> Truth:
        """The judge of results."""
        return find_truth(self.data)

    def setup(self, bits: int | None, seed: int = 0, threads: int | None = None) -> Setup:
        """Return what an index of the data is made for."""
        data = self.data
        form = data.source.dim, len(data.base), bits, data.metric, data.unit
        return Setup(*form, threads or self.threads, seed, self.device)


class Suite(ABC):
    """One kind of measurement."""

    name: str
    #: Whether everything runs on one core.
    pinned = True
    #: Whether rows are times, which hold for one machine.
    timed = True

    @abstractmethod
    def groups(self, config: Config, methods: list[Method], source: Source | None) -> list[Group]:
        """Return what is to be measured, in order."""

    @abstractmethod
    def measure(self, job: Job, group: Group) -> list[dict[str, Any]]:
        """Measure one group and return its rows."""

    def fingerprint(self, config: Config, group: Group, source: Source | None, device: str = "cpu") -> str:
        """Return what changes when a group has to be measured again."""
        peers = {method.peer for method in group.methods}
        known: dict[str, Any] = {
            "format": _FORMAT,
            "suite": self.name,
            "methods": [method.key for method in group.methods],
            "bits": group.bits,
            "parameters": group.parameters,
            "k": config.k,
            "seeds": [config.seeds_of(method.key) for method in group.methods],
            "vectors": config.vectors,
            "set": source.identity() if source else None,
            "versions": {peer: package_version(peer) for peer in sorted(peers)},
        }
        if "tqindex" in peers:
            known["sources"] = [sources_hash(), installed_version("numpy"), installed_version("numba")]
        if device != "cpu":
            known["device"] = [describe_device(device), gpu_sources_hash()]
        if self.timed:
            known["timing"] = [config.repeats, config.budget, cpu_name(), simd_level()]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


class PeerError(Exception):
    """Another package does not do what was asked of it."""

    def __init__(self, method: Method, reason: str) -> None:
        super().__init__(reason)
        self.method, self.reason = method, reason


@contextmanager
def blaming(method: Method) -> Iterator[None]:
    """Make errors of another package a PeerError, which ends the method's part and not the run."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if method.peer == "tqindex":
            raise
        raise PeerError(method, str(error).splitlines()[0]) from error


def by_width(methods: Iterable[Method], widths: Iterable[int]) -> list[Group]:
    """Return a group for each width of all methods that have it, and one of the methods without codes."""
    methods = list(methods)
    groups = [Group(tuple(method for method in methods if bits in method.widths), bits) for bits in (*widths, None)]
    return [group for group in groups if group.methods]


def row_of(method: Method, bits: int | None) -> dict[str, Any]:
    """Return what every row of a method begins with."""
    return {
        "peer": method.peer,
        "method": method.key,
        "label": method.label,
        "family": method.family,
        "bits": bits,
        "oblivious": method.family == "oblivious",
    }


@dataclass(frozen=True)
class Built:
    """How long an index took to train and to fill, in seconds, and its bytes as a row has them."""

    train: float
    add: float
    sizes: dict[str, float]


def build(peer: Peer, base: Float32Array) -> Built:
    """Train and fill an index.

    `bytes` is what each vector adds to it; `shared_bytes` is what it has without any, divided by their number.
    """
    rows = peer.prepare(base)
    train = timed(lambda: peer.train(rows))
    before = peer.stored_bytes()
    add = timed(lambda: peer.add(rows))
    own, shared = (peer.stored_bytes() - before) / len(rows), before / len(rows)
    return Built(train, add, {"bytes": round(own, 3), "shared_bytes": round(shared, 3)})
