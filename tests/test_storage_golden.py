"""Format versions 1 to 3 are read for ever: committed index directories load, verify and answer as they did."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tqindex as tq
from tqindex.errors import FormatVersionError
from tqindex.storage.load import verify

MAKE = Path(__file__).parent / "golden" / "make_indexes.py"
SPEC = importlib.util.spec_from_file_location("golden_make_indexes", MAKE)
assert SPEC is not None
assert SPEC.loader is not None
make: Any = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make)
CASES = {name: (index, queries) for name, index, queries in make.cases()}


def test_no_directory_goes_unread() -> None:
    assert {path.name for path in make.STORE.iterdir() if path.is_dir()} == set(CASES)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mmap", [True, False])
def test_committed_index_answers_as_it_did(name: str, mmap: bool) -> None:
    path = make.STORE / name
    index, (made, queries) = tq.load(path, mmap=mmap), CASES[name]
    assert make.result(index, queries) == json.loads(path.with_suffix(".json").read_text())
    np.testing.assert_array_equal(
        index.reconstruct(made.search(queries[0], len(made)).ids),
        made.reconstruct(made.search(queries[0], len(made)).ids),
    )
    np.testing.assert_array_equal(index.ids, made.ids)
    if made._rows.originals is not None:
        np.testing.assert_array_equal(index.search(queries, 3, rerank=9), made.search(queries, 3, rerank=9))
    found = verify(path).manifest
    assert (found.n, f"v{found.version}") == (len(made), name[:2])


@pytest.mark.parametrize("name", CASES)
def test_it_is_written_as_committed(name: str, tmp_path: Path) -> None:
    CASES[name][0].save(tmp_path / "now")
    assert make.files(tmp_path / "now") == make.files(make.STORE / name)


def test_version_0_is_refused_by_its_number(tmp_path: Path) -> None:
    CASES["v1-mse-1-ip"][0].save(tmp_path / "old")
    manifest = tmp_path / "old" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 0'))
    with pytest.raises(FormatVersionError, match="format version 0; this tqindex reads 1"):
        tq.load(tmp_path / "old")
