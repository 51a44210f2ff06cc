"""What the roofline page counts of attention on a packed cache: logits of keys, sums of values, of any length."""

from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.codec import Codec
from tqindex.gpu.attention import DeviceStrips, score_keys, score_means, weigh_values
from tqindex.gpu.host.count import CountingRuntime
from tqindex.gpu.roofline_cases import Case
from tqindex.kernels.kv_layout import pack_strips

_HEADS, _QUERIES, _PAGE = 8, 4, 64
#: What codes stand for changes no count.
_READING = np.zeros(64, np.uint8), 256, 1.0


def score_cache(runtime: CountingRuntime, codec: Codec, tokens: int) -> float:
    """Compute the logits of one token's query heads, without those of exact tokens."""
    keys = _strips(runtime, codec, _codes(codec, tokens), tokens)
    means = runtime.upload(np.zeros((_HEADS, tokens // _PAGE, codec.dim), np.uint16))
    queries = runtime.upload(np.ones((_HEADS, _QUERIES, codec.dim), np.float32))
    logits = runtime.upload(np.zeros((_HEADS, _QUERIES, tokens), np.float32))
    mean_scores = score_means(runtime, keys, means, queries)
    score_keys(runtime, keys, queries, 0, tokens, logits, mean_scores, _PAGE)
    return _size(keys.words, keys.norms, means, queries, logits)


def weigh_cache(runtime: CountingRuntime, codec: Codec, tokens: int) -> float:
    """Sum up values by the weights of one token's query heads."""
    pages = _codes(codec, tokens).reshape(_HEADS, tokens // _PAGE, _PAGE, codec.dim).swapaxes(2, 3)
    values = _strips(runtime, codec, pages, tokens)
    weights = runtime.upload(np.ones((_HEADS, _QUERIES, tokens), np.float32))
    out = runtime.upload(np.zeros((_HEADS, _QUERIES, codec.dim), np.float32))
    weigh_values(runtime, values, weights, 0, tokens, out)
    return _size(values.words, values.norms, weights, out)


def _codes(codec: Codec, tokens: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 2**codec.bits, (_HEADS, tokens, codec.dim), np.uint8)


def _strips(runtime: CountingRuntime, codec: Codec, codes: npt.NDArray[np.uint8], tokens: int) -> DeviceStrips:
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
