"""The picture of TRELLIS.md: `python -m tqindex.bench.trellis_picture` draws benchmarks/trellis.svg anew."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from tqindex.bench.report.style import FAINT, GRID, INK, WIDTH, house_style
from tqindex.bench.trellis import search
from tqindex.codec.codebook import make_codebook
from tqindex.codec.random import RandomStream
from tqindex.codec.trellis import WINDOW, trellis_codebook, windows_of

Float64Array = npt.NDArray[np.float64]

_OURS, _ERROR, _HELD = "#0b5cad", "#b0413a", "#d7e5f4"
_BITS, _SHOWN, _DIM, _SEED = 2, 16, 256, 3
#: Coordinates whose windows are shown in full.
_FIRST, _POINTED = 11, (13, 14)
#: The small trellis: a window of 3 bits, 1 emitted.
_TOY_BITS, _TOY_LEVELS, _TOY_STEPS = 1, (-0.4, 1.0, -1.4, 0.4, 1.6, -0.8, 0.1, -1.9), 7


def draw() -> Figure:
    """Return the picture: a stream and its windows, a small trellis with a path, and what paths offer."""
    y = RandomStream(_SEED, _BITS).gaussians(_DIM)
    codes, starts = trellis_codebook(_BITS).quantise(y.astype(np.float32)[np.newaxis])
    windows = windows_of(codes, starts, _BITS)[0]
    figure = Figure((WIDTH, 6.6), layout="constrained")
    grid = figure.add_gridspec(3, 2, height_ratios=[1.0, 1.25, 1.35], width_ratios=[1, 1])
    _draw_stream(figure.add_subplot(grid[0, :]), codes[0], windows)
    _draw_trellis(figure.add_subplot(grid[1, :]), y)
    left = figure.add_subplot(grid[2, 0])
    _draw_scalar(left, y)
    _draw_offers(figure.add_subplot(grid[2, 1], sharey=left), y, windows)
    return figure


def _draw_stream(axes: Axes, codes: npt.NDArray[np.uint8], windows: npt.NDArray[np.uint8]) -> None:
    """Draw some codes as bits, and two neighbouring windows with their levels."""
    book = trellis_codebook(_BITS)
    axes.set_title("Each coordinate adds 2 bits; the last 8 bits say what it stands for")
    axes.axis("off")
    axes.set_xlim(-0.5, 2 * 6 + 8.6)
    axes.set_ylim(-2.3, 1.7)
    shown = range(_FIRST - 1, _FIRST + 5)
    for place, j in enumerate(shown):
        for k, bit in enumerate(f"{codes[j]:0{_BITS}b}"):
            axes.text(2 * place + k + 0.5, 0.5, bit, ha="center", va="center", fontsize=12, family="DejaVu Sans Mono")
        axes.text(2 * place + 1, 1.35, f"$e_{{{j}}}$", ha="center", va="center", color=FAINT)
        axes.plot([2 * place] * 2, [0.05, 0.95], color=GRID)
    for row, j in enumerate(_POINTED):
        last = 2 * (j - shown[0]) + 2
        bottom = -0.95 - 1.05 * row
        color = _OURS if row == 0 else "#4f86c0"
        axes.add_patch(
            FancyBboxPatch(
                (last - WINDOW + 0.08, bottom),
                WINDOW - 0.16,
                0.72,
                boxstyle="round,pad=0.02",
                facecolor=_HELD,
                edgecolor=color,
            )
        )
        bits = f"{windows[j]:0{WINDOW}b}"
        for k, bit in enumerate(bits):
            axes.text(last - WINDOW + k + 0.5, bottom + 0.36, bit, ha="center", va="center", family="DejaVu Sans Mono")
        value = book.values[windows[j]]
        text = f"$z_{{{j}}}$: level {windows[j]} of 256 = {value:+.2f}"
        axes.text(13.2, bottom + 0.36, text, va="center", color=INK)
        axes.plot([last - 0.02, 13.0], [bottom + 0.36] * 2, color=color, linewidth=0.9)


def _draw_trellis(axes: Axes, y: Float64Array) -> None:
    """Draw all paths of a small trellis, and the best one."""
    levels = np.array(_TOY_LEVELS)
    window_bits = len(levels).bit_length() - 1
    states = len(levels) >> _TOY_BITS
    unit = 64.0
    targets = np.rint(levels * unit).astype(np.int32)
    row = y[np.newaxis, :_TOY_STEPS]
    best = search(row, targets, _TOY_BITS, unit, start=0)[0]
    axes.set_title(
        "A smaller one: 1 bit each, windows of 3, so 4 states; the encoder takes the path of least squared error"
    )
    axes.axis("off")
    axes.set_xlim(-0.75, _TOY_STEPS + 0.2)
    axes.set_ylim(-1.05, states - 0.4)
    for j in range(_TOY_STEPS):
        for window in range(len(levels)):
            before, after = window >> _TOY_BITS, window % states
            if j == 0 and before:
                continue
            taken = window == best[j]
            axes.plot(
                [j, j + 1],
                [states - 1 - before, states - 1 - after],
                color=_OURS if taken else GRID,
                linewidth=2.4 if taken else 1.0,
                zorder=3 if taken else 1,
            )
        axes.text(j + 0.5, -0.55, f"{row[0, j]:+.1f}", ha="center", color=INK)
        axes.text(j + 0.5, -0.95, f"{levels[best[j]]:+.1f}", ha="center", color=_OURS, weight="bold")
    for j in range(_TOY_STEPS + 1):
        for state in range(states if j else 1):
            axes.plot([j], [states - 1 - state], "o", color=FAINT, markersize=4, zorder=2)
    for state in range(states):
        name = f"{state:0{window_bits - _TOY_BITS}b}"
        axes.text(-0.12, states - 1 - state, name, ha="right", va="center", color=FAINT, family="DejaVu Sans Mono")
    axes.text(-0.12, -0.55, "coordinate", ha="right", color=INK)
    axes.text(-0.12, -0.95, "stands for", ha="right", color=_OURS, weight="bold")


def _draw_scalar(axes: Axes, y: Float64Array) -> None:
    book = make_codebook(1536, _BITS)
    z = book.values[book.quantise(y.astype(np.float32))]
    for j in range(_SHOWN):
        axes.plot([j - 0.3, j + 0.3], [book.values] * 2, color=FAINT, linewidth=0.9)
    _draw_errors(axes, y, z, "scalar code, 2 bits: always the same 4")


def _draw_offers(axes: Axes, y: Float64Array, windows: npt.NDArray[np.uint8]) -> None:
    """Draw the four levels that each coordinate could have had after the path so far."""
    book = trellis_codebook(_BITS)
    for j in range(_SHOWN):
        offered = (int(windows[j]) & ~(2**_BITS - 1)) + np.arange(2**_BITS)
        axes.plot([j - 0.3, j + 0.3], [book.values[offered]] * 2, color=FAINT, linewidth=0.9)
    _draw_errors(axes, y, book.values[windows], "trellis code, 2 bits: 4 of 256, by the path so far")
    axes.tick_params(labelleft=False)


def _draw_errors(axes: Axes, y: Float64Array, z: Float64Array, title: str) -> None:
    for j in range(_SHOWN):
        axes.plot([j, j], [y[j], z[j]], color=_ERROR, linewidth=2.2, zorder=2)
    axes.plot(range(_SHOWN), z[:_SHOWN], "_", color=_OURS, markersize=11, markeredgewidth=2.4, zorder=3)
    axes.plot(range(_SHOWN), y[:_SHOWN], "o", color=INK, markersize=3.6, zorder=4)
    error = float(((y - z) ** 2).mean())
    axes.set_title(title)
    axes.set_xlabel(
        f"coordinate (dots), what it stands for (blue), error (red)\nmean squared error of {_DIM}: {error:.3f}"
    )
    axes.set_ylim(-2.7, 2.7)
    axes.set_xticks(range(0, _SHOWN, 5))


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/trellis.svg"), help="an SVG or PNG file")
    options: dict[str, Any] = {"dpi": 110}
    target = parser.parse_args().output
    if target.suffix == ".svg":
        options = {"metadata": {"Date": None}}
    with house_style():
        draw().savefig(target, **options)


if __name__ == "__main__":
    main()
