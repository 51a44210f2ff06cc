"""Result files of the suites, read back."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from tqindex.errors import FileFormatError, MissingFileError

FORMAT = 1
#: Suites in the order of a report.
SUITES = ("recall", "indexing", "search", "scale", "threads", "distortion")
#: The rows that claims are made of: strictly data-oblivious, and with a centre; of scalar and of trellis codes.
OBLIVIOUS, CENTRED = "tqindex-mse", "tqindex-mse-centred"
TRELLIS, TRELLIS_CENTRED = "tqindex-trellis", "tqindex-trellis-centred"
MAIN = (OBLIVIOUS, CENTRED, TRELLIS, TRELLIS_CENTRED)
#: Product quantisation is trained for either metric; the better counts.
PQ = ("faiss-pq-ip", "faiss-pq-l2")
#: With longer codes, of as many bytes as ours with the numbers that stand beside them.
LONG_PQ = ("faiss-pq-long",)

Row = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """One file: a suite on a data set (None where vectors are made up, as for distortion)."""

    path: Path
    suite: str
    size: str
    dataset: dict[str, Any] | None
    environment: dict[str, Any]
    config: dict[str, Any]
    rows: list[Row]
    absent: list[dict[str, str]]
    not_measured: list[dict[str, str]]

    @property
    def name(self) -> str:
        """A short name of the data set, for sentences and plots."""
        return "" if self.dataset is None else str(self.dataset["title"])

    @property
    def title(self) -> str:
        """Name, size and metric of the data set, for captions."""
        if self.dataset is None:
            return "Random vectors"
        data = self.dataset
        return (
            f"{data['title']}: {data['n']:,} vectors of {data['dim']:,} dimensions, {data['queries']:,} queries, "
            f"{data['metric']}"
        )

    def row(self, method: str, bits: float | None) -> Row | None:
        """Return the method's row of that width, if it was measured."""
        return next((row for row in self.rows if row["method"] == method and row["bits"] == bits), None)

    def widths(self) -> list[float]:
        """Return the widths, in bits per coordinate, of our own rows."""
        return sorted({row["bits"] for row in self.rows if is_ours(row) and row["bits"] is not None})


def load_results(folder: Path) -> list[Result]:
    """Read every result file of a folder, by suite, then by size and name of the data set."""
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder of results")
    results = [_load(path) for path in sorted(folder.glob("*.json"))]
    if not results:
        raise MissingFileError(f"{folder}: no result files; `tqindex bench run` writes them")
    return sorted(results, key=_order)


def _load(path: Path) -> Result:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["format"]
        if found != FORMAT:
            raise FileFormatError(f"{path}: results of format {FORMAT} can be read, this has format {found!r}")
        fields = ("suite", "size", "dataset", "environment", "config", "rows", "absent", "not_measured")
        result = Result(path, *(content[field] for field in fields))
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{path}: not a result file ({type(error).__name__}: {error})") from None
    if result.suite not in SUITES:
        raise FileFormatError(f"{path}: suites are {', '.join(SUITES)}; this is of {result.suite!r}")
    return result


def _order(result: Result) -> tuple[int, int, str]:
    dim = 0 if result.dataset is None else int(result.dataset["dim"])
    return SUITES.index(result.suite), dim, result.path.name


def of_suite(results: Iterable[Result], suite: str) -> list[Result]:
    """Return the results of one suite."""
    return [result for result in results if result.suite == suite]


def digest(results: Iterable[Result]) -> str:
    """Return a hash of what was measured, by which a plot tells the results that it shows."""
    rows = [[result.suite, result.title, result.rows] for result in results]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def is_ours(row: Row) -> bool:
    """Tell whether the row is tqindex's."""
    return bool(row["peer"] == "tqindex")


def mean(values: list[float] | None) -> float | None:
    """Return the mean over seeds, None where nothing was measured."""
    return fmean(values) if values else None


def median(spread: dict[str, float] | None) -> float | None:
    """Return the median of repeated timings, None where nothing was measured."""
    return None if spread is None else spread["median"]


def total_bytes(row: Row) -> float | None:
    """Return bytes per vector with the vector's part of what all share."""
    own = row.get("bytes")
    return None if own is None else float(own + (row.get("shared_bytes") or 0))


def indexing_seconds(row: Row) -> float | None:
    """Return training and adding together; what needs no training has none."""
    add = median(row["add"])
    return None if add is None else add + (median(row["train"]) or 0.0)


def best_pq(result: Result, bits: float | None, k: str, methods: Sequence[str] = PQ) -> float | None:
    """Return the best recall 1@k of product quantisers of that width."""
    rows = [result.row(method, bits) for method in methods]
    found = [value for row in rows if row for value in [mean(row["recall_1_at"].get(k))] if value is not None]
    return max(found, default=None)
