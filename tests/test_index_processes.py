"""One index in many threads, in processes that other methods start, and under Ctrl-C."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tqindex as tq
from tqindex.codec.rotation import MatrixProjection
from tqindex.kernels import encoder


def test_many_threads_search_while_one_adds(gaussian_rows: Any) -> None:
    rows, queries = gaussian_rows(3000, 64, 1), gaussian_rows(40, 64, 2)
    index = tq.Index(64, metric="ip")
    index.add(rows)
    expected = index.search(queries, 5, threads=1)
    wrong: list[str] = []
    begin, done = threading.Barrier(9), threading.Event()
    weak = rows[:100] / 1000  # scores so low that results stay as they are

    def search(worker: int) -> None:
        try:
            begin.wait(10)
            rounds = 0
            while rounds < 5 or not done.is_set():
                q = (worker + 8 * rounds) % len(queries)
                one, many = index.search(queries[q], 5), index.search(queries[q:], 5, threads=2)
                for found, wanted in ((one, q), (many, slice(q, None))):
                    np.testing.assert_array_equal(found.ids, expected.ids[wanted])
                    np.testing.assert_array_equal(found.scores, expected.scores[wanted])
                rounds += 1
        except Exception as error:  # noqa: BLE001 (told to the main thread)
            wrong.append(repr(error))

    threads = [threading.Thread(target=search, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    begin.wait(10)
    for _ in range(50):
        index.add(weak)
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(index) == 8000


# Searches in two processes at once, after this one has searched, and prints whether all found the same.
PROCESSES = """
import multiprocessing, sys, warnings
import numpy as np, tqindex as tq
warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, about forks of threads
method, path = sys.argv[1:]
queries = np.random.default_rng(1).standard_normal((5, 64), dtype=np.float32)
def search(index):
    return [index.search(part, 3, threads=2).ids.tolist() for part in (queries, queries[0])]
def load_and_search(path):
    return search(tq.load(path))
def search_ours(_):
    return search(index)
if __name__ == "__main__":
    index = tq.load(path)
    expected = search(index)
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.map(load_and_search, [path] * 2)
        if method == "fork":
            found += pool.map(search_ours, range(2))
    print(len(found), all(ids == expected for ids in found))
"""


@pytest.mark.skipif(os.name != "posix", reason="no fork")
@pytest.mark.parametrize(("method", "results"), [("fork", 4), ("spawn", 2)])
def test_processes_search(method: str, results: int, run_python: Any, gaussian_rows: Any, tmp_path: Path) -> None:
    index = tq.Index(64)
    index.add(gaussian_rows(20_000, 64))
    index.save(tmp_path / "index")
    script = tmp_path / "script.py"  # spawned children import it
    script.write_text(PROCESSES)
    assert run_python(str(script), method, str(tmp_path / "index")) == f"{results} True\n"


# Says when the work, which would take long, begins, and when Ctrl-C has ended it.
LONG = """
import sys, threading
import numpy as np, tqindex as tq
rows = np.random.default_rng(0).standard_normal((1000, 64), dtype=np.float32)
index = tq.Index(64, metric="ip")
ids = index.add(np.tile(rows, (200, 1)))
expected = [index.search(part, 3) for part in (rows[:5], rows[0])]
queries, vectors = np.tile(rows, (60, 1)), np.broadcast_to(rows[0], (10**9, 64))
work = {"search": lambda: index.search(queries, 10), "add": lambda: index.add(vectors)}[sys.argv[1]]
threading.Timer(0.7, print, ("begun",), {"flush": True}).start()
try:
    work()
except KeyboardInterrupt:
    print("interrupted", flush=True)
    found = [index.search(part, 3) for part in (rows[:5], rows[0])]
    same = all((a.ids == b.ids).all() and (a.scores == b.scores).all() for a, b in zip(expected, found))
    print(same, len(index), index.add(rows[0]).tolist())
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("work", ["search", "add"])
def test_ctrl_c_ends_long_work_soon_and_leaves_the_index_as_it_was(work: str) -> None:
    command, environment = [sys.executable, "-c", LONG, work], {**os.environ, "PYTHONSAFEPATH": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        seconds = time.monotonic() - start
        assert process.stdout.readline() == "True 200000 [200000]\n"
    assert seconds < 2, "0.5 s are promised, on a machine that does nothing else"


def test_a_task_by_a_matrix_is_short() -> None:
    small, large = (MatrixProjection(np.empty((dim, dim), np.float32)) for dim in (64, 2048))
    for projections, rows in (((), 128), ((small, None), 128), ((small, large), 31), ((large,), 32)):
        blocks = encoder._blocks(300, 2048, *projections)
        assert max(block.stop - block.start for block in blocks) == rows
        assert [row for block in blocks for row in range(block.start, block.stop)] == list(range(300))
