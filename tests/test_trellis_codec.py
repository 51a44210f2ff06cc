"""Trellis codes: the search finds the cheapest path by its own rules, and the codec keeps what it promises of them."""

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tqindex.bench.trellis import RECIPES, Recipe, as_codebook, make_codebook, module_text, search
from tqindex.codec import Codec
from tqindex.codec import trellis_levels as stored_levels
from tqindex.codec.codebook import make_codebook as make_scalar_codebook
from tqindex.codec.refinement import refinement
from tqindex.codec.trellis import (
    LIMIT,
    TRELLIS_BITS,
    TrellisCodebook,
    find_paths,
    starts_of,
    trellis_codebook,
    windows_of,
    with_starts,
)
from tqindex.errors import ArgumentError

#: Squared errors per coordinate that the codes must not exceed in long rows of the normal law.
PROMISED = {2: 0.0785, 3: 0.0217, 4: 0.0061}


def metric(unit: int, target: int) -> int:
    return min(abs(unit - target), 255) ** 2 >> 2


def cost_of(units: Any, targets: Any, start: int, codes: Any, bits: int) -> int:
    """Sum of metrics of a path, by the definition."""
    window, total = start, 0
    for unit, code in zip(units.tolist(), codes, strict=True):
        window = (window << bits | int(code)) & 255
        total += metric(unit, int(targets[window]))
    return total


def plain_search(units: Any, targets: Any, bits: int) -> tuple[list[int], int]:
    """The search for one row, with costs as they add up: codes and start."""
    states = 2 ** (8 - bits)
    costs, steps = dict.fromkeys(range(states), 0), []
    for unit in units.tolist():
        new: dict[int, int] = {}
        came: dict[int, int] = {}
        for window in range(256):  # ascending: the smaller bits on top come first
            before, after = window >> bits, window % states
            cost = costs[before] + metric(unit, int(targets[window]))
            if after not in new or cost < new[after]:
                new[after], came[after] = cost, window
        costs = new
        steps.append(came)
    state = min(costs, key=lambda each: (costs[each], each))
    codes = []
    for came in reversed(steps):
        window = came[state]
        codes.append(window % 2**bits)
        state = window >> bits
    return codes[::-1], state


def on_sphere(n: int, dim: int, seed: int = 0) -> npt.NDArray[np.float32]:
    y = np.random.default_rng(seed).standard_normal((n, dim))
    return (y * np.sqrt(dim) / np.linalg.norm(y, axis=1, keepdims=True)).astype(np.float32)


# --- windows and levels ---


@pytest.mark.parametrize("bits", TRELLIS_BITS)
@pytest.mark.parametrize("dim", [2, 3, 7, 64])
def test_windows_are_the_last_eight_bits_of_the_stream(dim: int, bits: int) -> None:
    rng = np.random.default_rng(dim)
    codes, starts = rng.integers(0, 2**bits, (20, dim), np.uint8), rng.integers(0, 2 ** (8 - bits), 20, np.uint8)
    for row, start, windows in zip(codes, starts, windows_of(codes, starts, bits), strict=True):
        stream = f"{start:08b}" + "".join(f"{code:0{bits}b}" for code in row)
        for j, window in enumerate(windows):
            assert window == int(stream[: 8 + bits * (j + 1)][-8:], 2)


@pytest.mark.parametrize("bits", TRELLIS_BITS)
def test_codes_stand_for_the_levels_of_their_windows(bits: int) -> None:
    book = trellis_codebook(bits)
    codes, starts = np.random.default_rng(1).integers(0, 2**bits, (9, 33), np.uint8), np.arange(9, dtype=np.uint8)
    np.testing.assert_array_equal(book.expand(codes, starts), book.levels[windows_of(codes, starts, bits)])
    np.testing.assert_array_equal(book.targets, book.levels.astype(int) * book.fineness)
    assert np.abs(book.targets.astype(int)).max() < LIMIT


# --- the search ---


@pytest.mark.parametrize(("bits", "dim"), [(2, 2), (2, 4), (3, 3), (4, 2)])
def test_no_path_is_cheaper(bits: int, dim: int) -> None:
    book = trellis_codebook(bits)
    units = book.to_units(on_sphere(8, dim))
    for row, codes, start in zip(units, *find_paths(units, book.targets, bits), strict=True):
        paths = itertools.product(range(2 ** (8 - bits)), itertools.product(range(2**bits), repeat=dim))
        least = min(cost_of(row, book.targets, *path, bits) for path in paths)
        assert cost_of(row, book.targets, int(start), codes, bits) == least


