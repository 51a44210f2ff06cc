"""Commands: thin over the library."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from tqindex.bench.command import bench
from tqindex.checks import MAX_DIM, check_choice, check_integer
from tqindex.cli import INTERRUPTED, output
from tqindex.cli.build import build_index
from tqindex.cli.changes import add_file, check_width
from tqindex.cli.hits import check_output, write_hits
from tqindex.cli.ids import read_ids
from tqindex.cli.kv import kv
from tqindex.cli.warmup import announce_compilation, compile_kernels
from tqindex.codec.codec import KINDS, METRICS, SKETCHES
from tqindex.errors import ArgumentError, TQIndexError, VectorError
from tqindex.index.search import FEW_QUERIES
from tqindex.index.searching import MAX_K
from tqindex.kernels.compile import cache_folder
from tqindex.kernels.cpu import simd_level
from tqindex.readers import VectorFile, open_vectors
from tqindex.readers.truth import measure_recall
from tqindex.storage import load, verify
from tqindex.storage.lock import writer_lock
from tqindex.storage.save import check_target

_WRONG_INPUT = 2


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit code: 0, 2 for wrong input, 130 after Ctrl-C."""
    try:
        code = cli.main(args=arguments, prog_name="tqindex", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return _WRONG_INPUT
    except click.ClickException as error:
        return _fail(error.format_message())
    except TQIndexError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename or 'system'}: {error.strerror or error}")
    except MemoryError as error:
        return _fail(f"not enough memory: {error}")
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def _fail(message: str) -> int:
    """Print an error as one line, whatever names of files hold."""
    click.echo(f"Error: {' '.join(message.splitlines())}", err=True)
    return _WRONG_INPUT


@contextmanager
def _naming(file: VectorFile) -> Iterator[None]:
    """Say of vectors that cannot be used which file they are from."""
    try:
        yield
    except VectorError as error:
        raise VectorError(f"{file.path}: {error}") from error


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tqindex", message=f"%(prog)s %(version)s, kernels for {simd_level()}")
def cli() -> None:
    """Build and search vector indexes that need no training."""


cli.add_command(bench)
cli.add_command(kv)

_threads = click.option("--threads", type=int, help="Threads to use; default: every CPU that the process may use.")
_force = click.option("--force", is_flag=True, help="Replace an output that exists.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_device = click.option(
    "--device", default="cpu", show_default=True, help="Where vectors are encoded and searched: cpu, gpu or gpu:N."
)
_dataset = click.option("--dataset", help="Which dataset of an HDF5 file holds the vectors.")


@cli.command("build")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), help="Index directory; default: FILE.tq.")
@_dataset
@click.option("--bits", type=int, default=4, show_default=True, help="Bits per coordinate: 1, 2, 3, 4 or 8.")
@click.option("--metric", help="cosine, ip or l2; default: what the file states, else cosine.")
@click.option("--center", type=str, default="auto", show_default=True, help="auto: the mean of a sample; or none.")
@click.option(
    "--codec",
    default="mse",
    show_default=True,
    help="mse; prod: one of the bits is a QJL sketch; or trellis: more accurate, slower to encode.",
)
@click.option("--sketch", default="orthogonal", show_default=True, help="For prod: orthogonal or gaussian.")
@click.option("--scale", default="unbiased", show_default=True, help="unbiased, or paper for comparison.")
@click.option("--rotation", help="hadamard or dense; default: dense below 64 dimensions.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the rotation.")
@click.option("--effort", default="plain", show_default=True, help="plain; or search: slower, more accurate codes.")
@_threads
@_device
@_force
def build_command(
    file: Path,
    target: Path | None,
    dataset: str | None,
    metric: str | None,
    center: str,
    threads: int | None,
    device: str,
    force: bool,
    **codec: Any,
) -> None:
    """Build an index from FILE (HDF5, .npy, .fbin or .fvecs).

    The file is read once, in blocks; memory stays within the index plus a few blocks. HDF5 files in
    ann-benchmarks form (train, test, neighbors, distances) are recognised. --center auto subtracts the mean of up
    to 4,096 rows from vectors and queries, which makes scores more accurate; none is strictly data-oblivious.
    """
    check_choice("--center", center, ("auto", "none"))
    check_choice("--codec", codec["codec"], KINDS)
    if check_choice("--sketch", codec["sketch"], SKETCHES) != "orthogonal" and codec["codec"] != "prod":
        raise ArgumentError("--sketch must go with --codec prod: without it there is no sketch")
    if metric is not None:
        check_choice("--metric", metric, METRICS)
    with open_vectors(file, dataset) as vectors:
        target = file.with_suffix(".tq") if target is None else target
        check_target(target.absolute(), force)
        if metric is None and vectors.metric is None and vectors.distance is not None:
            raise ArgumentError(f"{file} states distance {vectors.distance!r}: --metric must say what to use instead")
        chosen = metric or vectors.metric or "cosine"
        kind = codec.pop("codec")
        dim = check_integer(f"{file}: number of columns", vectors.shape[1], 2, MAX_DIM)
        announce_compilation()
        with _naming(vectors):
            parameters = {"dim": dim, "kind": kind, **codec}
            built = build_index(vectors, chosen, center == "auto", parameters, threads, device)
        built.index.save(target, overwrite=force)
        output.print_build(target, vectors, built)


