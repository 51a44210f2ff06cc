"""What a packed layer keeps: the same whatever the calls, the batch and the operations on it; how many bytes."""

from typing import Any

import numpy as np
import pytest
import torch

from tqindex.errors import ArgumentError, VectorError
from tqindex.kv.layer import TurboQuantLayer
from tqindex.kv.options import LayerOptions
from tqindex.kv.pages import Sequence

HEADS, DIM = 2, 16
SMALL = {"sinks": 3, "recent": 20, "page": 32}
FORMS = [
    {},
    {"key_bits": 2.5, "value_bits": 3.5, "kind": "prod"},
    {"key_bits": 1, "value_bits": 8, "center": False},
    {"sinks": 0, "recent": 0},
    {"key_bits": 3, "value_bits": 2.5, "kind": "trellis"},
]


def make_layer(**options: Any) -> TurboQuantLayer:
    return TurboQuantLayer(LayerOptions(**{**SMALL, **options}))


def make_tokens(tokens: int, batch: int = 1, dim: int = DIM, seed: int = 0, **kind: Any) -> torch.Tensor:
    """Keys or values (batch, HEADS, tokens, dim), with a mean as keys have one."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn((batch, HEADS, tokens, dim), generator=generator) + 1.0).to(**kind)


def feed(layer: TurboQuantLayer, tokens: torch.Tensor, cuts: list[int]) -> TurboQuantLayer:
    """Give a layer tokens in calls that end at `cuts`; values are keys turned around."""
    for start, stop in zip([0, *cuts], [*cuts, tokens.shape[2]], strict=True):
        layer.update(tokens[:, :, start:stop], -tokens[:, :, start:stop])
    return layer


def state(sequence: Sequence) -> list[Any]:
    """Everything that decides what is read: packed arrays joined, exact tokens."""
    packed: dict[str, list[Any]] = {}
    for block in sequence.blocks:
        packed.setdefault("means", []).append(block.means)
        for i, part in enumerate((*block.keys, *block.values)):
            for name, array in part.arrays().items():
                packed.setdefault(f"{i} {name}", []).append(array)
    joined = [np.concatenate(arrays, axis=1) for arrays in packed.values()]
    exact = [side[:, : sequence.exact].float().numpy() for side in (sequence.keys, sequence.values)]
    return [np.array([sequence.packed, sequence.exact, sequence.columns - sequence.padding]), *joined, *exact]


def assert_same(sequence: Sequence, other: Sequence) -> None:
    for a, b in zip(state(sequence), state(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("form", FORMS)
def test_cuts_of_calls_do_not_matter(form: dict[str, Any]) -> None:
    tokens = make_tokens(230)
    whole = feed(make_layer(**form), tokens, [])
    assert whole.sequences[0].packed == (230 - whole.form.sinks - whole.form.recent) // 32 * 32
    for cuts in (list(range(1, 230)), [2, 40, 41, 150], [100, 200]):
        assert_same(feed(make_layer(**form), tokens, cuts).sequences[0], whole.sequences[0])


@pytest.mark.parametrize("form", FORMS)
def test_padded_rows_are_as_rows_alone(form: dict[str, Any]) -> None:
    tokens = make_tokens(200, batch=3)
    padding = (0, 7, 90)
    layer = feed(make_layer(**form, left_padding=padding), tokens, [5, 120])
    for row, pads in enumerate(padding):
        alone = feed(make_layer(**form), tokens[row : row + 1, :, pads:], [])
        assert_same(layer.sequences[row], alone.sequences[0])


def test_rows_of_padding_are_read_as_zeros() -> None:
    tokens = make_tokens(200, batch=2)
    keys, values = make_layer(left_padding=(0, 90)).update(tokens, tokens)
    assert not keys[1, :, :90].any()
    assert not values[1, :, :90].any()
    torch.testing.assert_close(keys[1, :, 90:], tokens[1, :, 90:])


def test_beams_repeat_the_padding_of_their_row() -> None:
    layer = feed(make_layer(left_padding=(0, 4)), make_tokens(10, batch=4), [])
    assert [sequence.padding for sequence in layer.sequences] == [0, 0, 4, 4]
    with pytest.raises(ArgumentError, match="left_padding must be of as many rows as the batch, 3, got 2"):
        feed(make_layer(left_padding=(0, 4)), make_tokens(10, batch=3), [])


OPERATIONS = {
    "reorder": (lambda layer: layer.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
    "select": (lambda layer: layer.batch_select_indices(torch.tensor([1])), [1]),
    "select by bools": (lambda layer: layer.batch_select_indices(torch.tensor([True, False, True])), [0, 2]),
    "repeat": (lambda layer: layer.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_on_rows_are_exact(name: str) -> None:
    operation, rows = OPERATIONS[name]
    past, new = make_tokens(150, batch=3), make_tokens(60, batch=len(rows), seed=1)
    layer = feed(make_layer(), past, [70])
    operation(layer)
    assert layer.batch_size == len(rows)
    feed(layer, new, [9])
    rebuilt = feed(make_layer(), torch.cat([past[rows], new], dim=2), [])
    for sequence, other in zip(layer.sequences, rebuilt.sequences, strict=True):
        assert_same(sequence, other)


def test_copies_of_a_row_share_its_pages() -> None:
    layer = feed(make_layer(), make_tokens(150), [])
    layer.batch_repeat_interleave(3)
    first, *others = layer.sequences
    assert first.blocks
    for other in others:
        assert all(a is b for a, b in zip(first.blocks, other.blocks, strict=True))
        assert other.keys.data_ptr() != first.keys.data_ptr()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("removed", [1, 17, 20])
def test_cropped_tokens_of_the_window_can_be_fed_again(form: dict[str, Any], removed: int) -> None:
    tokens = make_tokens(229)
    removed = min(removed, {**SMALL, **form}["recent"])
    layer, whole = feed(make_layer(**form), tokens, []), feed(make_layer(**form), tokens, [])
    layer.crop(-removed)
    assert layer.get_seq_length() == 229 - removed
    feed(layer, tokens[:, :, 229 - removed :], [])
    assert_same(layer.sequences[0], whole.sequences[0])


@pytest.mark.parametrize("removed", [0, 30, 60, 100, 226, 229, 400])
def test_what_is_left_of_a_cropped_cache_is_read_as_before(removed: int) -> None:
    tokens, new = make_tokens(229), make_tokens(1, seed=1)
    layer, whole = (feed(make_layer(), tokens, []) for _ in range(2))
    layer.crop(-removed)
    kept = max(229 - removed, 0)
    assert layer.get_seq_length() == kept
    for found, before in zip(layer.update(new, -new), whole.update(new, -new), strict=True):
        torch.testing.assert_close(found[:, :, :kept], before[:, :, :kept], rtol=1e-5, atol=1e-5)
        assert found.shape[2] == kept + 1
    torch.testing.assert_close(layer.update(new, -new)[0][:, :, kept : kept + 1], new)


def test_a_cropped_page_is_left_as_it_is_when_more_follows() -> None:
    tokens, new = make_tokens(229), make_tokens(150, seed=1)
    layer = feed(make_layer(), tokens, [])
    layer.crop(-130)  # 99 tokens are left: 3 sinks, 3 whole pages
    before = layer.update(new[:, :, :1], -new[:, :, :1])[0][:, :, :99]
    layer.crop(-11)  # 89, in the third page
    feed(layer, new[:, :, :140], [50])
    keys, _ = layer.update(new[:, :, 140:], -new[:, :, 140:])
    torch.testing.assert_close(keys[:, :, :89], before[:, :, :89], rtol=1e-5, atol=1e-5)
    error = (keys[:, :, 89:] - new).square().mean() / new.square().mean()
    assert 0 < error < 0.01


def test_positive_crops_other_batches_and_nan_are_refused() -> None:
    layer = feed(make_layer(), make_tokens(50), [])
    with pytest.raises(ArgumentError, match="tokens_to_remove must be at most 0, got 3"):
        layer.crop(3)
    with pytest.raises(ArgumentError, match="the batch must have 1 rows as before, got 2"):
        layer.update(make_tokens(1, batch=2), make_tokens(1, batch=2))
    for bad in (torch.nan, torch.inf):
        with pytest.raises(VectorError, match=f"values must be finite, got {bad}"):
            make_layer().update(make_tokens(90), make_tokens(90).index_fill(2, torch.tensor(40), bad))


def test_heads_of_another_model_are_refused() -> None:
    layer = TurboQuantLayer(LayerOptions())
    layer.update(*torch.randn(2, 1, 2, 5, 32))
    for heads, dim in ((3, 32), (2, 64)):
        with pytest.raises(ArgumentError, match="must go on with its own model"):
            layer.update(*torch.randn(2, 1, heads, 5, dim))


def test_reset_and_offload() -> None:
    tokens = make_tokens(150)
    layer = feed(make_layer(), tokens, [])
    before = state(layer.sequences[0])
    layer.offload()
    layer.prefetch()
    for a, b in zip(state(layer.sequences[0]), before, strict=True):
        np.testing.assert_array_equal(a, b)
    layer.reset()
    assert layer.get_seq_length() == 0
    assert_same(feed(layer, tokens, []).sequences[0], feed(make_layer(), tokens, []).sequences[0])


def test_float16_keys_of_large_norm_do_not_overflow() -> None:
    tokens = make_tokens(150, dtype=torch.float16) * 2e3
    tokens[..., 0] = 65504 - tokens[..., 0].abs()  # norms beyond float16
    tokens[..., 1] = torch.where(tokens[..., 1] > 2e3, 65504, -65504)
    keys, _ = feed(make_layer(), tokens, [149]).update(tokens[:, :, :1], tokens[:, :, :1])
    assert keys.isfinite().all()
    error = (keys[:, :, :150].double() - tokens.double()).square().mean() / tokens.double().square().mean()
    assert error < 0.01


def test_a_cache_begun_in_inference_mode_goes_on_without() -> None:
    tokens = make_tokens(100)
    with torch.inference_mode():
        layer = feed(make_layer(), tokens * 1, [])
    feed(layer, tokens, [3])
    whole = feed(make_layer(), torch.cat([tokens, tokens], dim=2), [])
    assert_same(layer.sequences[0], whole.sequences[0])


@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
def test_bits_of_a_value_and_error(dim: int) -> None:
    """4.25 bits and the means' at 64 channels, fewer at more; the error is the codebook's, measured .0070 at 64."""
    layer = TurboQuantLayer(LayerOptions())
    tokens = make_tokens(1024, dim=dim)
    feed(layer, tokens, [])
    (sequence,) = layer.sequences
    held = sum(array.nbytes for kind, array in sequence.arrays() if kind != "exact")
    assert 8 * held / (2 * HEADS * dim * sequence.packed) <= 4.4
    keys, _ = layer.update(tokens[:, :, :1], tokens[:, :, :1])
    packed = slice(4, 4 + sequence.packed)
    error = (keys[:, :, packed] - tokens[:, :, packed]).square().mean()
    assert 0.005 < error < 0.0095


@pytest.mark.parametrize(("bits", "most"), [(2, 0.078), (3, 0.0208), (4, 0.0057)])
@pytest.mark.parametrize("dim", [64, 128])
def test_trellis_codes_take_no_more_room_and_leave_less_error(bits: int, most: float, dim: int) -> None:
    """Of variance 1: .0777, .0202 and .0055 at 128 channels, less at 64; scalar codes leave .0069 at 4 bits."""
    layers = [make_layer(key_bits=bits, value_bits=bits, kind=kind) for kind in ("trellis", "mse")]
    tokens = make_tokens(600, dim=dim) - 1.0
    for layer in layers:
        feed(layer, tokens, [599])
    keys, values = layers[0].update(tokens[:, :, :1], tokens[:, :, :1])
    packed = slice(3, 3 + layers[0].sequences[0].packed)
    for found, exact in ((keys, tokens), (values, -tokens)):
        assert (found[:, :, packed] - exact[:, :, packed]).square().mean() < most
    sizes = [[(kind, array.shape) for kind, array in layer.sequences[0].arrays()] for layer in layers]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(("tokens", "options", "limit"), [(2048, {"recent": 16}, 4.9), (8192, {}, 4.75)])
def test_bits_of_everything_in_a_16_bit_model(tokens: int, options: dict[str, Any], limit: float) -> None:
    layer = TurboQuantLayer(LayerOptions(**options))
    feed(layer, make_tokens(tokens, dim=64, dtype=torch.bfloat16), [])
    held = [array for _, array in layer.sequences[0].arrays()]
    sizes = [a.untyped_storage().nbytes() if isinstance(a, torch.Tensor) else a.nbytes for a in held]
    assert 8 * sum(sizes) / (2 * HEADS * 64 * tokens) <= limit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key_bits": 5}, "key_bits must be one of 1, 2, 2.5, 3, 3.5, 4, 8; got 5"),
        ({"value_bits": 2.25}, "value_bits must be one of"),
        ({"kind": "prod", "key_bits": 8}, "key_bits of kind 'prod' must be one of 2, 2.5, 3, 3.5, 4; got 8"),
        ({"kind": "trellis", "key_bits": 8}, "key_bits of kind 'trellis' must be one of 2, 2.5, 3, 3.5, 4; got 8"),
        ({"kind": "trellis", "value_bits": 1}, "value_bits of kind 'trellis' must be one of 2, 2.5, 3, 3.5, 4; got 1"),
        ({"kind": "qjl"}, "kind must be one of mse, prod, trellis; got 'qjl'"),
        ({"page": 48}, "page must be a multiple of 32, got 48"),
        ({"page": 0}, "page must be at least 1, got 0"),
        ({"sinks": -1}, "sinks must be at least 0, got -1"),
        ({"recent": 1.5}, "recent must be an integer, got 1.5"),
        ({"left_padding": (0, -1)}, "left_padding must be at least 0, got -1"),
        ({"seed": -1}, "seed must be from 0"),
        ({"center": "yes"}, "center must be True or False, got 'yes'"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        LayerOptions(**options)
