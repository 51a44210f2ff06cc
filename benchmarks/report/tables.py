"""One table for each result of a suite, ordered so that rows of equal bytes stand together."""

import math
import re
from collections.abc import Callable, Iterable
from statistics import fmean
from typing import Any

from tqindex.bench.report import numbers
from tqindex.bench.report.results import LONG_PQ, PQ, Result, Row, best_pq, indexing_seconds, is_ours, mean, total_bytes
from tqindex.bench.report.table import Line, Table

#: The widths of the paper's comparison, which plots and the README show.
PAPER_WIDTHS = {2.0, 4.0}
#: What they show of each width: ours, and one of each kind of peer. The tables have all.
COMPARED = (
    *("tqindex-mse", "tqindex-mse-centred", "tqindex-trellis", "tqindex-trellis-centred", "tqindex-prod"),
    *PQ,
    *LONG_PQ,
    *("faiss-sqtqmse", "faiss-rabitq", "turbovec"),
)

#: A header and how a row's cell is printed.
Column = tuple[str, Callable[[Row], str]]


def _column(header: str, field: str, printed: Callable[[Any], str]) -> Column:
    return header, lambda row: printed(row[field])


METHOD: Column = ("method", lambda row: str(row["label"]))
FAMILY = _column("family", "family", str)
BITS = _column("bits", "bits", numbers.width)
BYTES = _column("bytes/vector", "bytes", numbers.size)
WITH_SHARED: Column = ("with shared", lambda row: numbers.size(total_bytes(row)))
RECALL_10 = _column("recall@10", "recall_10", numbers.recall)
BATCH = _column("batch, queries/s", "batch", numbers.timing)
SINGLE = _column("single, ms", "single", numbers.timing)
TRAIN = _column("train, s", "train", numbers.timing)
ADD = _column("add, s", "add", numbers.timing)
PASSES: Column = ("passes", lambda row: numbers.ratio(_passes(row)))


def recall_at(k: str) -> Column:
    """Return the column of recall 1@k."""
    return f"1@{k}", lambda row: numbers.recall(row["recall_1_at"].get(k))


RATIO = _column("x tqindex", "ratio", numbers.ratio)
INDEXING = (
    *(METHOD, BITS, BYTES, WITH_SHARED, TRAIN, ADD),
    RATIO,
    _column("one pass over the input, s", "read_once", numbers.significant),
    PASSES,
)
SEARCH = (
    *(METHOD, BITS, BYTES),
    BATCH,
    _column("x tqindex", "batch_ratio", numbers.ratio),
    SINGLE,
    _column("x tqindex", "single_ratio", numbers.ratio),
    RECALL_10,
    _column("lost", "lost", numbers.share),
)
SCALE = (
    *(METHOD, BITS),
    ("vectors", lambda row: f"{row['n']:,}"),
    *(BATCH, SINGLE, ADD),
    _column("codes, MB", "code_bytes", numbers.megabytes),
    _column("resident, MB", "resident_bytes", numbers.megabytes),
)
THREADS = (
    *(METHOD, BITS),
    _column("threads", "threads", str),
    BATCH,
    _column("batch, x one thread", "batch_speedup", numbers.ratio),
    ADD,
    _column("add, x one thread", "add_speedup", numbers.ratio),
)
DISTORTION = (
    *(METHOD, BITS),
    _column("dimensions", "dim", str),
    _column("measured D", "mse", numbers.significant),
    _column("codebook's D", "mse_bound", numbers.significant),
    ("measured / codebook's", lambda row: numbers.quotient(row["mse"], row["mse_bound"])),
    _column("product variance x d", "product_variance", numbers.significant),
    _column("its bound", "product_bound", numbers.significant),
    ("variance / bound", lambda row: numbers.quotient(row["product_variance"], row["product_bound"])),
    _column("Shannon, 4^-b", "shannon", numbers.significant),
)


def table(name: str, caption: str, columns: Iterable[Column], rows: Iterable[Row]) -> Table:
    """Return the rows, in their order, as a table of these columns."""
    columns = tuple(columns)
    lines = (Line(tuple(cell(row) for _, cell in columns), is_ours(row)) for row in rows)
    return Table(name, caption, tuple(header for header, _ in columns), tuple(lines))


