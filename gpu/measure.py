"""Measures the cases of ROOFLINE.md on a GPU: `python -m tqindex.gpu.measure --output FILE`, a minute or two.

Times are of the device alone: the launches of a case are queued behind a kernel that waits, so that the host's time for
queuing them does not count, and events before and after them tell how long they took.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tqindex.codec import Codec
from tqindex.codec.packing import BLOCK
from tqindex.gpu.best import no_best
from tqindex.gpu.codes import DeviceQueries
from tqindex.gpu.cuda import describe, open_device
from tqindex.gpu.encode import Encoder
from tqindex.gpu.few import scan_rows_few
from tqindex.gpu.roofline_cases import (
    DISTANCE,
    MANY_QUERIES,
    METRIC,
    NEAR_ROWS,
    RESULTS,
    all_cases,
    encode,
    search_many,
    search_one,
    search_one_far,
)
from tqindex.gpu.rows import DeviceCodes, DeviceSegment
from tqindex.gpu.runtime import Runtime
from tqindex.gpu.scan import scan_rows
from tqindex.index.plan import EPS, ScanPlan, deviations
from tqindex.index.segments import ALL_LIVE, NO_IDS
from tqindex.kernels.rows import StoredRows

_REPEATS = 15
#: How long the kernel before a case waits, in cycles of at most 2 GHz: longer than it takes to queue a case.
_WAIT_CYCLES = 10_000_000
_WAIT = """extern "C" __global__ void wait(long long cycles) {
  const long long start = clock64();
  while (clock64() - start < cycles) continue;
}"""
_PIECE = 65_536


class Clock:
    """Times what is queued on one device."""

    def __init__(self, runtime: Any) -> None:
        self._cupy = runtime.xp
        self._wait = self._cupy.RawKernel(_WAIT, "wait")

    def seconds(self, work: Callable[[], Any], repeats: int = _REPEATS) -> list[float]:
        """Return the device's time for `work`, queued again and again; the first run does not count."""
        cuda, found = self._cupy.cuda, []
        for _ in range(repeats + 1):
            start, stop = cuda.Event(), cuda.Event()
            self._wait((1,), (1,), (np.int64(_WAIT_CYCLES),))
            start.record()
            work()
            stop.record()
            stop.synchronize()
            found.append(cuda.get_elapsed_time(start, stop) / 1e3)
        return found[1:]


class _NoChecks(Encoder):
    """Does not wait for what the kernels refused: random rows are fine."""

    def _check(self, rows: Any, refused: Any, name: str, first_row: int) -> None:
        del rows, refused, name, first_row


def _gaussian(runtime: Runtime, rows: int, dim: int, seed: int = 0) -> Any:
    return runtime.xp.random.default_rng(seed).standard_normal((rows, dim), np.float32)


def _empty(runtime: Runtime, codec: Codec, rows: int) -> DeviceCodes:
    return DeviceCodes.like(runtime, StoredRows.allocate(codec, METRIC, BLOCK), rows)


def _segment(runtime: Runtime, codec: Codec, rows: int, query: Any, near: int) -> DeviceSegment:
    """Return encoded random rows, of which `near` are near to the query."""
    encoder, codes = _NoChecks(runtime, codec, METRIC), _empty(runtime, codec, rows)
    for start in range(0, rows, _PIECE):
        piece = _gaussian(runtime, min(_PIECE, rows - start), codec.dim, start + 2)
        if not start and near:
            piece[:: len(piece) // near][:near] *= DISTANCE
            piece[:: len(piece) // near][:near] += query
        encoder.encode_rows(piece, codes, at=start)
    no_ids, all_live = runtime.upload(NO_IDS), runtime.upload(ALL_LIVE)
    return DeviceSegment(codes, no_ids, all_live, 0, rows, rows)


def _encode(runtime: Runtime, codec: Codec, rows: int) -> Callable[[], Any]:
    encoder, vectors = _NoChecks(runtime, codec, METRIC), _gaussian(runtime, rows, codec.dim)
    codes = _empty(runtime, codec, rows)
    return lambda: encoder.encode_rows(vectors, codes)


def _search_one(near: int) -> Callable[[Runtime, Codec, int], Callable[[], Any]]:
    def prepare(runtime: Runtime, codec: Codec, rows: int) -> Callable[[], Any]:
        query = _gaussian(runtime, 1, codec.dim, 1)
        plan, segment = ScanPlan(codec, METRIC), _segment(runtime, codec, rows, query, near)
        encoder, margins = _NoChecks(runtime, codec, METRIC), deviations(plan, RESULTS, rows, EPS)

        def work() -> Any:
            queries = DeviceQueries.of(runtime, codec, encoder.encode_queries(query))
            return scan_rows_few(runtime, plan, queries, segment, no_best(runtime, 1, RESULTS), margins)

        return work

    return prepare


def _search_many(runtime: Runtime, codec: Codec, rows: int) -> Callable[[], Any]:
    given = _gaussian(runtime, MANY_QUERIES, codec.dim, 1)
    segment, encoder = _segment(runtime, codec, rows, given[:1], 0), _NoChecks(runtime, codec, METRIC)

    def work() -> Any:
        queries = DeviceQueries.of(runtime, codec, encoder.encode_queries(given))
        return scan_rows(runtime, codec, queries, segment, no_best(runtime, MANY_QUERIES, RESULTS))

    return work


_PREPARE = {
    encode: _encode,
    search_one: _search_one(NEAR_ROWS),
    search_one_far: _search_one(0),
    search_many: _search_many,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all cases on a device and write what was found as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tqindex.gpu.measure", description=main.__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--repeats", type=int, default=_REPEATS)
    options = parser.parse_args(arguments)
    runtime = open_device(0)
    found: dict[str, Any] = {"device": describe(0), "cases": {}}
    with runtime.guard():
        clock = Clock(runtime)
        for case in all_cases():
            if options.only not in case.name:
                continue
            times = clock.seconds(_PREPARE[case.task](runtime, case.codec, case.rows), options.repeats)
            found["cases"][case.name] = times
            print(
                f"{case.name}: {np.median(times) * 1e3:.3f} ms ({min(times) * 1e3:.3f}-{max(times) * 1e3:.3f})",
                flush=True,
            )
            options.output.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
