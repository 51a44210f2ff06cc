"""No damage goes unnoticed: every bit of every file, and thousands of random mutations, cuts and exchanged files."""

import random
import resource
import signal
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import tqindex as tq
from tqindex.errors import CorruptIndexError

#: What reading a damaged index of a few KB may take; the address space counts what is allotted, used or not.
ALLOWANCE = 256 * 2**20
SECONDS = 60


def save_small(place, dim=3, seed=0, **parameters):
    """Save an index of two segments, both with removed rows: generated ids, and ids of the caller's."""
    index = tq.Index(dim, bits=1, metric="ip", seed=seed, **parameters)
    rng = np.random.default_rng(seed)
    index.add(rng.standard_normal((13, dim)))
    index.remove([2, 11])
    index.save(place)
    index.add(rng.standard_normal((5, dim)), ids=[100, 90, 95, 2, 14])
    index.update([90, 3], rng.standard_normal((2, dim)))
    index.save(place)
    return place


@pytest.fixture
def place(tmp_path):
    return save_small(tmp_path / "index")


@pytest.fixture
def bounded():
    """Fail where something allots by a number from a damaged file, or where a read does not come to an end."""

    def late(number, frame):
        raise TimeoutError(f"not done after {SECONDS} seconds")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ALLOWANCE, limits[1]))
    yield
    signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_AS, limits)
    signal.signal(signal.SIGALRM, before)


def files_of(place):
    """Every file that the index consists of: not the writer's lock, which nobody reads but the next writer."""
    paths = sorted(path for path in place.iterdir() if path.name != "lock")
    assert [path.suffix for path in paths] == [".bin", ".bin", ".json", ".safetensors", ".safetensors"]
    return paths


def assert_refused(place, *reads):
    for read in reads:
        signal.alarm(SECONDS)
        with pytest.raises(CorruptIndexError):
            read(place)


def whole(place):
    return tq.load(place, mmap=False)


def test_every_flipped_bit_is_found(place, bounded):
    for path in files_of(place):
        content = path.read_bytes()
        with path.open("r+b", buffering=0) as file:
            for i, byte in enumerate(content):
                for bit in range(8):
                    file.seek(i)
                    file.write(bytes([byte ^ 1 << bit]))
                    assert_refused(place, *((tq.verify, whole) if bit == i % 8 else (tq.verify,)))
                file.seek(i)
                file.write(bytes([byte]))
    assert len(whole(place)) == tq.verify(place).manifest.n == 16


def mutate(content, rng):
    """Return other bytes: some overwritten, cut out, cut off, doubled, moved, or put at the end."""
    changed = bytearray(content)
    i, j = sorted(rng.sample(range(len(content) + 1), 2))
    kind = rng.randrange(7)
    if kind == 0:
        changed[i:j] = rng.randbytes(j - i)
    elif kind == 1:
        del changed[i:j]
    elif kind == 2:
        changed[i:i] = changed[i:j]
    elif kind == 3:
        changed[: j - i] = content[i:j]
    elif kind == 4:
        del changed[i:]
    elif kind == 5:
        changed += rng.randbytes(j - i)
    else:
        for _ in range(rng.randrange(1, 9)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def damaged(path, paths, others, rng):
    """Return what a file might hold instead; None where it is gone."""
    kind = rng.randrange(10)
    if kind == 0:
        return None
    if kind in (1, 2):
        return rng.choice(others if kind == 1 else paths).read_bytes()
    return mutate(path.read_bytes(), rng)


def run_mutations(place, count, seed):
    """Damage one of the index's files, `count` times.

    Returns how often nothing was changed, and how often a map, which compares no checksums of segments, was searched.
    """
    rng = random.Random(seed)
    others = files_of(save_small(place.parent / "other", seed=1))
    others += files_of(save_small(place.parent / "wider", dim=9, seed=2, center=np.ones(9)))
    paths, unharmed, searched = files_of(place), 0, 0
    for _ in range(count):
        path = rng.choice(paths)
        content, changed = path.read_bytes(), damaged(path, paths, others, rng)
        path.unlink() if changed is None else path.write_bytes(changed)
        if changed == content:
            unharmed += 1
            assert tq.verify(place).manifest.n == 16
        else:
            assert_refused(place, tq.verify, whole)
            with suppress(CorruptIndexError), np.errstate(all="ignore"):
                assert tq.load(place).search(np.ones((2, 3)), 3).ids.shape == (2, 3)
                searched += 1
        path.write_bytes(content)
    return unharmed, searched


def test_random_damage(place, bounded):
    unharmed, searched = run_mutations(place, 2_000, 5)
    assert unharmed < 200
    assert searched > 20


@pytest.mark.nightly
def test_much_random_damage(place, bounded):
    unharmed, searched = run_mutations(place, 20_000, 6)
    assert unharmed < 2_000
    assert searched > 200
