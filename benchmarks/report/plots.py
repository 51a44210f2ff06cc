"""Plots of results: what is drawn, from which rows. Every figure is made again from results alone."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from tqindex.bench.report import numbers
from tqindex.bench.report.results import (
    OBLIVIOUS,
    Result,
    Row,
    digest,
    indexing_seconds,
    is_ours,
    mean,
    median,
    of_suite,
    total_bytes,
)
from tqindex.bench.report.style import FAINT, WIDTH, Look, Mark, house_style, label_lines, look, settle, short_label
from tqindex.bench.report.tables import COMPARED, PAPER_WIDTHS, compared, measured_ks

_PIXELS_PER_INCH = 200
#: Inches at the sides, more than text is wider in one kind of file than in the other.
#: Letters of a data set's name that leave room for the width beside it.
_LONGEST_TITLE = 22
_PAD = 0.08
#: Opacity of peers' bars, which cover more than their lines do.
_MUTED = 0.55


@dataclass(frozen=True)
class Plot:
    """A figure: its file's name, what it shows in words, the results it is made of, and how."""

    name: str
    caption: str
    results: tuple[Result, ...]
    draw: Callable[[Sequence[Result]], Figure]

    def save(self, folder: Path) -> list[Path]:
        """Write SVG and PNG, equal for equal results, that name the results they show."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{self.name}.svg", folder / f"{self.name}.png"]
        with house_style():
            figure = self.draw(self.results)
            settle(figure)
            shown = f"results {digest(self.results)}"
            figure.savefig(paths[0], metadata={"Date": None, "Creator": None, "Description": shown})
            figure.savefig(paths[1], metadata={"Software": None, "Description": shown})
        return paths


def all_plots(results: Iterable[Result]) -> list[Plot]:
    """Return the plots that the results give."""
    results = list(results)
    plots = []
    for name, suite, caption, draw in _PLOTS:
        chosen = tuple(of_suite(results, suite))
        if chosen:
            plots.append(Plot(name, caption, chosen, draw))
    return plots


def _panels(rows: int, columns: int, height: float) -> tuple[Figure, list[list[Axes]]]:
    figure = Figure(figsize=(WIDTH, height * rows), dpi=_PIXELS_PER_INCH)
    figure.set_layout_engine("constrained", hspace=0.06, wspace=0.05, w_pad=_PAD)
    return figure, figure.subplots(rows, columns, squeeze=False).tolist()


def _panel_title(result: Result, bits: float | None) -> str:
    """Name the data set and the width, in two lines where one would be cut."""
    apart = ", " if len(result.name) <= _LONGEST_TITLE else "\n"
    return f"{result.name}{apart}{numbers.width(bits)} bits"


def _drawn_widths(results: Sequence[Result]) -> list[float]:
    """Return the paper's widths, or all where neither was measured."""
    measured = {bits for result in results for bits in result.widths()}
    return sorted(measured & PAPER_WIDTHS or measured)


def draw_recall_at_k(results: Sequence[Result]) -> Figure:
    """Recall 1@k against k, as in the figure of the TurboQuant paper: a row per data set, a column per width."""
    widths = _drawn_widths(results)
    figure, panels = _panels(len(results), len(widths), 2.9)
    marks = {
        axes: _recall_panel(axes, result, bits)
        for result, row in zip(results, panels, strict=True)
        for bits, axes in zip(widths, row, strict=True)
    }
    label_lines(figure, marks, right=False)
    return figure


def _recall_panel(axes: Axes, result: Result, bits: float) -> list[Mark]:
    """Draw the curves; labels stand at the left, where these are furthest apart, and the scale at the right."""
    ks = measured_ks(result)
    marks = []
    axes.set_xscale("log", base=2)
    for row in compared(result, bits):
        values = [mean(row["recall_1_at"][k]) or 0.0 for k in ks]
        _line(axes, [(int(k), value) for k, value in zip(ks, values, strict=True)], look(row))
        marks.append(Mark(short_label(row), int(ks[0]), values[0], look(row)))
    axes.set_xticks([int(k) for k in ks], ks)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.tick_right()
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    _recall_scale(axes)
    axes.yaxis.set_label_position("right")
    axes.set_title(_panel_title(result, bits))
    axes.set_xlabel("k")
    axes.set_ylabel("recall 1@k")
    return marks


def _recall_scale(axes: Axes) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.grid(axis="y")


