"""What a cache takes is known beforehand, and is what it then takes."""

import json

import pytest
import torch

from tqindex.errors import ArgumentError
from tqindex.kv import TurboQuantCache
from tqindex.kv.measure import held_bytes
from tqindex.kv.memory import estimate_memory, layer_shapes
from tqindex.kv.options import LayerOptions
from tqindex.kv.presets import PRESETS, parse_preset

CONTEXT, WINDOWS = 150, {"sinks": 2, "recent": 16, "page": 32}


def filled(model, batch, **options):
    """A cache of a 16-bit model after so many tokens."""
    cache = TurboQuantCache(model.config, **options)
    with torch.inference_mode():
        model.to(torch.bfloat16)(torch.arange(batch * CONTEXT).reshape(batch, -1) % 97, past_key_values=cache)
    return cache


@pytest.mark.parametrize("family", ["llama", "qwen", "gemma", "gpt2"])
@pytest.mark.parametrize("preset", ["4/4", "3.5/2", "3/4 prod", "2/2 uncentred", "2.5/3 trellis"])
def test_estimate_is_what_a_cache_takes(tiny_model, family, preset):
    model, batch = tiny_model(family), 2
    options = parse_preset(preset, LayerOptions(**WINDOWS))
    parts = filled(model, batch, **options.__dict__).memory()
    expected = estimate_memory(layer_shapes(model.config), options, CONTEXT, batch)
    for part in ("codes", "norms", "means", "exact"):
        assert parts[part] == expected.parts[part], part
    if family == "gemma":
        # The library cuts windows as views, so that the tokens before them stay in memory.
        assert parts["other"] > expected.parts["other"] == 2 * batch * 2 * 2 * 16 * 23 * 2
    else:
        assert expected.parts["other"] == 0


def test_linear_layers_are_not_counted(tiny_model):
    shapes = layer_shapes(tiny_model("hybrid").config)
    assert [shape.packed for shape in shapes] == [False, True, False]
    assert estimate_memory(shapes, LayerOptions(), 1000).dense == 1000 * 2 * 16 * 2 * 2


def test_dense_bytes_are_those_of_the_uncompressed_cache(tiny_model):
    from transformers import DynamicCache

    model = tiny_model("qwen").to(torch.bfloat16)
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(torch.zeros((3, CONTEXT), dtype=torch.int64), past_key_values=cache)
    expected = estimate_memory(layer_shapes(model.config), LayerOptions(), CONTEXT, batch=3)
    assert held_bytes(cache) == expected.dense


def test_bits_count_everything(tiny_model):
    memory = estimate_memory(layer_shapes(tiny_model("qwen").config), parse_preset("4/4"), 8192)
    # Heads of 16 channels: 4 bits, a norm of 16 for 16 values, and a mean for every 64 tokens of keys.
    assert memory.page_bits == 4 + 16 / 16 + 16 / 64 / 2
    assert memory.bits == pytest.approx(8 * memory.total / (8192 * 3 * 2 * 2 * 16))


@pytest.mark.parametrize(
    "name", ["", "4", "4/5", "4/4/4", "a/b", "4/4 pord", "4/4 recent", "4/4 recent=x", "4/4 page=7", "8/8 trellis"]
)
def test_presets_of_another_form_are_refused(name):
    with pytest.raises(ArgumentError):
        parse_preset(name)


def test_presets_say_all_options():
    options = parse_preset("2.5/4 prod uncentred sinks=1 recent=2 page=32 seed=3")
    assert options == LayerOptions(2.5, 4, "prod", 1, 2, 32, False, None, 3)
    assert parse_preset("3/2 trellis") == LayerOptions(3, 2, "trellis")
    assert all(parse_preset(name).recent == 128 for name in PRESETS)


# --- the command


def test_command_shows_every_preset(tmp_path, cli, tiny_model):
    config = tiny_model("qwen").config
    config.save_pretrained(tmp_path)
    code, out, err = cli("kv", "memory", tmp_path, "--context", 4096, "--batch", 2)
    assert (code, err) == (0, "")
    assert "16 bits   3.15 MB" in out  # 2 * 4096 tokens, 3 layers, keys and values of 2 heads of 16, two bytes each
    assert [line.split()[0] for line in out.splitlines()[4:]] == list(PRESETS)
    code, out, err = cli("kv", "memory", tmp_path / "config.json", "--context", 4096, "--json", "--preset", "4/3")
    found = json.loads(out)
    assert [row["preset"] for row in found["presets"]] == ["4/3"]
    expected = estimate_memory(layer_shapes(config), parse_preset("4/3"), 4096)
    assert found["presets"][0]["total"] == expected.total


@pytest.mark.parametrize(
    "arguments", [["--context", 0], ["--context", 9, "--batch", 0], ["--context", 9, "--preset", "5/5"], []]
)
def test_command_refuses_wrong_arguments(tmp_path, cli, tiny_model, arguments):
    tiny_model("qwen").config.save_pretrained(tmp_path)
    code, out, err = cli("kv", "memory", tmp_path, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_command_refuses_what_is_no_model(tmp_path, cli, tiny_model):
    code, _, err = cli("kv", "memory", tmp_path, "--context", 10)
    assert (code, err.count("\n")) == (2, 1)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    code, _, err = cli("kv", "memory", tmp_path, "--context", 10)
    assert code == 2
    assert "encoder-decoder" in err
