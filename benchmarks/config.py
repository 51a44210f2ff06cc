"""What suites measure, from their TOML files: one for each suite, with tables for the sizes."""

import tomllib
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from tqindex.errors import ArgumentError

SUITES = ("recall", "indexing", "search", "scale", "distortion", "threads")
SIZES = ("test", "base", "paper")
#: What is measured on a user's own file.
FILE_SUITES = ("recall", "indexing", "search")
#: What is measured of an index on a GPU: the others are of the codec, and of threads.
GPU_SUITES = ("recall", "indexing", "search", "scale")
_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Config:
    """What one suite measures at one size.

    Attributes
    ----------
    sets : tuple of str
        Names in sets.toml.
    methods : tuple of str
        Keys of methods.
    bits : tuple of int
        Each method is measured at those that it has.
    peer_bits : tuple of int
        The same for other packages than tqindex, where not all of `bits` are meant for them.
    k : int
        Results per query.
    seeds : int
        Of rotations and training; figures are given for each.
    fewer_seeds : dict
        Seeds of methods that take long.
    repeats : int
        Timed runs after a warm-up, of which the median counts.
    budget : float
        Seconds after which a method is not repeated any more, and to which its batch of queries is cut.
    sizes, dims, vectors :
        Of `scale` (numbers of vectors) and `distortion` (widths, vectors of each).
    leave_out : dict
        Methods that are not measured on a set, because they would take too long at this size.
    only : dict
        What has other values on a set: a table for it, of these names.
    """

    sets: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    bits: tuple[int, ...] = ()
    peer_bits: tuple[int, ...] = ()
    k: int = 10
    seeds: int = 1
    fewer_seeds: dict[str, int] = field(default_factory=dict)
    repeats: int = 5
    budget: float = 20.0
    sizes: tuple[int, ...] = ()
    dims: tuple[int, ...] = ()
    vectors: int = 0
    leave_out: dict[str, tuple[str, ...]] = field(default_factory=dict)
    only: dict[str, dict[str, Any]] = field(default_factory=dict)

    def on_set(self, name: str | None) -> "Config":
        """Return what is measured on a set."""
        return replace(self, **_values(self.only.get(name or "", {})), only={})

    def bits_of(self, peer: str) -> tuple[int, ...]:
        """Return the widths that a package is measured at."""
        return self.bits if peer == "tqindex" else self.peer_bits or self.bits

    def seeds_of(self, method: str) -> int:
        """Return how many seeds a method is measured with."""
        return min(self.seeds, self.fewer_seeds.get(method, self.seeds))


def load_config(suite: str, size: str) -> Config:
    """Read a suite's table.

    Raises
    ------
    ArgumentError
        An unknown suite or size.
    """
    if suite not in SUITES:
        raise ArgumentError(f"suite must be one of {', '.join(SUITES)}; got {suite!r}")
    if size not in SIZES:
        raise ArgumentError(f"size must be one of {', '.join(SIZES)}; got {size!r}")
    table = tomllib.loads((_FOLDER / "suites" / f"{suite}.toml").read_text(encoding="utf-8"))[size]
    return make_config(table)


def make_config(table: dict[str, Any]) -> Config:
    """Make a Config of a TOML table; refuses names that it does not know."""
    for each in (table, *table.get("only", {}).values()):
        unknown = sorted(set(each) - _NAMES)
        if unknown:
            raise ArgumentError(f"a suite's table must have keys among {', '.join(sorted(_NAMES))}; got {unknown[0]!r}")
    return Config(**_values(table))


def _values(table: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


#: What a table may hold.
_NAMES = {each.name for each in fields(Config)}


@cache
def set_tables() -> dict[str, dict[str, Any]]:
    """Read the table of data sets."""
    return tomllib.loads((_FOLDER / "sets.toml").read_text(encoding="utf-8"))
