"""The committed sample, and the script that makes it."""

import hashlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
from click.testing import CliRunner

from tqindex.bench.exact import exact_neighbors

DATASETS = Path(__file__).parent.parent / "datasets"
SAMPLE = DATASETS / "glove-100-10k.h5"


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"datasets_{name}", DATASETS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def contents(path: Path) -> dict[str, Any]:
    with h5py.File(path, "r") as file:
        return {name: file[name][:] for name in file} | {"attrs": dict(file.attrs)}


def test_sample_is_as_described() -> None:
    assert SAMPLE.stat().st_size <= 3_000_000
    sample = contents(SAMPLE)
    shapes = {name: (sample[name].shape, sample[name].dtype.name) for name in sample if name != "attrs"}
    assert shapes == {
        "train": ((10_000, 100), "float16"),
        "test": ((500, 100), "float16"),
        "neighbors": ((500, 100), "int32"),
        "distances": ((500, 100), "float32"),
    }
    source = sample["attrs"].pop("source")
    assert "PDDL" in source
    assert sample["attrs"] == {"type": "dense", "distance": "angular", "dimension": 100, "point_type": "float"}


def test_sample_neighbors_are_exact() -> None:
    sample = contents(SAMPLE)
    train, test = sample["train"].astype(np.float64), sample["test"][::25].astype(np.float64)
    cosines = (test @ train.T) / np.linalg.norm(test, axis=1)[:, None] / np.linalg.norm(train, axis=1)
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :100]
    np.testing.assert_array_equal(sample["neighbors"][::25], order)
    # float32 rounding of distances below 2
    expected = 1 - np.take_along_axis(cosines, order, axis=1)
    np.testing.assert_allclose(sample["distances"][::25], expected, rtol=0, atol=2**-23)


def test_readme_gives_the_sample_sha256() -> None:
    assert hashlib.sha256(SAMPLE.read_bytes()).hexdigest() in (DATASETS / "README.md").read_text()


def test_make_sample_takes_even_rows_and_repeats_its_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    train, test = rng.standard_normal((20_000, 4)), rng.standard_normal((1_000, 4))
    with h5py.File(tmp_path / "source.h5", "w") as file:
        file.update({"train": train, "test": test})
    for name in ("a.h5", "b.h5"):
        arguments = [str(tmp_path / "source.h5"), "--output", str(tmp_path / name)]
        result = CliRunner().invoke(load_script("make_sample").main, arguments)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    sample = contents(tmp_path / "a.h5")
    np.testing.assert_array_equal(sample["train"], train[::2].astype(np.float16))
    np.testing.assert_array_equal(sample["test"], test[::2].astype(np.float16))
    ids, _ = exact_neighbors(sample["train"], sample["test"][:3])
    np.testing.assert_array_equal(sample["neighbors"][:3], ids)
