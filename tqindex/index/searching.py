"""Searching the rows of an index: what is asked, checked, and what comes back."""

from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tqindex.checks import check_choice, check_integer, check_number
from tqindex.index.changing import Changing
from tqindex.index.engine import Engine
from tqindex.index.filters import allowed_segments
from tqindex.index.plan import ScanPlan
from tqindex.index.ranges import RangeResult, least_float32
from tqindex.index.rerank import Fetch, stored_originals
from tqindex.index.rerank import rerank as rerank_candidates
from tqindex.index.search import SearchResult
from tqindex.index.segments import RowSet, Segment
from tqindex.kernels.threads import check_threads

MAX_K = 2**20
OUTPUTS = ("numpy", "device")


class Searching(Changing):
    """The part of `Index` that searches; each search sees the rows, and the device, of when it began."""

    def __init__(self, rows: RowSet, engine: Engine, fetch: Fetch | None) -> None:
        super().__init__(rows, engine)
        #: Gives the vectors of ids, int64 (n,), to `search(rerank=)` where the index keeps none itself.
        self.fetch = fetch
        self._scored: float | None = None  # share of rows that the latest search scored in full

    @cached_property
    def _plan(self) -> ScanPlan:
        return ScanPlan(self._rows.codec, self._rows.metric)

    def search(
        self,
        queries: Any,
        k: int = 10,
        threads: int | None = None,
        exact_scan: bool = False,
        filter: npt.ArrayLike | Callable[[npt.NDArray[np.int64]], npt.ArrayLike] | None = None,  # noqa: A002
        rerank: int | None = None,
        output: Literal["numpy", "device"] = "numpy",
    ) -> SearchResult:
        """Find the k best vectors for each query by a scan over all codes.

        Up to 8 queries, on a GPU 2, are answered by reading the codes' leading bit planes first and scoring in full
        only the rows that these leave in question. Over the random rotation, the probability that any of a query's k
        best codes is lost that way is at most 1e-6. Codes of kind "trellis" are all scored in full, as those of effort
        "search".

        Parameters
        ----------
        queries : float16/32/64 of shape (nq, dim) or (dim,)
            On a GPU, arrays in its memory (CuPy, torch and others) are read where they are.
        k : int, 1 to 2**20
        threads : int, optional
            Default: every CPU that the process may use. The result does not depend on it, except by that 1e-6.
        exact_scan : bool
            Score every row in full.
        filter : array-like or callable, optional
            The ids that may be found: an array of them (those that are not in the index are ignored); or bools (n,),
            one per vector in the order of `ids`; or a callable that is given ids, int64, in blocks, and returns bools.
        rerank : int, optional
            Find so many candidates first, at least k, and give the k best of them by the exact scores of their
            original vectors (`originals`), which the CPU takes wherever the index is.
        output : {"numpy", "device"}
            "device": the results are arrays of the device that the index is on, on a GPU CuPy's, which torch and
            others take by DLPack without a copy.

        Returns
        -------
        SearchResult
            Best first; equal scores by the smaller id. Where k exceeds the number of vectors, ids are -1 at the end.

        Raises
        ------
        VectorError
            Wrong width or dtype, NaN or inf, a norm above 2**60, a zero query under "cosine".
        ArgumentError
            k, threads or rerank out of range, a filter of another form, `rerank` without originals.
        DeviceError
            The GPU failed, or is out of memory; the index stays as it is.
        """
        check_choice("output", output, OUTPUTS)
        k = check_integer("k", k, 1, MAX_K)
        wanted = k if rerank is None else check_integer("rerank", rerank, k, MAX_K)
        workers = check_threads(threads)
        engine, held = self._engine, self._rows
        queries = engine.as_array(queries, "queries")
        rows = engine.as_rows(queries, held.codec.dim, "queries")
        segments = self._allowed(held, filter)
        scores, ids, self._scored = engine.search(self._plan, segments, rows, wanted, workers, exact_scan)
        if rerank is not None:
            fetch = self.fetch or stored_originals(held, self._find_all)
            originals = engine.as_host(rows).astype(np.float32, copy=False)
            scores, ids = rerank_candidates(originals, engine.as_host(ids), k, held.metric, fetch)
        if held.metric == "l2":
            scores = engine.as_distances(scores)
        place = engine.as_output if output == "device" else engine.as_host
        scores, ids = place(scores), place(ids)
        return SearchResult(scores[0], ids[0]) if queries.ndim == 1 else SearchResult(scores, ids)

    def range_search(
        self,
        queries: Any,
        threshold: float,
        filter: npt.ArrayLike | Callable[[npt.NDArray[np.int64]], npt.ArrayLike] | None = None,  # noqa: A002
        threads: int | None = None,
    ) -> RangeResult:
        """Find all vectors whose scores are at least `threshold`; under "l2" whose distances are at most that.

        Parameters
        ----------
        queries : float16/32/64 of shape (nq, dim) or (dim,)
        threshold : float; inf and -inf are allowed
        filter, threads : as for `search`

        Returns
        -------
        RangeResult
            (lims, scores, ids) as faiss gives them; each query's best first, equal scores by the smaller id.

        Raises
        ------
        VectorError, ArgumentError, DeviceError
            As `search`; a threshold that is not a number.
        """
        workers, least = check_threads(threads), check_number("threshold", threshold)
        engine, held = self._engine, self._rows
        rows = engine.as_rows(queries, held.codec.dim, "queries")
        segments = self._allowed(held, filter)
        if held.metric == "l2":
            found = engine.search_range(self._plan, segments, rows, least_float32(-least / 2), workers)
            return found._replace(scores=found.scores * np.float32(-2.0))
        return engine.search_range(self._plan, segments, rows, least_float32(least), workers)

    def _allowed(self, rows: RowSet, given: Any) -> list[Segment]:
        """Return the segments with the rows that a filter allows."""
        return rows.all_segments() if given is None else allowed_segments(given, rows, lambda: self._map(rows))
