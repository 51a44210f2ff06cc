"""`tqindex bench report`: pages and plots from results."""

import os
from pathlib import Path

import click

from tqindex.bench.report import PLOTS, write_report


@click.command()
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=Path("benchmarks/results"),
    show_default=True,
    help="Folder that holds a folder of result files for each size.",
)
@click.option("--size", type=click.Choice(["test", "base", "paper"]), default="base", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="Where to write; default: beside the result files.")
@click.option(
    "--readme", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Also fill the blocks of this file."
)
def report(results: Path, size: str, output: Path | None, readme: Path | None) -> None:
    """Write README.md, report.html and plots (SVG, PNG) from results alone."""
    folder = results / size
    output = output or folder
    for path in write_report(folder, output):
        click.echo(path)
    if readme is not None:
        _fill(readme, folder, output)


def _fill(readme: Path, folder: Path, output: Path) -> None:
    from tqindex.bench.report.readme import fill_blocks
    from tqindex.bench.report.results import load_results

    plots = Path(os.path.relpath(output / PLOTS, readme.parent)).as_posix()
    filled = fill_blocks(readme.read_text(encoding="utf-8"), load_results(folder), plots)
    readme.write_text(filled.text, encoding="utf-8")
    click.echo(readme)
    if filled.missing:
        click.echo(f"No results for the blocks {', '.join(filled.missing)}: left as they are.", err=True)


if __name__ == "__main__":
    report()
