"""The thread pool."""

import threading
import time

import pytest

from tqindex.errors import ArgumentError
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
