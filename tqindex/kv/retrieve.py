"""The keys of a cache as a set to search: the tokens that a query would attend to.

The codec is the index's, so the codes that attention reads are searched as they are. Scores are inner products, as
with `tqindex.Index` under metric "ip"; a page's mean, which an index has only one of, is added to the page's scores.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tqindex.checks import as_rows, check_integer
from tqindex.errors import ArgumentError
from tqindex.index import SearchResult
from tqindex.index.searching import MAX_K
from tqindex.kv.attention import score_blocks
from tqindex.kv.layer import TurboQuantLayer
from tqindex.kv.pages import PageBlock, SequenceView

if TYPE_CHECKING:
    from tqindex.kv.cache import TurboQuantCache


class LayerKeys:
    """The keys of one sequence in one layer and key-value head, as they are now; ids are columns of the sequence.

    Parameters
    ----------
    cache : TurboQuantCache
    layer : int
        One that is packed.
    head : int
        Of the key-value heads; query heads come in groups, one after the other, for each of them.
    row : int
        Of the batch.

    Raises
    ------
    ArgumentError
        There is no such layer, head or row, or the layer is not packed.
    """

    def __init__(self, cache: "TurboQuantCache", layer: int, head: int, row: int = 0) -> None:
        found = cache.layers[check_integer("layer", layer, 0, len(cache.layers) - 1)]
        if not isinstance(found, TurboQuantLayer):
            raise ArgumentError(f"layer must be one that is packed, got {layer}, a {type(found).__name__}")
        if not found.sequences:
            raise ArgumentError("cache must hold tokens, got an empty one")
        sequence = found.sequences[check_integer("row", row, 0, len(found.sequences) - 1)]
        heads = sequence.form.heads
        check_integer("head", head, 0, heads - 1)
        one, exact = slice(head, head + 1), slice(0, sequence.exact)
        self._form = replace(sequence.form, heads=1)
        self._view = SequenceView(
            min(sequence.padding, sequence.columns),
            self._form.sinks,
            tuple(_of_head(block, head) for block in sequence.blocks),
            sequence.keys[one, exact].to("cpu", torch.float32, copy=True),
            sequence.values[one, :0],
        )

    def __len__(self) -> int:
        return self._view.packed + self._view.keys.shape[1]

    @property
    def dim(self) -> int:
        """Channels of a key."""
        return self._form.keys.dim

    def search(self, queries: Any, k: int = 10) -> SearchResult:
        """Return the k keys with the largest inner products with each query, best first, ties by the smaller id.

        Parameters
        ----------
        queries : array-like of float16, float32 or float64, (nq, dim) or (dim,)
            As attention multiplies them with cached keys: after rotary embedding. Not scaled.
        k : int

        Returns
        -------
        SearchResult
            scores float32 and ids int64, (nq, k) or (k,); -inf and -1 where there are fewer keys.

        Raises
        ------
        VectorError, ArgumentError
            Queries of another width or that are not finite; k below 1.
        """
        rows = as_rows(queries, self.dim, "queries")
        kept = min(check_integer("k", k, 1, MAX_K), len(self))
        logits = self._score(torch.from_numpy(rows))
        # A stable sort leaves equal scores in the order of their ids.
        order = np.argsort(-logits, axis=1, kind="stable")[:, :kept]
        scores, ids = np.full((len(rows), k), -np.inf, np.float32), np.full((len(rows), k), -1, np.int64)
        scores[:, :kept] = np.take_along_axis(logits, order, axis=1)
        ids[:, :kept] = order + self._view.padding
        single = np.ndim(queries) == 1
        return SearchResult(scores[0], ids[0]) if single else SearchResult(scores, ids)

    def _score(self, queries: torch.Tensor) -> np.ndarray[Any, Any]:
        """Inner products with all keys, float32 (nq, keys)."""
        exact, packed = self._view.keys, self._view.packed
        first = min(self._view.sinks, exact.shape[1])
        logits = torch.empty((1, len(queries), len(self)))
        products = queries @ exact[0].T
        logits[0, :, :first], logits[0, :, first + packed :] = products[:, :first], products[:, first:]
        if packed:
            score_blocks(queries[None], self._view, self._form, logits, first)
        return logits[0].numpy()


def _of_head(block: PageBlock, head: int) -> PageBlock:
    keys = tuple(packed.of_head(head) for packed in block.keys)
    return PageBlock(block.tokens, keys, (), block.means[head : head + 1])
