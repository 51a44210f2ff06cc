"""Writes ROOFLINE.md: what the kernels move and carry out, counted in the host run, and the time that this implies.

`python -m tqindex.gpu.roofline [--output FILE]`, some minutes. Counts are taken at two small sizes and continued along
a line, a third size tells how well that holds, and a chip's time is that of its busiest unit, as if all others worked
beside it and starting a kernel cost nothing. Beside them stands what `measure.py` has measured on a device.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.gpu.attention_cases import attention_cases
from tqindex.gpu.command import errors_in_one_line
from tqindex.gpu.host.count import Counts
from tqindex.gpu.measure import MEASURED, Measured
from tqindex.gpu.roofline_cases import Case, Sample, all_cases
from tqindex.gpu.sources import hash_sources
from tqindex.storage.files import check_file_target

Float64Array = npt.NDArray[np.float64]
_WARP, _SCHEDULERS = 32, 4
#: Columns of `Profile.arrays`: of an argument its size, and loads and stores by what the second-level cache saves.
_SIZE, _LOADS_ONCE, _LOADS, _STORES_ONCE, _STORES = range(5)
#: Of `Profile.totals`: turns of shared memory, as the page has them, and instructions of a warp; votes are integers.
_TURNS, _MMA, _DP4A, _FLOAT32, _FLOAT64, _INTEGER, _OTHER = range(7)
_UNITS = "memory", "shared memory", "issue", "tensor cores", "integers", "float32", "float64"
#: Kernels below so many seconds are not told one by one.
_LEAST_TOLD = 5e-7
#: Multiply-adds of a product of the tensor cores.
_MMA_SIZE = 16 * 8 * 32


@dataclass(frozen=True)
class Chip:
    """Published numbers of a GPU.

    Attributes
    ----------
    name, source : str
    multiprocessors : int
    clock : float, boost, per second
    bandwidth : float, bytes per second of device memory
    cache_bytes : int, of the second-level cache
    float32, float64, integer : int
        Results per clock and multiprocessor (CUDA C++ Programming Guide, "Arithmetic Instructions"); dp4a is as fast
        as other integers.
    tensor : int
        int8 multiply-adds per clock and multiprocessor, from the published rate of dense products.
    """

    name: str
    source: str
    multiprocessors: int
    clock: float
    bandwidth: float
    cache_bytes: int
    float32: int
    float64: int
    integer: int
    tensor: int


CHIPS = (
    Chip("A100 80 GB SXM", "NVIDIA A100 data sheet", 108, 1.41e9, 2.039e12, 40 * 2**20, 64, 32, 64, 2048),
    Chip("H100 SXM", "NVIDIA H100 data sheet", 132, 1.98e9, 3.35e12, 50 * 2**20, 128, 64, 64, 4096),
    Chip("RTX 4090 (24 GB)", "NVIDIA Ada white paper", 128, 2.52e9, 1.008e12, 72 * 2**20, 128, 2, 64, 1024),
)


@dataclass(frozen=True, eq=False)
class Profile:
    """What a kernel does in all of its launches.

    Attributes
    ----------
    arrays : float64 (arguments, 5)
    totals : float64 (7,)
    """

    arrays: Float64Array
    totals: Float64Array

    @classmethod
    def of(cls, counts: Counts) -> "Profile":
        """Return that of one launch."""
        traffic = zip(counts.array_bytes, counts.loads, counts.stores, strict=True)
        arrays = [
            (size, loads.distinct_bytes, loads.block_bytes, stores.distinct_bytes, stores.block_bytes)
            for size, loads, stores in traffic
        ]
        done, operations = counts.instructions, counts.operations
        other = sum(operations.values()) - operations["dp4a"] - operations["votes"]
        classes = done.get("float32", 0), done.get("float64", 0), done.get("integer", 0) + operations["votes"]
        turns = counts.shared_wavefronts + counts.global_wavefronts + operations["shuffles"]
        totals = turns, operations["mma"], operations["dp4a"], *classes, other
        return cls(np.array(arrays, np.float64), np.array(totals, np.float64))

    def __add__(self, other: "Profile") -> "Profile":
        return Profile(self.arrays + other.arrays, self.totals + other.totals)

    def moved_bytes(self, cache_bytes: int) -> float:
        """Return what goes through device memory.

        An argument that fills no more than half of the second-level cache goes through once, a larger one once for
        each block that touches it.
        """
        is_kept = self.arrays[:, _SIZE] <= cache_bytes / 2
        once, each = self.arrays[:, [_LOADS_ONCE, _STORES_ONCE]], self.arrays[:, [_LOADS, _STORES]]
        return float(np.where(is_kept[:, np.newaxis], once, each).sum())

    def seconds(self, chip: Chip) -> dict[str, float]:
        """Return the time of each of a chip's units."""
        per_second = chip.multiprocessors * chip.clock
        integer = self.totals[_INTEGER] + self.totals[_DP4A]
        times = (
            self.moved_bytes(chip.cache_bytes) / chip.bandwidth,
            self.totals[_TURNS] / per_second,
            self.totals[_DP4A:].sum() / (per_second * _SCHEDULERS),
            self.totals[_MMA] * _MMA_SIZE / (per_second * chip.tensor),
            integer * _WARP / (per_second * chip.integer),
            self.totals[_FLOAT32] * _WARP / (per_second * chip.float32),
            self.totals[_FLOAT64] * _WARP / (per_second * chip.float64),
        )
        return dict(zip(_UNITS, times, strict=True))