@pytest.mark.parametrize("bits", TRELLIS_BITS)
@pytest.mark.parametrize("levels", ["stored", "few", "random", "one-sided", "apart"])
def test_the_search_is_the_plain_one(levels: str, bits: int) -> None:
    rng = np.random.default_rng(bits)
    targets = {
        "stored": trellis_codebook(bits).targets,
        "few": rng.integers(-1, 2, 256) * 40,  # most paths are equal
        "random": rng.integers(-1016, 1017, 256),
        "one-sided": rng.integers(0, 1017, 256),
        # Costs of states are as far apart as they can be.
        "apart": np.where(np.arange(256) % 2 ** (8 - bits), 1016, -1016),
    }[levels].astype(np.int16)
    units = np.concatenate(
        [
            rng.integers(-600, 601, (10, 40)),
            rng.integers(-2, 3, (10, 40)),
            np.full((1, 40), LIMIT),
            np.full((1, 40), -LIMIT),
            np.where(rng.random((10, 40)) < 0.5, -LIMIT, LIMIT),
            np.zeros((1, 40), int),
        ]
    ).astype(np.int16)
    codes, starts = find_paths(units, targets, bits)
    expected = [plain_search(row, targets, bits) for row in units]
    np.testing.assert_array_equal(codes, [path for path, _ in expected])
    np.testing.assert_array_equal(starts, [start for _, start in expected])


