"""How plots look: colour tells the package, line style the family, and labels stand at the lines."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import offset_copy

from tqindex.bench.report.results import CENTRED, MAIN, OBLIVIOUS, Row, is_ours

#: The width of a README's column on GitHub, in inches at 100 dots each.
WIDTH = 8.3
#: White behind everything, so that a plot also reads where the page is dark.
PAPER = "#ffffff"
INK, FAINT, GRID = "#222222", "#767676", "#e4e4e4"
_OURS, _OUR_TRELLIS, _OUR_VARIANTS = "#0b5cad", "#0a2a5c", "#4f86c0"
#: Muted, apart from each other and from ours for colour-blind readers too.
_PEERS = {"faiss": "#b0713a", "turbovec": "#5d8a80"}
_OTHER = "#8c8c8c"
_TOP = 3.0
_DASHES: dict[str, str | tuple[int, tuple[float, ...]]] = {
    "oblivious": "solid",
    "centred": (0, (5, 1.6)),
    "trained": (0, (1.2, 1.3)),
    "other": (0, (5, 1.5, 1.2, 1.5)),
    "exact": (0, (8, 2)),
}
#: Of labels at lines, in points: size, distance from one to the next, and from the axes.
_LABEL_SIZE, _LABEL_POINTS, _GAP = 8.2, 10.5, 8.0
#: Labels that would take too much of a plot's width, or say nothing without their brackets.
_SHORT = {
    "tqindex-prod": "tqindex prod",
    "tqindex-prod-gaussian": "tqindex prod, Gaussian",
    "faiss-pq-ip": "faiss PQ",
    "faiss-pq-l2": "faiss PQ, L2",
    "faiss-pq-long": "faiss PQ, our bytes",
}
_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "tqindex",  # ids of equal plots are equal
    "svg.fonttype": "path",  # a viewer without the font still shows what was laid out
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.facecolor": PAPER,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in our style, whatever the reader's matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        yield


class Look(NamedTuple):
    """Colour, dashes, line width and layer of a method."""

    color: str
    dashes: str | tuple[int, tuple[float, ...]]
    width: float
    layer: float


def look(row: Row) -> Look:
    """Return how a row's method is drawn: our main rows strong and on top."""
    dashes = _DASHES.get(row["family"], "solid")
    if row["method"] in MAIN:
        return Look(_OURS if row["method"] in (OBLIVIOUS, CENTRED) else _OUR_TRELLIS, dashes, 2.0, _TOP)
    if is_ours(row):
        return Look(_OUR_VARIANTS, dashes, 1.6, 2.5)
    return Look(_PEERS.get(row["peer"], _OTHER), dashes, 1.4, 2.0)


def short_label(row: Row) -> str:
    """Return the row's label without settings in brackets, which the tables have."""
    return _SHORT.get(row["method"]) or re.sub(r" \(.*\)", "", row["label"])


class Mark(NamedTuple):
    """A label of a line: its text, the point that it belongs to, and how that is drawn."""

    text: str
    x: float
    y: float
    look: Look


def label_lines(figure: Figure, marks: Mapping[Axes, Sequence[Mark]], *, right: bool) -> None:
    """Write each axes' labels in a column beside it, in the order of their points, with leaders to them.

    Call it when limits and heights are final. The layout then makes room for the labels at the side.
    """
    figure.draw_without_rendering()
    for axes, chosen in marks.items():
        _label(figure, axes, sorted(chosen, key=lambda mark: mark.y), _LABEL_POINTS * figure.dpi / 72, right)


def settle(figure: Figure) -> None:
    """Lay a figure out and keep that: labels that overhang need a second pass, drawing to files none."""
    for _ in range(2):
        figure.draw_without_rendering()
    figure.set_layout_engine("none")


def _label(figure: Figure, axes: Axes, marks: Sequence[Mark], step: float, right: bool) -> None:
    wanted = [float(axes.transData.transform((mark.x, mark.y))[1]) for mark in marks]
    box = axes.get_window_extent()
    # Points, not a part of the axes' width, which the layout is about to change.
    beside = offset_copy(axes.transAxes, figure, x=_GAP if right else -_GAP, units="points")
    for mark, pixel in zip(marks, spread_out(wanted, step, box.y0, box.y1), strict=True):
        axes.annotate(
            mark.text,
            (mark.x, mark.y),
            (1.0 if right else 0.0, (pixel - box.y0) / box.height),
            textcoords=beside,
            ha="left" if right else "right",
            va="center",
            fontsize=_LABEL_SIZE,
            color=mark.look.color,
            fontweight="bold" if mark.look.layer == _TOP else "normal",
            zorder=4,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": mark.look.color,
                "linewidth": 0.6,
                "relpos": (0 if right else 1, 0.5),
                "shrinkA": 1,
                "shrinkB": 3,
            },
        )


def spread_out(wanted: Sequence[float], step: float, low: float, high: float) -> list[float]:
    """Return positions near the wanted, ascending ones, at least step apart, and within low and high if they fit.

    Each position is pushed up by the one below it; what then passes the upper end pushes the others back down.
    """
    placed: list[float] = []
    for position in wanted:
        placed.append(max([position, low, *[placed[-1] + step for _ in placed[-1:]]]))
    ceiling = high
    for i in range(len(placed) - 1, -1, -1):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - step
    return placed
