"""What a trellis code could be and is not: `python -m tqindex.bench.trellis_study` prints the tables of TRELLIS.md.

Distortions are squared errors of decoded rows on the sphere (as `Codec.decode` has them, on the quantiser alone), per
coordinate of variance 1.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.bench.trellis import RECIPES, improve, random_levels, search
from tqindex.codec.codebook import make_codebook
from tqindex.codec.random import RandomStream
from tqindex.codec.trellis import TRELLIS_BITS, WINDOW, TrellisCodebook, trellis_codebook

Float64Array = npt.NDArray[np.float64]
#: Coordinates that a figure is measured on, .3 % of noise, and fewer where every start is searched from.
_COORDINATES, _FEW = 2**20, 2**16
_SEED = 5
#: Factors of rows that pre-scaling tries.
_SCALINGS = {1: (1.0,), 5: (0.9, 0.95, 1.0, 1.05, 1.1), 11: tuple(np.linspace(0.85, 1.15, 11).tolist())}


def sphere_rows(dim: int, coordinates: int = _COORDINATES) -> Float64Array:
    """Return rows of squared norm dim, float64 (n, dim)."""
    n = max(1, coordinates // dim)
    y = RandomStream(_SEED, dim).gaussians(n * dim).reshape(n, dim)
    return np.asarray(y * (np.sqrt(dim) / np.linalg.norm(y, axis=1, keepdims=True)))


def cosines(y: Float64Array, z: Float64Array) -> Float64Array:
    """Return the squared cosines of rows and what stands for them."""
    return np.asarray((y * z).sum(axis=1) ** 2 / ((y * y).sum(axis=1) * (z * z).sum(axis=1)))


def error(y: Float64Array, z: Float64Array, distortion: float) -> float:
    """Return the squared error per coordinate of rows decoded with the unbiased scale and 1 - distortion."""
    scales = (1 - distortion) * (y * y).sum(axis=1) / (y * z).sum(axis=1)
    return float(((y - scales[:, np.newaxis] * z) ** 2).mean())


def values_of(book: TrellisCodebook, y: Float64Array, **ends: int) -> Float64Array:
    """Return what the encoder's search finds for rows y, float64 (n, dim)."""
    windows = search(y, book.targets.astype(np.int32), book.bits, book.fineness / book.step, **ends)
    return np.asarray(book.values[windows])


def zeros(book: TrellisCodebook, y: Float64Array) -> Float64Array:
    """The same with rows that start after zeros."""
    return values_of(book, y, start=0)


def same_ends(book: TrellisCodebook, y: Float64Array) -> Float64Array:
    """The same with paths that end as they start (tail-biting), the best of all."""
    found, least = np.empty_like(y), np.full(len(y), np.inf)
    for state in range(2 ** (WINDOW - book.bits)):
        z = values_of(book, y, start=state, end=state)
        errors = ((y - z) ** 2).sum(axis=1)
        better = errors < least
        found[better], least[better] = z[better], errors[better]
    return found


def starts() -> Iterable[list[Any]]:
    """Distortion by where a row starts."""
    for dim in (64, 100, 128):
        y = sphere_rows(dim, _FEW)
        for bits in TRELLIS_BITS:
            book = trellis_codebook(bits)
            forms: Sequence[Callable[..., Float64Array]] = zeros, same_ends, values_of
            yield [dim, bits, *(f"{error(y, form(book, y), book.distortion):.5f}" for form in forms)]


def dimensions() -> Iterable[list[Any]]:
    """Distortion by dimension, beside that of scalar codes and Shannon's bound."""
    for dim in (16, 32, 64, 100, 200, 768, 1536):
        y = sphere_rows(dim)
        for bits in TRELLIS_BITS:
            book, scalar = trellis_codebook(bits), make_codebook(dim, bits)
            plain = scalar.values[scalar.quantise(y.astype(np.float32))]
            ours, theirs = error(y, values_of(book, y), book.distortion), error(y, plain, scalar.distortion)
            yield [dim, bits, f"{ours:.5f}", f"{theirs:.5f}", f"{ours / theirs:.3f}", f"{4.0**-bits:.5f}"]


