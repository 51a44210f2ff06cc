"""Runs suites, each data set in a process of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import click
from filelock import FileLock, Timeout

from tqindex.bench.child import INTERRUPTED
from tqindex.bench.config import FILE_SUITES, GPU_SUITES, SUITES, load_config
from tqindex.bench.plan import Plan, Task
from tqindex.errors import ArgumentError, LockedError, StorageError
from tqindex.kernels.threads import available_threads

_POLL_SECONDS = 0.1
#: How long an interrupted run waits for its processes to end by themselves.
_GRACE_SECONDS = 2.0


def tasks(
    suites: Sequence[str],
    size: str,
    names: Sequence[str],
    file: Path | None,
    data: Path | None,
    results: Path,
    device: str = "cpu",
) -> list[Task]:
    """Return what is to be run, in order: every suite on each of its sets, on those named, or on a file.

    Raises
    ------
    ArgumentError
        An unknown suite, or one that says nothing of a GPU.
    """
    paths = None if file is None else str(file), None if data is None else str(data), str(results)
    found = []
    able = SUITES if device == "cpu" else GPU_SUITES
    for suite in suites or [each for each in (FILE_SUITES if file else SUITES) if each in able]:
        if suite in SUITES and suite not in able:
            raise ArgumentError(f"suite must be one of {', '.join(able)} on a GPU; got {suite!r}")
        config = load_config(suite, size)
        sets: Sequence[str | None] = (None,) if file else (names or config.sets or (None,))
        found += [Task(suite, size, name, *paths, device) for name in sets]
    return found


def run(found: list[Task], folder: Path) -> int:
    """Run tasks, whose results go into a folder; returns 0, or the exit code of the one that did not end well.

    Raises
    ------
    LockedError
        Another run writes into the folder: each would drop the other's rows.
    StorageError
        The folder cannot be written.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        plans = [plan for task in found if (plan := _plan(task)) and _announce(plan)]
        if plans:
            _take(lock)
        # What is not timed may share the machine.
        together = [plan for plan in plans if not plan.suite.timed]
        apart = [plan for plan in plans if plan.suite.timed]
        return _run_children(together, available_threads()) or _run_children(apart, 1)
    finally:
        lock.release(force=True)


def _plan(task: Task) -> Plan | None:
    """Return what there is to do; None, which is said, where the data set is not at hand."""
    source = task.source()
    if source is None and task.set_name is not None:
        click.echo(f"{task.suite} {task.set_name}: not at hand")
        return None
    return Plan(task, source)


def _announce(plan: Plan) -> int:
    """Say what is to be done; returns how many groups there are to measure."""
    pending = len(plan.pending)
    click.echo(f"{plan.title}: {pending} of {len(plan.groups)} to measure, {plan.file.path}")
    for absent in plan.absent:
        if absent["command"]:
            click.echo(f"{plan.title}: {absent['peer']} is {absent['reason']}: {absent['command']}")
    return pending


def _take(lock: FileLock) -> None:
    folder = Path(lock.lock_file).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise LockedError(f"{folder}: another `tqindex bench run` is writing its results there") from error
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror}") from error


def _run_children(plans: list[Plan], at_once: int) -> int:
    """Run a process for each plan, so many at once, until one does not end well; returns 0 or its exit code."""
    waiting, code = list(plans), 0
    running: list[subprocess.Popen[bytes]] = []
    try:
        while running or (waiting and not code):
            if waiting and not code and len(running) < at_once:
                running.append(_start_child(waiting.pop(0)))
            time.sleep(_POLL_SECONDS)
            code = next((child.returncode for child in running if child.poll()), code)
            running = [child for child in running if child.poll() is None]
    except KeyboardInterrupt:
        for child in running:
            with suppress(subprocess.TimeoutExpired):
                child.wait(_GRACE_SECONDS)  # Ctrl-C at a terminal reaches it too
        return INTERRUPTED
    finally:
        for child in running:
            if child.poll() is None:  # a signal or a request to end reaches this process alone
                child.terminate()
                child.wait()
    return code


def _start_child(plan: Plan) -> "subprocess.Popen[bytes]":
    threads = "1" if plan.suite.pinned else str(available_threads())
    # BLAS threads that wait would take the cores from a package's own.
    variables = {"OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tqindex.bench.child", json.dumps(asdict(plan.task))]
    return subprocess.Popen(command, env={**os.environ, **variables})
