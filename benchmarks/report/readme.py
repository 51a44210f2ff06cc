"""The README's tables and plots: text between `<!-- bench: NAME -->` and `<!-- end -->`, made from results."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from tqindex.bench.report import losses, tables
from tqindex.bench.report.machine import summary
from tqindex.bench.report.plots import all_plots
from tqindex.bench.report.results import OBLIVIOUS, PQ, TRELLIS, Result, Row, of_suite
from tqindex.errors import FileFormatError

_BLOCK = re.compile(r"(<!-- bench: ([\w-]+) -->\n)(.*?)(<!-- end -->)", flags=re.DOTALL)
#: Beyond what is compared in recall: the quickest of faiss, and turbovec at equal loss.
_FAST = ("faiss-pqfs", "faiss-pqfs-ip", "faiss-hnsw", "faiss-ivfpq", "turbovec-wide")


class Filled(NamedTuple):
    """A README with its blocks filled, and the names of those for which there are no results."""

    text: str
    missing: tuple[str, ...]


def fill_blocks(readme: str, results: Sequence[Result], plots: str) -> Filled:
    """Fill every block; plots is the folder of the figures as the README links to it.

    A block whose suite was not measured stays as it is.
    """
    missing = []
    if readme.count("<!-- bench:") != len(_BLOCK.findall(readme)):
        raise FileFormatError("README: a block begins `<!-- bench: NAME -->` and ends `<!-- end -->`, each on its line")

    def fill(match: re.Match[str]) -> str:
        begin, name, old, end = match.groups()
        if name not in _CONTENTS:
            raise FileFormatError(f"README: blocks are {', '.join(_CONTENTS)}; there is one named {name!r}")
        suites, content = _CONTENTS[name]
        if not any(of_suite(results, suite) for suite in suites):
            missing.append(name)
            return begin + old + end
        return begin + "\n" + "\n\n".join(content(results, plots)) + "\n\n" + end

    return Filled(_BLOCK.sub(fill, readme), tuple(missing))


def _recall(results: Sequence[Result], plots: str) -> Iterable[str]:
    page = PurePosixPath(plots).parent / "README.md"
    yield f"Measured on {summary(results)} [All methods, widths and k]({page})."
    for result in of_suite(results, "recall"):
        rows = [row for bits in result.widths() if bits in tables.PAPER_WIDTHS for row in tables.compared(result, bits)]
        columns = (*tables.recall_columns(result)[:6], *map(tables.recall_at, ("1", "4", "16")))
        yield from _table(result, columns, rows)
    yield _figure(results, plots, "recall-at-k")


def _losses(results: Sequence[Result], _: str) -> Iterable[str]:
    recall = of_suite(results, "recall")
    ahead = [f"recall@10 at no more bytes, {point}" for point in losses.ahead_in_recall(recall)]
    yield _list(losses.lost_to_pq(recall) + losses.lost_to_long_pq(recall) + losses.without_pq(recall) + ahead)


def _indexing(results: Sequence[Result], plots: str) -> Iterable[str]:
    columns = (tables.METHOD, tables.BITS, tables.TRAIN, tables.ADD, tables.RATIO, tables.PASSES)
    for result in of_suite(results, "indexing"):
        yield from _table(result, columns, _main(result, tables.COMPARED))
    yield _figure(results, plots, "indexing")


def _search(results: Sequence[Result], plots: str) -> Iterable[str]:
    chosen = tuple(method for method in tables.COMPARED if method not in PQ) + _FAST
    for result in of_suite(results, "search"):
        yield from _table(result, tables.SEARCH, _main(result, chosen))
    yield _list(losses.ahead_in_speed(results, (OBLIVIOUS, TRELLIS)))
    yield _figure(results, plots, "single")


def _growth(results: Sequence[Result], plots: str) -> Iterable[str]:
    for result in [*of_suite(results, "scale"), *of_suite(results, "threads")]:
        table = tables.result_table(result)
        yield f"{table.caption}:"
        yield table.markdown()
    if of_suite(results, "scale"):
        yield _figure(results, plots, "scale")


def _main(result: Result, methods: Sequence[str]) -> list[Row]:
    """Return the rows of these methods at the paper's widths, or without a width, in the report's order."""
    return [
        row
        for row in tables.ordered(result)
        if row["method"] in methods and (row["bits"] in tables.PAPER_WIDTHS or row["bits"] is None)
    ]


def _table(result: Result, columns: Sequence[tables.Column], rows: Iterable[Row]) -> Iterable[str]:
    yield f"{tables.caption(result)}:"
    yield tables.table("", "", columns, rows).markdown()


def _figure(results: Sequence[Result], plots: str, name: str) -> str:
    plot = next(plot for plot in all_plots(results) if plot.name == name)
    return f"![{plot.caption}]({plots}/{name}.svg)"


def _list(points: Sequence[str]) -> str:
    return "\n".join(f"- {point}" for point in points)


#: Blocks: the suites that each needs (any of them), and what it says.
_CONTENTS: dict[str, tuple[tuple[str, ...], Callable[[Sequence[Result], str], Iterable[str]]]] = {
    "recall": (("recall",), _recall),
    "losses": (("recall",), _losses),
    "indexing": (("indexing",), _indexing),
    "search": (("search",), _search),
    "growth": (("scale", "threads"), _growth),
}
