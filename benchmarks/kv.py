"""Figures of the KV cache that `tqindex kv eval` does not give: speed of both read paths, greedy tokens, peak memory.

    python -m tqindex.bench.kv speed MODEL       # a decoded token, and attention logits beside torch's
    python -m tqindex.bench.kv agreement MODEL --text FILE
    python -m tqindex.bench.kv peak MODEL --text FILE

MODEL is a folder, such as `python -m tqindex.bench.smollm2` makes, or a name on the Hub. One thread of torch.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from tqindex.bench.timing import spread, timed
from tqindex.kv import ATTENTION
from tqindex.kv.agreement import agreement, cut_prompts, greedy_tokens
from tqindex.kv.attention import score_blocks
from tqindex.kv.cases import DENSE, Case, parse_case
from tqindex.kv.measure import held_bytes, peak_rise
from tqindex.kv.memory import layer_shapes
from tqindex.kv.models import BLOCK, encode_file, load_model, read_prompt

_REPEATS = 11
#: Of mallopt in malloc.h.
_M_MMAP_THRESHOLD = -3


@click.group()
def kv() -> None:
    """Measure what a KV cache costs in time and memory, and how often it leads to the same tokens."""


_model = click.argument("model")
_context = click.option("--context", default=8192, show_default=True, help="Tokens in the cache.")
_text = click.option("--text", type=click.Path(exists=True, path_type=Path), required=True, help="A file of text.")
_dtype = click.option("--dtype", default="float32", show_default=True, help="Of the model.")
_presets = click.option("--preset", "presets", multiple=True, default=("4/4",), show_default=True)


@kv.command()
@_model
@_context
@_presets
@torch.inference_mode()
def speed(model: str, context: int, presets: tuple[str, ...]) -> None:
    """Time one decoded token on random keys and values, dense and from codes, in turns; and all layers' logits.

    The logits are those of every layer once, so that neither cache stays near the processor.
    """
    loaded, _ = load_model(model, threads=1)
    dense, steps, logits = _filled(loaded, DENSE, context), {}, {}
    for name in presets:
        packed = _filled(loaded, parse_case(name), context)
        steps[f"{name} codes"] = _stepper(loaded, packed, ATTENTION)
        steps[f"{name} dense"] = _stepper(loaded, packed, "sdpa")
        logits[f"{name} codes"] = _scorer(loaded, packed)
    steps["uncompressed"] = _stepper(loaded, dense, "sdpa")
    logits["float32 matmul"] = _multiplier(loaded, dense, packed.layers[0].sequences[0].packed)
    _show("one token", _in_turns(steps))
    _show("logits of all layers", _in_turns(logits))


def _filled(model: Any, case: Case, context: int) -> Any:
    """Return a cache of random keys and values."""
    cache = case.make(model.config)
    generator = torch.Generator().manual_seed(0)
    for number, layer in enumerate(layer_shapes(model.config)):
        shape = 2, 1, layer.heads, context, layer.dim
        cache.update(*torch.randn(shape, generator=generator).to(model.dtype), number)
    return cache


def _stepper(model: Any, cache: Any, attention: str) -> Callable[[], Any]:
    token = torch.zeros((1, 1), dtype=torch.int64)

    def step() -> None:
        if model.config._attn_implementation != attention:
            model.set_attn_implementation(attention)
        model(token, past_key_values=cache)
        cache.crop(-1)

    return step


def _scorer(model: Any, cache: Any) -> Callable[[], Any]:
    """Return what computes every layer's logits of one token from codes."""
    views = [(layer.sequences[0], layer.form) for layer in cache.layers]
    queries = _queries(model)
    room = torch.empty((*queries.shape[:2], views[0][0].packed))

    def score() -> None:
        for sequence, form in views:
            score_blocks(queries, sequence, form, room, 0)

    return score


def _multiplier(model: Any, cache: Any, tokens: int) -> Callable[[], Any]:
    """Return what computes those of the first tokens by a product of matrices."""
    queries = _queries(model)

    def multiply() -> None:
        for layer in cache.layers:
            torch.matmul(queries, layer.keys[0, :, :tokens].transpose(1, 2))

    return multiply


def _queries(model: Any) -> torch.Tensor:
    """Return one token's queries of a layer, (heads, group, dim)."""
    shape = layer_shapes(model.config)[0]
    group = model.config.num_attention_heads // shape.heads
    return torch.randn((shape.heads, group, shape.dim), generator=torch.Generator().manual_seed(1))


def _in_turns(works: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(_REPEATS):
        for name, work in works.items():
            seconds[name].append(timed(work))
    return seconds


def _show(title: str, seconds: dict[str, list[float]]) -> None:
    first = spread(next(iter(seconds.values())))["median"]
    for name, values in seconds.items():
        found = {key: 1e3 * value for key, value in spread(values).items()}
        times = f"{found['median']:.2f} ms ({found['low']:.2f} to {found['high']:.2f})"
        click.echo(f"{title}: {name}: {times}, {found['median'] / 1e3 / first:.2f} x the first")


@kv.command("agreement")
@_model
@_text
@_presets
@_dtype
@click.option("--prompts", default=20, show_default=True)
@click.option("--length", default=512, show_default=True, help="Tokens of a prompt.")
@click.option("--tokens", default=256, show_default=True, help="Tokens that follow each.")
def agreement_command(
    model: str, text: Path, presets: tuple[str, ...], dtype: str, prompts: int, length: int, tokens: int
) -> None:
    """Compare greedy tokens with the uncompressed cache's: fed with these, and running free."""
    loaded, tokenizer = load_model(model, dtype, threads=1)
    rows = cut_prompts(encode_file(tokenizer, text), prompts, length)
    expected = greedy_tokens(loaded, rows, DENSE, tokens)
    for name in presets:
        found = agreement(loaded, rows, expected, parse_case(name))
        click.echo(f"{name}: fed {found.fed:.4f}, free {found.free:.4f}, of {prompts} x {tokens} tokens")


@kv.command()
@_model
@_text
@_context
@_presets
@_dtype
@click.option("--give-back", type=int, help="Memory of so many bytes and more is given back when freed (glibc).")
@torch.inference_mode()
def peak(model: str, text: Path, context: int, presets: tuple[str, ...], dtype: str, give_back: int | None) -> None:
    """Measure how far resident memory rises while a prompt is read in blocks, with logits of the last token only.

    glibc keeps freed memory for itself, and before 2.38 reuses little of what torch asks for aligned: without
    --give-back most of the rise is such memory, of either cache.
    """
    if give_back is not None:
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, give_back)
    loaded, tokenizer = load_model(model, dtype, threads=1)
    ids = encode_file(tokenizer, text)
    ids = ids.repeat(-(-context // len(ids)))[:context][None]
    cases = [(DENSE, "sdpa"), *((parse_case(name), way) for name in presets for way in ("sdpa", ATTENTION))]
    for case, attention in cases:
        loaded.set_attn_implementation(attention)
        # What is compiled and kept once is not the cache's.
        read_prompt(loaded, ids[:, : 2 * BLOCK], case.make(loaded.config))
        with peak_rise(loaded.device) as found:
            cache = case.make(loaded.config)
            read_prompt(loaded, ids, cache)
        click.echo(f"{case.name}, {attention}: rise {found.bytes or 0:,} bytes, held {held_bytes(cache):,} bytes")
        del cache


if __name__ == "__main__":
    kv()
