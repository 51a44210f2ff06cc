"""The index: ids, metrics, the search plan."""

from tqindex.index.index import Index
from tqindex.index.search import SearchResult

__all__ = ["Index", "SearchResult"]