_COLUMNS = {
    "indexing": INDEXING,
    "search": SEARCH,
    "scale": SCALE,
    "threads": THREADS,
    "distortion": DISTORTION,
}


def result_table(result: Result) -> Table:
    """Return all of a result: recall@10, 1@k and sizes, or whatever the suite measures."""
    columns = recall_columns(result) if result.suite == "recall" else _COLUMNS[result.suite]
    return table(slug(result), caption(result), columns, ordered(result))


def caption(result: Result) -> str:
    """Return the data set and, where times are measured, on how many cores."""
    cores = result.environment["cores"]
    timed = result.suite in ("indexing", "search", "scale")
    return result.title + (f"; {cores} core{'s' if cores > 1 else ''}" if timed else "")


def ordered(result: Result) -> list[Row]:
    """Order rows: by total bytes, or, where sizes are equal or none, by what the suite varies."""
    if result.suite == "scale":
        return sorted(result.rows, key=lambda row: (row["n"], *_by_bytes(row)))
    if result.suite == "threads":
        return sorted(result.rows, key=lambda row: (*_by_bytes(row), row["threads"]))
    if result.suite == "distortion":
        return sorted(result.rows, key=lambda row: (row["dim"], str(row["method"]), row["bits"]))
    return sorted(result.rows, key=_by_bytes)


def _by_bytes(row: Row) -> tuple[float, float, bool, str]:
    """Rows without a size come last, wider ones later, ours first among equals."""
    size = total_bytes(row)
    return math.inf if size is None else size, row["bits"] or math.inf, not is_ours(row), str(row["label"])


def compared(result: Result, bits: float) -> list[Row]:
    """Return the compared rows of a recall result and width, by bytes, the two product quantisers as one."""
    rows = [row for method in COMPARED if (row := result.row(method, bits))]
    quantisers = [row for row in rows if row["method"] in PQ]
    others = [row for row in rows if row not in quantisers]
    return sorted([*others, *([_better(quantisers)] if quantisers else [])], key=_by_bytes)


def _better(rows: list[Row]) -> Row:
    """Return a row that has, of every measure of recall, the best of these rows; a single one as it is."""
    if len(rows) == 1:
        return rows[0]
    ks = rows[0]["recall_1_at"]
    ones = {k: max((row["recall_1_at"][k] for row in rows), key=fmean) for k in ks}
    tens = max((row["recall_10"] for row in rows), key=fmean)
    return rows[0] | {"label": "faiss PQ, the better at each k", "recall_1_at": ones, "recall_10": tens}


def recall_columns(result: Result) -> tuple[Column, ...]:
    """Return sizes, recall@10, and 1@k for every k measured."""
    return METHOD, FAMILY, BITS, BYTES, WITH_SHARED, RECALL_10, *map(recall_at, measured_ks(result))


def measured_ks(result: Result) -> list[str]:
    """Return the ks of 1@k that any row has, ascending."""
    return sorted({k for row in result.rows for k in row["recall_1_at"]}, key=int)


def pq_margins(result: Result) -> Table:
    """For every row of ours, how far its 1@k lies above or below that of the better PQ of the same width."""
    caption = f"{result.name}: 1@k less that of the better PQ; negative where PQ is ahead"
    columns = (METHOD, BITS, *(_margin(result, k) for k in measured_ks(result)))
    rows = [row for row in ordered(result) if is_ours(row) and best_pq(result, row["bits"], "1") is not None]
    return table(f"{slug(result)}-pq", caption, columns, rows)


def _margin(result: Result, k: str) -> Column:
    def cell(row: Row) -> str:
        ours, pq = mean(row["recall_1_at"].get(k)), best_pq(result, row["bits"], k)
        return numbers.MISSING if ours is None or pq is None else f"{ours - pq:+.3f}"

    return f"k = {k}", cell


def _passes(row: Row) -> float | None:
    seconds = indexing_seconds(row)
    return None if seconds is None or not row["read_once"] else seconds / row["read_once"]


def slug(result: Result) -> str:
    """Return a name for files and anchors."""
    data = "" if result.dataset is None else f"-{result.dataset['name']}"
    return re.sub(r"[^a-z0-9-]+", "-", f"{result.suite}{data}".lower())