def signed(values: Float64Array, bits: int) -> Float64Array:
    """Give every level the sign that the first bit of its coordinate names."""
    return np.asarray(np.abs(values) * sign_bits(len(values), bits))


def sign_bits(windows: int, bits: int) -> Float64Array:
    """Return -1 or +1 for the first bit that a window's own coordinate emits."""
    return np.asarray((np.arange(windows) >> (bits - 1) & 1) * 2.0 - 1.0)


def kept_signs(values: Float64Array, bits: int) -> Float64Array:
    """Keep levels on the side that their first bit names."""
    signs = sign_bits(len(values), bits)
    return np.asarray(signs * np.maximum(signs * values, 0.0))


def sign_rules() -> Iterable[list[Any]]:
    """Distortion, and how far a coordinate's first bit tells its value, by what is asked of that bit."""
    for recipe in RECIPES:
        for name in ("none", "at the start only", "always"):
            stream, best = RandomStream(_SEED, recipe.bits), (np.empty(0), np.inf)
            rule = (lambda values, bits=recipe.bits: kept_signs(values, bits)) if name == "always" else None
            for _ in range(8):
                values = random_levels(stream, recipe)
                values = values if name == "none" else signed(values, recipe.bits)
                found = improve(values, recipe, stream, 40, rule=rule)
                best = min(best, found, key=lambda each: each[1])
            values, distortion = improve(best[0], recipe, stream, 100, rule=rule)
            y = sphere_rows(1536)
            windows = search(y, np.rint(values * recipe.unit).astype(np.int32), recipe.bits, recipe.unit)
            told = float((sign_bits(len(values), recipe.bits)[windows] * y).mean())
            yield [recipe.bits, name, f"{distortion:.5f}", f"{abs(told):.3f}"]


def scalings() -> Iterable[list[Any]]:
    """Distortion, 1 - cos^2, where the best of several scalings of a row is encoded."""
    for dim in (64, 100, 200, 768, 1536):
        y = sphere_rows(dim, _COORDINATES // 2)
        for bits in TRELLIS_BITS:
            book = trellis_codebook(bits)
            found = {t: cosines(y, values_of(book, t * y)) for scales in _SCALINGS.values() for t in scales}
            losses = [1 - np.max([found[t] for t in scales], axis=0).mean() for scales in _SCALINGS.values()]
            yield [dim, bits, *(f"{loss:.5f}" for loss in losses), f"{1 - losses[-1] / losses[0]:.1%}"]


def windows() -> Iterable[list[Any]]:
    """Distortion of longer windows, levels not rounded to int8."""
    for recipe in RECIPES:
        cells = []
        for window in (6, WINDOW, 10, 12):
            wide = replace(recipe, window=window)
            stream, tries = RandomStream(_SEED, window), 4 if window <= WINDOW else 1
            found = [improve(random_levels(stream, wide), wide, stream, 60) for _ in range(tries)]
            values, _ = min(found, key=lambda each: each[1])
            cells.append(f"{improve(values, replace(wide, rows=512), stream, 30)[1]:.5f}")
        yield [recipe.bits, *cells, f"{4.0**-recipe.bits:.5f}"]


_TABLES: dict[str, tuple[Callable[[], Iterable[list[Any]]], tuple[str, ...]]] = {
    "dimensions": (dimensions, ("dimensions", "bits", "trellis", "mse", "ratio", "Shannon")),
    "starts": (starts, ("dimensions", "bits", "zeros", "tail-biting", "stored")),
    "signs": (sign_rules, ("bits", "rule", "distortion", "correlation of the first bit")),
    "scalings": (
        scalings,
        ("dimensions", "bits", *(f"{count} scaling{'s' * (count > 1)}" for count in _SCALINGS), "gain"),
    ),
    "windows": (windows, ("bits", "6 bits", "8 bits", "10 bits", "12 bits", "Shannon")),
}


def main() -> None:
    """Print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", choices=[[], *_TABLES], help="which; all by default")
    for name in parser.parse_args().tables or _TABLES:
        rows, header = _TABLES[name]
        sys.stdout.write(f"\n{name}\n\n| {' | '.join(header)} |\n{'|---' * len(header)}|\n")
        for row in rows():
            sys.stdout.write(f"| {' | '.join(map(str, row))} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
