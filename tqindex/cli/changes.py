"""Changing an index from a file of vectors."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from tqindex.cli.warmup import any_rows
from tqindex.errors import VectorError
from tqindex.index import Index
from tqindex.readers import VectorFile


@dataclass(frozen=True)
class Added:
    """The ids of the vectors that were added, int64, and how long it took."""

    ids: npt.NDArray[np.int64]
    seconds: float


def add_file(
    index: Index, vectors: VectorFile, ids: npt.NDArray[np.int64] | None, threads: int | None, device: str
) -> Added:
    """Add a whole file to an index on a device. The clock starts when the kernels are compiled."""
    Index(index.dim, metric=index.metric, codec=index.codec, device=device).add(any_rows(index.dim))  # compiles them
    start = time.perf_counter()
    with _progress_bar(len(vectors)) as progress:
        added = index.add(vectors, ids, threads, progress)
    return Added(added, time.perf_counter() - start)


def check_width(vectors: VectorFile, path: Path, index: Index) -> None:
    """Refuse vectors of another width than the index at `path` has."""
    if vectors.shape[1] != index.dim:
        raise VectorError(
            f"{vectors.path}: vectors must have {index.dim} columns as {path} has, got {vectors.shape[1]}"
        )


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed or 0.0
        return Text(f"{speed:,.0f} vectors/s")


@contextmanager
def _progress_bar(total: int) -> Iterator[Callable[[int], None] | None]:
    """Show a bar on stderr if it is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("encoding"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("encoding", total=total)
        yield lambda done: bar.update(task, completed=done)
