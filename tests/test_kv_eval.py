"""The measurements: what they say of caches that are known, and the commands that print them."""

import json
import math
import os

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import DynamicCache, PreTrainedTokenizerFast

from tqindex.errors import ArgumentError
from tqindex.kv.agreement import agreement, cut_prompts, greedy_tokens
from tqindex.kv.cases import DENSE, Case, parse_case
from tqindex.kv.evaluate import evaluate
from tqindex.kv.measure import held_bytes, peak_rise
from tqindex.kv.needle import is_found, make_haystacks

TEXT = "The licensee may copy, change and convey the work; a number such as 1984 is no secret. " * 30
SMALL = "sinks=2 recent=16 page=32"


@pytest.fixture(scope="module")
def tokenizer():
    """One token for each byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokens)


@pytest.fixture(scope="module")
def model(tiny_model):
    # Weights larger than at the start of a training, so that predictions depend on what was read.
    made = tiny_model("qwen", vocab_size=256, max_position_embeddings=4096)
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(4 if weight.dim() == 2 else 1)
    return made


@pytest.fixture(scope="module")
def ids(tokenizer):
    return torch.tensor(tokenizer(TEXT)["input_ids"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model, tokenizer):
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / "text.txt").write_text(TEXT)
    return path


class NoisyCache(DynamicCache):
    """An uncompressed cache whose keys are wrong by a known amount."""

    def update(self, keys, values, *arguments, **keywords):
        noise = torch.randn(keys.shape, generator=torch.Generator().manual_seed(keys.shape[2]))
        return super().update(keys + self.amount * noise, values, *arguments, **keywords)


def noisy(amount):
    def make(config):
        cache = NoisyCache(config=config)
        cache.amount = amount
        return cache

    return Case(f"noise {amount}", make)


def test_divergence_is_of_the_predictions(model, ids):
    cases = [DENSE, noisy(0.01), noisy(0.1), noisy(1.0)]
    dense, same, *worse = evaluate(model, ids, cases, prefix=200, tokens=50)
    assert (dense.divergence, dense.top1, dense.attention_error) == (0, 1, 0)
    assert (same.divergence, same.top1, same.attention_error, same.perplexity) == (0, 1, 0, dense.perplexity)
    for less, more in zip([same, *worse], worse, strict=False):
        assert less.divergence < more.divergence
        assert less.attention_error < more.attention_error
    with torch.inference_mode():
        expected = torch.log_softmax(model(ids[None, :251]).logits[0].double(), dim=1)[200:250]
        cache = noisy(1.0).make(model.config)
        model(ids[None, :200], past_key_values=cache)
        steps = [model(ids[None, i : i + 1], past_key_values=cache).logits[0] for i in range(200, 250)]
        found = torch.log_softmax(torch.cat(steps).double(), dim=1)
    divergence = torch.nn.functional.kl_div(found, expected, log_target=True, reduction="batchmean")
    assert worse[-1].divergence == pytest.approx(float(divergence), rel=1e-3)
    loss = torch.nn.functional.nll_loss(expected, ids[201:251])
    assert dense.perplexity == pytest.approx(math.exp(loss), rel=1e-4)


def test_more_bits_are_nearer(model, ids):
    names = [f"{bits}/{bits} {SMALL}" for bits in (8, 4, 2)]
    dense, *found = evaluate(model, ids, [parse_case(name) for name in names], prefix=300, tokens=30)
    assert dense.divergence < found[0].divergence < found[1].divergence < found[2].divergence
    assert dense.bits == pytest.approx(32)
    assert dense.bits > found[0].bits > found[1].bits > found[2].bits


def test_prefix_in_blocks_and_tokens_in_steps(model, ids):
    case = [parse_case(f"4/4 {SMALL}")]
    # 2 sinks, 16 recent and whole pages of 32: pages are full where steps of 4 end.
    whole, blocks, steps = (
        list(evaluate(model, ids, case, prefix=2 + 16 + 32 * 4, tokens=48, **options))[1]
        for options in ({}, {"block": 40}, {"step": 4})
    )
    assert steps.divergence == pytest.approx(whole.divergence, rel=1e-2)
    assert blocks.divergence != whole.divergence  # later blocks have read earlier ones packed
    assert whole.held == blocks.held == steps.held


def test_numbers_out_of_range_are_refused(model, ids):
    for options in ({"prefix": 0, "tokens": 5}, {"prefix": 5, "tokens": 1}, {"prefix": 5, "tokens": 10**6}):
        with pytest.raises(ArgumentError):
            list(evaluate(model, ids, [], **options))
    with pytest.raises(ArgumentError):
        list(evaluate(model, ids, [], prefix=5, tokens=5, block=0))


@pytest.mark.parametrize("name", ["hqq 4", "hqq 4 1", "quanto x 1/1", "quanto 4 a/b", "dense?", ""])
def test_cases_of_another_form_are_refused(name):
    with pytest.raises(ArgumentError):
        parse_case(name)


def test_bytes_of_nested_and_shared_tensors_count_once():
    class Layer:
        def __init__(self):
            one = torch.zeros(10)
            self.pair = (one, {"again": one, "part": one[:3], "other": [torch.zeros(5, dtype=torch.uint8)]})
            self.number = 7

    class Holder:
        layers = (Layer(), Layer())

    assert held_bytes(Holder()) == 2 * (40 + 5)


@pytest.mark.skipif(not __import__("sys").platform.startswith("linux"), reason="Linux tells the peak")
def test_peak_sees_what_was_freed_again():
    with peak_rise(torch.device("cpu")) as peak:
        torch.ones(64 * 2**20, dtype=torch.uint8)[-1].item()
    assert 60 * 2**20 < peak.bytes < 100 * 2**20


def test_agreement_counts_equal_tokens(model, ids):
    prompts = cut_prompts(ids, 3, 100)
    expected = greedy_tokens(model, prompts, DENSE, 20)
    assert expected.shape == (3, 20)
    generated = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=20, do_sample=False, pad_token_id=0
    )
    assert torch.equal(expected, generated[:, 100:])
    same = agreement(model, prompts, expected, DENSE)
    assert (same.fed, same.free) == (1, 1)
    other = agreement(model, prompts, expected, noisy(2.0))
    assert other.fed < 1
    assert other.free <= other.fed + 0.2


def test_haystacks_have_the_length_and_the_needle_where_asked(tokenizer):
    haystacks = make_haystacks(tokenizer, TEXT, [300, 5000], [0, 0.5, 1])
    assert [(hay.length, hay.depth) for hay in haystacks] == [(n, d) for n in (300, 5000) for d in (0, 0.5, 1)]
    for hay in haystacks:
        text = tokenizer.decode(hay.ids)
        assert len(hay.ids) == hay.length
        room = text.rindex("\n\nQuestion") - len("\nThe secret number of the old lighthouse is 58213.\n")
        assert text.index("\nThe secret") == round(hay.depth * room)
    for options in ([10], [0.5]), ([300], [1.5]):
        with pytest.raises(ArgumentError):
            make_haystacks(tokenizer, TEXT, *options)


def test_an_answer_is_found_where_the_number_is_in_it(model, tokenizer, monkeypatch):
    (hay,) = make_haystacks(tokenizer, TEXT, [300], [0.5])
    assert not is_found(model, tokenizer, hay, DENSE)
    answer = iter(tokenizer(" 58213. ")["input_ids"])

    def say(*arguments, **keywords):
        return type("Output", (), {"logits": torch.nn.functional.one_hot(torch.tensor([[next(answer, 0)]]), 256)})

    monkeypatch.setattr(model, "forward", say)
    assert is_found(model, tokenizer, hay, DENSE)


# --- the commands


def test_eval_command(cli, folder):
    arguments = ["kv", "eval", folder, "--text", folder / "text.txt", "--prefix", 150, "--tokens", 5, "--no-peers"]
    code, out, err = cli(*arguments, "--preset", f"4/4 {SMALL}", "--preset", f"2/2 {SMALL}")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == ["tokens", "cache", "dense", "4/4", "2/2"]
    code, out, _ = cli(*arguments, "--preset", f"4/4 {SMALL}", "--json", "--block", 50, "--step", 2)
    rows = json.loads(out)
    assert [row["name"] for row in rows] == ["dense", f"4/4 {SMALL}"]
    assert rows[1]["bits"] < rows[0]["bits"]


def test_needle_command(cli, folder, tmp_path):
    target = tmp_path / "map.png"
    arguments = ["kv", "needle", folder, "--text", folder / "text.txt", "--lengths", "200,300", "--depths", 2]
    code, out, err = cli(*arguments, "-o", target, "--preset", f"3/3 {SMALL}")
    assert (code, err) == (0, "")
    assert "found" in out
    assert target.read_bytes().startswith(b"\x89PNG")
    code, out, _ = cli(*arguments, "-o", target, "--json")
    cells = json.loads(out)
    assert list(cells) == ["dense", "4/4"]
    assert [cell[:2] for cell in cells["dense"]] == [[200, 0], [200, 1], [300, 0], [300, 1]]


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", "{folder}", "--text", "{folder}/absent.txt"],
        ["eval", "{folder}", "--text", "{folder}/text.txt", "--prefix", "999999"],
        ["eval", "{folder}", "--text", "{folder}/text.txt", "--preset", "9/9"],
        ["eval", "{folder}", "--text", "{folder}/text.txt", "--dtype", "int8"],
        ["eval", "{folder}/absent", "--text", "{folder}/text.txt"],
        ["needle", "{folder}", "--text", "{folder}/text.txt", "-o", "{folder}/x.png", "--lengths", "99999"],
        ["needle", "{folder}", "--text", "{folder}/text.txt", "-o", "{folder}/x.png", "--lengths", "many"],
        ["needle", "{folder}", "--text", "{folder}/text.txt", "-o", "{folder}/x.png", "--depths", "0"],
    ],
)
def test_commands_refuse_in_one_line(cli, folder, arguments):
    code, out, err = cli("kv", *(argument.replace("{folder}", str(folder)) for argument in arguments))
    assert (code, out, err.count("\n")) == (2, "", 1), err


def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(cli, folder):
    for name in (folder / "absent", "./absent", "models/small/absent"):
        code, _, err = cli("kv", "memory", name, "--context", 10)
        assert (code, err) == (2, f"Error: {name} must be a model's configuration: there is no such folder\n")


def test_a_place_that_cannot_be_written_is_refused_before_the_model_is_read(cli, folder, monkeypatch):
    code, _, err = cli("kv", "needle", "absent", "--text", folder / "text.txt", "-o", folder / "absent" / "x.png")
    assert (code, err) == (2, f"Error: {folder / 'absent'} must be a folder that exists, to write x.png into\n")
    code, _, err = cli("kv", "needle", "absent", "--text", folder / "text.txt", "-o", folder)
    assert (code, "must be a regular file, got d" in err) == (2, True)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    code, _, err = cli("kv", "needle", "absent", "--text", folder / "text.txt", "-o", folder / "x.png")
    assert (code, err) == (2, f"Error: {folder} must be a folder that may be written to, to write x.png into\n")


def test_help_and_the_index_need_no_torch(run_python):
    run_python(
        "-c",
        "import sys, tqindex.cli.command as c; c.run(['kv', '--help']); c.run(['kv', 'eval', '--help'])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)",
    )
