"""No damage goes unnoticed: every bit of every file, and thousands of random mutations, cuts and exchanged files."""

import random
import resource
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import tqindex as tq
from tqindex.errors import CorruptIndexError, TQIndexError

#: What reading a damaged index of a few KB may take; the address space counts what is allotted, used or not.
ALLOWANCE = 256 * 2**20
SECONDS = 300


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
    """Fail where something allots by a number from a damaged file, or does not come to an end."""

    def late(number, frame):
        raise TimeoutError(f"not done after {SECONDS} seconds")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ALLOWANCE, limits[1]))
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_AS, limits)
    signal.signal(signal.SIGALRM, before)


def files_of(place):
    """Every file that the index consists of: not the writer's lock, which nobody reads but the next writer."""
    paths = sorted(path for path in place.iterdir() if path.name != "lock")
    assert [path.suffix for path in paths] == [".bin", ".bin", ".json", ".safetensors", ".safetensors"]
    return paths


def assert_refused(place):
    with pytest.raises(CorruptIndexError):
        tq.load(place, mmap=False)
    with pytest.raises(CorruptIndexError):
        tq.verify(place)


def test_every_flipped_bit_is_found(place, bounded):
    for path in files_of(place):
        content = path.read_bytes()
        with path.open("r+b", buffering=0) as file:
            for i, byte in enumerate(content):
                for bit in range(8):
                    file.seek(i)
                    file.write(bytes([byte ^ 1 << bit]))
                    assert_refused(place)
                file.seek(i)
                file.write(bytes([byte]))
    assert len(tq.load(place, mmap=False)) == tq.verify(place).manifest.n == 15


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


def damage(place, others, rng):
    """Do one thing to the index; returns whether its files are what they were."""
    paths = files_of(place)
    path = rng.choice(paths)
    content = path.read_bytes()
    kind = rng.randrange(10)
    if kind == 0:
        path.unlink()
        return False
    source = rng.choice(others) if kind == 1 else rng.choice(paths)
    changed = source.read_bytes() if kind in (1, 2) else mutate(content, rng)
    path.write_bytes(changed)
    return changed == content


def run_mutations(place, count, seed):
    """Damage the index `count` times, each time from its sound state; returns how often it was read nonetheless."""
    rng = random.Random(seed)
    others = files_of(save_small(place.parent / "other", seed=1))
    others += files_of(save_small(place.parent / "wider", dim=9, seed=2, center=np.ones(9)))
    sound = place.parent / "sound"
    place.rename(sound)
    unharmed = mapped = 0
    for _ in range(count):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(sound, place)
        if damage(place, others, rng):
            unharmed += 1
            tq.verify(place)
            continue
        for read in (lambda: tq.load(place, mmap=False), lambda: tq.verify(place)):
            with pytest.raises(TQIndexError):
                read()
        with suppress(TQIndexError), np.errstate(all="ignore"):
            # A map compares no checksums of segments: it may give wrong answers, and only that.
            assert tq.load(place).search(np.ones((2, 3)), 3).ids.shape == (2, 3)
            mapped += 1
    return unharmed, mapped


def test_random_damage(place, bounded):
    unharmed, mapped = run_mutations(place, 2_000, 5)
    assert unharmed < 200
    assert mapped > 20


@pytest.mark.nightly
def test_much_random_damage(place, bounded):
    unharmed, mapped = run_mutations(place, 20_000, 6)
    assert unharmed < 2_000
    assert mapped > 200
