"""Runs launches again in programs built with AddressSanitizer and UBSan, or with ThreadSanitizer."""

import os
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.gpu.host.build import Sanitizer, compile_program
from tqindex.gpu.host.call import SCHEDULES, Schedule, dim3
from tqindex.gpu.host.runtime import HostRuntime
from tqindex.gpu.runtime import Kernel, Launch
from tqindex.gpu.sources import define_options, read_source

_OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1", "TSAN_OPTIONS": "exitcode=66"}
_TIMEOUT_S = 120


@dataclass(frozen=True, eq=False)
class RecordedLaunch:
    """A launch, with its arguments as they were before it."""

    source: str
    defines: tuple[str, ...]
    name: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    args: tuple[Any, ...]

    def run(self, sanitizer: Sanitizer, schedule: Schedule = "shuffled") -> tuple[str, list[npt.NDArray[Any]]]:
        """Run it in a process of its own; return what was reported, nothing if all is well, and the arrays after it."""
        program = compile_program(self.source, self.defines, sanitizer)
        arrays = [np.asarray(arg) for arg in self.args]
        header = struct.pack("6IiII", *dim3(self.grid), *dim3(self.block), SCHEDULES.index(schedule), 0, len(self.args))
        sizes = [struct.pack("QQ", a.nbytes, isinstance(g, np.ndarray)) for a, g in zip(arrays, self.args, strict=True)]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "launch"
            start = b"".join([header, *sizes])
            file.write_bytes(b"".join([start, *(array.tobytes() for array in arrays)]))
            environment = {**os.environ, **_OPTIONS}
            done = subprocess.run(
                [program, self.name, file],
                env=environment,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
            after = file.read_bytes()[len(start) :]
        report = done.stderr or (f"exit code {done.returncode}" if done.returncode else "")
        ends = np.cumsum([array.nbytes for array in arrays])
        parts = [after[end - a.nbytes : end] for a, end in zip(arrays, ends, strict=True)]
        return report, [np.frombuffer(p, a.dtype).reshape(a.shape) for p, a in zip(parts, arrays, strict=True)]


class RecordingRuntime(HostRuntime):
    """The host run, which also keeps every launch.

    Attributes
    ----------
    launches : list of RecordedLaunch
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[RecordedLaunch] = []

    def function(self, kernel: Kernel) -> Launch:
        """Return what records a launch and carries it out."""
        launch, source, defines = super().function(kernel), read_source(kernel.source), define_options(kernel)

        def record(grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], shared_mem: int = 0) -> None:
            kept = tuple(arg.copy() for arg in args)
            self.launches.append(RecordedLaunch(source, defines, kernel.name, grid, block, kept))
            launch(grid, block, args, shared_mem)

        return record
