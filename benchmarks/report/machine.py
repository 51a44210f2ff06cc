"""What the results were measured on."""

from collections.abc import Sequence
from typing import Any

from tqindex.bench.report import numbers
from tqindex.bench.report.results import Result
from tqindex.bench.report.table import Line, Table


def machine_table(results: Sequence[Result]) -> Table:
    """Return machine, versions and commit; where files differ, every value that occurs."""
    fields = ("date", "commit", "machine", "cpu", "features", "cores", "simd", "python")
    packages = sorted({name for result in results for name in result.environment["versions"]})
    lines = [Line((name, _values(results, name))) for name in fields]
    lines += [
        Line((name, _distinct([result.environment["versions"].get(name) for result in results]))) for name in packages
    ]
    return Table("machine", "All files of the report", ("", "measured with"), tuple(lines), words=2)


def _values(results: Sequence[Result], name: str, between: str = "; ") -> str:
    return _distinct([result.environment.get(name) for result in results], between)


def _distinct(values: Sequence[Any], between: str = "; ") -> str:
    texts = [", ".join(value) if isinstance(value, list) else str(value) for value in values if value is not None]
    return between.join(sorted(set(texts))) or numbers.MISSING


def summary(results: Sequence[Result]) -> str:
    """Return one line on machine, cores, kernels, date and commit."""
    cpu, cores, simd = (_values(results, name, " or ") for name in ("cpu", "cores", "simd"))
    date, commit = (_values(results, name, " and ") for name in ("date", "commit"))
    return f"{cpu}, {cores} cores, {simd} kernels; {date}, commit {commit}."


def changed_trees(results: Sequence[Result]) -> str:
    """Return a warning where results come from a working tree with changes that no commit holds."""
    files = [result.path.name for result in results if result.environment["dirty"]]
    return f"Measured with changes that the commit does not hold: {numbers.joined(files)}." if files else ""