@cli.command("search")
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("queries", type=click.Path(path_type=Path))
@click.option("-k", type=int, default=10, show_default=True, help="Results per query.")
@_dataset
@click.option(
    "-o", "--output", "target", type=click.Path(path_type=Path), help="Write ids and scores to this HDF5 file."
)
@_json
@_threads
@_device
@_force
def search_command(
    index: Path,
    queries: Path,
    k: int,
    dataset: str | None,
    target: Path | None,
    as_json: bool,
    threads: int | None,
    device: str,
    force: bool,
) -> None:
    """Search INDEX for the vectors in the file QUERIES.

    Of an ann-benchmarks file `test` is taken. Where QUERIES brings exact neighbours, recall is reported: a result
    counts when its true score is no worse than that of the k-th neighbour.
    """
    check_integer("k", k, 1, MAX_K)
    if target is not None:
        check_output(target, force)
    opened = load(index, mmap=False, device=device)
    with open_vectors(queries, dataset, role="queries") as file:
        check_width(file, index, opened)
        rows = file[:]
        announce_compilation()
        with _naming(file):
            # Compiles the kernels for few and for many queries, so that the rate below is the search's.
            opened.search(rows[:1], k, threads)
            if len(rows) > 1:
                opened.search(rows[: FEW_QUERIES + 1], k, threads)
            start = time.perf_counter()
            result = opened.search(rows, k, threads)
            seconds = time.perf_counter() - start
        recall = measure_recall(file, result.ids, opened.metric, len(opened))
    if target is not None:
        write_hits(target, result, opened.metric, recall)
    if as_json:
        output.print_hits_json(result, opened.metric, recall, seconds, opened.device)
    else:
        output.print_hits(result, opened.metric, recall, seconds, opened.device, target)


@cli.command("add")
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@_dataset
@click.option("--ids", "names", help="Integer dataset of FILE, or a text file with one id per line; - reads stdin.")
@_threads
@_device
def add_command(
    index: Path, file: Path, dataset: str | None, names: str | None, threads: int | None, device: str
) -> None:
    """Add the vectors in FILE to INDEX, all of them or none.

    FILE is read as by build. Without --ids, ids continue after the largest one so far.
    """
    with open_vectors(file, dataset) as vectors:
        ids = None if names is None else read_ids(names, vectors)  # may wait for input: nobody is to wait for us
        with writer_lock(index):
            opened = load(index, device=device)
            check_width(vectors, index, opened)
            announce_compilation()
            with _naming(vectors):
                added = add_file(opened, vectors, ids, threads, device)
            opened.save(index)
        output.print_added(index, vectors, opened, added, names)


@cli.command("remove")
@click.argument("index", type=click.Path(path_type=Path))
@click.option("--ids", "names", required=True, help="Text file with one id per line; - reads stdin.")
def remove_command(index: Path, names: str) -> None:
    """Remove vectors from INDEX by their ids, all of them or none.

    Their bytes stay in INDEX until it is compacted.
    """
    ids = read_ids(names)
    with writer_lock(index):
        opened = load(index)
        opened.remove(ids)
        opened.save(index)
    output.print_removed(index, len(ids), opened.info())


@cli.command("compact")
@click.argument("index", type=click.Path(path_type=Path))
def compact_command(index: Path) -> None:
    """Rewrite INDEX without its removed vectors, in full segments.

    Ids and scores stay as they are. Segments that are full and have lost nothing are not rewritten.
    """
    with writer_lock(index):
        opened = load(index, mmap=False)  # compares checksums: what is rewritten gets new ones
        before = opened.info()
        opened.compact()
        opened.save(index)
    output.print_compacted(index, before, opened.info())


@cli.command("info")
@click.argument("index", type=click.Path(path_type=Path))
@_json
def info_command(index: Path, as_json: bool) -> None:
    """Show what INDEX holds and what it costs per vector."""
    output.print_info(index, load(index).info(), as_json)


@cli.command("verify")
@click.argument("index", type=click.Path(path_type=Path))
def verify_command(index: Path) -> None:
    """Check every file of INDEX against its checksum."""
    found = verify(index)
    output.print_verified(index, found)


@cli.command("warmup")
def warmup_command() -> None:
    """Compile all kernels now, so that no later command waits for it."""
    announce_compilation()
    start = time.perf_counter()
    compile_kernels()
    click.echo(
        f"kernels   {simd_level()}, ready in {time.perf_counter() - start:.1f} s, kept in {cache_folder() or 'memory'}"
    )