@dataclass(frozen=True, eq=False)
class Result:
    """A case at its full size.

    Attributes
    ----------
    case : Case
    least_bytes : float
    profiles : dict of Profile by kernel
    deviation : float
        How far the line misses the counts at a third size, relative, the worst of bytes and instructions.
    """

    case: Case
    least_bytes: float
    profiles: dict[str, Profile]
    deviation: float

    def moved_bytes(self, chip: Chip = CHIPS[0]) -> float:
        """Return what goes through device memory."""
        return sum(profile.moved_bytes(chip.cache_bytes) for profile in self.profiles.values())

    def seconds(self, chip: Chip) -> float:
        """Return the time of all kernels, one after the other, each that of its busiest unit."""
        return sum(max(profile.seconds(chip).values()) for profile in self.profiles.values())

    def busiest(self, chip: Chip) -> str:
        """Return what the longest of the kernels waits for."""
        longest = max(self.profiles.values(), key=lambda profile: max(profile.seconds(chip).values()))
        times = longest.seconds(chip)
        return max(times, key=lambda unit: times[unit])


def evaluate(case: Case) -> Result:
    """Count a case at small sizes and continue to its full size."""
    first, second, third = (case.sample(rows) for rows in case.counted_rows)
    least, profiles = _continued(first, second, case.rows)
    _, guessed = _continued(first, second, third.rows)
    counted = _profiles(third)
    pairs = [(_sum(guessed), _sum(counted)), (_moved(guessed), _moved(counted))]
    deviation = max(abs(guess - count) / count for guess, count in pairs)
    return Result(case, least, profiles, deviation)


def _moved(profiles: dict[str, Profile]) -> float:
    return sum(profile.moved_bytes(CHIPS[0].cache_bytes) for profile in profiles.values())


def _sum(profiles: dict[str, Profile]) -> float:
    return float(sum(profile.totals[_DP4A:].sum() for profile in profiles.values()))


def _profiles(sample: Sample) -> dict[str, Profile]:
    found: dict[str, Profile] = {}
    for counts in sample.counts:
        name, profile = counts.kernel.name, Profile.of(counts)
        found[name] = found[name] + profile if name in found else profile
    return found


