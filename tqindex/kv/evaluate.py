"""How far a packed cache moves a model's predictions, on a text that the model is fed token by token.

KL divergence to the uncompressed cache is the measure: perplexity can fall while predictions get worse.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from tqindex.checks import check_integer
from tqindex.errors import ArgumentError
from tqindex.kv.cases import DENSE, Case
from tqindex.kv.measure import held_bytes, peak_rise
from tqindex.kv.support import check_length


@dataclass(frozen=True)
class Trace:
    """What a model did with one cache.

    Attributes
    ----------
    log_probs : torch.Tensor float32 (tokens, vocabulary)
        After each fed token.
    attention : list of torch.Tensor (tokens, hidden)
        What each attention layer gave for it.
    peak : int or None
        Bytes that memory rose by while the prefix was read, activations included.
    held : int
        Bytes of the cache at the end.
    seconds : float
        Of the fed tokens.
    """

    log_probs: torch.Tensor
    attention: list[torch.Tensor]
    peak: int | None
    held: int
    seconds: float


@dataclass(frozen=True)
class Fidelity:
    """A cache beside the uncompressed one.

    Attributes
    ----------
    name : str
    divergence, divergence_error : float
        Mean KL divergence in nats, and its standard error over the tokens.
    top1 : float
        Share of tokens after which the most probable next one is the same.
    perplexity : float
        Of the text.
    attention_error : float
        Mean over layers and tokens of |output - dense output| / |dense output|.
    peak, held : int or None
        As `Trace`.
    bits : float
        Bits held per number of the keys and values.
    tokens_per_second : float
    """

    name: str
    divergence: float
    divergence_error: float
    top1: float
    perplexity: float
    attention_error: float
    peak: int | None
    held: int
    bits: float
    tokens_per_second: float


def evaluate(
    model: PreTrainedModel,
    ids: torch.Tensor,
    cases: Sequence[Case],
    prefix: int,
    tokens: int,
    block: int | None = None,
    step: int = 1,
) -> Iterator[Fidelity]:
    """Measure caches one after the other, the uncompressed one first.

    Parameters
    ----------
    model : PreTrainedModel
    ids : torch.Tensor int64, at least (prefix + tokens + 1,)
        The text.
    cases : sequence of Case
    prefix : int
        Tokens that are read before; exact while they are, where `block` is None.
    tokens : int
        Tokens that are then fed.
    block : int, optional
        Read the prefix in blocks of so many tokens, each of which reads the blocks before it packed.
    step : int
        Tokens that are fed at once, and see each other exactly: with a recent window of as many that changes nothing
        but when pages are packed.

    Raises
    ------
    ArgumentError
        A number below 1, a text that is too short, or more tokens than the model's context.
    """
    check_integer("prefix", prefix, 1)
    check_integer("tokens", tokens, 2)
    if len(ids) < prefix + tokens + 1:
        raise ArgumentError(
            f"the text must have {prefix + tokens + 1} tokens, got {len(ids)}: use a longer one, or a smaller prefix "
            "(--prefix) or fewer tokens (--tokens)"
        )
    check_length(model.config, prefix + tokens, "prefix and tokens together")
    spans = _spans(0, prefix, prefix if block is None else check_integer("block", block, 1))
    spans += _spans(prefix, prefix + tokens, check_integer("step", step, 1))
    expected = trace(model, ids, DENSE, prefix, spans)
    values = expected.held / model.dtype.itemsize
    next_ids = ids[prefix + 1 : prefix + tokens + 1].to(expected.log_probs.device)
    yield _compare(DENSE.name, expected, expected, next_ids, values)
    for case in cases:
        yield _compare(case.name, trace(model, ids, case, prefix, spans), expected, next_ids, values)


def _spans(first: int, last: int, step: int) -> list[tuple[int, int]]:
    return [(at, min(at + step, last)) for at in range(first, last, step)]


@torch.inference_mode()
def trace(
    model: PreTrainedModel, ids: torch.Tensor, case: Case, prefix: int, spans: Sequence[tuple[int, int]]
) -> Trace:
    """Read a text with one cache, in calls that take one span of it each; what is told begins after the prefix."""
    cache, text = case.make(model.config), ids.to(model.device)[None]
    with peak_rise(model.device) as peak:
        for first, last in spans:
            if last <= prefix:
                model(text[:, first:last], past_key_values=cache, logits_to_keep=1)
    log_probs = []
    with _attention_outputs(model) as outputs:
        start = time.perf_counter()
        for first, last in spans:
            if first >= prefix:
                logits = model(text[:, first:last], past_key_values=cache).logits[0]
                log_probs.append(torch.log_softmax(logits.float(), dim=-1))
        seconds = time.perf_counter() - start
    attention = [torch.cat(rows) for rows in outputs]
    return Trace(torch.cat(log_probs), attention, peak.bytes, held_bytes(cache), seconds)


@contextmanager
def _attention_outputs(model: PreTrainedModel) -> Iterator[list[list[torch.Tensor]]]:
    """Collect every attention layer's outputs."""
    layers = [m for m in model.modules() if type(m).__name__.endswith("Attention") and hasattr(m, "layer_idx")]
    outputs: list[list[torch.Tensor]] = [[] for _ in layers]

    def collector(rows: list[torch.Tensor]) -> Any:
        def collect(_: Any, __: Any, output: Any) -> None:
            rows.append((output[0] if isinstance(output, tuple) else output)[0].float())

        return collect

    hooks = [layer.register_forward_hook(collector(rows)) for layer, rows in zip(layers, outputs, strict=True)]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _compare(name: str, found: Trace, expected: Trace, next_ids: torch.Tensor, values: float) -> Fidelity:
    tokens = len(next_ids)
    divergences = (expected.log_probs.exp() * (expected.log_probs - found.log_probs)).sum(dim=1)
    same = found.log_probs.argmax(dim=1) == expected.log_probs.argmax(dim=1)
    loss = -found.log_probs.gather(1, next_ids[:, None]).mean()
    errors = [
        (ours - dense).norm(dim=1) / dense.norm(dim=1)
        for ours, dense in zip(found.attention, expected.attention, strict=True)
    ]
    return Fidelity(
        name=name,
        divergence=float(divergences.mean()),
        divergence_error=float(divergences.std() / math.sqrt(tokens)),
        top1=float(same.float().mean()),
        perplexity=float(loss.exp()),
        attention_error=float(torch.stack(errors).mean()) if errors else math.nan,
        peak=found.peak,
        held=found.held,
        bits=8 * found.held / values,
        tokens_per_second=tokens / found.seconds,
    )
