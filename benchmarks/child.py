"""One suite on one data set, in a process of its own: `python -m tqindex.bench.child TASK`, TASK as JSON.

The process that starts it sets the environment, since packages read their number of threads when they are imported.
"""

import json
import os
import sys
import time
from dataclasses import replace
from typing import Any

from tqindex.bench.plan import Plan, Task
from tqindex.bench.sets import load_set
from tqindex.bench.suites.base import Group, Job, PeerError
from tqindex.errors import TQIndexError
from tqindex.kernels.threads import available_threads

INTERRUPTED = 130
_WRONG_INPUT = 2


def main() -> int:
    """Measure what is pending; every group's rows are in the file before the next one begins."""
    task = Task(**json.loads(sys.argv[1]))
    try:
        plan = Plan(task, task.source())
        _measure(plan)
    except KeyboardInterrupt:
        return INTERRUPTED
    except TQIndexError as error:
        sys.stderr.write(f"Error: {error}\n")
        return _WRONG_INPUT
    return 0


def _measure(plan: Plan) -> None:
    pinned = plan.suite.pinned
    if pinned and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    data = None if plan.source is None else load_set(plan.source)
    job = Job(plan.config, 1 if pinned else available_threads(), plan.source, data, plan.task.device)
    dataset = None if data is None else data.describe()
    plan.write(dataset)
    for fingerprint in plan.pending:
        group = plan.groups[fingerprint]
        start = time.perf_counter()
        rows = _rows(plan, job, group)
        print(f"{plan.title}: {group.title}, {time.perf_counter() - start:.1f} s", flush=True)
        plan.file.put(rows, fingerprint)
        plan.write(dataset)


def _rows(plan: Plan, job: Job, group: Group) -> list[dict[str, Any]]:
    """Measure a group, if need be without the methods that fail, whose reasons are noted."""
    while group.methods:
        try:
            return plan.suite.measure(job, group)
        except PeerError as error:
            plan.fail(error.method, group.bits, error.reason)
            print(f"{plan.title}: {error.method.key} is left out: {error.reason}", flush=True)
            group = replace(group, methods=tuple(each for each in group.methods if each is not error.method))
    return []


if __name__ == "__main__":
    sys.exit(main())
