"""Changing an index from a file of vectors."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tqindex.cli.build import progress_bar
from tqindex.cli.warmup import any_rows
from tqindex.errors import VectorError
from tqindex.index import Index
from tqindex.readers import VectorFile


@dataclass(frozen=True)
class Added:
    """The ids of the vectors that were added, int64, and how long it took."""

    ids: npt.NDArray[np.int64]
    seconds: float


def add_file(index: Index, vectors: VectorFile, ids: npt.NDArray[np.int64] | None, threads: int | None) -> Added:
    """Add a whole file. The clock starts when the kernels are compiled."""
    Index(index.dim, metric=index.metric, codec=index.codec).add(any_rows(index.dim))  # compiles them
    start = time.perf_counter()
    with progress_bar(len(vectors)) as progress:
        added = index.add(vectors, ids, threads, progress)
    return Added(added, time.perf_counter() - start)


def check_width(vectors: VectorFile, path: Path, index: Index) -> None:
    """Refuse vectors of another width than the index at `path` has."""
    if vectors.shape[1] != index.dim:
        raise VectorError(
            f"{vectors.path}: vectors must have {index.dim} columns as {path} has, got {vectors.shape[1]}"
        )
