"""`--device`: the command on a GPU, with a stand-in for CuPy, and where there is none."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tqindex as tq
from tqindex.bench import gpu as bench_gpu
from tqindex.gpu import cuda, is_available, measure

Cli = Callable[..., tuple[int, str, str]]
FAKE = Path(__file__).parent / "fake_cupy"


@pytest.fixture
def gpu(fake_cupy: Any) -> Iterator[Any]:
    with fake_cupy() as cupy:
        yield cupy


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


def test_build_add_and_search_on_a_gpu_are_those_of_the_cpu(cli: Cli, gpu: Any, write_ann: Any, tmp_path: Path) -> None:
    data = write_ann(tmp_path / "data.h5", 120, 64)
    answers = []
    for device in ("cpu", "gpu"):
        target = tmp_path / device
        started = len(gpu.fake.launches)
        for arguments in (("build", data, "-o", target), ("add", target, data)):
            code, out, _ = cli(*arguments, "--device", device)
            assert (code, "/s on gpu:0 (" in out) == (0, device == "gpu")
        code, out, error = cli("search", target, data, "-k", 5, "--json", "--device", device)
        assert (code, error) == (0, "")
        answer = json.loads(out)
        assert answer.pop("queries_per_second") > 0
        assert answer.pop("device").startswith(device)
        answers.append(answer)
        assert (len(gpu.fake.launches) > started) == (device == "gpu")
    assert answers[0] == answers[1]
    assert files_of(tmp_path / "cpu") == files_of(tmp_path / "gpu")


def test_a_device_by_number(cli: Cli, gpu: Any, write_ann: Any, tmp_path: Path) -> None:
    gpu.fake.devices = 2
    data = write_ann(tmp_path / "data.h5", 60, 64)
    assert cli("build", data, "--device", "gpu:1")[0] == 0
    assert {device for _, device in gpu.fake.launches} == {1}


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("gpu", "CuPy, which is not installed: pip install 'tqindex[gpu]'"),
        ("tpu", "device must be 'cpu', 'gpu' or 'gpu:N'"),
    ],
)
def test_a_device_that_cannot_be_used_is_one_line_and_nothing_is_written(
    device: str, words: str, cli: Cli, write_ann: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshot: Any
) -> None:
    data = write_ann(tmp_path / "data.h5", 60, 64)
    assert cli("build", data)[0] == 0
    before = snapshot(tmp_path)
    monkeypatch.setitem(sys.modules, "cupy", None)
    cuda.open_device.cache_clear()
    index = tmp_path / "data.tq"
    for arguments in (
        ("build", data, "-o", tmp_path / "new.tq"),
        ("add", index, data),
        ("search", index, data),
        ("bench", "run", "recall", "--file", data, "--size", "test", "--results", tmp_path / "results"),
    ):
        code, out, error = cli(*arguments, "--device", device)
        assert (code, out) == (2, "")
        assert error.startswith("Error: ")
        assert error.count("\n") == 1
        assert words in error
    assert snapshot(tmp_path) == before


def test_measuring_says_in_one_line_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    cuda.open_device.cache_clear()
    reason, output = is_available().reason, tmp_path / "measured.json"
    assert "CuPy" in reason
    for command in (lambda: bench_gpu.main([]), lambda: measure.main(["--output", str(output)])):
        with pytest.raises(SystemExit) as ended:
            command()
        assert ended.value.code == 2
        assert capsys.readouterr() == ("", f"Error: {reason}\n")
    assert not output.exists()


def test_the_benchmark_misses_torch_at_the_start(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit) as ended:
        bench_gpu.main([])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("Error: exact products need torch")
    assert not gpu.fake.launches


def test_codes_that_only_the_cpu_makes_are_refused_by_name(cli: Cli, gpu: Any, write_ann: Any, tmp_path: Path) -> None:
    data = write_ann(tmp_path / "data.h5", 60, 64)
    code, _, error = cli("build", data, "--device", "gpu", "--effort", "search")
    assert code == 2
    assert "effort must be 'plain' to encode on a GPU, got 'search'" in error
    assert not (tmp_path / "data.tq").exists()


def test_bench_measures_our_index_on_the_device(tmp_path: Path, run_python: Callable[..., str]) -> None:
    """The suites in a process of their own, as users run them; what a stand-in takes is no figure of a GPU."""
    np.save(tmp_path / "data.npy", np.random.default_rng(0).standard_normal((60, 384), dtype=np.float32))
    command = ("-m", "tqindex", "bench", "run", "search", "--file", str(tmp_path / "data.npy"), "--size", "test")
    path = os.pathsep.join([str(FAKE), *filter(None, [os.environ.get("PYTHONPATH")])])
    run_python(*command, "--results", str(tmp_path), "--device", "gpu", PYTHONPATH=path)
    (file,) = (tmp_path / "test-gpu").glob("*.json")
    result = json.loads(file.read_text())
    assert result["environment"]["gpu"]["name"] == "Fake"
    assert result["environment"]["gpu"]["device"] == "gpu:0"
    assert {row["peer"] for row in result["rows"]} == {"tqindex"}
    assert "tqindex-mse" in {row["method"] for row in result["rows"]}
    reasons = {each["method"]: each["reason"] for each in result["absent"] if "method" in each}
    assert all(reason == "is measured on the CPU only" for reason in reasons.values())
    assert not (tmp_path / "test").exists()


def test_suites_without_a_gpu_are_refused(cli: Cli, gpu: Any, tmp_path: Path) -> None:
    code, _, error = cli("bench", "run", "threads", "--device", "gpu", "--results", tmp_path)
    assert code == 2
    assert "suite must be one of recall, indexing, search, scale on a GPU; got 'threads'" in error


def test_info_tells_the_device(gpu: Any) -> None:
    index = tq.Index(64, device="gpu")
    assert index.info()["device"] == "gpu:0"
    assert json.dumps(index.info())
