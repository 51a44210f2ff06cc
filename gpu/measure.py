"""Measures the cases of ROOFLINE.md on a GPU: `python -m tqindex.gpu.measure [--output FILE]`, a minute or two.

Times are of the device alone: a case is queued behind a kernel that waits, so that the host's time for queuing does not
count, and events before and after it tell how long it took. What it makes, `roofline.py` puts on the page.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tqindex.gpu.attention_cases import attention_cases
from tqindex.gpu.command import errors_in_one_line
from tqindex.gpu.cuda import describe, open_device
from tqindex.gpu.roofline_cases import all_cases
from tqindex.gpu.sources import hash_sources
from tqindex.storage.files import check_file_target

MEASURED = Path(__file__).parent / "measured.json"
_REPEATS = 15
#: How long the kernel before a case waits, in clocks of at most 2 GHz: longer than it takes to queue a case.
_WAIT_CLOCKS = 10_000_000
_WAIT = """extern "C" __global__ void wait(long long clocks) {
  const long long start = clock64();
  while (clock64() - start < clocks) continue;
}"""


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes
    ----------
    device : as `tqindex.gpu.cuda.describe` has it
    sources : str, hash of the kernels, .cu and .cuh; what starts them is not in it
    seconds : dict, by the case's name; of each run in turn, the first left out
    """

    device: dict[str, Any]
    sources: str
    seconds: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path = MEASURED) -> "Measured":
        """Return what was written."""
        return cls(**json.loads(path.read_text()))

    def write(self, path: Path) -> None:
        """Write it."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


class Clock:
    """Times what is queued on the current device of `cupy`."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._wait = cupy.RawKernel(_WAIT, "wait")

    def seconds(self, work: Callable[[], Any], repeats: int) -> list[float]:
        """Return the device's time for `work`, queued again and again; the first run does not count."""
        cuda, found = self._cupy.cuda, []
        for _ in range(repeats + 1):
            start, stop = cuda.Event(), cuda.Event()
            self._wait((1,), (1,), (np.int64(_WAIT_CLOCKS),))
            start.record()
            work()
            stop.record()
            stop.synchronize()
            found.append(cuda.get_elapsed_time(start, stop) / 1e3)
        return found[1:]


def main(arguments: Sequence[str] | None = None) -> None:
    """Time the cases of ROOFLINE.md on the first GPU, tell each, and write all times to a JSON file at the end."""
    parser = argparse.ArgumentParser(
        prog="python -m tqindex.gpu.measure",
        description=main.__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, default=MEASURED, help="the JSON file; the default is what tqindex.gpu.roofline reads"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="measure and write only cases whose names have this")
    parser.add_argument("--repeats", type=int, default=_REPEATS, help="timed runs of each case")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats must be 1 or more, got {options.repeats}")
    with errors_in_one_line():
        check_file_target(options.output)
        _measure(options.output, options.only, options.repeats)


def _measure(output: Path, only: str, repeats: int) -> None:
    runtime, measured = open_device(), Measured(describe(), hash_sources())
    with runtime.guard():
        clock = Clock(runtime.xp)
        for case in (*all_cases(), *attention_cases()):
            if only not in case.name:
                continue
            task = case.prepare(runtime, case.codec, case.rows)
            times = measured.seconds[case.name] = clock.seconds(task.work, repeats)
            least, median, most = (f"{np.quantile(times, share) * 1e3:.3f}" for share in (0, 0.5, 1))
            sys.stdout.write(f"{case.name}: {median} ms ({least}-{most})\n")
            sys.stdout.flush()
    measured.write(output)


if __name__ == "__main__":
    main()
