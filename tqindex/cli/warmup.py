"""Compiling kernels ahead of their first use."""

import sys

import click
import numpy as np
import numpy.typing as npt

from tqindex.index import Index
from tqindex.index.search import FEW_QUERIES
from tqindex.kernels.compile import cache_folder


def compile_kernels() -> None:
    """Compile every kernel: both rotations, all kinds, both efforts, single queries and batches, compaction."""
    forms = (8, "mse", "plain"), (64, "prod", "plain"), (64, "mse", "search"), (8, "trellis", "plain")
    for dim, kind, effort in forms:
        rows = any_rows(dim)
        index = Index(dim, codec=kind, center=np.full(dim, 0.1), effort=effort)  # type: ignore[arg-type]
        index.add(rows)
        index.search(rows[0], 1)
        index.search(rows, 1)
        index.remove([0])
        index.compact()


def any_rows(dim: int) -> npt.NDArray[np.float32]:
    """Return so many rows, float32 (16, dim), that adding and searching them runs the kernels for many rows."""
    return np.tile(np.eye(1, dim, dtype=np.float32), (2 * FEW_QUERIES, 1))


def announce_compilation() -> None:
    """Say on a terminal that the first run takes longer, where no compiled kernels are kept yet."""
    folder = cache_folder()
    if sys.stderr.isatty() and (folder is None or not any(folder.iterdir())):
        click.echo("Compiling kernels; this takes some seconds, once per version.", err=True)
