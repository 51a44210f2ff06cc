"""A real language model with packed caches: what is promised of it."""

from pathlib import Path

import pytest
import torch

from tqindex.kv import ATTENTION, TurboQuantCache
from tqindex.kv.agreement import cut_prompts, greedy_tokens
from tqindex.kv.cases import DENSE, parse_case
from tqindex.kv.evaluate import evaluate
from tqindex.kv.models import encode_file
from tqindex.kv.needle import is_found, make_haystacks

# The text of this project's licence: English, and 3,000 tokens long.
LICENSE = Path(__file__).parent.parent / "LICENSE"
# That of the README's figures, where the system brings it, as Debian does.
GPL = Path("/usr/share/common-licenses/GPL-3")


@pytest.fixture(scope="module")
def text_ids(real_model):
    return encode_file(real_model[1], LICENSE)


def test_the_model_knows_a_capital(real_model):
    model, tokenizer, _ = real_model
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert tokenizer.decode(greedy_tokens(model, ids, DENSE, 1)[0]) == " Paris"


def test_packed_predictions_are_near(real_model, text_ids):
    """At a short prefix, bounds that the plain codec does not keep; the figures of the README are nightly."""
    names = ["4/4", "3/3 recent=64", "3/3 uncentred sinks=0 recent=64"]
    _, four, three, plain = evaluate(real_model[0], text_ids, [parse_case(name) for name in names], 516, 64, step=16)
    assert four.divergence < 0.003
    assert four.top1 > 0.95
    assert three.divergence < 0.012
    assert plain.divergence > 1.5 * three.divergence


def test_both_paths_and_generate_agree(real_model, text_ids):
    model, ids = real_model[0], text_ids[None, :400]
    before, answers = model.config._attn_implementation, []
    try:
        for attention in ("sdpa", ATTENTION):
            model.set_attn_implementation(attention)
            with torch.inference_mode():
                cache = TurboQuantCache(model.config)
                model(ids[:, :-1], past_key_values=cache, logits_to_keep=1)
                answers.append(model(ids[:, -1:], past_key_values=cache).logits[0, -1])
    finally:
        model.set_attn_implementation(before)
    dense, codes = answers
    assert float((dense - codes).abs().max()) <= 1e-3 * float(dense.abs().max())


@pytest.mark.nightly
@pytest.mark.skipif(not GPL.exists(), reason=f"{GPL} is not here")
def test_divergences_that_the_readme_promises(real_model):
    bounds = {"4/4": 0.0045, "3/3": 0.010, "2/4": 0.040}
    cases = [parse_case(name) for name in bounds]
    for found in list(evaluate(real_model[0], encode_file(real_model[1], GPL), cases, 2052, 256, step=16))[1:]:
        assert found.divergence <= bounds[found.name], found


@pytest.mark.nightly
def test_next_tokens_are_those_of_the_dense_cache(real_model, text_ids):
    model, prompts = real_model[0], cut_prompts(text_ids, 20, 512)
    expected = greedy_tokens(model, prompts, DENSE, 256)
    cache, step, equal = TurboQuantCache(model.config), prompts, 0
    with torch.inference_mode():
        for column in range(256):
            chosen = model(step, past_key_values=cache, logits_to_keep=1).logits[:, -1].argmax(dim=1)
            step = expected[:, column : column + 1]
            equal += int((chosen == step[:, 0]).sum())
    assert equal / expected.numel() >= 0.97


@pytest.mark.nightly
def test_the_needle_is_found_where_the_dense_cache_finds_it(real_model):
    model, tokenizer, _ = real_model
    for hay in make_haystacks(tokenizer, LICENSE.read_text(), [1024, 4096, 8192], [0, 0.5, 1]):
        if is_found(model, tokenizer, hay, DENSE):
            assert is_found(model, tokenizer, hay, parse_case("4/4")), hay