def _continued(first: Sample, second: Sample, rows: int) -> tuple[float, dict[str, Profile]]:
    """Return the least bytes and the profiles of `rows` rows, on the line through two samples."""
    share = (rows - second.rows) / (second.rows - first.rows)

    def line(a: Any, b: Any) -> Any:
        return np.maximum(b + (b - a) * share, 0.0)

    before, after = _profiles(first), _profiles(second)
    profiles = {
        name: Profile(line(before[name].arrays, known.arrays), line(before[name].totals, known.totals))
        for name, known in after.items()
    }
    return line(first.least_bytes, second.least_bytes), profiles


# -- the page

_HEAD = """# What the GPU's kernels move, and how long they take

How long each task of the index takes on a GPU, the kernels alone, and how far that is from what the chip could do.
Where "moved / least" is near 1, nearly nothing is read twice; where the measured time is near the computed one, the
kernel is held up by little but the unit that is named (many queries are an exception, told below). Times of a whole
search, Python and copies included, are in the README.

A chip's times are **computed** from counts; those of the last column are **measured**, on one GPU. `python -m
tqindex.gpu.roofline` writes this page, `python -m tqindex.gpu.measure` measures for it.

The kernels are compiled for the CPU as well, in a form that counts. For each launch that tells the bytes that go
through device memory, the instructions of warps, and the turns of "shared memory". Shared memory and the first-level
cache are one memory, which serves up to 128 bytes of a warp in a turn: an access with bank conflicts takes several, and
a shuffle takes one too. The instructions are the host compiler's for the same source, without copies between registers,
and stand in for the GPU's; a division or a square root counts as one. "issue" is the warps' schedulers, four in a
multiprocessor, each of which starts one instruction of one warp per clock. Counts are taken at two small sizes and
continued along a line to the full one. At a third small size they are counted too: "line" is how far the line is from
these counts.

"least" counts each byte that the task needs once. To encode: the vectors in, the codes out. For one query: the first
plane and scale of every row, and the other planes of the rows that are scored in full; 20 rows are near to the query,
unless told. For many: all codes. For a cache: codes, norms and means of its tokens, queries and logits or weights and
sums. "moved" is by the counts, on the A100, whose second-level cache is taken to keep an argument that fills at most
half of it: that moves once in each launch. Of a larger argument a block of threads moves all that it touches, except
what one of the 64 blocks before it has touched: those run beside it, and the cache still has it. Device memory moves
sectors of 32 bytes.

A chip's time is the sum over the kernels of the time of each one's busiest unit; that of the longest kernel is named.
It is as if the units worked beside each other without waiting, and starting a kernel cost nothing. That would make it a
bound from below, if the instructions were the GPU's. **Where codes are expanded they are not: the host compiler takes
more, and there the computed time is no bound.** All rows of 128 queries were measured faster than the same chip's time
computed.

What is far from the least, and why. Where most rows are scored in full ("no near rows"), the first plane is read twice:
once for the bounds, and once for the scores, since a level is found by all the bits of a code at once, so that a
partial sum by the first bit cannot be carried on. And a row that is left out shares its sectors with rows that are not.
Together 1.41 times the least, and 1.13 times the 772.2 MB that all codes and scales are. For many queries the line
overstates what is moved: in small runs each block keeps the best of few rows, in large ones of thousands, and the
results of all blocks stand on the page as if they grew with the rows. For a cache's values each block of pages writes
its sums, which are added up: 1 MB at any width.
"""
_MEASURED = """
Measured on {name} (driver for CUDA {driver}, CUDA {cuda}, CuPy {cupy}): medians of {repeats}, the host's time left out.
Bytes beside the chip's own counters (Nsight Compute, by hand): encoding 100,000 x 1536 at 4 bits read 614.5 MB and
wrote 73, counted are 691.6; the bounds of one query at 1536 dimensions read 196.0, counted are 197.2; 128 queries there
read 773, counted are 812.2 of `scan_tiles` and 847.7 in all: 5 to 10 % too many, since the line overstates them, as
told above. A measured time is more than computed where warps wait for memory and for each other, and less where the
host compiler takes more instructions than the GPU's.
"""
_STALE = "The kernels have changed since.\n"


