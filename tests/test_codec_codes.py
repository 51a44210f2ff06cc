"""Packing, sizes, Codes, configurations, refusals."""

import json
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tqindex.codec import Codec, Codes
from tqindex.codec.packing import pack_codes, pad_planes, plane_bytes, repack_planes, unpack_codes
from tqindex.errors import ArgumentError, TQIndexError, VectorError

DIMS = [2, 3, 7, 8, 31, 33, 64, 65, 100, 257]
CODECS: list[dict[str, Any]] = [
    *({"bits": bits, "kind": "mse"} for bits in (1, 2, 3, 4, 8)),
    *({"bits": bits, "kind": "prod", "sketch": s} for bits in (2, 3, 4) for s in ("orthogonal", "gaussian")),
]


def random_codes(n: int, dim: int, bits: int) -> Any:
    return np.random.default_rng(dim).integers(0, 2**bits, (n, dim)).astype(np.uint8)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dim", DIMS)
def test_packing_is_tight_and_comes_back(dim: int, bits: int) -> None:
    codes = random_codes(5, dim, bits)
    packed = pack_codes(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.shape == (5, -(-dim * bits // 8))
    np.testing.assert_array_equal(unpack_codes(packed, dim, bits), codes)
    planes = pad_planes(codes, bits)
    assert planes.shape == (5, bits * plane_bytes(dim))
    np.testing.assert_array_equal(repack_planes(planes, dim, bits), packed)


def test_packing_places_bits_by_planes() -> None:
    # Codes 5, 0, 6 in three planes, highest first: 101, 000, 100 -> bits 1 0 1 0 0 1 1 0 0.
    packed = pack_codes(np.array([[5, 0, 6]], np.uint8), 3)
    np.testing.assert_array_equal(packed, [[0b01100101, 0]])
    planes = pad_planes(np.array([[5, 0, 6]], np.uint8), 3)
    np.testing.assert_array_equal(planes, [[0b101, 0b100, 0b001]])


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(1, 8), st.integers(1, 70), st.integers(0, 4), st.data())
def test_packing_property(bits: int, dim: int, n: int, data: Any) -> None:
    values = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=n * dim, max_size=n * dim))
    codes = np.array(values, np.uint8).reshape(n, dim)
    np.testing.assert_array_equal(unpack_codes(pack_codes(codes, bits), dim, bits), codes)
    np.testing.assert_array_equal(repack_planes(pad_planes(codes, bits), dim, bits), pack_codes(codes, bits))


