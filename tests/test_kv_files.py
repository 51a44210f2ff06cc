"""A prompt's cache as a file: the same after a restart, and refused where it does not fit."""

import json

import numpy as np
import pytest
import torch

from tqindex.errors import ArgumentError, CorruptIndexError, FormatVersionError, MissingFileError, StorageError
from tqindex.kv import TurboQuantCache

WINDOWS = {"sinks": 2, "recent": 8, "page": 32}


def prompt(rows=2, columns=61):
    return torch.from_numpy(np.random.default_rng(rows + columns).integers(3, 97, (rows, columns)))


@torch.inference_mode()
def read(model, ids, cache):
    return model(ids, past_key_values=cache).logits


def filled(model, **options):
    cache = TurboQuantCache(model.config, **{**WINDOWS, **options})
    read(model, prompt(), cache)
    return cache


@pytest.mark.parametrize("family", ["llama", "qwen", "gemma", "gpt2", "hybrid"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"key_bits": 2.5, "kind": "prod"},
        {"center": False, "left_padding": (0, 11)},
        {"key_bits": 3, "value_bits": 2.5, "kind": "trellis"},
    ],
)
def test_a_loaded_cache_goes_on_as_the_saved_one(tmp_path, tiny_model, family, options):
    model = tiny_model(family)
    cache = filled(model, **options)
    cache.save(tmp_path / "prompt.kv", model)
    loaded = TurboQuantCache.load(tmp_path / "prompt.kv", model)
    assert loaded.options == cache.options
    assert loaded.get_seq_length() == 61
    for part in ("codes", "norms", "means", "exact"):
        assert loaded.memory()[part] == cache.memory()[part]
    for columns in (1, 1, 30, 1):
        ids = prompt(2, columns)
        torch.testing.assert_close(read(model, ids, loaded), read(model, ids, cache), rtol=0, atol=0)


def test_widths_of_single_layers_and_shared_pages_are_kept(tmp_path, tiny_model):
    model = tiny_model()
    cache = TurboQuantCache(model.config, per_layer={0: (8, 8), 2: None}, **WINDOWS)
    read(model, prompt(1), cache)
    cache.batch_repeat_interleave(3)
    cache.save(tmp_path / "prompt.kv", model)
    loaded = TurboQuantCache.load(tmp_path / "prompt.kv", model)
    assert loaded.memory() == cache.memory()
    torch.testing.assert_close(read(model, prompt(3, 1), loaded), read(model, prompt(3, 1), cache), rtol=0, atol=0)


def test_an_empty_cache_is_saved_too(tmp_path, tiny_model):
    model = tiny_model()
    TurboQuantCache(model.config).save(tmp_path / "prompt.kv", model)
    assert TurboQuantCache.load(tmp_path / "prompt.kv", model).get_seq_length() == 0


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"seed": 1}, "weights"),
        ({"rms_norm_eps": 1e-3}, "configuration"),
        ({"num_hidden_layers": 2}, "configuration"),
        ({"family": "qwen"}, "configuration"),
    ],
)
def test_other_models_are_refused(tmp_path, tiny_model, changes, part):
    model = tiny_model()
    filled(model).save(tmp_path / "prompt.kv", model)
    with pytest.raises(ArgumentError, match=part):
        TurboQuantCache.load(tmp_path / "prompt.kv", tiny_model(**changes))


def test_another_dtype_is_refused(tmp_path, tiny_model):
    model = tiny_model()
    for weight in model.parameters():  # so that the weights are the same in both
        weight.data = weight.data.bfloat16().float()
    filled(model).save(tmp_path / "prompt.kv", model)
    with pytest.raises(ArgumentError, match="dtype"):
        TurboQuantCache.load(tmp_path / "prompt.kv", model.to(torch.bfloat16))


def test_damage_is_found(tmp_path, tiny_model):
    model, path = tiny_model(), tmp_path / "prompt.kv"
    filled(model).save(path, model)
    content = path.read_bytes()
    for place in [0, 3, 20, 40, *range(100, len(content), 4099), len(content) - 1]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(CorruptIndexError):
            TurboQuantCache.load(path, model)
    for length in (0, 10, 30, 1000, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CorruptIndexError):
            TurboQuantCache.load(path, model)


def rewrite(path, change):
    """Change a file's header and make its checksum right again."""
    import hashlib

    content = path.read_bytes()
    length = int.from_bytes(content[16:24], "little")
    header = json.loads(content[24 : 24 + length])
    change(header)
    text = json.dumps(header).encode()
    body = content[:16] + len(text).to_bytes(8, "little") + text + content[24 + length : -32]
    path.write_bytes(body + hashlib.sha256(body).digest())


def test_arrays_of_another_shape_are_found_before_a_kernel_reads_them(tmp_path, tiny_model):
    model, path = tiny_model(), tmp_path / "prompt.kv"
    for field in ("words", "norms"):
        filled(model).save(path, model, overwrite=True)

        def change(header, field=field):
            block = header["layers"][1]["sequences"][0]["blocks"][0]
            block["keys"][0][field] = block["means"]

        rewrite(path, change)
        with pytest.raises(CorruptIndexError, match="must be"):
            TurboQuantCache.load(path, model)


def test_newer_versions_are_refused(tmp_path, tiny_model):
    model, path = tiny_model(), tmp_path / "prompt.kv"
    filled(model).save(path, model)
    rewrite(path, lambda header: header.update(version=3))
    with pytest.raises(FormatVersionError):
        TurboQuantCache.load(path, model)


def test_what_changes_no_key_is_no_other_model(tmp_path, tiny_model):
    model = tiny_model()
    filled(model).save(tmp_path / "prompt.kv", model)
    model.config.pad_token_id, model.config.use_cache, model.config.architectures = 7, False, ["Other"]
    TurboQuantCache.load(tmp_path / "prompt.kv", model)


def test_a_model_of_other_depth_is_refused_when_saving(tmp_path, tiny_model):
    with pytest.raises(ArgumentError, match="must be the one that filled the cache, of 3 layers"):
        filled(tiny_model()).save(tmp_path / "prompt.kv", tiny_model(num_hidden_layers=2))


def test_files_are_not_replaced_unasked(tmp_path, tiny_model):
    model, path = tiny_model(), tmp_path / "prompt.kv"
    path.write_text("mine")
    with pytest.raises(StorageError, match="exists"):
        filled(model).save(path, model)
    assert path.read_text() == "mine"
    filled(model).save(path, model, overwrite=True)
    with pytest.raises(MissingFileError):
        TurboQuantCache.load(tmp_path / "absent.kv", model)
