"""What the cascade is made of: coarse queries, their sums over interleaved planes, bounds, and rows taken out."""

from typing import Any

import numba
import numpy as np
import pytest

from tqindex.codec import Codec
from tqindex.codec.packing import BLOCK, interleave_rows
from tqindex.codec.refinement import refinement
from tqindex.index.plan import ScanPlan
from tqindex.kernels.coarse import BOUND, ESTIMATE, FIRST, OFFSET, SECOND, WEIGHTS, coarsen_query
from tqindex.kernels.simd_count import SLICES, count_blocks, make_reach_blocks
from tqindex.kernels.simd_layout import gather_row

WIDTHS = [*range(1, 41), 192]
_count_blocks: Any = count_blocks
_gather_row: Any = gather_row
_reach = {with_offsets: make_reach_blocks(with_offsets) for with_offsets in (False, True)}
_reach_plain, _reach_offsets = _reach[False], _reach[True]


# Intrinsics can be called from compiled code alone.
@numba.njit(error_model="numpy")
def count(plane: Any, runs: Any, pairs: int, width: int, slices: Any, counts: Any, at: int) -> None:
    first, second, step = runs
    _count_blocks(plane, first, second, step, pairs, width, slices, counts, at)


@numba.njit(error_model="numpy")
def gather(lead: Any, at: int, lane: int, width: int, out: Any, out_at: int) -> None:
    _gather_row(lead, at, lane, width, out, out_at)


@numba.njit(error_model="numpy")
def reach(with_offsets: bool, first: Any, second: Any, scales: Any, offsets: Any, places: Any, w: Any, t: float) -> int:
    a, b, c, row, other = places
    if with_offsets:
        return _reach_offsets(first, a, b, second, c, scales, offsets, row, other, w[0], w[1], w[2], w[3], t)
    return _reach_plain(first, a, b, second, c, scales, offsets, row, other, w[0], w[1], w[2], w[3], t)


def slice_query(coarse: Any) -> Any:
    """Bit slices of integers in [-8, 7], u64 (words * SLICES,)."""
    padded = np.zeros(-(-len(coarse) // 64) * 64, np.int64)
    padded[: len(coarse)] = coarse
    bits = (padded.reshape(-1, 1, 64) >> np.arange(SLICES)[:, np.newaxis]) & 1
    return np.packbits(bits.astype(np.uint8), axis=2, bitorder="little").view(np.uint64).ravel()


@pytest.mark.parametrize("width", WIDTHS)
def test_count_blocks_sums_the_query_over_set_bits(width: int) -> None:
    rng = np.random.default_rng(width)
    plane = rng.integers(0, 256, (5 * BLOCK, width), np.uint8)
    plane[:BLOCK] = 255
    blocks = interleave_rows(plane)
    # Queries are zero beyond their coordinates, planes need not be; the largest sums come first.
    queries = [np.full(8 * width, value) for value in (7, -8)] + [rng.integers(-8, 8, 8 * width - 3) for _ in range(3)]
    for coarse in queries:
        expected = np.unpackbits(plane, axis=1, bitorder="little")[:, : len(coarse)].astype(np.int64) @ coarse
        for first, second, step, pairs in ((0, 4, 0, 1), (3, 1, 1, 1), (2, 2, 1, 3), (0, 1, 2, 2), (0, 0, 1, 0)):
            counts = np.full(80, 99, np.int32)
            runs = tuple(8 * width * place for place in (first, second, step))
            count(blocks.ravel(), runs, pairs, width, slice_query(coarse), counts, 11)
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
def test_reach_blocks_compares_bounds_in_their_order(with_offsets: bool, magnitude: float) -> None:
    rng = np.random.default_rng(5)
    first, second = (rng.integers(-3000, 3000, 64).astype(np.int32) for _ in range(2))
    scales = (rng.random(48, np.float32) * magnitude).astype(np.float32)
    offsets = (rng.standard_normal(48) * 1e3 * magnitude).astype(np.float32)
    w = (rng.standard_normal(4) * [1, 1, 100, 1e-2]).astype(np.float32)
    for a, b, c, row, other in ((0, 8, 0, 0, 8), (40, 3, 16, 32, 8), (5, 5, 48, 16, 16)):
        counts = np.concatenate([first[a : a + 8], first[b : b + 8]]).astype(np.float32)
        rows = np.concatenate([np.arange(row, row + 8), np.arange(other, other + 8)])
        bounds = (w[2] + w[0] * counts + w[1] * second[c : c + 16].astype(np.float32)) * scales[rows]
        if with_offsets:
            bounds = bounds + (offsets[rows] + w[3] * np.abs(offsets[rows]))
        assert bounds.dtype == np.float32
        # A bound equal to the threshold reaches it: one ulp of difference in any step would show.
        for threshold in [*bounds, *np.nextafter(bounds, np.float32(np.inf)), np.float32(-np.inf)]:
            found = reach(with_offsets, first, second, scales, offsets, (a, b, c, row, other), w, threshold)
            assert found == sum(int(bound >= threshold) << lane for lane, bound in enumerate(bounds))


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
    depth = -(-len(levels) // 64) * 64
    padded, slices = np.zeros(depth, np.int8), np.zeros(depth // 64 * SLICES, np.uint64)
    padded[: len(levels)] = levels
    weights = np.zeros(WEIGHTS * len(plan.stages), np.float32)
    coarsen_query(padded, len(levels), scale, deviations, deviations + 1, plan.stages, slices, weights)
    return slices, weights.reshape(-1, WEIGHTS)


def coarse_of(slices: Any, dim: int) -> Any:
    """Undo `slice_query`."""
    bits = np.unpackbits(slices.view(np.uint8).reshape(-1, SLICES, 8), axis=2, bitorder="little").astype(np.int64)
    values = (bits * np.array([1, 2, 4, -8])[:, np.newaxis]).sum(axis=1)
    assert not values.ravel()[dim:].any()
    return values.ravel()[:dim]


@pytest.mark.parametrize("dim", [64, 65, 100, 1536])
def test_a_coarse_query_is_the_rounded_one(dim: int) -> None:
    plan = ScanPlan(Codec(dim, 2))
    for levels in queries_of_every_form(dim):
        coarse = coarse_of(coarsen(plan, levels, 1.0, 0.0)[0], dim)
        step = 0.335 * np.sqrt(max((levels.astype(np.float64) ** 2).sum(), 1.0) / dim)
        np.testing.assert_array_equal(coarse, np.clip(np.rint(levels / step), -7, 7))


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
        slices, weights = coarsen(plan, levels, unit_scale, deviations)
        coarse, exact = coarse_of(slices, dim), levels.astype(np.float64)
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
