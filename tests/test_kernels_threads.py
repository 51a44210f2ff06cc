"""The thread pool and the folder of compiled kernels."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tqindex.errors import ArgumentError
from tqindex.kernels import compile as compiling
from tqindex.kernels.threads import available_threads, check_threads, run_parallel


@pytest.mark.parametrize("threads", [1, 2, 5, 50])
@pytest.mark.parametrize("n", [0, 1, 2, 7, 23])
def test_every_task_runs_once_by_its_worker(n: int, threads: int) -> None:
    done: list[tuple[int, int]] = []
    run_parallel(range(n), threads, lambda worker, task: done.append((worker, task)))
    assert sorted(task for _, task in done) == list(range(n))
    assert all(task % min(threads, n) == worker for worker, task in done)


@pytest.mark.parametrize("failing", [0, 1, 5])
def test_a_failure_comes_through_and_no_worker_is_left(failing: int) -> None:
    running, lock = [0], threading.Lock()

    def work(_: int, task: int) -> None:
        with lock:
            running[0] += 1
        try:
            if task == failing:
                raise KeyError(task)
        finally:
            with lock:
                running[0] -= 1

    with pytest.raises(KeyError, match=str(failing)):
        run_parallel(range(1000), 3, work)
    assert running == [0]


def test_a_failure_stops_the_other_workers_before_their_next_task() -> None:
    started, failed, done = threading.Event(), threading.Event(), []

    def work(worker: int, task: int) -> None:
        if worker == 0:
            assert started.wait(10)
            failed.set()
            raise KeyboardInterrupt
        started.set()
        assert failed.wait(10)
        # Long enough for the first worker to say stop.
        time.sleep(0.05)
        done.append(task)

    with pytest.raises(KeyboardInterrupt):
        run_parallel(range(100), 2, work)
    assert 1 <= len(done) < 50


def test_calls_inside_calls_do_not_wait_for_each_other() -> None:
    done: list[int] = []
    run_parallel(range(8), 8, lambda _, a: run_parallel(range(8), 8, lambda _, b: done.append(8 * a + b)))
    assert sorted(done) == list(range(64))


def test_thread_numbers_are_checked() -> None:
    assert check_threads(None) == available_threads() >= 1
    assert check_threads(3) == 3
    for threads in (0, -1, 1025, 1.5, True):
        with pytest.raises(ArgumentError, match="threads must be"):
            check_threads(threads)  # type: ignore[arg-type]


@pytest.fixture
def fresh_cache(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return cache_folder without its memory, under the given environment."""

    def ask(**variables: str) -> Path | None:
        for name in ("TQINDEX_CACHE_DIR", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return compiling.cache_folder.__wrapped__()

    return ask


def test_cache_folder_is_private_and_named_by_the_sources(fresh_cache: Any, tmp_path: Path) -> None:
    folder = fresh_cache(TQINDEX_CACHE_DIR=str(tmp_path / "a"))
    assert folder == tmp_path / "a" / f"kernels-{compiling._source_hash()[:16]}-{compiling.simd_level()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert fresh_cache(XDG_CACHE_HOME=str(tmp_path / "b")).parent == tmp_path / "b" / "tqindex"
    assert fresh_cache(HOME=str(tmp_path / "c")).parent == tmp_path / "c" / ".cache" / "tqindex"


def test_a_folder_that_others_can_write_is_not_used(fresh_cache: Any, tmp_path: Path, caplog: Any) -> None:
    folder = fresh_cache(TQINDEX_CACHE_DIR=str(tmp_path))
    folder.chmod(0o770)
    assert fresh_cache(TQINDEX_CACHE_DIR=str(tmp_path)) is None
    assert "not private and writable" in caplog.text


def test_no_folder_is_said_and_survived(fresh_cache: Any, tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "file").write_text("in the way")
    assert fresh_cache(TQINDEX_CACHE_DIR=str(tmp_path / "file")) is None
    assert "compiled kernels are not kept" in caplog.text


def test_kernels_are_kept_and_found_again(run_python: Any, tmp_path: Path) -> None:
    code = (
        "from tqindex.kernels.rotate import project_rows as kernel; import numpy as np\n"
        "x = np.ones((1, 2), np.float32); kernel(x, np.array([[1, 2], [3, 4]], np.float32), np.empty(2, np.float32))\n"
        "print(x.tolist(), sum(kernel.stats.cache_hits.values()))"
    )
    for hits in (0, 1):
        assert run_python("-c", code, TQINDEX_CACHE_DIR=str(tmp_path)) == f"[[4.0, 6.0]] {hits}\n"
