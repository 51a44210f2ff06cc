"""The cache under models of several families, small and random, through transformers' own generation."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    DynamicCache,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3NextConfig,
    T5Config,
)

from tqindex.errors import ArgumentError, MissingPackageError
from tqindex.kv import ATTENTION, TurboQuantCache, TurboQuantLayer, support

VOCABULARY = 97
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "eos_token_id": None,
    "bos_token_id": 1,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**COMMON, num_hidden_layers=2),
    "qwen": Qwen3Config(**COMMON, num_hidden_layers=2),
    # Every other layer sees a window of 16 tokens; logits are capped.
    "gemma": Gemma2Config(**COMMON, num_hidden_layers=4, sliding_window=16, query_pre_attn_scalar=16),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_head=4, n_layer=2, n_positions=512, eos_token_id=None),
    "hybrid": Qwen3NextConfig(
        **COMMON,
        num_hidden_layers=4,
        layer_types=["linear_attention", "full_attention"] * 2,
        linear_num_value_heads=2,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
}
SMALL: dict[str, Any] = {"recent": 8, "page": 32}
#: For comparisons of generated tokens: a code that rounding errors change moves logits by little.
FINE: dict[str, Any] = {"key_bits": 8, "value_bits": 8}


@pytest.fixture(scope="module")
def models() -> dict[str, PreTrainedModel]:
    """One model of each family, with weights large enough that attention is not flat."""
    torch.manual_seed(0)
    made = {name: transformers.AutoModelForCausalLM.from_config(config).eval() for name, config in CONFIGS.items()}
    for model in made.values():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.15)
    return made


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest, models: dict[str, PreTrainedModel]) -> PreTrainedModel:
    return models[request.param]


def make_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def run(model: PreTrainedModel, attention: str, pieces: list[torch.Tensor], **options: Any) -> torch.Tensor:
    """Return the logits of a text given in pieces."""
    model.set_attn_implementation(attention)
    cache = TurboQuantCache(model.config, **{**SMALL, **options})
    with torch.no_grad():
        return torch.cat([model(piece, past_key_values=cache).logits for piece in pieces], dim=1)


def generate(model: PreTrainedModel, attention: str | None, ids: torch.Tensor, **arguments: Any) -> torch.Tensor:
    """Return generated tokens, with our cache if an attention is named."""
    options = arguments.pop("cache", {})
    model.set_attn_implementation(attention or "sdpa")
    cache = TurboQuantCache(model.config, **{**SMALL, **options}) if attention else None
    arguments = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "past_key_values": cache, **arguments}
    arguments.setdefault("attention_mask", torch.ones_like(ids))
    return model.generate(ids, **arguments)[:, ids.shape[1] :]


@pytest.mark.parametrize("tokens", [1, 30])
def test_both_paths_agree(model: PreTrainedModel, tokens: int) -> None:
    """Read from the same cache: of two that each path fills, some codes differ, where a rounding error decides."""
    logits = []
    for attention in ("eager", ATTENTION):
        cache = TurboQuantCache(model.config, **SMALL)
        with torch.no_grad():
            for piece in (make_ids(2, 90), make_ids(2, 30, seed=1)):
                model.set_attn_implementation("sdpa")
                model(piece, past_key_values=cache)
            model.set_attn_implementation(attention)
            logits.append(model(make_ids(2, tokens, seed=2), past_key_values=cache).logits)
    dense, codes = logits
    torch.testing.assert_close(codes, dense, rtol=0, atol=1e-3 * float(dense.abs().max()))


def test_generation_agrees_with_the_uncompressed_cache_while_all_is_exact(model: PreTrainedModel) -> None:
    ids = make_ids(2, 60)
    for attention in ("sdpa", ATTENTION):
        found = generate(model, attention, ids, cache={"recent": 128})
        torch.testing.assert_close(found, generate(model, None, ids))


def test_beams_of_both_paths_agree(model: PreTrainedModel) -> None:
    ids = make_ids(2, 70)
    dense, codes = (generate(model, attention, ids, num_beams=3, cache=FINE) for attention in ("sdpa", ATTENTION))
    torch.testing.assert_close(codes, dense)


def test_left_padding_of_both_paths_agrees(models: dict[str, PreTrainedModel]) -> None:
    model, ids = models["llama"], make_ids(2, 90)
    mask = torch.ones_like(ids)
    mask[1, :37] = 0
    options = {**FINE, "left_padding": (0, 37)}
    for arguments in ({}, {"num_beams": 2}):
        both = [
            generate(model, attention, ids, attention_mask=mask, cache=options, **arguments)
            for attention in ("sdpa", ATTENTION)
        ]
        torch.testing.assert_close(*both)
        for found in both:
            alone = generate(model, "sdpa", ids[1:, 37:], cache=FINE, **arguments)
            torch.testing.assert_close(found[1:], alone)


def test_cropping_generation_is_as_plain_one(models: dict[str, PreTrainedModel]) -> None:
    model = models["llama"]
    ids = make_ids(1, 40).repeat(1, 2)  # so that prompt lookup finds candidates, most of which are cropped away
    plain = generate(model, "sdpa", ids, max_new_tokens=30, cache={"recent": 64})
    looked_up = generate(
        model, "sdpa", ids, max_new_tokens=30, prompt_lookup_num_tokens=4, cache={"recent": 64}, use_cache=True
    )
    torch.testing.assert_close(looked_up, plain)


@pytest.mark.parametrize("attention", ["sdpa", ATTENTION])
def test_a_text_may_go_on(models: dict[str, PreTrainedModel], attention: str) -> None:
    model, ids = models["qwen"], make_ids(1, 200)
    model.set_attn_implementation(attention)
    cache = TurboQuantCache(model.config, **SMALL)
    first = model.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0, past_key_values=cache)
    again = torch.cat([first, make_ids(1, 30, seed=1)], dim=1)
    second = model.generate(again, max_new_tokens=5, do_sample=False, pad_token_id=0, past_key_values=cache)
    assert second.shape[1] == again.shape[1] + 5
    assert cache.get_seq_length() == second.shape[1] - 1


def test_the_attention_may_change_between_calls(models: dict[str, PreTrainedModel]) -> None:
    model, ids = models["llama"], make_ids(1, 101)
    cache = TurboQuantCache(model.config, **SMALL)
    logits = []
    with torch.no_grad():
        for start, stop, attention in ((0, 99, "sdpa"), (99, 100, ATTENTION), (100, 101, "eager")):
            model.set_attn_implementation(attention)
            logits.append(model(ids[:, start:stop], past_key_values=cache).logits)
    expected = run(model, "sdpa", [ids[:, :99], ids[:, 99:100], ids[:, 100:]])
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("attention", ["sdpa", ATTENTION])
def test_gradients_are_refused_and_not_wrong(models: dict[str, PreTrainedModel], attention: str) -> None:
    model, ids = models["llama"], make_ids(1, 60)
    expected = run(model, attention, [ids])
    out = model(ids, labels=ids, past_key_values=TurboQuantCache(model.config, **SMALL))
    torch.testing.assert_close(out.logits.detach(), expected)
    with pytest.raises(ArgumentError, match="must be trained without packed caches and without attention 'tqindex'"):
        out.loss.backward()


@pytest.mark.parametrize("attention", ["sdpa", ATTENTION])
def test_autocast_changes_no_codes(models: dict[str, PreTrainedModel], attention: str) -> None:
    model, ids = models["llama"], make_ids(1, 120)
    pieces = [ids[:, :110], ids[:, 110:111], ids[:, 111:]]
    expected = run(model, attention, pieces)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(model, attention, pieces)
    assert float((found - expected).abs().mean()) < 0.1 * float(expected.abs().mean())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy])
def test_a_copied_cache_learns_of_the_models_attention(
    models: dict[str, PreTrainedModel], duplicate: Callable[[Any], Any]
) -> None:
    model, ids = models["llama"], make_ids(1, 101)
    model.set_attn_implementation(ATTENTION)
    cache = TurboQuantCache(model.config, **SMALL)
    with torch.no_grad():
        model(ids[:, :100], past_key_values=cache)
        copied = duplicate(cache)
        model.set_attn_implementation("sdpa")
        assert not copied.layers[0].reads_codes()
        found = model(ids[:, 100:], past_key_values=copied).logits
    torch.testing.assert_close(found, run(model, "sdpa", [ids[:, :100], ids[:, 100:]])[:, 100:], rtol=0, atol=1e-3)


def test_other_layers_are_the_librarys_own() -> None:
    for name, kept in (("gemma", [0, 2]), ("hybrid", [0, 2])):
        cache, dense = TurboQuantCache(CONFIGS[name]), DynamicCache(config=CONFIGS[name])
        for number, (layer, other) in enumerate(zip(cache.layers, dense.layers, strict=True)):
            assert type(layer) is (type(other) if number in kept else TurboQuantLayer)


def test_memory_of_linear_layers_counts(models: dict[str, PreTrainedModel]) -> None:
    model = models["hybrid"]
    model.set_attn_implementation("sdpa")
    cache = TurboQuantCache(model.config, **SMALL)
    assert cache.batch_size == -1
    with torch.no_grad():
        model(make_ids(3, 90), past_key_values=cache)
    assert cache.batch_size == 3
    states = [s for layer in cache.layers[::2] for s in (layer.conv_states[0], layer.recurrent_states[0])]
    assert cache.memory()["other"] == sum(state.untyped_storage().nbytes() for state in states)


def test_single_layers_may_differ(models: dict[str, PreTrainedModel]) -> None:
    model = models["llama"]
    model.set_attn_implementation("sdpa")
    cache = TurboQuantCache(model.config, **SMALL, key_bits=2, per_layer={0: (8, 3.5), 1: None})
    first, second = cache.layers
    assert (first.options.key_bits, first.options.value_bits) == (8, 3.5)
    assert type(second) is type(DynamicCache(config=model.config).layers[0])
    with torch.no_grad():
        model(make_ids(1, 90), past_key_values=cache)
    assert cache.memory()["codes"] > 0
    assert cache.memory()["other"] == 2 * 2 * 90 * 16 * 4


def test_memory_counts_each_storage_once(models: dict[str, PreTrainedModel]) -> None:
    model = models["llama"]
    model.set_attn_implementation("sdpa")
    cache = TurboQuantCache(model.config, **SMALL)
    with torch.no_grad():
        model(make_ids(1, 300), past_key_values=cache)
    before = cache.memory()
    tokens = cache.layers[0].sequences[0].packed * 2 * 2 * 2  # of two heads, keys and values, two layers
    assert before["codes"] == tokens * 16 * 4 // 8
    assert before["norms"] == tokens * 2
    assert before["means"] == tokens // 2 // 32 * 16 * 2
    assert before["exact"] == 2 * 2 * 2 * (4 + 8 + 32) * 16 * 4
    cache.batch_repeat_interleave(5)
    after = cache.memory()
    assert after == {**before, "exact": 5 * before["exact"]}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (T5Config(), "decoder-only model, got the encoder-decoder 't5'"),
        (transformers.DeepseekV3Config(), "'deepseek_v3' with latent attention"),
        (MistralConfig(sliding_window=32, num_hidden_layers=2), "of full attention to pack, got none of 'mistral'"),
        (transformers.RwkvConfig(), "that takes past_key_values, got 'rwkv'"),
        (transformers.XLNetConfig(), "that takes past_key_values, got 'xlnet'"),
        (transformers.OpenAIGPTConfig(), "that takes past_key_values, got 'openai-gpt'"),
        ("llama", "config must be the model's configuration, got str"),
    ],
)
def test_models_that_cannot_be_served_are_refused(config: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        TurboQuantCache(config)


def test_an_attention_with_a_cache_of_its_own_is_refused() -> None:
    config = LlamaConfig(**COMMON, num_hidden_layers=2)
    config._attn_implementation = "paged|sdpa"
    with pytest.raises(ArgumentError, match=r"must read this cache, got 'paged\|sdpa'"):
        TurboQuantCache(config)


def test_an_old_transformers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support.transformers, "__version__", "5.16.2")
    with pytest.raises(MissingPackageError, match=r"needs transformers 5\.17 or newer, got 5\.16\.2"):
        TurboQuantCache(CONFIGS["llama"])


@pytest.mark.parametrize("given", [5, "12", [], [1.7], [None], [[1, 2]], torch.zeros(2, 2, dtype=torch.int64)])
def test_wrong_padding_is_refused(given: Any) -> None:
    with pytest.raises(ArgumentError, match="left_padding must"):
        TurboQuantCache(CONFIGS["llama"], left_padding=given)
    assert TurboQuantCache(CONFIGS["llama"], left_padding=torch.tensor([1, 0])).options.left_padding == (1, 0)


@pytest.mark.parametrize(
    ("per_layer", "message"),
    [
        ({2: (4, 4)}, "a layer.s number in per_layer must be from 0 to 1, got 2"),
        ({0: 4}, r"per_layer must give \(key_bits, value_bits\)"),
        ([(4, 4)], r"per_layer must be a mapping of layers' numbers to widths, got \[\(4, 4\)\]"),
        ({0: None, 1: None}, "layers of full attention to pack, got none of 'llama'"),
    ],
)
def test_wrong_layers_are_refused(per_layer: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        TurboQuantCache(CONFIGS["llama"], per_layer=per_layer)
