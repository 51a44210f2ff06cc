"""What the cascade is made of: coarse queries, their sums over interleaved planes, bounds, and rows taken out."""

from typing import Any

import numba
import numpy as np
import pytest

from tqindex.codec import Codec
from tqindex.codec.packing import BLOCK, interleave_rows
from tqindex.codec.refinement import refinement
from tqindex.index.plan import ScanPlan
from tqindex.kernels.coarse import (
    BOUND,
    COARSE_BYTES,
    ESTIMATE,
    FIRST,
    OFFSET,
    SECOND,
    WEIGHTS,
    _write_slices,
    _write_tables,
    coarsen_query,
)
from tqindex.kernels.compile import kernel
from tqindex.kernels.cpu import has_byte_tables
from tqindex.kernels.simd_count import SLICES, count_blocks, make_reach_pairs
from tqindex.kernels.simd_layout import gather_row
from tqindex.kernels.simd_lookup import TABLES, look_up_blocks

WIDTHS = [*range(1, 41), 192]
_count_blocks: Any = count_blocks
_look_up_blocks: Any = look_up_blocks
_gather_row: Any = gather_row
_reach_plain, _reach_offsets = make_reach_pairs(False), make_reach_pairs(True)
# Parts of kernels, callable from here.
_slices, _tables = kernel(_write_slices.py_func), kernel(_write_tables.py_func)


# Intrinsics can be called from compiled code alone.
@numba.njit(error_model="numpy")
def count(plane: Any, runs: Any, pairs: int, width: int, slices: Any, counts: Any, at: int) -> None:
    first, second, step = runs
    _count_blocks(plane, first, second, step, pairs, width, slices, counts, at)


@numba.njit(error_model="numpy")
def look_up(plane: Any, runs: Any, pairs: int, width: int, tables: Any, counts: Any, at: int) -> None:
    first, second, step = runs
    _look_up_blocks(plane, first, second, step, pairs, width, tables, counts, at)


@numba.njit(error_model="numpy")
def gather(lead: Any, at: int, lane: int, width: int, out: Any, out_at: int) -> None:
    _gather_row(lead, at, lane, width, out, out_at)


@numba.njit(error_model="numpy")
def reach(
    with_offsets: bool, first: Any, second: Any, scales: Any, offsets: Any, places: Any, w: Any, t: float, masks: Any
) -> None:
    a, b, c, row, other, step, pairs = places
    if with_offsets:
        _reach_offsets(
            first, a, b, second, c, scales, offsets, row, other, step, pairs, w[0], w[1], w[2], w[3], t, masks, 1
        )
    else:
        _reach_plain(
            first, a, b, second, c, scales, offsets, row, other, step, pairs, w[0], w[1], w[2], w[3], t, masks, 1
        )


