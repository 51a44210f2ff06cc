"""One pool of threads for all kernels.

Kernels release the GIL. Numba's own parallel layer is not used: its default aborts the process when two Python
threads call it at once.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event, Lock
from typing import TypeVar

from tqindex.checks import check_integer

_Task = TypeVar("_Task")
_lock = Lock()
_pools: dict[str, ThreadPoolExecutor] = {}
_MAX_THREADS = 1024


def available_threads() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_threads(threads: int | None) -> int:
    """Return the number of threads to use; None means all that are available."""
    return available_threads() if threads is None else check_integer("threads", threads, 1, _MAX_THREADS)


def run_parallel(tasks: Sequence[_Task], threads: int, work: Callable[[int, _Task], None]) -> None:
    """Call work(worker, task) for every task; worker t of `threads` takes tasks t, t + threads, ...

    Returns when all are done. An exception, Ctrl-C among them, stops every worker before its next task.
    """
    workers = min(threads, len(tasks))
    if workers <= 1:
        for task in tasks:
            work(0, task)
        return
    stop = Event()

    def run(worker: int) -> None:
        for task in tasks[worker::workers]:
            if stop.is_set():
                return
            work(worker, task)

    futures: list[Future[None]] = []
    try:
        futures = [_pool().submit(run, worker) for worker in range(1, workers)]
        run(0)
        for future in futures:
            future.result()
    finally:
        stop.set()
        # Nobody may return while a worker still writes into the caller's arrays.
        for future in futures:
            if not future.cancel():
                future.exception()


def _pool() -> ThreadPoolExecutor:
    with _lock:
        if "pool" not in _pools:
            _pools["pool"] = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="tqindex")
        return _pools["pool"]


def _forget_pool() -> None:
    """A forked child has none of its parent's threads, and the lock may be held by one of them."""
    global _lock  # noqa: PLW0603
    _lock = Lock()
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
