"""Attention on codes by the GPU's kernels equals that of the CPU's: kernels in the host run, on torch's CPU tensors."""

import gc
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tqindex.errors import ArgumentError, DeviceError
from tqindex.gpu import is_available
from tqindex.gpu.engine import run_on
from tqindex.gpu.host import HostRuntime
from tqindex.kv import ATTENTION, TurboQuantCache
from tqindex.kv.attention import FEW_QUERIES, attend
from tqindex.kv.device import device_reader
from tqindex.kv.layer import TurboQuantLayer
from tqindex.kv.options import LayerOptions

HEADS, GROUP = 2, 3


class CountingHost(HostRuntime):
    """The host run, which counts the arrays that are sent to it."""

    sent = 0

    def upload(self, array: Any) -> Any:
        self.sent += 1
        return super().upload(array)


def fill(tokens: int, dim: int = 64, device: str = "cpu", **options: Any) -> TurboQuantLayer:
    """Return a layer of two sequences, one of them padded, whose last pages are cut; attention reads codes."""
    config = LlamaConfig()
    config._attn_implementation = ATTENTION
    layer = TurboQuantLayer(LayerOptions(**{"recent": 20, "left_padding": (0, 9), **options}), config)
    torch.manual_seed(0)
    keys, values = torch.randn(2, 2, HEADS, tokens + 70, dim) + 0.5
    layer.update(keys.to(device), values.to(device))
    layer.crop(-70)
    return layer


def step(layer: TurboQuantLayer, tokens: int) -> tuple[Any, ...]:
    """Give some more tokens; return what attends to them."""
    torch.manual_seed(1)
    new, query = (torch.randn(2, heads, tokens, layer.form.keys.dim) for heads in (HEADS, HEADS * GROUP))
    device = layer.sequences[0].keys.device
    handle, _ = layer.update(new.to(device), -new.to(device))
    return query.to(device), handle, handle


def outputs(layer: TurboQuantLayer, tokens: int = 1, **arguments: Any) -> torch.Tensor:
    module = torch.nn.Module()
    return attend(module, *step(layer, tokens), None, **arguments)[0]


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Logits are equal; sums of values are added up in another order."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize(
    "options",
    [
        {"key_bits": 4, "value_bits": 4},
        {"key_bits": 3, "value_bits": 2, "page": 32},
        {"key_bits": 2.5, "value_bits": 3.5},
        {"key_bits": 1, "value_bits": 8, "center": False},
        {"key_bits": 4, "value_bits": 4, "kind": "prod"},
        {"key_bits": 3.5, "value_bits": 4, "kind": "prod", "center": False},
    ],
    ids=str,
)
def test_what_the_kernels_give_is_the_cpus(options: dict[str, Any]) -> None:
    expected = outputs(fill(1200, **options))
    with run_on(HostRuntime()):
        assert_near(outputs(fill(1200, **options)), expected)


@pytest.mark.parametrize("tokens", [5, FEW_QUERIES])
def test_more_than_one_token(tokens: int) -> None:
    """Many are multiplied with decoded pages, as on the CPU."""
    arguments = {"softcap": 20.0, "s_aux": torch.linspace(-2, 3, HEADS * GROUP)}
    expected = outputs(fill(300), tokens, **arguments)
    with run_on(HostRuntime()):
        assert_near(outputs(fill(300), tokens, **arguments), expected)


def test_pages_are_sent_once_and_forgotten_with_the_cache() -> None:
    layer, runtime = fill(1500), CountingHost()
    with run_on(runtime):
        outputs(layer)
        blocks = sum(len(sequence.blocks) for sequence in layer.sequences)
        assert runtime.sent == 7 * blocks  # words, norms and levels of keys and of values, means
        outputs(layer)
        assert runtime.sent == 7 * blocks
        reader = device_reader(torch.device("cpu"))
        assert reader is not None
        assert len(reader._blocks) == blocks
        layer.reset()
        gc.collect()
        assert len(reader._blocks) == 0


def test_a_model_generates_the_same() -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(3)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=97, num_hidden_layers=2, eos_token_id=None, **sizes)).eval()
    model.set_attn_implementation(ATTENTION)
    ids = torch.arange(150)[None] % 97

    def generate() -> Any:
        cache = TurboQuantCache(model.config, key_bits=8, value_bits=8, recent=8, page=32)
        asked = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        return model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=cache, **asked).tolist()

    expected = generate()
    with run_on(HostRuntime()):
        assert generate() == expected


def test_tensors_of_the_cpu_stay_there() -> None:
    assert device_reader(torch.device("cpu")) is None


def test_tensors_of_a_gpu_are_read_on_it_or_refused(fake_cupy: Any) -> None:
    with fake_cupy(devices=2):
        first, second = (device_reader(torch.device("cuda", number)) for number in (0, 1))
        assert first is not None
        assert second is not None
        assert (first._runtime.name, second._runtime.name) == ("cuda:0", "cuda:1")
        assert device_reader(torch.device("cuda")) is first
    with fake_cupy(devices=0), pytest.raises(DeviceError, match="no GPU is visible"):
        device_reader(torch.device("cuda"))


@pytest.mark.parametrize("tokens", [1, FEW_QUERIES])
def test_trellis_codes_are_refused_on_a_gpu(tokens: int) -> None:
    layer = fill(300, kind="trellis")
    with run_on(HostRuntime()), pytest.raises(ArgumentError, match="'mse' or 'prod' on a GPU, got 'trellis'"):
        outputs(layer, tokens)


def test_pages_that_are_too_long_for_the_kernels_are_refused() -> None:
    layer = fill(1100, page=544)
    with run_on(HostRuntime()), pytest.raises(ArgumentError, match="head_dim and page must be at most 512 on a GPU"):
        outputs(layer)


@pytest.mark.gpu
def test_tensors_of_a_device() -> None:
    available = is_available()
    if not available or not torch.cuda.is_available():
        pytest.skip(f"no GPU: {available.reason or 'torch has no CUDA'}")
    for tokens in (1, 5, FEW_QUERIES):
        found = outputs(fill(600, device="cuda"), tokens)
        expected = outputs(fill(600), tokens)
        assert found.is_cuda
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=5e-5 * float(expected.abs().max()))
