"""The layout of an index's codes: leading planes by blocks of 8 rows, the others row by row."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tqindex.codec import Codec
from tqindex.codec.packing import BLOCK, LEADING, interleave_rows, plane_bytes, row_places
from tqindex.kernels.rows import EncodedRows, StoredRows

WIDTHS = [*range(1, 41), 192]
STRANGE = 0xA5


def interleaved(plane: Any) -> list[list[int]]:
    """The definition, byte by byte: of what is left of 8 rows, the largest of 8, 4, 2, 1 bytes that all still have."""
    n, width = plane.shape
    blocks = []
    for first in range(0, n, BLOCK):
        rows = [plane[row].tolist() if row < n else [0] * width for row in range(first, first + BLOCK)]
        block: list[int] = []
        while rows[0]:
            size = next(size for size in (8, 4, 2, 1) if size <= len(rows[0]))
            for row in rows:
                block += row[:size]
                del row[:size]
        blocks.append(block)
    return blocks


@pytest.mark.parametrize("n", [1, 8, 13, 24])
def test_interleave_rows_is_its_definition(n: int) -> None:
    for width in WIDTHS:
        plane = np.random.default_rng(width).integers(0, 256, (n, width), np.uint8)
        np.testing.assert_array_equal(interleave_rows(plane), interleaved(plane))


@pytest.mark.parametrize("width", WIDTHS)
def test_row_places_find_every_byte(width: int) -> None:
    plane = np.arange(BLOCK * width).reshape(BLOCK, width)
    places = row_places(width)
    assert sorted(places.ravel()) == list(range(BLOCK * width))
    np.testing.assert_array_equal(interleave_rows(plane)[0, places], plane)


def noise(codec: Codec, metric: str, n: int) -> EncodedRows:
    rng = np.random.default_rng(n)
    rows = EncodedRows.allocate(codec, metric, n)
    rows.planes[:] = rng.integers(0, 256, rows.planes.shape)
    for side in (rows.scales, rows.sketch_scales, rows.offsets):
        side[:] = rng.standard_normal(side.shape)
    return rows


def assert_same(found: EncodedRows, expected: EncodedRows) -> None:
    for name in EncodedRows.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.sampled_from([("mse", 1), ("mse", 2), ("mse", 3), ("mse", 4), ("mse", 8), ("prod", 2), ("prod", 4)]),
    st.sampled_from(["ip", "l2"]),
    st.integers(2, 330),
    st.integers(0, 20),
    st.lists(st.integers(0, 20), min_size=1, max_size=5),
)
def test_what_is_written_is_read(form: Any, metric: str, dim: int, start: int, sizes: list[int]) -> None:
    kind, bits = form
    codec = Codec(dim, bits, kind, rotation="hadamard")
    n, width, leading = sum(sizes), plane_bytes(dim), min(bits, LEADING)
    rows, stop = noise(codec, metric, n), start + n
    stored = StoredRows.allocate(codec, metric, -(-(stop + 3) // BLOCK) * BLOCK)
    for array in stored.arrays().values():
        array[...] = STRANGE
    # Rows before and behind, also those that share a block, are to stay as they are.
    others = np.setdiff1d(np.arange(len(stored)), np.arange(start, stop))
    before = stored.read(others)
    at = 0
    for size in sizes:
        part = EncodedRows(*(array[at : at + size] for array in vars(rows).values()))
        stored.write(start + at, part)
        at += size
    assert_same(stored.read(np.arange(start, stop)), rows)
    order = np.random.default_rng(dim).permutation(n)
    np.testing.assert_array_equal(stored.read(start + order).planes, rows.planes[order])
    np.testing.assert_array_equal(stored.read(start + order).scales, rows.scales[order])
    assert_same(stored.read(others), before)
    # The definition decides where the bytes are; `read` alone could agree with a wrong `write`.
    full = stored.read(np.arange(len(stored))).planes.reshape(len(stored), bits, width)
    for plane in range(leading):
        np.testing.assert_array_equal(stored.lead[plane], interleaved(full[:, plane]))
    np.testing.assert_array_equal(stored.rest, full[:, leading:].reshape(len(stored), -1))
    assert stored.code_bytes == bits * width


@pytest.mark.parametrize("bits", [1, 3])
def test_grown_rows_keep_what_they_hold(bits: int) -> None:
    codec = Codec(100, bits)
    rows = noise(codec, "l2", 16)
    stored = StoredRows.allocate(codec, "l2", 16)
    stored.write(0, rows)
    larger = stored.grown(codec, "l2", 40)
    assert len(larger) == 40
    assert_same(larger.read(np.arange(16)), rows)
    for name, array in larger.arrays().items():
        assert not array[(slice(None), slice(2, None)) if name == "lead" else slice(16, None)].any(), name


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("kind", "bits"), [("mse", 1), ("mse", 2), ("mse", 8), ("prod", 4)])
def test_rows_are_copied_as_they_are_and_no_others_touched(kind: Any, bits: int, width: int) -> None:
    codec = Codec(8 * width, bits, kind, rotation="hadamard")
    rows, kept = noise(codec, "l2", 24), noise(codec, "l2", 16)
    source, target = StoredRows.allocate(codec, "l2", 24), StoredRows.allocate(codec, "l2", 16)
    source.write(0, rows)
    target.write(0, kept)
    picked = np.array([3, 4, 8, 15, 16, 23, 0])
    target.copy(5, source, picked)
    assert_same(target.read(np.arange(5, 12)), source.read(picked))
    others = np.array([0, 1, 2, 3, 4, 12, 13, 14, 15])
    np.testing.assert_array_equal(target.read(others).planes, kept.planes[others])
    for name in ("scales", "sketch_scales", "offsets"):
        side = getattr(kept, name)
        np.testing.assert_array_equal(getattr(target.read(others), name), side[others] if side.size else side)
