"""Encoding kernels give the bytes of the codec, for every form of codec and vector, threads and blocks."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tqindex.checks import as_rows
from tqindex.codec import Codec, Codes
from tqindex.codec.codec import normalise
from tqindex.codec.packing import LEADING, pad_planes, plane_bytes, repack_planes, unpack_codes
from tqindex.codec.rotation import gaussian_projection, make_rotation
from tqindex.codec.sums import dot, tree_sum
from tqindex.errors import VectorError
from tqindex.kernels import encode as kernels
from tqindex.kernels import encoder
from tqindex.kernels.compile import kernel
from tqindex.kernels.encoder import BLOCK_ROWS, encode_rows, project
from tqindex.kernels.product import TILE, _place_row, expand_tile
from tqindex.kernels.rows import EncodedRows, StoredRows
from tqindex.kernels.simd_sums import CHUNK

# Parts of kernels, callable from here.
_expand_tile, _find_row = (kernel(part.py_func) for part in (expand_tile, _place_row))

METRICS = ("ip", "cosine", "l2")
DIMS = [2, 7, 31, 33, 64, 65, 100, 257]
CODECS: list[dict[str, Any]] = [
    *({"bits": bits, "kind": "mse", "scale": s} for bits in (1, 2, 3, 4, 8) for s in ("unbiased", "paper")),
    *(
        {"bits": bits, "kind": "prod", "sketch": k, "scale": s}
        for bits in (2, 3, 4)
        for k in ("orthogonal", "gaussian")
        for s in ("unbiased", "paper")
    ),
    *({"bits": bits, "kind": "trellis", "scale": s} for bits in (2, 3, 4) for s in ("unbiased", "paper")),
    *({"bits": bits, "kind": "mse", "scale": "unbiased", "effort": "search"} for bits in (2, 3, 4)),
    *({"bits": bits, "kind": "prod", "scale": "unbiased", "effort": "search"} for bits in (3, 4)),
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of BLOCK_ROWS rows at any width, so that few rows cross them."""
    monkeypatch.setattr(encoder, "_BLOCK_VALUES", 1)


def name_of(config: dict[str, Any]) -> str:
    return "-".join(str(value) for value in config.values())


def varied_rows(dim: int, metric: str, center: Any) -> Any:
    """Rows of every temper: Gaussian, one-hot, constant, tiny, huge, equal coordinates, the centre itself, zero."""
    rng = np.random.default_rng(dim)
    rows = rng.standard_normal((24, dim), dtype=np.float32)
    rows[3] = 0.0
    rows[3, dim // 2] = -7.0
    rows[4] = 1.5
    rows[5] *= np.float32(1e-30)
    rows[6] *= np.float32(1e17 / np.sqrt(dim))
    rows[7] = np.where(rows[7] > 0, 1.0, -1.0)
    rows[8] = 0.0
    rows[8, 0] = np.float32(1e-42)
    rows[9] = rows[10]
    rows[11, : dim // 2] = 0.0
    if center is not None:
        rows[12] = center
    if metric != "cosine":
        rows[13] = 0.0
        rows[14] = -0.0
    return rows


def encode_with_kernels(codec: Codec, rows: Any, metric: str, threads: int = 1) -> EncodedRows:
    out = EncodedRows.allocate(codec, metric, len(rows))
    encode_rows(codec, rows, metric, out, threads)
    return out


def assert_same(ours: EncodedRows, oracle: Codes, codec: Codec) -> None:
    planes = pad_planes(unpack_codes(oracle.packed, codec.dim, codec.bits), codec.bits)
    np.testing.assert_array_equal(ours.planes, planes)
    np.testing.assert_array_equal(repack_planes(ours.planes, codec.dim, codec.bits), oracle.packed)
    for name in ("scales", "sketch_scales", "offsets"):
        expected = getattr(oracle, name)
        expected = np.empty(0, np.float32) if expected is None else expected
        found = getattr(ours, name)
        assert found.dtype == np.float32
        # Bytes, so that -0 and 0 differ.
        np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32), err_msg=name)


@pytest.mark.parametrize("config", CODECS, ids=name_of)
@pytest.mark.parametrize("dim", [*DIMS, pytest.param(1032, marks=pytest.mark.nightly)])
def test_encode_rows_equals_the_codec(dim: int, config: Any) -> None:
    for metric in METRICS:
        for center in (None, np.random.default_rng(1).standard_normal(dim).astype(np.float32) * 0.2):
            codec = Codec(dim, center=center, **config)
            rows = varied_rows(dim, metric, center)
            assert_same(encode_with_kernels(codec, rows, metric), codec.encode(rows, metric), codec)


@pytest.mark.parametrize(
    "config", [c for c in CODECS if c["scale"] == "unbiased" and c.get("sketch") != "gaussian"], ids=name_of
)
@pytest.mark.parametrize("metric", METRICS)
def test_encode_rows_equals_the_codec_at_1536(config: Any, metric: str) -> None:
    center = np.random.default_rng(1).standard_normal(1536).astype(np.float32) * 0.1
    codec = Codec(1536, center=center, **config)
    rows = varied_rows(1536, metric, center)
    assert_same(encode_with_kernels(codec, rows, metric), codec.encode(rows, metric), codec)