def write_page(results: Sequence[Result], measured: Measured | None) -> str:
    """Return the page."""
    names = [chip.name for chip in CHIPS]
    said = ""
    if measured is not None:
        names.append(f"{measured.device['name']}, measured")
        repeats = len(next(iter(measured.seconds.values()), []))
        said = _MEASURED.format(**measured.device, repeats=repeats) + _STALE * (measured.sources != hash_sources())
    columns = ["case", "rows", "least", "moved", "moved / least", "line", *names]
    cases = _table(columns, 1, (_case_cells(each, measured) for each in results))
    units = [f"{unit}, ms" for unit in _UNITS]
    kernels = _table(["case", "kernel", "moved", *units], 2, (row for each in results for row in _kernel_cells(each)))
    columns = ["chip", "source", "multiprocessors", "boost clock", "memory", "second-level cache"]
    rates = "float32, float64, integers per clock", "int8 multiply-adds per clock"
    chips = _table([*columns, *rates], 2, map(_chip_cells, CHIPS))
    by_unit = f"## Kernel by kernel: the units of the {CHIPS[0].name}\n\n{kernels}"
    return f"{_HEAD}{said}\n{cases}\n{by_unit}\n## The chips, as published\n\n{chips}"


def _table(columns: Sequence[str], texts: int, rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose first columns, `texts` of them, are text and the others numbers."""
    rules = ["---"] * texts + ["--:"] * (len(columns) - texts)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (columns, rules, *rows))


def _case_cells(result: Result, measured: Measured | None) -> list[str]:
    moved, least = result.moved_bytes(), result.least_bytes
    times = [f"{result.seconds(chip) * 1e3:.2f} ms ({result.busiest(chip)})" for chip in CHIPS]
    sizes = [f"{least / 1e6:,.1f} MB", f"{moved / 1e6:,.1f} MB", f"{moved / least:.2f}", f"{result.deviation:.1%}"]
    if measured is not None:
        found = measured.seconds.get(result.case.name)
        times.append(f"{np.median(found) * 1e3:.3f} ms" if found else "")
    return [result.case.name, f"{result.case.rows:,}", *sizes, *times]


def _kernel_cells(result: Result) -> Iterator[list[str]]:
    for name, profile in result.profiles.items():
        seconds = profile.seconds(CHIPS[0]).values()
        if max(seconds) < _LEAST_TOLD:
            continue
        times = [f"{time * 1e3:.3f}" for time in seconds]
        moved = f"{profile.moved_bytes(CHIPS[0].cache_bytes) / 1e6:,.1f} MB"
        yield [result.case.name, f"`{name}`", moved, *times]


def _chip_cells(chip: Chip) -> list[str]:
    memory = [f"{chip.bandwidth / 1e9:,.0f} GB/s", f"{chip.cache_bytes // 2**20} MiB"]
    rates = f"{chip.float32}, {chip.float64}, {chip.integer}"
    clock = f"{chip.clock / 1e9:.2f} GHz"
    return [chip.name, chip.source, str(chip.multiprocessors), clock, *memory, rates, str(chip.tensor)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Count what the kernels do, compiled by g++, and write the page; needs no GPU, takes some minutes."""
    parser = argparse.ArgumentParser(
        prog="python -m tqindex.gpu.roofline",
        description=main.__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    default = Path(__file__).parent / "ROOFLINE.md"
    parser.add_argument("--output", type=Path, default=default, help="the page, in Markdown; it is written over")
    options = parser.parse_args(arguments)
    with errors_in_one_line():
        check_file_target(options.output)
        measured = Measured.read() if MEASURED.exists() else None
        results = [evaluate(case) for case in (*all_cases(), *attention_cases())]
        options.output.write_text(write_page(results, measured))


if __name__ == "__main__":
    main()
