"""The command `tqindex bench`. What measures is imported when a command runs: `tqindex --help` needs none of it."""

import importlib
from pathlib import Path
from typing import Any

import click

_SIZES = ("test", "base", "paper")
_OWN_FILE_RESULTS = Path("bench-results")
_RESULTS = Path("benchmarks/results")
#: Commands of other modules, imported when they are asked for.
_ELSEWHERE = {"report": ("tqindex.bench.report.command", "report")}


class _Group(click.Group):
    """Commands, and `bench FILE` for `bench run --file FILE`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_ELSEWHERE])

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in _ELSEWHERE:
            module, attribute = _ELSEWHERE[name]
            found: click.Command = getattr(importlib.import_module(module), attribute)
            return found
        return super().get_command(ctx, name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            raise click.ClickException(f"this needs the package {error.name}: pip install 'tqindex[bench]'") from error

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            args = ["run", "--file", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Group)
def bench() -> None:
    """Measure tqindex beside other packages.

    `tqindex bench FILE` runs the suites recall, indexing and search on vectors of your own, as `bench run --file FILE`.
    It says what it is at; product quantisers of 1,000 dimensions and more train for minutes.
    """


@bench.command("run")
@click.argument("suites", nargs=-1, metavar="[SUITE]...")
@click.option("--size", type=click.Choice(_SIZES), default="base", show_default=True, help="How much is measured.")
@click.option("--set", "names", multiple=True, help="Only this data set; may be given several times.")
@click.option("--file", type=click.Path(path_type=Path), help="Vectors of your own, in the place of the data sets.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of the data sets; default: TQINDEX_DATA. After it a clone's ../shared/data and datasets are searched.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu; or gpu, gpu:N: tqindex alone, without peers.")
@click.option("--results", type=click.Path(path_type=Path), help=f"Folder of result files; default: {_RESULTS}.")
def run_command(
    suites: tuple[str, ...],
    size: str,
    names: tuple[str, ...],
    file: Path | None,
    data: Path | None,
    device: str,
    results: Path | None,
) -> Any:
    """Run suites: recall, indexing, search, scale, distortion, threads; all of them by default.

    Result files are written after every step. What they hold already is not measured again, unless its settings, the
    packages or the kernels have changed since: run again, the same command goes on where it stopped.
    """
    from tqindex.bench.runner import run, tasks
    from tqindex.index.engine import open_engine

    if file and names:
        raise click.UsageError("--file stands in the place of the data sets: leave out --set")
    folder = results or (_OWN_FILE_RESULTS if file else _RESULTS)
    open_engine(device)  # refuses one that cannot be used before anything is measured
    return run(tasks(suites, size, names, file, data, folder, device), folder)


@bench.command("peers")
def peers_command() -> None:
    """Show which packages are here to be compared, and how to install the others."""
    from tqindex.bench.peers import PACKAGES, package_version

    for package in PACKAGES.values():
        found = package_version(package.name)
        click.echo(f"{package.name:<10} {found or f'absent: {package.command}'}")
