"""Data sets of benchmarks: found, loaded, made, with exact neighbours and with queries that are not in the base."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tqindex.bench.config import set_tables
from tqindex.checks import check_finite
from tqindex.codec.codec import normalise
from tqindex.errors import ArgumentError
from tqindex.readers import open_vectors

Float32Array = npt.NDArray[np.float32]
Metric = Literal["cosine", "ip", "l2"]

_ROOT = Path(__file__).parents[1]
#: Queries taken out of a base that brings none, and the largest share of it that they may be.
_HELD_OUT, _HELD_OUT_SHARE = 1000, 0.1
#: Length of the noise that is added to a row of length 1.
_NOISE = 0.2


@dataclass(frozen=True)
class Source:
    """A data set that is at hand, before it is read.

    Attributes
    ----------
    name, title : str
    path : Path or None
        The file that it comes from.
    recipe : dict
        What is done with the file, or how vectors are made without one.
    dim : int
    metric : {"cosine", "ip", "l2"}
    sha256 : str or None
        Of the file.
    words : str
        Where it comes from.
    """

    name: str
    title: str
    path: Path | None
    recipe: dict[str, Any]
    dim: int
    metric: Metric
    sha256: str | None
    words: str

    def identity(self) -> dict[str, Any]:
        """Return what decides the vectors."""
        return {"name": self.name, "sha256": self.sha256, "recipe": self.recipe, "metric": self.metric}


@dataclass(frozen=True)
class DataSet:
    """Vectors and queries, float32; under cosine all of length 1. `listed`: the file's neighbours of the queries."""

    source: Source
    base: Float32Array
    queries: Float32Array
    listed: npt.NDArray[np.int64] | None

    @property
    def metric(self) -> Literal["ip", "l2"]:
        """The metric of the vectors as they are here: cosine is the inner product of unit vectors."""
        return "l2" if self.source.metric == "l2" else "ip"

    @property
    def unit(self) -> bool:
        """Whether all vectors have length 1."""
        return self.source.metric == "cosine"

    def describe(self) -> dict[str, Any]:
        """Return what a result file says of the set."""
        source = self.source
        return {
            "name": source.name,
            "title": source.title,
            "n": len(self.base),
            "dim": source.dim,
            "queries": len(self.queries),
            "metric": source.metric,
            "source": source.words,
            "sha256": source.sha256,
        }


def data_folders(given: Path | None) -> list[Path]:
    """Return where files of sets are looked for, in order."""
    named = [given] if given is not None else [Path(os.environ["TQINDEX_DATA"])] if "TQINDEX_DATA" in os.environ else []
    return [*named, _ROOT.parent / "shared" / "data", _ROOT / "datasets"]


def find_set(name: str, folders: Sequence[Path]) -> Source | None:
    """Find a set by its name in sets.toml; None where its file is not at hand.

    Raises
    ------
    ArgumentError
        The name is unknown.
    """
    tables = set_tables()
    if name not in tables:
        raise ArgumentError(f"data set must be one of {', '.join(tables)}; got {name!r}")
    table = tables[name]
    if "file" in table:
        path = find_file(name, folders)
        return None if path is None else replace(file_set(path), name=name, title=table["title"])
    recipe = {key: value for key, value in table.items() if key != "title"}
    if "gaussian" in table:
        words = "made here: i.i.d. normal coordinates, length 1"
        return Source(name, table["title"], None, recipe, table["gaussian"], "cosine", None, words)
    origin = find_set(table["noisy"], folders)
    if origin is None:
        return None
    words = f"rows of {table['noisy']} with noise of length {_NOISE}, length 1; {origin.words}"
    return replace(origin, name=name, title=table["title"], recipe=recipe, words=words)


def find_file(name: str, folders: Sequence[Path]) -> Path | None:
    """Find the file of a set that is one; None where it is not at hand."""
    paths = [folder / set_tables()[name]["file"] for folder in folders]
    return next((path for path in paths if path.is_file()), None)