def test_costs_stay_below_16_bits() -> None:
    for bits in TRELLIS_BITS:
        steps_to_any = -(-(8 - bits) // bits)
        assert (steps_to_any + 1) * metric(LIMIT, -LIMIT) < 2**16


@pytest.mark.parametrize("bits", TRELLIS_BITS)
def test_rows_are_searched_one_by_one(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    book, y = trellis_codebook(bits), on_sphere(30, 20)
    together = book.quantise(y)
    monkeypatch.setattr("tqindex.codec.trellis._ROWS_AT_ONCE", 7)
    for ours, theirs in zip(book.quantise(y), together, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for row, codes, start in zip(y, *together, strict=True):
        one = book.quantise(row[np.newaxis])
        np.testing.assert_array_equal(one[0][0], codes)
        assert one[1][0] == start
    assert [part.shape for part in book.quantise(y[:0])] == [(0, 20), (0,)]


@pytest.mark.parametrize("bits", TRELLIS_BITS)
def test_coordinates_are_rounded_in_float64_and_bounded(bits: int) -> None:
    book = trellis_codebook(bits)
    unit = book.fineness / book.step
    y = np.float32([[0.0, -0.0, 1.0, -1.0, 1e30, -1e30, 2.5 / unit, 3.5 / unit, 256.0]])
    units = book.to_units(y)[0]
    np.testing.assert_array_equal(units[:6], [0, 0, round(unit), -round(unit), LIMIT, -LIMIT])
    np.testing.assert_array_equal(units[6:8], np.rint(y[0, 6:8].astype(float) * unit))
    assert units[8] == LIMIT


# --- the codec ---


@pytest.mark.parametrize("bits", TRELLIS_BITS)
@pytest.mark.parametrize("dim", [2, 3, 5, 8])
def test_in_few_dimensions_codes_lie_on_the_side_of_their_rows(dim: int, bits: int) -> None:
    # Else the unbiased scale would be negative, or huge.
    y = on_sphere(3000, dim)
    book = trellis_codebook(bits)
    along = (y * book.values[windows_of(*book.quantise(y), bits)]).sum(axis=1) / dim
    assert along.min() > 0.4


@pytest.mark.parametrize("bits", TRELLIS_BITS)
def test_zero_rows_have_codes_and_scales_of_zero(bits: int) -> None:
    codec = Codec(20, bits, "trellis")
    codes = codec.encode(np.concatenate([np.zeros((2, 20)), np.ones((1, 20))]))
    assert not codes.packed[:2].any()
    assert codes.packed[2].any()
    np.testing.assert_array_equal(codes.scales[:2], 0.0)
    np.testing.assert_array_equal(codec.decode(codes)[:2], 0.0)
    np.testing.assert_array_equal(codec.inner_product(np.ones(20), codes)[0, :2], 0.0)


@pytest.mark.parametrize("bits", TRELLIS_BITS)
@pytest.mark.parametrize("dim", [2, 7, 33, 65])
def test_codes_take_the_bytes_of_plain_ones(dim: int, bits: int) -> None:
    rows = on_sphere(5, dim)
    codes, plain = (Codec(dim, bits, kind).encode(rows) for kind in ("trellis", "mse"))
    assert codes.nbytes == plain.nbytes == 5 * (-(-dim * bits // 8) + 4)


@pytest.mark.parametrize("bits", TRELLIS_BITS)
def test_inner_products_are_those_of_what_decodes(bits: int) -> None:
    codec, rows, queries = Codec(100, bits, "trellis"), on_sphere(50, 100), on_sphere(7, 100, 1)
    codes = codec.encode(rows)
    decoded = codec.decode(codes).astype(np.float64) / (1 - codec.codebook.distortion)
    # int8 queries: errors of 1 / sqrt(12) steps of their largest coordinate over 127.
    error = 5 * np.abs(queries).max() / 127 * np.sqrt(100 / 12)
    np.testing.assert_allclose(codec.inner_product(queries, codes), queries @ decoded.T, atol=error)


def distortion(dim: int, bits: int, n: int, **parameters: Any) -> float:
    rows = np.random.default_rng(dim).standard_normal((n, dim), dtype=np.float32)
    codec = Codec(dim, bits, "trellis", **parameters)
    errors = ((rows - codec.decode(codec.encode(rows)).astype(np.float64)) ** 2).sum(axis=1)
    return float((errors / (rows.astype(np.float64) ** 2).sum(axis=1)).mean())


@pytest.mark.parametrize("bits", TRELLIS_BITS)
def test_distortion_is_as_promised(bits: int) -> None:
    stored = trellis_codebook(bits).distortion
    assert stored <= PROMISED[bits]
    # A squared error deviates by some 1.5 times its mean: .4 % of noise on 130,000 coordinates.
    assert distortion(1536, bits, 85) == pytest.approx(stored, rel=0.015)
    assert distortion(100, bits, 1500) <= stored


@pytest.mark.parametrize("bits", TRELLIS_BITS)
def test_it_is_a_third_below_that_of_scalar_codes(bits: int) -> None:
    assert trellis_codebook(bits).distortion < 0.67 * make_scalar_codebook(1536, bits).distortion


@pytest.mark.parametrize("bits", TRELLIS_BITS)
def test_decoding_takes_the_factor_of_least_squares(bits: int) -> None:
    codec, rows = Codec(256, bits, "trellis"), on_sphere(300, 256)
    decoded = codec.decode(codec.encode(rows)).astype(np.float64)
    best = (rows * decoded).sum() / (decoded * decoded).sum()
    assert best == pytest.approx(1.0, abs=0.1 * codec.codebook.distortion)


@pytest.mark.parametrize("bits", TRELLIS_BITS)
def test_the_papers_scale_is_the_norm(bits: int) -> None:
    codec, rows = Codec(64, bits, "trellis", scale="paper"), on_sphere(4, 64)
    np.testing.assert_allclose(codec.encode(rows).scales, 1.0, rtol=2**-15)
    assert distortion(256, bits, 200, scale="paper") == pytest.approx(codec.codebook.distortion, rel=0.05)


def test_scales_hold_starts() -> None:
    scales = np.float32([1.0, np.pi, 1e-30, 2.0**60, 3e-44, 0.0, 1.5e-45, -2.5, -0.0])
    for start in range(256):
        starts = np.full(len(scales), start, np.uint8)
        held = with_starts(scales, starts)
        np.testing.assert_array_equal(starts_of(held), starts)
        # Half of 256 units of the last place, at least of the least number.
        np.testing.assert_array_less(
            abs(held.astype(float) - scales), np.maximum(2.0**-15.9 * abs(scales), 256e-45 * 2)
        )
        np.testing.assert_array_equal(with_starts(held, starts), held)
    nearest = with_starts(np.float32([1.0]), np.uint8([200]))[0]
    assert nearest == 1.0 - 56 * 2.0**-24  # of 1 + 200 units above and 1 - 56 half units below


def test_scales_that_hold_starts_are_off_by_little(gaussian_rows: Any) -> None:
    rows = gaussian_rows(2000, 64)
    codec = Codec(64, 2, "trellis", scale="paper")
    off = codec.encode(rows).scales / (np.linalg.norm(rows, axis=1) / 8) - 1
    assert np.abs(off).max() < 2.0**-15.9
    assert abs(off.mean()) < 4 * 2.0**-16 / np.sqrt(3 * 2000)


# --- parameters ---


@pytest.mark.parametrize("bits", TRELLIS_BITS)
def test_configurations_come_back(bits: int) -> None:
    codec = Codec(33, bits, "trellis", center=np.arange(33.0), seed=3)
    config = json.loads(json.dumps(codec.get_config()))
    again = Codec.from_config(config)
    assert again == codec
    assert again != Codec(33, bits, center=np.arange(33.0), seed=3)
    rows = on_sphere(5, 33)
    np.testing.assert_array_equal(again.encode(rows).packed, codec.encode(rows).packed)
    plain = Codec(33, bits, "trellis")
    assert eval(repr(plain), {"Codec": Codec}) == plain


def test_stored_levels_are_taken() -> None:
    config = Codec(16, 2, "trellis").get_config()
    config["codebook"]["levels"] = config["codebook"]["levels"][::-1]
    codec = Codec.from_config(config)
    np.testing.assert_array_equal(codec.codebook.levels, trellis_codebook(2).levels[::-1])
    assert codec != Codec(16, 2, "trellis")


@pytest.mark.parametrize(
    "change",
    [
        {"levels": [0] * 255},
        {"levels": [128] + [0] * 255},
        {"levels": [-(2**63)] + [0] * 255},
        {"levels": [0.5] * 256},
        {"levels": ["x"] * 256},
        {"step": 0},
        {"step": 2**21},
        {"fineness": 0},
        {"fineness": 17},
        {"fineness": 1.5},
        {"step": 0.5},
    ],
)
def test_damaged_codebooks_are_refused(change: dict[str, Any]) -> None:
    config = trellis_codebook(3).get_config()
    with pytest.raises(ValueError, match=r"^a trellis must have"):
        TrellisCodebook.from_config(3, **(config | change))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"bits": 1}, "bits of kind 'trellis' must be one of 2, 3, 4; got 1"),
        ({"bits": 8}, "bits of kind 'trellis' must be one of 2, 3, 4; got 8"),
        ({"effort": "search"}, "effort must be 'plain' for kind 'trellis', got 'search'"),
    ],
)
def test_what_it_has_not_is_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Codec(16, **({"bits": 4, "kind": "trellis"} | parameters))
    assert str(caught.value) == message


def test_codes_of_a_sketch_are_refused() -> None:
    rows = on_sphere(2, 16)
    with pytest.raises(ArgumentError, match=r"^codes must be of a codec like"):
        Codec(16, 4, "trellis").decode(Codec(16, 4, "prod").encode(rows))


def test_there_are_no_bounds_by_planes() -> None:
    with pytest.raises(TypeError, match=r"planes of kind 'trellis' do not refine each other"):
        refinement(Codec(64, 4, "trellis"), 1)


# --- how the levels are made ---


def small_recipe(bits: int) -> Recipe:
    given = {recipe.bits: recipe for recipe in RECIPES}[bits]
    sizes: dict[str, Any] = {"rows": 20, "dim": 64, "measured": (50, 256)}
    return Recipe(bits, given.step, given.fineness, starts=2, finalists=1, short=3, long=3, **sizes)


#: What `make_codebook` gave for the small recipes: SHA-256 of the levels, and the distortion.
SMALL = {2: ("8565add18de7e8a8", 0.079395), 3: ("0b55964c75c956de", 0.023493), 4: ("02589bee52935ae8", 0.006915)}


@pytest.mark.parametrize("bits", TRELLIS_BITS)
def test_the_script_makes_the_same_levels_again(bits: int) -> None:
    book = make_codebook(small_recipe(bits))
    assert (hashlib.sha256(book.levels.tobytes()).hexdigest()[:16], book.distortion) == SMALL[bits]


def test_the_stored_levels_are_in_the_form_of_the_script() -> None:
    books = [trellis_codebook(bits) for bits in TRELLIS_BITS]
    assert Path(stored_levels.__file__).read_text() == module_text(books)
    for book, recipe in zip(books, RECIPES, strict=True):
        again = as_codebook(book.values, recipe)
        np.testing.assert_array_equal(again.levels, book.levels)
        assert (again.step, again.fineness) == (book.step, book.fineness)


@pytest.mark.nightly
def test_the_stored_levels_are_those_of_the_script() -> None:
    assert Path(stored_levels.__file__).read_text() == module_text([make_codebook(recipe) for recipe in RECIPES])


@pytest.mark.parametrize("bits", TRELLIS_BITS)
def test_the_scripts_search_is_the_codecs(bits: int) -> None:
    book, y = trellis_codebook(bits), on_sphere(40, 50).astype(np.float64)
    windows = search(y, book.targets.astype(np.int32), bits, book.fineness / book.step)
    np.testing.assert_array_equal(windows, windows_of(*find_paths(book.to_units(y), book.targets, bits), bits))
    # Paths that end as they start.
    around = search(y, book.targets.astype(np.int32), bits, book.fineness / book.step, start=5, end=5)
    assert (around[:, -1] % 2 ** (8 - bits) == 5).all()
    assert (around[:, 0] >> bits == 5).all()
