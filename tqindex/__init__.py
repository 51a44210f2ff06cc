"""tqindex: a vector index that needs no training, and the codec under it.

    import tqindex as tq

    index = tq.Index(dim, bits=4, metric="cosine")
    index.add(vectors)
    scores, ids = index.search(queries, k=10)

Importing the package loads NumPy only; the rest is loaded when it is first used.
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

from tqindex import errors

if TYPE_CHECKING:
    from tqindex.codec import Codec, Codes
    from tqindex.index import Index, SearchResult
    from tqindex.storage import load, verify

__all__ = ["Codec", "Codes", "Index", "SearchResult", "errors", "load", "verify"]

_HOMES = {
    "Codec": "tqindex.codec",
    "Codes": "tqindex.codec",
    "Index": "tqindex.index",
    "SearchResult": "tqindex.index",
    "load": "tqindex.storage",
    "verify": "tqindex.storage",
}

logging.getLogger("tqindex").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("tqindex")
    if name not in _HOMES:
        raise AttributeError(f"module 'tqindex' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
