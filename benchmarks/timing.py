"""Times of repeated work, as a median with its range."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np


def timed(work: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def spread(values: Iterable[float]) -> dict[str, float]:
    """Return median, lowest and highest, to five digits."""
    numbers = list(values)
    found = {"median": np.median(numbers), "low": min(numbers), "high": max(numbers)}
    return {name: float(f"{value:.5g}") for name, value in found.items()}


def ratio(value: float, reference: float | None) -> float | None:
    """Return value / reference to four digits; None without a reference."""
    return None if not reference else float(f"{value / reference:.4g}")