@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("config", CODECS, ids=str)
@pytest.mark.parametrize("dim", [3, 33, 64])
def test_bytes_per_vector(dim: int, config: Any, centred: bool, metric: str, gaussian_rows: Any) -> None:
    codec = Codec(dim, center=np.full(dim, 0.1) if centred else None, **config)
    codes = codec.encode(gaussian_rows(7, dim), metric)
    sketch = 4 if config["kind"] == "prod" else 0
    offset = 4 if centred or metric == "l2" else 0
    assert codec.code_size == codes.code_size == -(-dim * codec.bits // 8)
    assert codes.nbytes == 7 * (codec.code_size + 4 + sketch + offset)
    assert codes.metric == metric
    assert codes.scales.dtype == np.float32


def sides(codes: Codes) -> list[Any]:
    return [codes.packed, codes.scales, codes.sketch_scales, codes.offsets]


@pytest.mark.parametrize("config", [CODECS[2], CODECS[5]], ids=str)
@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_slices_and_joins(config: Any, metric: str, gaussian_rows: Any) -> None:
    codec, rows = Codec(33, **config), gaussian_rows(20, 33)
    codes = codec.encode(rows, metric)
    parts = [codes[:3], codes[3:3], codes[3:20]]
    assert [len(part) for part in parts] == [3, 0, 17]
    for joined in (Codes.concatenate(parts), Codes.concatenate([codec.encode(r, metric) for r in rows])):
        assert joined.metric == metric
        for ours, theirs in zip(sides(joined), sides(codes), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    order = np.array([5, 0, 5])
    for ours, theirs in zip(sides(codes[order]), sides(codec.encode(rows[order], metric)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_joins_of_different_forms_are_refused(gaussian_rows: Any) -> None:
    rows = gaussian_rows(3, 16)
    codes = Codec(16).encode(rows)
    others = [
        Codec(16, 3).encode(rows),
        Codec(16).encode(rows, "cosine"),
        Codec(16).encode(rows, "l2"),
        Codec(16, kind="prod").encode(rows),
        Codec(16, center=np.ones(16)).encode(rows),
    ]
    for other in others:
        with pytest.raises(ArgumentError, match="one codec and metric, got 2 forms"):
            Codes.concatenate([codes, other])
    with pytest.raises(ArgumentError, match="at least one"):
        Codes.concatenate([])


@pytest.mark.parametrize("scale", ["unbiased", "paper"])
@pytest.mark.parametrize("rotation", ["hadamard", "dense"])
@pytest.mark.parametrize("config", CODECS, ids=str)
def test_config_and_repr_round_trip(config: Any, rotation: Any, scale: Any, gaussian_rows: Any) -> None:
    codec = Codec(9, rotation=rotation, scale=scale, seed=2**63 - 1, **config)
    again = Codec.from_config(json.loads(json.dumps(codec.get_config())))
    assert again == codec
    assert hash(again) == hash(codec)
    assert eval(repr(codec)) == codec
    for ours, theirs in zip(
        sides(again.encode(gaussian_rows(5, 9))), sides(codec.encode(gaussian_rows(5, 9))), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_config_keeps_the_centre_exactly() -> None:
    center = np.random.default_rng(0).standard_normal(9).astype(np.float32)
    codec = Codec(9, center=center)
    again = Codec.from_config(json.loads(json.dumps(codec.get_config())))
    assert again == codec
    np.testing.assert_array_equal(again.center, center)
    assert codec != Codec(9)
    assert "9 values" in repr(codec)


@pytest.mark.parametrize(
    "change",
    [
        {"dim": 10},
        {"bits": 3},
        {"kind": "prod"},
        {"scale": "paper"},
        {"rotation": "hadamard"},
        {"seed": 1},
        {"effort": "search"},
    ],
    ids=str,
)
def test_codecs_that_differ_are_unequal(change: Any) -> None:
    assert Codec(**{"dim": 9, **change}) != Codec(9)
    assert Codec(9) != "Codec(9)"


def test_a_centre_is_copied() -> None:
    center = np.ones(4, np.float32)
    codec = Codec(4, center=center)
    center[:] = 5.0
    np.testing.assert_array_equal(codec.center, np.ones(4, np.float32))


def test_codes_of_another_codec_are_refused(gaussian_rows: Any) -> None:
    rows = gaussian_rows(5, 64)
    codec = Codec(64, 3)
    for codes in (Codec(64).encode(rows), Codec(64, 3, "prod").encode(rows), Codec(72, 3).encode(gaussian_rows(5, 72))):
        for use in (codec.decode, lambda codes: codec.inner_product(rows, codes), lambda c: codec.scores(rows, c)):
            with pytest.raises(ArgumentError, match="codes must be of a codec like"):
                use(codes)
    with pytest.raises(ArgumentError, match="codes must be what encode returns, got ndarray"):
        codec.decode(rows)


def test_masked_arrays_are_refused() -> None:
    with pytest.raises(VectorError, match="vectors must not be a masked array"):
        Codec(8).encode(np.ma.masked_equal(np.ones((2, 8), np.float32), 2))


def test_numpy_integers_are_integers() -> None:
    codec = Codec(np.int64(9), bits=np.int64(3), seed=np.int32(4))
    assert json.loads(json.dumps(codec.get_config())) == Codec(9, 3, seed=4).get_config()
    assert eval(repr(codec)) == codec


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 1}, "dim must be from 2 to 65536, got 1"),
        ({"dim": 65_537}, "dim must be from 2 to 65536, got 65537"),
        ({"dim": 8.0}, "dim must be an integer, got 8.0"),
        ({"dim": True}, "dim must be an integer, got True"),
        ({"bits": 5}, "bits must be one of 1, 2, 3, 4, 8; got 5"),
        ({"bits": True}, "bits must be one of"),
        ({"bits": 4.0}, "bits must be"),
        ({"rotation": ""}, "rotation must be one of hadamard, dense; got ''"),
        ({"bits": 1, "kind": "prod"}, "bits of kind 'prod' must be one of 2, 3, 4; got 1"),
        ({"bits": 8, "kind": "prod"}, "bits of kind 'prod' must be one of 2, 3, 4; got 8"),
        ({"kind": "pq"}, "kind must be one of mse, prod, trellis; got 'pq'"),
        ({"sketch": "none"}, "sketch must be one of orthogonal, gaussian; got 'none'"),
        ({"scale": 1.0}, "scale must be one of unbiased, paper; got 1.0"),
        ({"rotation": "fft"}, "rotation must be one of hadamard, dense; got 'fft'"),
        ({"effort": "most"}, "effort must be one of plain, search; got 'most'"),
        ({"effort": True}, "effort must be one of plain, search; got True"),
        ({"seed": -1}, "seed must be from 0 to 9223372036854775807, got -1"),
        ({"seed": 2**63}, "seed must be from 0 to"),
        ({"center": np.ones(7)}, "center must have shape (8,)"),
        ({"center": np.ones((2, 8))}, "center must have shape"),
        ({"center": np.full(8, np.nan)}, "center must be finite in float32, got nan"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_parameters_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Codec(**{"dim": 8, **arguments})
    assert message in str(caught.value)
    assert isinstance(caught.value, TQIndexError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros((2, 8), int), "must be float16, float32 or float64, got int64"),
        (np.zeros((2, 7)), "must have 8 columns (n, 8), got shape (2, 7)"),
        (np.zeros((1, 2, 8)), "must have 8 columns (n, 8), got shape (1, 2, 8)"),
        (np.array([[0.0] * 8, [0.0] * 7 + [np.nan]]), "must be finite in float32, got nan in row 1"),
        (np.array([[0.0] * 8, [1e39] * 8]), "must be finite in float32, got inf in row 1"),
        (np.array([[0.0] * 8, [-np.inf] * 8]), "must be finite in float32, got -inf in row 1"),
        (
            np.array([[0.0] * 8, [2.0**59] * 8]),
            "must have norms of at most 2**60 after centring, got 1.63e+18 in row 1",
        ),
    ],
    ids=lambda value: str(value)[:30].replace("\n", ""),
)
def test_bad_vectors_are_refused(vectors: Any, message: str) -> None:
    codec = Codec(8)
    with pytest.raises(VectorError, match=r"^vectors ") as caught:
        codec.encode(vectors)
    assert message in str(caught.value)
    with pytest.raises(VectorError, match=r"^queries ") as caught:
        codec.encode_queries(vectors)
    assert message in str(caught.value)


def test_zero_vectors_have_no_cosine() -> None:
    rows = np.ones((3, 8), np.float32)
    rows[2] = 0.0
    for encode, name in ((Codec(8).encode, "vectors"), (Codec(8).encode_queries, "queries")):
        with pytest.raises(VectorError, match=f"^{name} must not be zero .* in row 2$"):
            encode(rows, "cosine")


def test_metrics_are_checked() -> None:
    codec = Codec(8)
    codes = codec.encode(np.ones((1, 8)), "l2")
    with pytest.raises(ArgumentError, match="metric must be one of ip, cosine, l2; got 'dot'"):
        codec.encode(np.ones((1, 8)), "dot")
    with pytest.raises(ArgumentError, match="codes must be encoded with metric 'ip' or 'cosine', got 'l2'"):
        codec.inner_product(np.ones((1, 8)), codes)


@pytest.mark.parametrize("config", CODECS, ids=str)
@pytest.mark.parametrize("dim", [8, 9])
def test_no_vectors_are_fine(dim: int, config: Any, gaussian_rows: Any) -> None:
    codec = Codec(dim, **config)
    codes = codec.encode(np.empty((0, dim)), "cosine")
    assert len(codes) == codes.nbytes == 0
    assert codec.decode(codes).shape == (0, dim)
    assert codec.scores(gaussian_rows(2, dim), codes).shape == (2, 0)
    assert codec.inner_product(np.empty((0, dim)), codec.encode(gaussian_rows(3, dim))).shape == (0, 3)


@pytest.mark.parametrize("config", CODECS, ids=str)
@pytest.mark.parametrize("centred", [False, True])
def test_zero_vectors_have_zero_codes(config: Any, centred: bool) -> None:
    center = np.arange(9, dtype=np.float32) if centred else None
    codec = Codec(9, center=center, **config)
    rows = np.zeros((2, 9), np.float32) if center is None else np.tile(center, (2, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codes = codec.encode(rows)
    assert not codes.packed.any()
    for side in (codes.scales, codes.sketch_scales, codes.offsets):
        assert side is None or not side.any()
    np.testing.assert_array_equal(codec.decode(codes), rows)


@pytest.mark.parametrize("config", CODECS, ids=str)
@pytest.mark.parametrize("length", [1e-30, 1.0, 1e17])
def test_any_length_scores_and_decodes_alike(config: Any, length: float, gaussian_rows: Any) -> None:
    codec, rows = Codec(33, **config), gaussian_rows(6, 33)
    # Powers of two change no rounding, so the codes are the same and the rest scales exactly.
    factor = np.float32(2.0 ** np.rint(np.log2(length)))
    plain, scaled = codec.encode(rows), codec.encode(rows * factor)
    np.testing.assert_array_equal(scaled.packed, plain.packed)
    np.testing.assert_array_equal(scaled.scales, plain.scales * factor)
    np.testing.assert_array_equal(codec.decode(scaled), codec.decode(plain) * factor)
    np.testing.assert_array_equal(codec.inner_product(rows, scaled), codec.inner_product(rows, plain) * factor)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", ">f8"])
def test_input_is_cast_to_float32(dtype: str, gaussian_rows: Any) -> None:
    codec, rows = Codec(33), gaussian_rows(6, 33).astype(dtype)
    for ours, theirs in zip(sides(codec.encode(rows)), sides(codec.encode(rows.astype("f4"))), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    one = codec.encode(rows[2])
    assert len(one) == 1
    np.testing.assert_array_equal(one.packed, codec.encode(rows).packed[2:3])
