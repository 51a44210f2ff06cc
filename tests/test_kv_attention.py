"""Attention on codes equals attention on what they decode to, for whatever a model may ask for."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from tqindex.errors import ArgumentError
from tqindex.kv import ATTENTION
from tqindex.kv.attention import FEW_QUERIES, attend
from tqindex.kv.layer import TurboQuantLayer
from tqindex.kv.options import LayerOptions

HEADS, GROUP, PAST = 2, 3, 1100


class Module(torch.nn.Module):
    is_causal = True


def fill(dim: int = 32, batch: int = 1, **options: Any) -> TurboQuantLayer:
    """Return a layer with PAST tokens, of which some of a last page are cropped away, read on codes."""
    config = LlamaConfig()
    config._attn_implementation = ATTENTION
    layer = TurboQuantLayer(LayerOptions(**{"recent": 20, "page": 32, **options}), config)
    torch.manual_seed(0)
    keys, values = torch.randn(2, batch, HEADS, PAST + 70, dim) + 0.5
    layer.update(keys, values)
    layer.crop(-70)
    return layer


def check(layer: TurboQuantLayer, tokens: int, mask: torch.Tensor | None = None, **arguments: Any) -> None:
    """Compare with attention in float64 on the layer's dense keys and values."""
    form, batch = layer.form, layer.batch_size
    new = torch.randn(batch, HEADS, tokens, form.keys.dim) + 0.5
    query = torch.randn(batch, HEADS * GROUP, tokens, form.keys.dim) * 3
    handle, same = layer.update(new, -new)
    assert handle is same
    dense_keys, dense_values = layer.decode(handle.views)
    found, weights = attend(Module(), query, handle, handle, mask, **arguments)
    assert weights is None
    expected = reference(query, dense_keys, dense_values, mask, layer, **arguments)
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


def reference(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    layer: TurboQuantLayer,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
) -> torch.Tensor:
    keys, values = (side.double().repeat_interleave(GROUP, dim=1) for side in (keys, values))
    logits = query.double() @ keys.transpose(2, 3) * (keys.shape[3] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    tokens, columns = logits.shape[2:]
    if mask is None:
        mask = torch.ones(tokens, columns, dtype=torch.bool).tril(columns - tokens).expand(logits.shape)
    logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    for row, sequence in enumerate(layer.sequences):
        logits[row, :, :, : sequence.padding] = -torch.inf
    if s_aux is not None:
        logits = torch.cat([logits, s_aux.double()[None, :, None, None].expand(*logits.shape[:3], 1)], dim=3)
    weights = torch.softmax(logits, dim=3)[..., :columns]
    return (weights @ values).transpose(1, 2)


WIDTHS = [(4, 4, "mse"), (3, 2, "mse"), (2.5, 3.5, "mse"), (1, 8, "mse"), (4, 4, "prod"), (3.5, 3, "prod")]
WIDTHS += [(4, 2.5, "trellis"), (2, 4, "trellis"), (3, 3, "trellis")]
FEW, MANY = 1, FEW_QUERIES


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize(("key_bits", "value_bits", "kind"), WIDTHS)
def test_widths(key_bits: float, value_bits: float, kind: Any, tokens: int) -> None:
    check(fill(key_bits=key_bits, value_bits=value_bits, kind=kind), tokens)


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("dim", [20, 64, 80, 96, 128, 256])
def test_dimensions(dim: int, tokens: int) -> None:
    check(fill(dim), tokens)


@pytest.mark.parametrize("tokens", [FEW, MANY, 700])
@pytest.mark.parametrize("options", [{"sinks": 0}, {"recent": 0}, {"center": False}, {"recent": PAST}])
def test_windows(options: dict[str, Any], tokens: int) -> None:
    check(fill(**options), tokens)


@pytest.mark.parametrize("tokens", [FEW, 4, MANY])
def test_what_a_call_may_ask_for(tokens: int) -> None:
    sinks = torch.linspace(-2, 30, HEADS * GROUP)
    for arguments in ({"scaling": 0.3}, {"softcap": 5.0}, {"s_aux": sinks}, {"softcap": 20.0, "s_aux": sinks}):
        check(fill(), tokens, **arguments)


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("heads", [1, HEADS * GROUP])
def test_masks(heads: int, tokens: int) -> None:
    torch.manual_seed(1)
    seen = torch.rand(2, heads, tokens, PAST + tokens) < 0.3
    check(fill(batch=2), tokens, seen)
    check(fill(batch=2), tokens, torch.where(seen, torch.randn(seen.shape), -torch.inf))
    # Whole blocks that nobody sees.
    seen[..., 10:1080] = False
    check(fill(batch=2), tokens, seen)


@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_left_padding(tokens: int) -> None:
    check(fill(batch=2, left_padding=(0, 77)), tokens)


def test_padding_that_the_mask_contradicts_is_refused() -> None:
    layer = fill(batch=2, left_padding=(0, 300))
    mask = torch.ones(2, 1, 1, PAST + 1, dtype=torch.bool)
    with pytest.raises(ArgumentError, match="columns that the attention mask leaves out, got 300"):
        check(layer, 1, mask)


@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_queries_that_see_nothing_give_zeros(tokens: int) -> None:
    layer = fill()
    new = torch.randn(1, HEADS, tokens, 32)
    handle, _ = layer.update(new, new)
    nothing = torch.zeros(1, 1, tokens, PAST + tokens, dtype=torch.bool)
    out, _ = attend(Module(), torch.randn(1, HEADS * GROUP, tokens, 32), handle, handle, nothing)
    assert not out.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_types_of_16_bits(dtype: torch.dtype) -> None:
    layer = TurboQuantLayer(LayerOptions(recent=20), fill().config)
    torch.manual_seed(0)
    keys, values = torch.randn(2, 1, HEADS, 300, 64, dtype=dtype)
    layer.update(keys[:, :, :299], values[:, :, :299])
    handle, _ = layer.update(keys[:, :, 299:], values[:, :, 299:])
    query = torch.randn(1, HEADS * GROUP, 1, 64, dtype=dtype)
    found, _ = attend(Module(), query, handle, handle, None)
    assert found.dtype == dtype
    expected = reference(query, *layer.decode(handle.views), None, layer)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.02)


def test_tensors_of_other_layers_are_attended_to_as_they_are() -> None:
    torch.manual_seed(0)
    keys, values = torch.randn(2, 1, HEADS, 50, 16)
    for tokens in (FEW, 20):
        query = torch.randn(1, HEADS * GROUP, tokens, 16)
        found, _ = attend(Module(), query, keys, values, None, softcap=3.0)
        layer = TurboQuantLayer(LayerOptions())
        expected = reference(query, keys, values, None, layer, softcap=3.0)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "name"), [({"dropout": 0.1}, "dropout"), ({"position_bias": torch.zeros(1)}, "position_bias")]
)
def test_what_is_not_implemented_is_refused_by_name(arguments: dict[str, Any], name: str) -> None:
    keys = torch.zeros(1, 1, 2, 8)
    with pytest.raises(ArgumentError, match=f"attention 'tqindex' must be called without {name}"):
        attend(Module(), keys, keys, keys, None, **arguments)


def test_a_model_that_touches_what_it_gets_is_told() -> None:
    layer = fill()
    handle, _ = layer.update(torch.zeros(1, HEADS, 1, 32), torch.zeros(1, HEADS, 1, 32))
    with pytest.raises(AttributeError, match=r"cannot use attention 'tqindex' \(it asked for 'transpose'\)"):
        handle.transpose(1, 2)