def _line(axes: Axes, points: Sequence[tuple[float, float]], style: Look) -> None:
    axes.plot(
        *zip(*points, strict=True),
        color=style.color,
        linestyle=style.dashes,
        linewidth=style.width,
        marker="o",
        markersize=2.2 * style.width,
        markeredgewidth=0,
        zorder=style.layer,
    )


def draw_recall_bytes(results: Sequence[Result]) -> Figure:
    """Recall@10 against bytes per vector, shared ones included: a panel per data set."""
    figure, panels = _panels(len(results), 1, 3.2)
    marks = {axes: _bytes_panel(axes, result) for result, (axes,) in zip(results, panels, strict=True)}
    label_lines(figure, marks, right=True)
    return figure


def _bytes_panel(axes: Axes, result: Result) -> list[Mark]:
    lines: dict[str, list[Row]] = {}
    for bits in result.widths():
        for row in compared(result, bits):
            lines.setdefault(short_label(row), []).append(row)
    marks = []
    axes.set_xscale("log")
    for text, rows in lines.items():
        points = sorted((size, mean(row["recall_10"]) or 0.0) for row in rows if (size := total_bytes(row)) is not None)
        if points:
            _line(axes, points, look(rows[0]))
            marks.append(Mark(text, *points[-1], look(rows[0])))
    sizes = sorted({round(row["bytes"]) for row in result.rows if row["method"] == OBLIVIOUS})
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    _recall_scale(axes)
    axes.set_title(f"{result.name}: recall@10")
    axes.set_xlabel("bytes per vector, with its part of what all share")
    return marks


def draw_indexing(results: Sequence[Result]) -> Figure:
    """Seconds to train and add."""
    return _bars(results, "seconds to train and add", indexing_seconds)


def draw_batch(results: Sequence[Result]) -> Figure:
    """Milliseconds per query of a batch."""
    return _bars(results, "ms per query, in a batch", _batch_milliseconds)


def draw_single(results: Sequence[Result]) -> Figure:
    """Milliseconds for a single query."""
    return _bars(results, "ms for a single query", lambda row: median(row["single"]))


def _batch_milliseconds(row: Row) -> float | None:
    rate = median(row["batch"])
    return 1e3 / rate if rate else None


def _bars(results: Sequence[Result], what: str, time: Callable[[Row], float | None]) -> Figure:
    """Draw a panel per data set and width: bars on a log axis, the shortest at the top."""
    widths = _drawn_widths(results)
    timed = [[_timed(result, bits, time) for bits in widths] for result in results]
    most = max(len(bars) for row in timed for bars in row)
    figure, panels = _panels(len(results), len(widths), 0.75 + 0.19 * most)
    for result, row, row_panels in zip(results, timed, panels, strict=True):
        times = [seconds for bars in row for _, seconds in bars]
        for bits, bars, axes in zip(widths, row, row_panels, strict=True):
            _bar_panel(axes, bars, (min(times) / 3, max(times) * 5))
            axes.set_title(_panel_title(result, bits))
            axes.set_xlabel(what)
    return figure


def _timed(result: Result, bits: float, time: Callable[[Row], float | None]) -> list[tuple[Row, float]]:
    """Return peers of a width, or of none, and our compared rows, with their times, shortest first."""
    chosen = [row for row in result.rows if row["method"] in COMPARED or not is_ours(row)]
    rows = [row for row in chosen if row["bits"] in (bits, None)]
    return sorted(((row, t) for row in rows if (t := time(row)) is not None), key=lambda pair: pair[1])


