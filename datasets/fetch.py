"""Fetch a data set that is too large to commit, check it, and write it in ann-benchmarks form.

    python datasets/fetch.py glove-200
    python datasets/fetch.py dbpedia-openai3-1536 --rows 100000 --queries 1000

See datasets/README.md. Needs an installed tqindex; the dbpedia sets need its extra [datasets].
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import h5py
import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from tqindex.bench import fetch
from tqindex.bench.exact import row_blocks, write_ann_hdf5
from tqindex.errors import TQIndexError

NEIGHBORS = 100  # per query, as in ann-benchmarks


@dataclass(frozen=True)
class AnnBenchmarks:
    """A file that is already in ann-benchmarks form: rows x dim base, queries x dim queries."""

    server: str
    path: str
    distance: str
    rows: int
    queries: int
    dim: int


@dataclass(frozen=True)
class HuggingFace:
    """A column of unit vectors in the parquet files of a dataset repository."""

    server: str
    repository: str
    column: str
    dim: int
    rows: int = 100_000
    queries: int = 1_000


def _dbpedia(dim: int) -> HuggingFace:
    repository = f"Qdrant/dbpedia-entities-openai3-text-embedding-3-large-{dim}-1M"
    return HuggingFace("https://huggingface.co", repository, f"text-embedding-3-large-{dim}-embedding", dim)


RECIPES: dict[str, AnnBenchmarks | HuggingFace] = {
    "glove-200": AnnBenchmarks(
        "https://ann-benchmarks.com", "glove-200-angular.hdf5", "angular", 1_183_514, 10_000, 200
    ),
    "dbpedia-openai3-1536": _dbpedia(1536),
    "dbpedia-openai3-3072": _dbpedia(3072),
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog=f"NAME is one of {', '.join(RECIPES)}.")
@click.argument("name", metavar="NAME", type=click.Choice(list(RECIPES)))
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(__file__).parent,
    help="Where the files go; by default beside this script.",
)
@click.option("--rows", type=click.IntRange(min=1), help="Base vectors: the first ROWS of the source.")
@click.option("--queries", type=click.IntRange(min=1), help="Query vectors; the README says which they are.")
@click.option("--base-url", metavar="URL", help="A mirror with the same paths, such as http://localhost:8000.")
def main(name: str, directory: Path, rows: int | None, queries: int | None, base_url: str | None) -> None:
    """Fetch the data set NAME and write it in ann-benchmarks HDF5 form.

    A download that was cut or stopped resumes when the same command is given again. A data set that is
    already there is left as it is.
    """
    recipe = RECIPES[name]
    if base_url is not None and not base_url.startswith(("http://", "https://")):
        raise click.BadParameter(f"must begin with http:// or https://; got {base_url}", param_hint="--base-url")
    server = (base_url or recipe.server).rstrip("/")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if isinstance(recipe, AnnBenchmarks):
            output = _fetch_ann_benchmarks(name, recipe, directory, rows, queries, server)
        else:
            output = _fetch_hugging_face(
                name, recipe, directory, rows or recipe.rows, queries or recipe.queries, server
            )
    except (TQIndexError, OSError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        raise click.ClickException("stopped; what has arrived is kept, and the same command resumes") from None
    click.echo(output)


def _fetch_ann_benchmarks(
    name: str, recipe: AnnBenchmarks, directory: Path, rows: int | None, queries: int | None, server: str
) -> Path:
    """The whole file, or a file of its first rows and queries with neighbours computed anew."""
    rows, queries = rows or recipe.rows, queries or recipe.queries
    for option, value, limit in (("--rows", rows, recipe.rows), ("--queries", queries, recipe.queries)):
        if value > limit:
            raise click.BadParameter(f"must be at most {limit} for {name}; got {value}", param_hint=option)
    whole = directory / f"{name}.h5"
    subset = rows < recipe.rows or queries < recipe.queries
    output = directory / f"{name}-{rows}-{queries}.h5" if subset else whole
    if _is_there(output, recipe.distance, rows, queries, recipe.dim):
        return output
    url = f"{server}/{recipe.path}"
    if not _is_there(whole, recipe.distance, recipe.rows, recipe.queries, recipe.dim):
        _download(url, whole, partial(_check_published, recipe=recipe))
    if subset:
        click.echo(f"computing neighbours among the first {rows} rows", err=True)
        source = f"{url}: first {rows} of train, first {queries} of test, neighbours computed by tqindex"
        with h5py.File(whole, "r") as file:
            write_ann_hdf5(
                output,
                row_blocks(file["train"], rows),
                file["test"][:queries],
                None,
                None,
                recipe.distance,
                source,
                k=min(NEIGHBORS, rows),
            )
    return output


def _check_published(path: Path, recipe: AnnBenchmarks) -> None:
    # No checksum of this file is published, so its form and a few of its neighbours are checked instead.
    shapes = (recipe.rows, recipe.dim), (recipe.queries, recipe.dim)
    fetch.check_ann_hdf5(path, recipe.distance, *shapes)
    fetch.check_neighbors(path)


def _fetch_hugging_face(name: str, recipe: HuggingFace, directory: Path, rows: int, queries: int, server: str) -> Path:
    """As many parquet files as the rows need: the first rows are the base, the rows after them the queries."""
    output = directory / f"{name}-{rows}-{queries}.h5"
    if _is_there(output, "angular", rows, queries, recipe.dim):
        return output
    if importlib.util.find_spec("pyarrow") is None:
        raise click.ClickException(f"{name} needs pyarrow: pip install 'tqindex[datasets]'")
    paths = _download_rows(recipe, directory / f"{name}-parquet", rows + queries, server)
    click.echo(f"converting {rows} + {queries} rows and computing neighbours", err=True)
    read = partial(fetch.parquet_vectors, paths, recipe.column, recipe.dim)
    names = ", ".join(path.name for path in paths)
    source = (
        f"Hugging Face {recipe.repository}, column {recipe.column}, files {names}: "
        f"the first {rows} rows are train, the next {queries} are test, neighbours computed by tqindex"
    )
    test = np.concatenate(list(read(rows, rows + queries)))
    write_ann_hdf5(output, read(0, rows), test, None, None, "angular", source, k=min(NEIGHBORS, rows))
    click.echo(f"{paths[0].parent} is no longer needed, unless for other --rows", err=True)
    return output


def _download_rows(recipe: HuggingFace, directory: Path, wanted: int, server: str) -> list[Path]:
    """Files of the repository, in order, until they hold the wanted rows."""
    directory.mkdir(exist_ok=True)
    paths: list[Path] = []
    rows = 0
    for file in fetch.list_parquet(server, recipe.repository):
        path = directory / file.name
        if not _is_same(file, path):
            _download(file.url, path, file.check)
        paths.append(path)
        rows += fetch.parquet_rows(path)
        if rows >= wanted:
            return paths
    raise click.ClickException(f"{recipe.repository} must hold {wanted} rows (--rows + --queries); got {rows}")


def _is_same(file: fetch.RemoteFile, path: Path) -> bool:
    """Whether `path` is there and is the listed file; one that differs is fetched anew."""
    if not path.exists():
        return False
    try:
        file.check(path)
    except fetch.DownloadError:
        return False
    return True


def _is_there(path: Path, distance: str, rows: int, queries: int, dim: int) -> bool:
    """Whether an earlier run has written `path`: it gets its name only after all checks, so form is enough."""
    if not path.exists():
        return False
    fetch.check_ann_hdf5(path, distance, (rows, dim), (queries, dim))
    return True


def _download(url: str, target: Path, check: fetch.Check) -> None:
    with _progress(target.name) as progress:
        fetch.download(url, target, check, progress)


@contextmanager
def _progress(label: str) -> Iterator[fetch.Progress]:
    """A bar on a terminal's standard error; nothing elsewhere."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


if __name__ == "__main__":
    main()
