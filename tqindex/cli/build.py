"""Building an index from a file of vectors."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from tqindex.checks import as_rows
from tqindex.cli.warmup import any_rows
from tqindex.codec import Codec
from tqindex.codec.codec import normalise
from tqindex.index import Index
from tqindex.readers import VectorFile

#: A centre from 32 rows serves as well as one from all (measured); this many leave a margin.
CENTER_ROWS = 4096
_CENTER_BLOCKS = 64


@dataclass(frozen=True)
class Built:
    """A new index and how it was made."""

    index: Index
    center_rows: int
    seconds: float


def build_index(
    vectors: VectorFile, metric: str, centred: bool, parameters: dict[str, Any], threads: int | None
) -> Built:
    """Encode a whole file; `parameters` are the codec's. The clock starts when the kernels are compiled."""
    Codec(**parameters)  # refuses wrong parameters before the file is read
    center = sample_mean(vectors, metric) if centred else None
    codec = Codec(**parameters, center=center)
    of_metric = cast(Literal["ip", "cosine", "l2"], metric)
    Index(codec.dim, metric=of_metric, codec=codec).add(any_rows(codec.dim))  # compiles the kernels
    index = Index(codec.dim, metric=of_metric, codec=codec)
    start = time.perf_counter()
    with progress_bar(len(vectors)) as progress:
        index.add(vectors, threads=threads, progress=progress)
    return Built(index, min(len(vectors), CENTER_ROWS) if centred else 0, time.perf_counter() - start)


def sample_mean(vectors: VectorFile, metric: str) -> npt.NDArray[np.float32]:
    """Mean of up to 64 contiguous blocks of 64 rows spread over the file; under "cosine" of normalised rows."""
    n, dim = vectors.shape
    total = np.zeros(dim)
    for block in _sample_blocks(n):
        rows = as_rows(vectors[block], dim, "vectors", first_row=block.start)
        if metric == "cosine":
            rows = normalise(rows, "vectors", first_row=block.start)
        total += rows.sum(axis=0, dtype=np.float64)
    return (total / min(n, CENTER_ROWS)).astype(np.float32)


def _sample_blocks(n: int) -> list[slice]:
    if n <= CENTER_ROWS:
        return [slice(0, n)]
    length = CENTER_ROWS // _CENTER_BLOCKS
    starts = [i * (n - length) // (_CENTER_BLOCKS - 1) for i in range(_CENTER_BLOCKS)]
    return [slice(start, start + length) for start in starts]


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed or 0.0
        return Text(f"{speed:,.0f} vectors/s")


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[int], None] | None]:
    """Show a bar on stderr if it is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("encoding"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("encoding", total=total)
        yield lambda done: bar.update(task, completed=done)
