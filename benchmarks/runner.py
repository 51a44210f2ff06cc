"""Runs suites, each data set in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from tqindex.bench.child import INTERRUPTED
from tqindex.bench.config import FILE_SUITES, GPU_SUITES, SUITES, load_config
from tqindex.bench.plan import Plan, Task
from tqindex.errors import ArgumentError
from tqindex.kernels.threads import available_threads


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


def run(found: list[Task]) -> int:
    """Run tasks; returns 0, or the exit code of the one that did not end well."""
    for task in found:
        source = task.source()
        if source is None and task.set_name is not None:
            click.echo(f"{task.suite} {task.set_name}: not at hand")
            continue
        plan = Plan(task, source)
        pending = len(plan.pending)
        click.echo(f"{plan.title}: {pending} of {len(plan.groups)} to measure, {plan.file.path}")
        for absent in plan.absent:
            if absent["command"]:
                click.echo(f"{plan.title}: {absent['peer']} is {absent['reason']}: {absent['command']}")
        code = _run_child(task, plan.suite.pinned) if pending else 0
        if code:
            return code
    return 0


def _run_child(task: Task, pinned: bool) -> int:
    threads = "1" if pinned else str(available_threads())
    # BLAS threads that wait would take the cores from a package's own.
    variables = {"OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tqindex.bench.child", json.dumps(asdict(task))]
    child = subprocess.Popen(command, env={**os.environ, **variables})
    try:
        return child.wait()
    except KeyboardInterrupt:
        child.wait()  # Ctrl-C reaches it too
        return INTERRUPTED
    finally:
        if child.poll() is None:  # a request to end reaches this process alone
            child.terminate()
            child.wait()