def _bar_panel(axes: Axes, timed: Sequence[tuple[Row, float]], limits: tuple[float, float]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(limits)
    for i, (row, seconds) in enumerate(timed):
        style = look(row)
        fill = (style.color, 1.0 if is_ours(row) else _MUTED)
        axes.barh(i, seconds - limits[0], left=limits[0], height=0.68, color=fill, linewidth=0)
        text = numbers.significant(seconds, 2)
        axes.annotate(text, (seconds, i), (3, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(timed)), [short_label(row) for row, _ in timed])
    for label, (row, _) in zip(axes.get_yticklabels(), timed, strict=True):
        label.set_fontweight("bold" if is_ours(row) else "normal")
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def draw_scale(results: Sequence[Result]) -> Figure:
    """Times against the number of vectors, of the widest codes measured; labels stand at the last panel."""
    figure, panels = _panels(len(results), len(_SCALED), 2.7)
    marks = {}
    for result, row in zip(results, panels, strict=True):
        for (what, time), axes in zip(_SCALED, row, strict=True):
            marks[row[-1]] = _scale_panel(axes, result, time)
            axes.set_title(what)
            axes.set_xlabel(f"vectors of {result.name}")
    label_lines(figure, marks, right=True)
    return figure


_SCALED: tuple[tuple[str, Callable[[Row], float | None]], ...] = (
    ("ms per query of a batch", _batch_milliseconds),
    ("ms for a single query", lambda row: median(row["single"])),
    ("seconds to add", lambda row: median(row["add"])),
)


def _scale_panel(axes: Axes, result: Result, time: Callable[[Row], float | None]) -> list[Mark]:
    marks = []
    axes.set_xscale("log")
    axes.set_yscale("log")
    widest = max(result.widths())
    for method in sorted({str(row["method"]) for row in result.rows}):
        rows = [row for row in result.rows if row["method"] == method and row["bits"] in (widest, None)]
        points = sorted((row["n"], t) for row in rows if (t := time(row)) is not None)
        if points:
            _line(axes, points, look(rows[0]))
            marks.append(Mark(_at_width(rows[0]), *points[-1], look(rows[0])))
    sizes = sorted({row["n"] for row in result.rows})
    axes.set_xticks(sizes, [EngFormatter(sep="")(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    _time_scale(axes)
    return marks


def _at_width(row: Row) -> str:
    return short_label(row) if row["bits"] is None else f"{short_label(row)}, {numbers.width(row['bits'])} bits"


def _time_scale(axes: Axes) -> None:
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.grid(axis="y")


def draw_distortion(results: Sequence[Result]) -> Figure:
    """Measured distortion and variance beside what theory gives and Shannon's bound."""
    figure, ((left, right),) = _panels(1, 2, 3.2)
    rows = [row for result in results for row in result.rows]
    marks = {
        left: _bound_panel(left, rows, "mse", "mse_bound"),
        right: _bound_panel(right, rows, "product_variance", "product_bound"),
    }
    left.set_title("squared error of unit vectors")
    right.set_title("variance of inner products, times d")
    label_lines(figure, marks, right=True)
    return figure


def _bound_panel(axes: Axes, rows: Sequence[Row], measured: str, bound: str) -> list[Mark]:
    """Draw measurements as dots on the line that theory gives, and Shannon's bound below."""
    axes.set_yscale("log")
    rows = [row for row in rows if row[measured] is not None and row[bound] is not None]
    shannon = sorted({(row["bits"], row["shannon"]) for row in rows})
    marks = [Mark("Shannon, $4^{-b}$", *shannon[-1], _SHANNON)] if shannon else []
    axes.plot(*zip(*shannon, strict=True), color=_SHANNON.color, linestyle=_SHANNON.dashes, linewidth=_SHANNON.width)
    for method in sorted({str(row["method"]) for row in rows}):
        chosen = sorted((row for row in rows if row["method"] == method), key=lambda row: row["bits"])
        bits, style = [row["bits"] for row in chosen], look(chosen[0])
        axes.plot(bits, [row[bound] for row in chosen], color=style.color, linewidth=1.0, zorder=2)
        axes.plot(bits, [row[measured] for row in chosen], "o", color=style.color, markersize=5, zorder=3)
        marks.append(Mark(short_label(chosen[0]), bits[-1], chosen[-1][measured], style))
    axes.set_xticks([bits for bits, _ in shannon])
    _time_scale(axes)
    axes.set_xlabel("bits per coordinate")
    return marks


_SHANNON = Look(FAINT, "dotted", 1.4, 1.0)
_PLOTS: tuple[tuple[str, str, str, Callable[[Sequence[Result]], Figure]], ...] = (
    ("recall-at-k", "recall", "Recall 1@k: how often the nearest vector is among the first k found.", draw_recall_at_k),
    ("recall-bytes", "recall", "Recall@10 against bytes per vector.", draw_recall_bytes),
    ("indexing", "indexing", "Time to train and add, log scale: shorter is better.", draw_indexing),
    ("batch", "search", "Time per query of a batch, log scale: shorter is better.", draw_batch),
    ("single", "search", "Time of a single query, log scale: shorter is better.", draw_single),
    ("scale", "scale", "Time against the number of vectors, both on log scales.", draw_scale),
    (
        "distortion",
        "distortion",
        "Measured distortion (dots) on the lines that theory gives, and the bound below which no code can be.",
        draw_distortion,
    ),
)