FORMS = [
    pytest.param(count, _slices, 8 * SLICES, 7, id="slices"),
    pytest.param(
        look_up,
        _tables,
        TABLES,
        31,
        id="tables",
        marks=pytest.mark.skipif(not has_byte_tables(), reason="this level has no shuffle across 64 bytes"),
    ),
]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("sum_up", "write", "word_bytes", "most"), FORMS)
def test_blocks_are_summed_over_set_bits(sum_up: Any, write: Any, word_bytes: int, most: int, width: int) -> None:
    rng = np.random.default_rng(width)
    plane = rng.integers(0, 256, (5 * BLOCK, width), np.uint8)
    plane[:BLOCK] = 255
    blocks = interleave_rows(plane)
    words = -(-width // 8)
    # Queries are zero beyond their coordinates, planes need not be; the largest sums come first.
    queries = [np.full(8 * width, value) for value in (most, -most)]
    queries += [rng.integers(-most, most + 1, 8 * width - 3) for _ in range(3)]
    for query in queries:
        expected = np.unpackbits(plane, axis=1, bitorder="little")[:, : len(query)].astype(np.int64) @ query
        levels, form = np.zeros(64 * words, np.int8), np.zeros(words * word_bytes, np.uint8)
        levels[: len(query)] = query
        write(levels, form)
        for first, second, step, pairs in ((0, 4, 0, 1), (3, 1, 1, 1), (2, 2, 1, 3), (0, 1, 2, 2), (0, 0, 1, 0)):
            counts = np.full(80, 99, np.int32)
            runs = tuple(8 * width * place for place in (first, second, step))
            sum_up(blocks.ravel(), runs, pairs, width, form, counts, 11)
            by_block = expected.reshape(5, BLOCK)
            wanted = [by_block[start + j * step] for j in range(pairs) for start in (first, second)]
            np.testing.assert_array_equal(counts[11 : 11 + 16 * pairs], np.ravel(wanted))
            assert (np.delete(counts, range(11, 11 + 16 * pairs)) == 99).all()


@pytest.mark.parametrize("width", WIDTHS)
def test_gather_row_takes_one_row_out(width: int) -> None:
    plane = np.random.default_rng(width).integers(1, 256, (3 * BLOCK, width), np.uint8)
    blocks = interleave_rows(plane).ravel()
    padded = -(-width // 8) * 8
    for row in range(len(plane)):
        out = np.full(padded + 24, 7, np.uint8)
        gather(blocks, row // BLOCK * BLOCK * width, row % BLOCK, width, out, 8)
        np.testing.assert_array_equal(out[8 : 8 + width], plane[row])
        assert not out[8 + width : 8 + padded].any()
        assert (out[:8] == 7).all()
        assert (out[8 + padded :] == 7).all()


@pytest.mark.parametrize("with_offsets", [False, True])
@pytest.mark.parametrize("magnitude", [1.0, 1e-20, 1e12])
def test_reach_pairs_compares_bounds_in_their_order(with_offsets: bool, magnitude: float) -> None:
    rng = np.random.default_rng(5)
    first, second = (rng.integers(-3000, 3000, 64).astype(np.int32) for _ in range(2))
    scales = (rng.random(64, np.float32) * magnitude).astype(np.float32)
    offsets = (rng.standard_normal(64) * 1e3 * magnitude).astype(np.float32)
    w = (rng.standard_normal(4) * [1, 1, 100, 1e-2]).astype(np.float32)
    for a, b, c, row, other, step, pairs in (
        (0, 8, 0, 0, 8, 0, 1),
        (40, 3, 16, 32, 8, 8, 1),
        (5, 5, 32, 16, 16, 16, 2),
        (0, 8, 0, 0, 32, 8, 3),
        (0, 8, 0, 0, 32, 8, 0),
    ):
        bounds = np.empty((pairs, 16), np.float32)
        for j in range(pairs):
            counts = np.concatenate([first[16 * j + a :][:8], first[16 * j + b :][:8]]).astype(np.float32)
            rows = step * j + np.concatenate([np.arange(row, row + 8), np.arange(other, other + 8)])
            seconds = second[16 * j + c :][:16].astype(np.float32)
            bounds[j] = (w[2] + w[0] * counts + w[1] * seconds) * scales[rows]
            if with_offsets:
                bounds[j] = bounds[j] + (offsets[rows] + w[3] * np.abs(offsets[rows]))
        # A bound equal to the threshold reaches it: one ulp of difference in any step would show.
        thresholds = [*bounds.ravel(), *np.nextafter(bounds, np.float32(np.inf)).ravel(), np.float32(-np.inf)]
        for threshold in thresholds:
            masks = np.full(pairs + 2, 77, np.uint32)
            reach(with_offsets, first, second, scales, offsets, (a, b, c, row, other, step, pairs), w, threshold, masks)
            np.testing.assert_array_equal(masks[1:-1], (bounds >= threshold) @ (1 << np.arange(16)))
            assert masks[0] == masks[-1] == 77


def queries_of_every_form(dim: int) -> Any:
    """int8 levels: Gaussian, one-hot, constant, two values, zero."""
    rng = np.random.default_rng(dim)
    levels = np.zeros((6, dim), np.int8)
    levels[0] = np.clip(np.rint(rng.standard_normal(dim) * 40), -127, 127)
    levels[1, dim // 2] = -127
    levels[2] = 127
    levels[3] = np.where(rng.random(dim) < 0.5, 127, -1)
    levels[4] = rng.integers(-127, 128, dim)
    return levels


def coarsen(plan: ScanPlan, levels: Any, scale: float, deviations: float) -> tuple[Any, Any]:
    """Coarse levels, int64 (dim,), and weights (stages, WEIGHTS)."""
    depth = -(-len(levels) // 64) * 64
    padded, coarse = np.zeros((2, depth), np.int8)
    padded[: len(levels)] = levels
    form, expected = np.zeros((2, depth // 64 * COARSE_BYTES), np.uint8)
    weights = np.zeros(WEIGHTS * len(plan.stages), np.float32)
    coarsen_query(padded, len(levels), scale, deviations, deviations + 1, plan.stages, coarse, form, weights)
    assert not coarse[len(levels) :].any()
    (_tables if has_byte_tables() else _slices)(coarse, expected)
    np.testing.assert_array_equal(form, expected)
    return coarse[: len(levels)].astype(np.int64), weights.reshape(-1, WEIGHTS)


@pytest.mark.parametrize("dim", [64, 65, 100, 1536])
def test_a_coarse_query_is_the_rounded_one(dim: int) -> None:
    plan = ScanPlan(Codec(dim, 2))
    most, width = (31, 0.104) if has_byte_tables() else (7, 0.335)
    for levels in queries_of_every_form(dim):
        coarse, _ = coarsen(plan, levels, 1.0, 0.0)
        step = width * np.sqrt(max((levels.astype(np.float64) ** 2).sum(), 1.0) / dim)
        np.testing.assert_array_equal(coarse, np.clip(np.rint(levels / step), -most, most))


@pytest.mark.parametrize("deviations", [0.0, 5.0])
@pytest.mark.parametrize(
    ("kind", "bits", "scale"),
    [("mse", 1, "unbiased"), ("mse", 2, "paper"), ("mse", 4, "unbiased"), ("mse", 8, "unbiased"), ("prod", 4, "paper")],
)
@pytest.mark.parametrize("dim", [64, 100, 1536])
def test_bounds_are_partial_scores_and_margins(dim: int, kind: Any, bits: int, scale: Any, deviations: float) -> None:
    codec = Codec(dim, bits, kind, scale=scale)
    plan = ScanPlan(codec)
    assert len(plan.stages) == min(codec.codebook.bits, 2)
    first_bits, second_bits = np.random.default_rng(1).integers(0, 2, (2, 9, dim))
    for levels in queries_of_every_form(dim):
        unit_scale = 0.37
        coarse, weights = coarsen(plan, levels, unit_scale, deviations)
        exact = levels.astype(np.float64)
        along = float(coarse @ exact)
        stand_in = coarse * (exact @ exact / along if along else 0.0)
        rest = exact - stand_in  # its part of the margin must not depend on how near a row is
        assert abs(rest @ exact) <= 1e-9 * (exact @ exact)
        for planes, w in enumerate(weights, start=1):
            known = refinement(codec, planes)
            group = 2 * first_bits + second_bits if planes == 2 else first_bits
            partial = known.kappa * unit_scale * (known.values[group] @ stand_in)
            variance = known.sigma**2 * (exact @ exact) + known.kappa**2 * known.power * (rest @ rest)
            sketch = (deviations + 1) * known.sketch * np.sqrt(exact @ exact)
            margin = (deviations * np.sqrt(variance) + sketch) * unit_scale * np.sqrt(dim / (dim - 1))
            estimate = w[FIRST] * (first_bits @ coarse) + w[SECOND] * (second_bits @ coarse) + w[ESTIMATE]
            bound = estimate - w[ESTIMATE] + w[BOUND]
            slack = 2.0**-20 * np.sqrt(dim * (exact @ exact)) * unit_scale  # for the rounding of float32 scores
            size = known.kappa * unit_scale * np.abs(stand_in).sum() + margin + slack
            np.testing.assert_allclose(bound, partial + margin + slack, rtol=0, atol=1e-6 * size)
            np.testing.assert_allclose(estimate, partial, rtol=0, atol=1e-6 * size)
            assert w[OFFSET] == np.float32(2.0**-20)
