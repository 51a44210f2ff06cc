"""The index: ids, metrics, the search plan."""

from tqindex.index.index import Index, SearchResult

__all__ = ["Index", "SearchResult"]
