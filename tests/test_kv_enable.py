"""One call gives a model's `generate` a packed cache, another takes it away."""

import copy
import pickle

import pytest
import torch
from transformers import GenerationConfig

from tqindex.errors import ArgumentError
from tqindex.kv import TurboQuantCache, disable_turbo_quant, enable_turbo_quant

IDS = torch.arange(3, 90)[None]


def generate(model, ids=IDS, **options):
    settings = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "pad_token_id": 0}
    return model.generate(
        ids, attention_mask=options.pop("attention_mask", torch.ones_like(ids)), **settings, **options
    )


def test_generate_gets_a_packed_cache_and_loses_it_again(tiny_model):
    model = tiny_model("qwen")
    before = generate(model)
    options = enable_turbo_quant(model, 2, recent=16, page=32)
    packed = generate(model)
    assert isinstance(packed.past_key_values, TurboQuantCache)
    assert packed.past_key_values.options == options
    assert packed.past_key_values.memory()["codes"] > 0
    disable_turbo_quant(model)
    after = generate(model)
    assert type(after.past_key_values) is type(before.past_key_values)
    assert torch.equal(after.sequences, before.sequences)
    assert "generate" not in vars(model)


@pytest.mark.parametrize(("ratio", "widths"), [(1.5, (8, 8)), (3.6, (4, 4)), (4, (4, 3)), (5, (3, 2)), (6.6, (2, 2))])
def test_widths_reach_the_ratio(tiny_model, capsys, ratio, widths):
    model = tiny_model("qwen", head_dim=64)
    options = enable_turbo_quant(model, ratio)
    assert (options.key_bits, options.value_bits) == widths
    printed = capsys.readouterr().out
    assert f"keys {widths[0]} bits, values {widths[1]} bits in 3 layers" in printed
    measured = float(printed.split("measured ")[1].split(" x")[0])
    assert measured >= ratio
    cache = TurboQuantCache(model.config, *widths)
    cache.layers[0].update(*torch.randn((2, 1, 2, 8192, 64), dtype=torch.bfloat16))
    parts = cache.memory()
    pages = (8192 - 4 - 128) // 64 * 64
    assert measured == pytest.approx(
        2 * 2 * 64 * 2 * pages / (parts["codes"] + parts["norms"] + parts["means"]), abs=0.01
    )


@pytest.mark.parametrize(("kind", "widths"), [("trellis", (4, 4)), ("prod", (4, 4))])
def test_kinds_with_fewer_widths_take_what_they_have(tiny_model, kind, widths):
    model = tiny_model("qwen", head_dim=64)
    options = enable_turbo_quant(model, 2, kind=kind, recent=16)
    assert (options.kind, options.key_bits, options.value_bits) == (kind, *widths)
    assert generate(model).past_key_values.options == options


def test_a_ratio_out_of_reach_is_refused(tiny_model):
    model = tiny_model("qwen")
    with pytest.raises(ArgumentError, match=r"at most \d"):
        enable_turbo_quant(model, 40)
    with pytest.raises(ArgumentError):
        enable_turbo_quant(model, "four")
    with pytest.raises(ArgumentError):
        enable_turbo_quant(model, recent=-1)
    with pytest.raises(ArgumentError, match=r"an option must be one of kind, sinks, .*; got 'key_bits'"):
        enable_turbo_quant(model, key_bits=3)
    with pytest.raises(ArgumentError, match="model must be one of transformers that generates, got int"):
        enable_turbo_quant(3)
    assert "generate" not in vars(model)


def test_padding_is_taken_from_the_mask(tiny_model):
    model = tiny_model("qwen")
    enable_turbo_quant(model)
    mask = torch.ones((3, 87), dtype=torch.int64)
    mask[1, :5] = 0
    mask[2, 80:] = 0
    packed = generate(model, IDS.repeat(3, 1), attention_mask=mask).past_key_values
    assert packed.options.left_padding == (0, 5, 0)


def test_beams_have_the_padding_of_their_row(tiny_model):
    model = tiny_model("qwen")
    enable_turbo_quant(model)
    mask = torch.ones((2, 87), dtype=torch.int64)
    mask[1, :5] = 0
    packed = generate(model, IDS.repeat(2, 1), attention_mask=mask, num_beams=3).past_key_values
    assert [sequence.padding for sequence in packed.layers[0].sequences] == [0, 0, 0, 5, 5, 5]


def test_calls_keep_a_cache_of_their_own(tiny_model):
    from transformers import DynamicCache

    model = tiny_model("qwen")
    enable_turbo_quant(model)
    own = DynamicCache(config=model.config)
    assert generate(model, past_key_values=own).past_key_values is own
    assert generate(model, use_cache=False).past_key_values is None
    assert not isinstance(generate(model, cache_implementation="static").past_key_values, TurboQuantCache)


def test_enabling_twice_is_undone_once(tiny_model):
    model = tiny_model("qwen")
    enable_turbo_quant(model, 2)
    enable_turbo_quant(model, 4)
    assert generate(model).past_key_values.options.value_bits < 4
    disable_turbo_quant(model)
    assert "generate" not in vars(model)
    with pytest.raises(ArgumentError):
        disable_turbo_quant(model)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_model_generates_by_itself(tiny_model, duplicate):
    model = tiny_model("qwen")
    enable_turbo_quant(model, 4, recent=16, page=32)
    other = duplicate(model)
    for weight in other.parameters():
        weight.data.zero_()
    found = generate(other)
    assert isinstance(found.past_key_values, TurboQuantCache)
    assert found.sequences[0, IDS.shape[1] :].tolist() == [0, 0, 0, 0]
    assert generate(model).sequences[0, IDS.shape[1] :].any()


def test_a_configuration_counts_wherever_it_stands(tiny_model):
    model = tiny_model("qwen")
    enable_turbo_quant(model, 4)
    config = GenerationConfig(use_cache=False, max_new_tokens=2, pad_token_id=0, return_dict_in_generate=True)
    assert model.generate(IDS, config, attention_mask=torch.ones_like(IDS)).past_key_values is None


def test_padding_is_inferred_where_transformers_infers_the_mask(tiny_model):
    model = tiny_model("qwen")
    enable_turbo_quant(model, 4, recent=16, page=32)
    ids = torch.cat([IDS, IDS])
    ids[1, :40] = 0
    settings = {"max_new_tokens": 2, "do_sample": False, "return_dict_in_generate": True}
    found = model.generate(ids, pad_token_id=0, eos_token_id=1, **settings)
    assert found.past_key_values.options.left_padding == (0, 40)
    for options in ({"pad_token_id": 0, "eos_token_id": 0}, {"pad_token_id": 2, "eos_token_id": 1}):
        assert model.generate(ids, **options, **settings).past_key_values.options.left_padding is None


@pytest.mark.parametrize("ratio", [0, -1])
def test_ratios_that_are_none_are_refused(tiny_model, ratio):
    with pytest.raises(ArgumentError, match="compression_ratio must be above 0"):
        enable_turbo_quant(tiny_model(), ratio)
    with pytest.raises(ArgumentError, match="one that enable_turbo_quant was called for"):
        disable_turbo_quant(None)