@pytest.mark.parametrize("config", [CODECS[6], CODECS[12], CODECS[-1]], ids=name_of)
@pytest.mark.parametrize(("dim", "rotation"), [(7, "hadamard"), (33, "hadamard"), (64, "dense"), (100, "dense")])
def test_encode_rows_equals_the_codec_under_the_other_rotation(dim: int, rotation: Any, config: Any) -> None:
    codec = Codec(dim, rotation=rotation, **config)
    rows = varied_rows(dim, "l2", None)
    assert_same(encode_with_kernels(codec, rows, "l2"), codec.encode(rows, "l2"), codec)


@pytest.mark.parametrize("config", [CODECS[6], CODECS[14], CODECS[-3]], ids=name_of)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_leave_no_trace(threads: int, config: Any, gaussian_rows: Any) -> None:
    codec = Codec(33, center=np.full(33, 0.1), **config)
    rows = gaussian_rows(3 * BLOCK_ROWS + 17, 33)
    before = rows.copy()
    assert_same(encode_with_kernels(codec, rows, "cosine", threads), codec.encode(rows, "cosine"), codec)
    np.testing.assert_array_equal(rows, before)


@settings(
    derandomize=True,
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=5), st.integers(1, 4))
def test_batches_leave_no_trace(sizes: list[int], threads: int) -> None:
    codec = Codec(9, 3, "prod")
    rows = np.random.default_rng(3).standard_normal((sum(sizes), 9), dtype=np.float32)
    whole = encode_with_kernels(codec, rows, "l2")
    parts = EncodedRows.allocate(codec, "l2", len(rows))
    start = 0
    for size in sizes:
        stop = start + size
        encode_rows(codec, rows[start:stop], "l2", parts, threads, at=start)
        start = stop
    for name in ("planes", "scales", "sketch_scales", "offsets"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


@pytest.mark.parametrize("row", [0, BLOCK_ROWS - 1, BLOCK_ROWS, 2 * BLOCK_ROWS + 3])
@pytest.mark.parametrize("threads", [1, 3])
def test_refusals_name_the_row(row: int, threads: int, gaussian_rows: Any) -> None:
    codec, rows = Codec(8), gaussian_rows(3 * BLOCK_ROWS, 8)
    out = EncodedRows.allocate(codec, "cosine", len(rows))
    rows[row] = 0.0
    with pytest.raises(VectorError, match=rf"zero vector in row {row + 1000}$"):
        encode_rows(codec, rows, "cosine", out, threads, 1000)
    rows[row] = 2.0**59
    for metric in ("ip", "l2"):
        out = EncodedRows.allocate(codec, metric, len(rows))
        with pytest.raises(VectorError, match=rf"norms of at most 2\*\*60 after centring, got 1.63e\+18 in row {row}$"):
            encode_rows(codec, rows, metric, out, threads)


def test_read_only_and_unaligned_rows_compile_nothing_new(gaussian_rows: Any) -> None:
    codec, rows = Codec(33), gaussian_rows(9, 33)
    expected = codec.encode(rows)
    assert_same(encode_with_kernels(codec, rows, "ip"), expected, codec)
    compiled = list(kernels.prepare_rows.signatures)
    shifted = np.frombuffer(b"-" + rows.tobytes(), np.float32, offset=1).reshape(rows.shape)
    assert not shifted.flags.writeable
    assert not shifted.flags.aligned
    assert_same(encode_with_kernels(codec, shifted, "ip"), expected, codec)
    assert kernels.prepare_rows.signatures == compiled


@pytest.mark.parametrize("dtype", ["f2", "f8"])
def test_other_dtypes_are_cast_before_all_else(dtype: str, gaussian_rows: Any) -> None:
    codec, rows = Codec(33), gaussian_rows(9, 33).astype(dtype)
    assert_same(encode_with_kernels(codec, as_rows(rows, 33), "l2"), codec.encode(rows, "l2"), codec)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("dim", [2, 8, 33, 57, 64, 100, 257])
def test_expand_tile_undoes_pad_planes(dim: int, bits: int) -> None:
    width = plane_bytes(dim)
    codes = np.zeros((11, 8 * width), np.uint8)
    codes[:, :dim] = np.random.default_rng(bits).integers(0, 2**bits, (11, dim))
    planes = pad_planes(codes[:, :dim], bits)
    stored = StoredRows.allocate(Codec(dim, bits), "ip", 16)
    sides = np.empty(11, np.float32), np.empty(0, np.float32), np.empty(0, np.float32)
    stored.write(3, EncodedRows(planes, *sides))
    entries = np.random.default_rng(0).permutation(256)[:16].astype(np.uint8)
    levels = np.zeros((TILE, -(-dim // 64) * 64), np.uint8)
    work = np.zeros(min(bits, LEADING) * -(-width // 8) * 8, np.uint8)
    _expand_tile(
        stored.lead, stored.rest, np.arange(8, 14), 6, 0, bits, np.tile(entries, 4), levels, work, stored.scales
    )
    expected = codes if bits == 8 else entries[codes]
    np.testing.assert_array_equal(rows_of(levels)[:6, :dim], expected[5:, :dim])
    assert not rows_of(levels)[6:].any()
    place = np.arange(8, 14), 6, bits - 1, 1
    _expand_tile(stored.lead, stored.rest, *place, np.tile(entries, 4), levels, work, stored.scales)
    np.testing.assert_array_equal(rows_of(levels)[:6, :dim], entries[codes[5:, :dim] & 1])


def rows_of(levels: Any) -> Any:
    """A tile's rows, wherever the SIMD level puts their steps of 64."""
    flat, depth = levels.reshape(-1), levels.shape[1]
    places = [_find_row(r, depth) for r in range(len(levels))]
    return np.array([np.concatenate([flat[at + i * step :][:64] for i in range(depth // 64)]) for at, step in places])


@pytest.mark.parametrize("n", [1, 2, 3, 5, 64, 65, 100, 1000])
def test_sums_take_the_oracles_order(n: int) -> None:
    rng = np.random.default_rng(n)
    terms = rng.standard_normal(n) * 10.0 ** rng.integers(-9, 9, n)
    assert kernels.fold(terms.copy(), n) == float(tree_sum(terms))
    a, b = rng.standard_normal((2, n), dtype=np.float32)
    assert kernels.dot(a, b, np.empty(n)) == float(dot(a, b))


@pytest.mark.parametrize("dim", [*range(2, 36), 63, 64, 65, 127, 129, 255, 257, 1000, 1025])
def test_norms_take_the_oracles_order(dim: int) -> None:
    rng = np.random.default_rng(dim)
    rows, center = (rng.standard_normal((2, 3, dim)) * 10.0 ** rng.integers(-9, 9, dim)).astype(np.float32)
    work, terms, (lengths, norms, along) = np.empty_like(rows), np.empty(dim + CHUNK), np.empty((3, 3))
    kernels.prepare_rows(rows, center[0], True, work, lengths, norms, along, terms)
    centred = normalise(rows, "rows") - center[0]
    np.testing.assert_array_equal(lengths, np.sqrt(dot(rows, rows)))
    np.testing.assert_array_equal(norms, np.sqrt(dot(centred, centred)))
    np.testing.assert_array_equal(along, dot(centred, center[0]))


# Up to 4 rows are rotated one by one, more of them 16 at a time.
@pytest.mark.parametrize("n", [1, 4, 5, 15, 16, 17, 40])
@pytest.mark.parametrize("dim", [2, 3, 7, 31, 33, 64, 65, 100, 255, 256, 257, 300, 512, 1032, 1536])
def test_rotations_equal_apply(dim: int, n: int) -> None:
    rotation = make_rotation("hadamard", dim, 3, 1)
    rows = np.resize(varied_rows(dim, "ip", None), (n, dim))
    projected = rows.copy()
    project(rotation, projected)
    np.testing.assert_array_equal(projected.view(np.uint32), rotation.apply(rows).view(np.uint32))


@pytest.mark.parametrize("dim", [2, 7, 33, 100])
@pytest.mark.parametrize("make", [gaussian_projection, lambda d, s, k: make_rotation("dense", d, s, k)])
def test_matrices_equal_apply(dim: int, make: Any) -> None:
    projection, rows = make(dim, 3, 1), varied_rows(dim, "ip", None)
    projected = rows.copy()
    project(projection, projected)
    np.testing.assert_array_equal(projected, projection.apply(rows))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_coordinates_on_a_boundary_take_the_upper_code(bits: int) -> None:
    book = Codec(64, bits).codebook
    near = [np.nextafter(book.boundaries, np.float32(side)) for side in (-np.inf, np.inf)]
    y = np.concatenate([book.boundaries, *near, np.array([-20, 20, 0, -0.0], np.float32)])[np.newaxis]
    tables = np.array([book.step]).view(np.float32)
    if bits < 8:
        tables = encoder._arrange_tables(book.boundaries[np.newaxis], book.levels.astype(np.float32))
    planes, scales = np.empty((1, bits * plane_bytes(y.shape[1])), np.uint8), np.empty(1, np.float32)
    levels, terms = np.empty(y.shape[1], np.float32), np.empty(y.shape[1] + CHUNK)
    choices = np.zeros(1, np.int64)
    kernels.quantise_rows(y, np.ones(1), bits, tables, choices, book.step, True, planes, scales, levels, terms)
    expected = np.searchsorted(book.boundaries, y[0], side="right")
    np.testing.assert_array_equal(planes, pad_planes(expected[np.newaxis].astype(np.uint8), bits))
    np.testing.assert_array_equal(levels, book.levels[expected] + book.offset)
    np.testing.assert_array_equal(expected[: len(book.boundaries)], np.arange(1, 2**bits))
