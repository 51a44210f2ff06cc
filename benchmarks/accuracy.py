"""Recall and size of every codec on an ann-benchmarks file: `python -m tqindex.bench.accuracy FILE`.

Prints a Markdown table: recall@10 and recall 1@1, means over rotation seeds with the range, against the file's
exact neighbours, and measured bytes per vector.
"""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import click
import numpy as np
import numpy.typing as npt

from tqindex.cli.build import sample_mean
from tqindex.codec import Codec
from tqindex.index import Index
from tqindex.readers import VectorFile, open_vectors
from tqindex.readers.truth import measure_recall

_K = 10
#: Label, codec parameters, widths.
_CODECS: tuple[tuple[str, dict[str, Any], tuple[int, ...]], ...] = (
    ("mse", {"kind": "mse"}, (1, 2, 3, 4, 8)),
    ("mse, effort search", {"kind": "mse", "effort": "search"}, (2, 3, 4)),
    ("mse, paper's scale", {"kind": "mse", "scale": "paper"}, (2, 3, 4)),
    ("prod, orthogonal sketch", {"kind": "prod", "sketch": "orthogonal"}, (2, 3, 4)),
    ("prod, Gaussian sketch (paper)", {"kind": "prod", "sketch": "gaussian"}, (2, 3, 4)),
)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--seeds", default=5, show_default=True, help="Rotation seeds to average over.")
@click.option("--rotation", help="hadamard or dense; default: as the codec chooses.")
def main(file: Path, seeds: int, rotation: str | None) -> None:
    """Measure every codec on FILE (ann-benchmarks form), without a centre and with one."""
    with open_vectors(file) as base, open_vectors(file, role="queries") as queries:
        metric = base.metric or "cosine"
        vectors, rows = base[:], queries[:]
        mean = sample_mean(base, metric)
        print(f"{file.name}: {len(base):,} x {base.shape[1]}, {len(queries):,} queries, {metric}, k = {_K}")
        print(f"means over {seeds} rotation seeds (range of recall@10); {_machine()}\n")
        print("| codec | bits | bytes/vector | recall@10 | recall 1@1 | centred: recall@10 | recall 1@1 |")
        print("|---|---|---|---|---|---|---|")
        for label, parameters, widths in _CODECS:
            for bits in widths:
                plain, centred = (
                    _measure(_codecs(base, bits, parameters, center, rotation, seeds), metric, vectors, rows, queries)
                    for center in (None, mean)
                )
                sizes = f"{plain.bytes:.0f} / {centred.bytes:.0f}"
                cells = f"{plain.ten} | {plain.one} | {centred.ten} | {centred.one}"
                print(f"| {label} | {bits} | {sizes} | {cells} |", flush=True)


def _codecs(
    base: VectorFile, bits: int, parameters: dict[str, Any], center: Any, rotation: str | None, seeds: int
) -> list[Codec]:
    kind = cast(Any, rotation)
    return [Codec(base.shape[1], bits, **parameters, center=center, rotation=kind, seed=seed) for seed in range(seeds)]


class _Row(NamedTuple):
    bytes: float
    ten: str
    one: str


def _measure(
    codecs: list[Codec],
    metric: str,
    vectors: npt.NDArray[Any],
    rows: npt.NDArray[Any],
    queries: VectorFile,
) -> _Row:
    """Return bytes per vector, recall@10 and recall 1@1 over the codecs."""
    ten, one, size = [], [], 0.0
    for codec in codecs:
        index = Index(codec.dim, metric=cast(Literal["ip", "cosine", "l2"], metric), codec=codec)
        index.add(vectors)
        ids = index.search(rows, _K).ids
        ten.append(measure_recall(queries, ids, metric, len(index)).value)
        one.append(measure_recall(queries, ids[:, :1], metric, len(index)).value)
        size = index.info()["bytes_per_vector"]
    return _Row(size, f"{np.mean(ten):.3f} ({np.min(ten):.3f}-{np.max(ten):.3f})", f"{np.mean(one):.3f}")


def _machine() -> str:
    return (
        f"Python {platform.python_version()}, NumPy {version('numpy')}, Numba {version('numba')}, {platform.machine()}"
    )


if __name__ == "__main__":
    main()