def file_set(path: Path) -> Source:
    """Take a file of vectors as a set of its own; without queries, rows are held out of it."""
    with open_vectors(path) as base:
        dim, metric, dataset = base.shape[1], base.metric or "cosine", base.name
        has_queries = _has_queries(path, dataset)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    recipe = {} if has_queries else {"held_out": _HELD_OUT, "share": _HELD_OUT_SHARE}
    words = path.name if has_queries else f"{path.name}; queries are rows held out of it"
    return Source(path.stem, path.stem, path, recipe, dim, metric, digest, words)


def _has_queries(path: Path, dataset: str | None) -> bool:
    """Whether an HDF5 file has another dataset for queries than for the base."""
    with open_vectors(path, role="queries") as queries:
        return dataset is not None and queries.name != dataset


def load_set(source: Source) -> DataSet:
    """Read or make the vectors of a set."""
    rng = np.random.default_rng(0)
    recipe = source.recipe
    if source.path is None:
        rows = rng.standard_normal((recipe["n"] + recipe["queries"], source.dim), dtype=np.float32)
        rows = normalise(rows, "vectors")
        return DataSet(source, rows[: recipe["n"]], rows[recipe["n"] :], None)
    if "held_out" in recipe:
        return _hold_out(source, rng)
    with open_vectors(source.path) as base, open_vectors(source.path, role="queries") as file:
        rows, queries, listed = base[:], file[:], file.neighbors
    _check_queries(source.path, rows, queries, listed)
    rows, queries = _prepared(rows, source, "train"), _prepared(queries, source, "test")
    if "noisy" in recipe:
        return DataSet(
            source, noisy_rows(rng, rows, recipe["n"]), np.resize(queries, (recipe["queries"], source.dim)), None
        )
    return _without_base_rows(DataSet(source, rows, queries, None if listed is None else listed.astype(np.int64)))


def _hold_out(source: Source, rng: np.random.Generator) -> DataSet:
    with open_vectors(Path(source.path or "")) as file:
        rows = _prepared(file[:], source, "vectors")
    count = min(_HELD_OUT, int(len(rows) * _HELD_OUT_SHARE))
    if count < 1:
        raise ArgumentError(f"{source.path}: at least 10 vectors are needed to hold queries out; got {len(rows)}")
    order = rng.permutation(len(rows))
    return _without_base_rows(DataSet(source, rows[np.sort(order[count:])], rows[order[:count]], None))


def _check_queries(path: Path, rows: npt.NDArray[Any], queries: npt.NDArray[Any], listed: Any) -> None:
    """Refuse queries, or neighbours of theirs, that do not belong to the rows."""
    if queries.shape[1] != rows.shape[1]:
        raise ArgumentError(f"{path}: queries must have {rows.shape[1]} columns as the rows, got {queries.shape[1]}")
    if listed is not None and listed.size and not 0 <= listed.min() <= listed.max() < len(rows):
        raise ArgumentError(f"{path}: neighbours must be among the {len(rows):,} rows, got number {listed.max()}")


def _prepared(rows: npt.NDArray[Any], source: Source, name: str) -> Float32Array:
    rows = np.ascontiguousarray(rows, np.float32)
    check_finite(rows, f"{source.path}: {name}")
    return normalise(rows, name) if source.metric == "cosine" else rows


def _without_base_rows(data: DataSet) -> DataSet:
    """Drop queries that are rows of the base too: finding oneself says nothing."""
    held = {hash(row.tobytes()) for row in data.base}
    keep = np.array([hash(query.tobytes()) not in held for query in data.queries])
    if not keep.any():
        raise ArgumentError(f"{data.source.name}: queries must not be rows of the base; all {len(keep)} are")
    return replace(data, queries=data.queries[keep], listed=None if data.listed is None else data.listed[keep])


def noisy_rows(rng: np.random.Generator, rows: Float32Array, n: int) -> Float32Array:
    """Return n of the rows, which have length 1, with small noise, scaled to length 1 again."""
    dim = rows.shape[1]
    noise = rng.standard_normal((n, dim), dtype=np.float32) * np.float32(_NOISE / np.sqrt(dim))
    return normalise(rows[rng.integers(0, len(rows), n)] + noise, "vectors")
