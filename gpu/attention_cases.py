"""What the roofline page tells of attention on a packed cache: logits of keys, sums of values, of any length."""

from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.codec import Codec
from tqindex.gpu.attention import DeviceStrips, score_keys, score_means, weigh_values
from tqindex.gpu.roofline_cases import Case, Task
from tqindex.gpu.runtime import Runtime
from tqindex.kernels.kv_layout import pack_strips

_HEADS, _QUERIES, _PAGE = 8, 4, 64
#: What codes stand for changes no count.
_READING = np.zeros(64, np.uint8), 256, 1.0


def score_cache(runtime: Runtime, codec: Codec, tokens: int) -> Task:
    """Compute the logits of one token's query heads, without those of exact tokens."""
    keys, xp = _strips(runtime, codec, _codes(codec, tokens), tokens), runtime.xp
    means = xp.zeros((_HEADS, tokens // _PAGE, codec.dim), np.uint16)
    queries = xp.ones((_HEADS, _QUERIES, codec.dim), np.float32)
    logits = xp.zeros((_HEADS, _QUERIES, tokens), np.float32)

    def work() -> None:
        mean_scores = score_means(runtime, keys, means, queries)
        score_keys(runtime, keys, queries, 0, tokens, logits, mean_scores, _PAGE)

    return Task(work, lambda _: _size(keys.words, keys.norms, means, queries, logits))


def weigh_cache(runtime: Runtime, codec: Codec, tokens: int) -> Task:
    """Sum up values by the weights of one token's query heads."""
    pages = _codes(codec, tokens).reshape(_HEADS, tokens // _PAGE, _PAGE, codec.dim).swapaxes(2, 3)
    values, xp = _strips(runtime, codec, pages, tokens), runtime.xp
    weights = xp.ones((_HEADS, _QUERIES, tokens), np.float32)
    out = xp.zeros((_HEADS, _QUERIES, codec.dim), np.float32)
    return Task(
        lambda: weigh_values(runtime, values, weights, 0, tokens, out),
        lambda _: _size(values.words, values.norms, weights, out),
    )


def _codes(codec: Codec, tokens: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 2**codec.bits, (_HEADS, tokens, codec.dim), np.uint8)


def _strips(runtime: Runtime, codec: Codec, codes: npt.NDArray[np.uint8], tokens: int) -> DeviceStrips:
    norms = np.ones((_HEADS, tokens), np.uint16)
    return DeviceStrips.send(runtime, codec.bits, pack_strips(codes, codec.bits), norms, _READING)


def _size(*arrays: Any) -> float:
    return float(sum(array.nbytes for array in arrays))


def attention_cases() -> list[Case]:
    """Return the cases of the page; their rows are tokens."""
    codecs = [Codec(128, bits=bits) for bits in (2, 4, 8)]
    tasks = {"logits": score_cache, "values": weigh_cache}
    heads = f"{_HEADS} heads, {_QUERIES} queries of each"
    return [
        Case(f"cached {name}, {heads}, {codec.dim} dims, {codec.bits} bits", 8192, (512, 1024, 1536), task, codec)
        for name, task in tasks.items()
        for codec in codecs
    ]
