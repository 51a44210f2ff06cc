"""Golden index directories: what the format versions are, byte for byte, and what a search of them gives.

    python tests/golden/make_indexes.py            compares what this tqindex writes with the committed directories
    python tests/golden/make_indexes.py --write    writes those that are missing; a committed one is never replaced

Files of all versions from 1 on are read for ever: a directory that a later version no longer writes stays and is read.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import tqindex as tq
from tqindex.codec.random import RandomStream

STORE = Path(__file__).with_name("indexes")
K = 5
#: Name, which begins with the format version, dim, n, options of the index, caller ids.
_CASES: list[tuple[str, int, int, dict[str, Any], bool]] = [
    ("v1-mse-4-cosine-centred", 100, 70, {"bits": 4, "metric": "cosine"}, False),
    ("v1-mse-3-l2-ids", 65, 67, {"bits": 3, "metric": "l2"}, True),
    ("v1-mse-1-ip", 72, 64, {"bits": 1, "metric": "ip"}, False),
    ("v1-mse-8-ip-dense", 33, 9, {"bits": 8, "metric": "ip"}, False),
    ("v1-prod-2-cosine", 70, 65, {"bits": 2, "metric": "cosine", "codec": "prod"}, False),
    ("v1-prod-4-l2-gaussian", 64, 10, {"bits": 4, "metric": "l2", "codec": "prod", "sketch": "gaussian"}, True),
    ("v1-mse-4-search", 67, 12, {"bits": 4, "metric": "cosine", "effort": "search"}, False),
    ("v2-mse-4-cosine", 66, 70, {"bits": 4, "metric": "cosine"}, False),
    ("v2-mse-2-l2-ids", 65, 75, {"bits": 2, "metric": "l2"}, True),
    ("v2-prod-3-ip-emptied", 33, 9, {"bits": 3, "metric": "ip", "codec": "prod"}, False),
    ("v2-mse-4-l2-originals", 35, 11, {"bits": 4, "metric": "l2", "originals": "float16"}, False),
    ("v3-trellis-2-cosine-centred", 100, 70, {"bits": 2, "metric": "cosine", "codec": "trellis"}, False),
    ("v3-trellis-3-ip", 33, 11, {"bits": 3, "metric": "ip", "codec": "trellis"}, False),
    ("v3-trellis-4-l2-ids", 65, 75, {"bits": 4, "metric": "l2", "codec": "trellis"}, True),
]


def cases() -> Iterator[tuple[str, tq.Index, Any]]:
    """Yield name, index and queries, made from the format's own random stream."""
    for key, (name, dim, n, options, with_ids) in enumerate(_CASES):
        values = RandomStream(77, key).gaussians((n + 3) * dim).reshape(n + 3, dim).astype(np.float32)
        center = values.mean(axis=0) if name.endswith("-centred") else None
        index = tq.Index(dim, center=center, **options)
        ids = index.add(values[:n], np.arange(n)[::-1] * 1000 + 7 if with_ids else None)
        if not name.startswith("v1"):
            _change(index, ids, values, emptied=name.endswith("-emptied"))
        yield name, index, values[n:]


def _change(index: tq.Index, ids: Any, values: Any, emptied: bool) -> None:
    """Make a second segment, and remove rows of both; most of the first, or all."""
    with tempfile.TemporaryDirectory() as folder:
        index.save(Path(folder) / "first")
    index.update(ids[[1, 4]], values[[2, 3]])
    index.add(values[:6])
    index.remove([*(ids if emptied else ids[[0, 7, 8, -1]]), index.ids[-2]])
    index.upsert(ids[[0, 2]], values[[5, 6]])


def result(index: tq.Index, queries: Any) -> dict[str, Any]:
    """Return a search's result as JSON types; float32 numbers survive as they are."""
    found = index.search(queries, K)
    return {"ids": found.ids.tolist(), "scores": found.scores.tolist()}


def files(directory: Path) -> dict[str, bytes]:
    """Return the content of a directory's files."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def main() -> None:
    """Compare or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the missing directories")
    write = parser.parse_args().write
    for name, index, queries in cases():
        path = STORE / name
        if write and not path.exists():
            path.parent.mkdir(exist_ok=True)
            index.save(path)
            path.with_suffix(".json").write_text(json.dumps(result(index, queries)) + "\n")
        with tempfile.TemporaryDirectory() as folder:
            index.save(Path(folder) / "now")
            same = path.exists() and files(Path(folder) / "now") == files(path)
        print(f"{'same' if same else 'DIFFERENT'}  {name}")  # noqa: T201


if __name__ == "__main__":
    main()
