"""The levels of trellis codes: `python -m tqindex.bench.trellis --write` makes tqindex/codec/trellis_levels.py anew.

Two steps alternate on fresh rows of normal coordinates, as in Lloyd's method: the encoder's search with the levels as
they are (`tqindex.codec.trellis`), and the mean of the coordinates of each window, which is its next level. Which
optimum they reach depends on where they start: many random orders of the levels are tried, the best are gone on with.

Random numbers are the format's own, and everything made of them is integers and + - * /, so that every machine makes
the same file. The normal law is the limit of the coordinates' law in many dimensions; what fewer cost is measured by
`tqindex.bench.trellis_study`.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

import tqindex.codec
from tqindex.codec.random import RandomStream
from tqindex.codec.trellis import FARTHEST, LIMIT, METRIC_SHIFT, WINDOW, TrellisCodebook

Float64Array = npt.NDArray[np.float64]
Int32Array = npt.NDArray[np.int32]

#: Rows that are searched together.
_LANES = 16
#: Cost of what no path has reached.
_FAR = 2.0**20
#: Share of what earlier rounds saw of a window that the next one keeps, once levels move little: as many coordinates as
#: ten rounds have.
_MEMORY = 0.9
_RESOLUTION = 2.0**20
_COLUMNS = 24
_Function = TypeVar("_Function", bound=Callable[..., Any])
_njit: Any = numba.njit  # untyped


@dataclass(frozen=True)
class Recipe:
    """How the levels of a width are made.

    Attributes
    ----------
    bits : int
    step : int
        Of the int8 levels, in units of 2**-20: the outermost level is 127 of them.
    fineness : int
    starts, finalists : int
        Random orders that are tried, and how many of them are gone on with.
    short, long : int
        Rounds of every start, and more of every finalist.
    rows, dim : int
        Fresh coordinates of each round.
    measured : tuple of int
        Rows and their length that the distortion is measured on, with .1 % of noise.
    window : int
        Bits of the stream that select a level.
    """

    bits: int
    step: int
    fineness: int
    starts: int = 24
    finalists: int = 4
    short: int = 30
    long: int = 150
    rows: int = 64
    dim: int = 512
    measured: tuple[int, int] = (4096, 1536)
    window: int = WINDOW

    @property
    def unit(self) -> float:
        """Units of the search to 1."""
        return self.fineness / (self.step / _RESOLUTION)


RECIPES = (Recipe(2, 25_600, 2), Recipe(3, 27_000, 2), Recipe(4, 28_000, 2))


def make_codebook(recipe: Recipe, seed: int = 0) -> TrellisCodebook:
    """Make the levels of a width, and measure their distortion."""
    stream = RandomStream(seed, recipe.bits)
    tried = [improve(random_levels(stream, recipe), recipe, stream, recipe.short) for _ in range(recipe.starts)]
    tried.sort(key=lambda each: each[1])
    more = replace(recipe, rows=4 * recipe.rows)
    found = []
    for given, _ in tried[: recipe.finalists]:
        settled, _ = improve(given, recipe, stream, recipe.short)
        improved, _ = improve(settled, more, stream, recipe.long, memory=_MEMORY)
        found.append(improve(improved, more, stream, recipe.short, memory=_MEMORY, rounded=True))
    values, _ = min(found, key=lambda each: each[1])
    book = as_codebook(values, recipe)
    return replace(book, distortion=round(distortion_of(book, _normal_rows(stream, recipe.measured)), 6))


def random_levels(stream: RandomStream, recipe: Recipe) -> Float64Array:
    """Return quantiles of the normal law, estimated, in random order, float64 (2**window,)."""
    count = 2**recipe.window
    quantiles = np.sort(stream.gaussians(64 * count)).reshape(count, 64)[:, 32]
    return quantiles[stream.permutation(count)]


def improve(
    values: Float64Array,
    recipe: Recipe,
    stream: RandomStream,
    rounds: int,
    memory: float = 0.0,
    rounded: bool = False,
    rule: Any = None,
) -> tuple[Float64Array, float]:
    """Alternate search and means; return the levels and the last round's distortion.

    memory: share of what a round saw that the next keeps. rounded: search with what int8 keeps of the levels. rule: a
    function of levels that returns permitted ones.
    """
    sums, counts, distortion = np.zeros_like(values), np.zeros_like(values), 0.0
    reach = 127 * recipe.step / _RESOLUTION
    for _ in range(rounds):
        y = _normal_rows(stream, (recipe.rows, recipe.dim))
        if rounded:
            targets = recipe.fineness * np.rint(values * (_RESOLUTION / recipe.step))
        else:
            targets = np.rint(values * recipe.unit)
        windows = search(y, targets.astype(np.int32), recipe.bits, recipe.unit)
        errors = y - targets[windows] / recipe.unit
        distortion = float((errors * errors).mean())
        sums = memory * sums + np.bincount(windows.ravel(), y.ravel(), len(values))
        counts = memory * counts + np.bincount(windows.ravel(), minlength=len(values))
        values = np.where(counts > 0, sums / np.maximum(counts, 1e-9), values).clip(-reach, reach)
        if rule is not None:
            values = rule(values)
    return values, distortion


def as_codebook(values: Float64Array, recipe: Recipe) -> TrellisCodebook:
    """Round levels to int8; the distortion is left open."""
    levels = np.rint(values * (_RESOLUTION / recipe.step)).clip(-127, 127).astype(np.int8)
    return TrellisCodebook(recipe.bits, levels, recipe.step / _RESOLUTION, recipe.fineness, 0.0)


def _normal_rows(stream: RandomStream, shape: tuple[int, int]) -> Float64Array:
    return stream.gaussians(shape[0] * shape[1]).reshape(shape)


def distortion_of(book: TrellisCodebook, y: Float64Array) -> float:
    """Return the mean squared error of rows y, float64 (n, dim)."""
    errors = y - book.values[search(y, book.targets.astype(np.int32), book.bits, book.fineness / book.step)]
    return float((errors * errors).mean())


def search(
    y: Float64Array, targets: Int32Array, bits: int, unit: float, start: int = -1, end: int = -1
) -> npt.NDArray[np.uint16]:
    """Return the windows of the cheapest paths, uint16 (n, dim), as `tqindex.codec.trellis.find_paths` takes them.

    Parameters
    ----------
    y : float64 (n, dim)
    targets : int32 (2**window,), levels times unit, for windows of up to 16 bits
    bits : int
    unit : float
    start, end : int
        The states that paths begin and end with; -1 for any.
    """
    n = len(y)
    units = np.pad(np.rint(y * unit).clip(-LIMIT, LIMIT).astype(np.float32), ((0, -n % _LANES), (0, 0)))
    windows = np.empty(units.shape, np.uint16)
    _search(units, targets.astype(np.float32), bits, start, end, windows)
    return windows[:n]


def _compiled(function: _Function) -> _Function:
    return cast(_Function, _njit(nogil=True, error_model="numpy")(function))


@_compiled
def _search(units: Any, targets: Any, bits: int, start: int, end: int, windows: Any) -> None:
    """Fill windows, uint16 (n, dim), n a multiple of _LANES rows, which go together.

    Integers are held as float32, which is exact below 2**24 and compiled to wide instructions.
    """
    n, dim = units.shape
    states = targets.shape[0] >> bits
    costs, new = np.empty((states, _LANES), np.float32), np.empty((states, _LANES), np.float32)
    chosen, y = np.empty((dim, states, _LANES), np.float32), np.empty(_LANES, np.float32)
    for row in range(0, n, _LANES):
        costs[:] = np.float32(0 if start < 0 else _FAR)
        if start >= 0:
            costs[start] = np.float32(0)
        for j in range(dim):
            y[:] = units[row : row + _LANES, j]
            _step(y, targets, bits, costs, new, chosen[j])
        for lane in range(_LANES):
            state = end if end >= 0 else np.argmin(costs[:, lane])
            for j in range(dim - 1, -1, -1):
                window = np.int64(chosen[j, state, lane]) * states + state
                windows[row + lane, j] = window
                state = window >> bits


@_compiled
def _step(y: Any, targets: Any, bits: int, costs: Any, new: Any, chosen: Any) -> None:
    """Take one coordinate of every lane into the costs of the states, and note which branch each kept."""
    branches, states, far = 1 << bits, targets.shape[0] >> bits, np.float32(FARTHEST)
    least = np.full(_LANES, 2 * _FAR, np.float32)
    for s in range(states):
        best, picked = new[s], chosen[s]
        for h in range(branches):
            target, number = targets[h * states + s], np.float32(h)
            before = costs[(h * states + s) >> bits]
            for lane in range(_LANES):
                distance = abs(y[lane] - target)
                distance = distance if distance < far else far
                cost = before[lane] + np.floor(distance * distance * np.float32(2.0**-METRIC_SHIFT))
                better = h == 0 or cost < best[lane]
                best[lane] = cost if better else best[lane]
                picked[lane] = number if better else picked[lane]
        for lane in range(_LANES):
            least[lane] = min(least[lane], best[lane])
    for s in range(states):
        for lane in range(_LANES):
            costs[s, lane] = new[s, lane] - least[lane]


_HEAD = '''"""Levels of trellis codes, by width and window: made by `python -m tqindex.bench.trellis --write`."""

#: Units of 2**-20.
STEPS = {steps}
FINENESS = {fineness}
#: Squared errors per coordinate of variance 1, in rows of 1,536.
DISTORTIONS = {distortions}
# fmt: off
LEVELS = {{
'''


def module_text(books: list[TrellisCodebook]) -> str:
    """Return the source of tqindex/codec/trellis_levels.py."""
    steps = {book.bits: int(np.rint(book.step * _RESOLUTION)) for book in books}
    text = _HEAD.format(
        steps=steps,
        fineness={book.bits: book.fineness for book in books},
        distortions={book.bits: book.distortion for book in books},
    )
    for book in books:
        text += f"    {book.bits}: (\n"
        for first in range(0, len(book.levels), _COLUMNS):
            text += "        " + ", ".join(map(str, book.levels[first : first + _COLUMNS].tolist())) + ",\n"
        text += "    ),\n"
    return text + "}\n# fmt: on\n"


def main() -> None:
    """Print or write the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write tqindex/codec/trellis_levels.py")
    write = parser.parse_args().write
    text = module_text([make_codebook(recipe) for recipe in RECIPES])
    if write:
        Path(tqindex.codec.__file__).with_name("trellis_levels.py").write_text(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
