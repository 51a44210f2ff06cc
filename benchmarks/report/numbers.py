"""How numbers are printed: enough digits to compare, "-" for what was not measured."""

import math
from collections.abc import Sequence

MISSING = "-"
#: Seconds or milliseconds that a call takes which does nothing, such as training what needs none.
_NOTHING = 1e-4


def significant(value: float | None, digits: int = 3) -> str:
    """Return the value rounded to so many significant digits, thousands grouped."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, decimals):,.{max(0, decimals)}f}"


def recall(values: Sequence[float] | float | None) -> str:
    """Return the mean over seeds and half of their range, or one measurement as it is."""
    if not isinstance(values, Sequence):
        return MISSING if values is None else f"{values:.3f}"
    if not values:
        return MISSING
    text = f"{sum(values) / len(values):.3f}"
    return text if len(values) == 1 else f"{text} ±{(max(values) - min(values)) / 2:.3f}"


def timing(spread: dict[str, float] | None) -> str:
    """Return the median of repeated timings and their range."""
    if spread is None:
        return MISSING
    if spread["high"] < _NOTHING:
        return "0"
    low, high = significant(spread["low"]), significant(spread["high"])
    median = significant(spread["median"])
    return median if low == high else f"{median} ({low}-{high})"


def ratio(value: float | None) -> str:
    """Return a ratio with at least two digits."""
    return MISSING if value is None else significant(value, 3 if value >= 1 else 2)


def quotient(measured: float | None, bound: float | None) -> str:
    """Return measured / bound to the thousandth."""
    return MISSING if measured is None or not bound else f"{measured / bound:.3f}"


def share(value: float | None) -> str:
    """Return a share as a percentage."""
    return MISSING if value is None else f"{significant(100 * value, 2)} %"


def width(bits: float | None) -> str:
    """Return bits per coordinate."""
    return MISSING if bits is None else f"{bits:g}"


def size(count: float | None) -> str:
    """Return bytes per vector: whole numbers, or one decimal where bytes are few."""
    if count is None:
        return MISSING
    return f"{count:,.0f}" if count >= 100 else f"{count:.1f}".removesuffix(".0")


def megabytes(count: float | None) -> str:
    """Return bytes in units of 10^6."""
    return MISSING if count is None else significant(count / 1e6)


def joined(items: Sequence[str]) -> str:
    """Return "a, b and c"."""
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))
