"""The methods that benchmarks compare, by package. A package is imported when the first index of it is made."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from tqindex.bench.peers import faiss_peers, ours, rabitqlib_peers, turbovec_peers
from tqindex.bench.peers.base import Method, Peer, Setup
from tqindex.errors import ArgumentError

__all__ = ["METHODS", "PACKAGES", "Method", "Package", "Peer", "Setup", "find_methods", "package_version"]


@dataclass(frozen=True)
class Package:
    """A peer's distribution and how to install it."""

    name: str
    distribution: str
    command: str


PACKAGES = {
    package.name: package
    for package in (
        Package("tqindex", "tqindex", "pip install tqindex"),
        Package("faiss", "faiss-cpu", "pip install faiss-cpu"),
        Package("turbovec", "turbovec", "pip install turbovec"),
        Package("rabitqlib", "rabitqlib", "pip install rabitqlib"),
    )
}
METHODS = {
    method.key: method for module in (ours, faiss_peers, turbovec_peers, rabitqlib_peers) for method in module.METHODS
}


def package_version(name: str) -> str | None:
    """Return the version of a peer that is installed; None where it is absent."""
    try:
        return version(PACKAGES[name].distribution)
    except PackageNotFoundError:
        return None


def find_methods(keys: tuple[str, ...]) -> list[Method]:
    """Look methods up.

    Raises
    ------
    ArgumentError
        A key is unknown.
    """
    unknown = [key for key in keys if key not in METHODS]
    if unknown:
        raise ArgumentError(f"methods must be among {', '.join(METHODS)}; got {unknown[0]!r}")
    return [METHODS[key] for key in keys]
