"""Writers killed by the system at random moments: what a returned save promised is there, or what was being saved."""

import json
import tempfile
from pathlib import Path

import pytest

# A process that forks writers and kills them. A writer changes the index again and again, and reports each state that
# it saves through a pipe: before the save, and when the save has returned.
DRIVER = """
import hashlib, json, os, random, signal, sys, time
from pathlib import Path
import numpy as np
import tqindex as tq
from tqindex.index import compact

compact.MAX_SMALL_SEGMENTS = 6  # saves that join segments are not to be rare
homes, kills = [Path(home) for home in sys.argv[2:]], int(sys.argv[1])
chance = random.Random(3)


def state_of(index):
    ids = np.sort(index.ids)
    content = ids.tobytes() + index.reconstruct(ids).tobytes() + index._rows.next_id.to_bytes(8, "little")
    return hashlib.sha256(content).hexdigest()[:16]


def change(index, rng):
    '''Return the changed index, and whether it is another one.'''
    kind, ids = rng.integers(20), index.ids
    if kind == 0:
        other = tq.Index(8)
        other.add(rng.standard_normal((100, 8)), threads=1)
        return other, True
    some = rng.permutation(ids)[: rng.integers(1, 20)]
    if kind < 5 or len(ids) < 50:
        index.add(rng.standard_normal((rng.integers(1, 60), 8)), threads=1)
    elif kind < 10 or len(ids) > 400:
        index.remove(some)
    elif kind < 12:
        index.compact()
    elif kind < 16:
        index.update(some, rng.standard_normal((len(some), 8)), threads=1)
    else:
        index.remove(some)
        index.add(rng.standard_normal((len(some), 8)), ids=some, threads=1)
    return index, False


def write(place, report, seed):
    rng = np.random.default_rng(seed)
    index = tq.load(place, mmap=seed % 2 == 0) if place.exists() else tq.Index(8)
    while True:
        index, replaces = change(index, rng)
        state = state_of(index).encode()
        os.write(report, b"begun " + state + b" ")
        index.save(place, overwrite=replaces)
        os.write(report, b"saved " + state + b" ")


def run_and_kill(place, seed, seconds):
    '''Return what a writer reported until it was killed.'''
    reports, report = os.pipe()
    child = os.fork()
    if not child:
        try:
            write(place, report, seed)
        finally:
            os._exit(1)
    os.close(report)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status), "the writer failed before it was killed"
    with os.fdopen(reports) as file:
        return file.read().split()


def possible_states(before, reports):
    '''The last state of a save that returned, and the one whose save had begun.'''
    pairs = list(zip(reports[::2], reports[1::2]))
    saved = [state for word, state in pairs if word == "saved"]
    states = {saved[-1] if saved else before}
    return states | {pairs[-1][1]} if pairs and pairs[-1][0] == "begun" else states


warm = tq.Index(8)  # compiles and loads before the forks what writers need
warm.add(np.ones((9, 8)), threads=1)
warm.save(homes[0] / "warm")
state_of(change(tq.load(homes[0] / "warm"), np.random.default_rng(0))[0])

place, state = homes[0] / "index", None
counts = dict.fromkeys(
    ["kills", "inside a save", "of a new directory", "after the commit", "saves", "most segments"], 0
)
for seed in range(kills):
    if seed and not chance.randrange(5):
        place, state = chance.choice(homes) / f"index{seed}", None
    reports = run_and_kill(place, seed, chance.uniform(0, 0.15))
    possible = possible_states(state, reports)
    found = None
    if place.exists():
        tq.verify(place)
        index = tq.load(place)
        found = state_of(index)
        counts["most segments"] = max(counts["most segments"], len(index._rows.segments))
    assert found in possible, (found, possible, reports)
    counts["kills"] += 1
    counts["saves"] += reports.count("saved")
    counts["inside a save"] += reports.count("begun") - reports.count("saved")
    counts["of a new directory"] += state is None
    counts["after the commit"] += len(possible) == 2 and found == reports[-1]
    state = found

for place in [place for home in homes for place in home.glob("index*")]:
    index = tq.load(place)
    index.save(place)
    assert {path.name for path in place.iterdir()} - {"lock", "manifest.json"} == set(tq.verify(place).manifest.files)
    left = [path for path in place.parent.glob(f".{place.name}.*") if any(path.iterdir())]
    assert not left, left
print(json.dumps(counts))
"""


@pytest.fixture
def folders(tmp_path):
    """One on the disk, where a kill strikes a writer that waits, and one in memory, where any step is as likely."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield [str(tmp_path), folder]


def kill_writers(run_python, folders, kills):
    counts = json.loads(run_python("-c", DRIVER, str(kills), *folders, OPENBLAS_NUM_THREADS="1"))
    assert counts["kills"] == kills
    assert counts["inside a save"] > kills / 5
    assert counts["of a new directory"] > kills / 20
    assert counts["saves"] > kills / 10
    assert counts["most segments"] <= 6


def test_killed_writers(run_python, folders):
    kill_writers(run_python, folders, 50)


@pytest.mark.nightly
def test_many_killed_writers(run_python, folders):
    kill_writers(run_python, folders, 1000)
