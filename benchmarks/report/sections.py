"""What a report says, in order: the same for the Markdown page and for the HTML page."""

import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqindex.bench.report import losses
from tqindex.bench.report.machine import changed_trees, machine_table
from tqindex.bench.report.plots import Plot, all_plots
from tqindex.bench.report.results import Result, of_suite
from tqindex.bench.report.table import Line, Table
from tqindex.bench.report.tables import pq_margins, result_table


@dataclass(frozen=True)
class Statements:
    """A sentence that introduces a list of others."""

    lead: str
    points: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """A heading with what belongs under it."""

    title: str
    text: str = ""
    statements: tuple[Statements, ...] = ()
    plots: tuple[Plot, ...] = ()
    tables: tuple[Table, ...] = ()


def build_sections(results: Sequence[Result]) -> list[Section]:
    """Return the report's sections: what others do better first, the machine last."""
    plots = {plot.name: plot for plot in all_plots(results)}
    suites = tomllib.loads(Path(__file__).with_name("sections.toml").read_text(encoding="utf-8"))
    measured = [_suite_section(suite, says, of_suite(results, suite), plots) for suite, says in suites.items()]
    return [
        Section("Where others are ahead", statements=tuple(loss_statements(results))),
        *(section for section in measured if section.tables),
        Section("Not measured", tables=tuple(_gaps(results))),
        Section("Machine and versions", text=changed_trees(results), tables=(machine_table(results),)),
    ]


def _suite_section(suite: str, says: dict[str, Any], results: Sequence[Result], plots: dict[str, Plot]) -> Section:
    tables = [result_table(result) for result in results]
    if suite == "recall":
        tables += [margins for result in results if (margins := pq_margins(result)).lines]
    drawn = tuple(plots[name] for name in says["plots"] if name in plots)
    return Section(says["title"], says["text"], tuple(_findings(suite, results)), drawn, tuple(tables))


def _findings(suite: str, results: Sequence[Result]) -> list[Statements]:
    """Return what a suite's section says in words."""
    says: dict[str, tuple[str, Callable[[Iterable[Result]], list[str]]]] = {
        "indexing": (
            "Training and adding, beside product quantisation (the faster of the two):",
            losses.indexing_ratios,
        ),
        "distortion": ("Measured against theory:", losses.outside_distortion),
    }
    if suite not in says:
        return []
    lead, state = says[suite]
    points = tuple(state(results))
    return [Statements(lead, points)] if points else []


def loss_statements(results: Sequence[Result]) -> list[Statements]:
    """Return, in words, what peers do better than our main rows."""
    recall = of_suite(results, "recall")
    found = [
        (
            "Product quantisation at the same bits, the better of its inner-product and Euclidean forms at each k:",
            losses.lost_to_pq(recall) + losses.without_pq(recall),
        ),
        (
            "Product quantisation whose longer codes take as many bytes as ours with their scales and offsets:",
            losses.lost_to_long_pq(recall),
        ),
        (
            "Peers with a higher recall@10 at no more bytes, not counting what all vectors share:",
            losses.ahead_in_recall(recall) or ["None of those measured."] * bool(recall),
        ),
        (
            "Peers that index or search faster, at the same bits or without a width in bits, and how many times:",
            losses.ahead_in_speed(results) or ["None of those measured."],
        ),
    ]
    return [Statements(lead, tuple(points)) for lead, points in found if points]


def _gaps(results: Sequence[Result]) -> list[Table]:
    """Return the peers that were absent and the data sets not at hand, with the commands that would change that."""
    peers = _distinct((entry["peer"], entry["reason"], entry["command"] or "-") for r in results for entry in r.absent)
    sets = _distinct((entry["dataset"], entry["command"]) for r in results for entry in r.not_measured)
    tables = (
        Table("absent", "Peers that were absent", ("peer", "reason", "command"), peers, words=3),
        Table("not-measured", "Data sets not measured", ("data set", "command"), sets, words=2),
    )
    return [table for table in tables if table.lines]


def _distinct(cells: Iterable[tuple[str, ...]]) -> tuple[Line, ...]:
    return tuple(Line(line) for line in sorted(set(cells)))
