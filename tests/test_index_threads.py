"""Searching in several threads while another changes the index: results are those of its states, in their order."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tqindex as tq
from tqindex.index import compact as compact_module
from tqindex.index import segments as index_segments

DIM, ROUNDS = 16, 12
Step = Callable[[tq.Index], None]


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of 64 rows, copied in pieces of 24."""
    monkeypatch.setattr(index_segments, "SEGMENT_BYTES", 1)
    monkeypatch.setattr(compact_module, "_BLOCK_ROWS", 24)


def steps(rows: Any, given: bool) -> list[Step]:
    """Changes of every kind, in an order that does not depend on when they run."""
    names = np.random.default_rng(0).permutation(10**6)

    def add(turn: int) -> Step:
        part = slice(60 * turn, 60 * turn + 50)

        def run(index: tq.Index) -> None:
            index.add(rows[part], names[part] if given else None, threads=2)

        return run

    def remove(index: tq.Index) -> None:
        index.remove(index.ids[::7])

    def update(index: tq.Index) -> None:
        ids = index.ids[3:60:5]
        index.update(ids, rows[: len(ids)])

    def merge(turn: int) -> Step:
        def run(index: tq.Index) -> None:
            other = tq.Index(DIM, 2, "l2")
            other.add(rows[60 * turn + 50 : 60 * turn + 60], 2 * 10**6 + 1000 * turn + np.arange(10))
            index.merge(other)

        return run

    return [
        step
        for turn in range(ROUNDS)
        for step in (add(turn), remove, update, tq.Index.compact, merge(turn), tq.Index.compact)
    ]


def even(ids: Any) -> Any:
    return ids % 2 == 0


#: Each must give what one of the states gives, whatever it meets.
READS: dict[str, Callable[[tq.Index, Any], Any]] = {
    "many": lambda index, queries: index.search(queries, 800, threads=2),
    "few": lambda index, queries: index.search(queries[:2], 800, threads=2),
    "callable": lambda index, queries: index.search(queries[:2], 800, filter=even),
    "ids": lambda index, queries: index.search(queries[:2], 800, filter=np.arange(0, 10**6, 3)),
    "all ids": lambda index, queries: (index.ids,),
}


def are_in_order(results: list[Any], states: list[Any]) -> bool:
    """Whether every result is of a state that is not before the one of the result before."""
    at = 0
    for result in results:
        if result not in states[at:]:
            return False
        at = states.index(result, at)
    return True


@pytest.mark.parametrize("given", [False, True])
def test_every_result_is_of_a_state_that_existed(given: bool, gaussian_rows: Any) -> None:
    rows, queries = gaussian_rows(60 * ROUNDS, DIM, 1), gaussian_rows(10, DIM, 2)
    changes = steps(rows, given)

    def seen(index: tq.Index, read: str) -> tuple[bytes, ...]:
        return tuple(part.tobytes() for part in READS[read](index, queries))

    calm = tq.Index(DIM, 2, "l2")
    states = {read: [seen(calm, read)] for read in READS}
    for change in changes:
        change(calm)
        for read in READS:
            states[read].append(seen(calm, read))
    index, done = tq.Index(DIM, 2, "l2"), threading.Event()
    wrong: list[str] = []
    met: dict[str, list[tuple[bytes, ...]]] = {read: [] for read in READS}

    def search(read: str) -> None:
        try:
            while not done.is_set():
                result = seen(index, read)
                if met[read][-1:] != [result]:
                    met[read].append(result)
        except Exception as error:  # noqa: BLE001 (told to the main thread)
            wrong.append(f"{read}: {error!r}")

    threads = [threading.Thread(target=search, args=(read,)) for read in READS]
    for thread in threads:
        thread.start()
    for change in changes:
        change(index)
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong
    for read in READS:
        assert are_in_order(met[read], states[read]), read
        assert len(met[read]) > 1, f"{read} saw no change"
        assert seen(index, read) == seen(calm, read)
