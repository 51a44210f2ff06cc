"""Attention on packed keys and values on the device; the launches of `attend.cu`.

The same numbers as `tqindex.kernels.kv`: logits bit for bit, sums of values but for the order in which pages are added
where several blocks share a head's. A launch reads the codes of each head once for all of its queries. The softmax
between the two is the caller's, since exact tokens take part in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tqindex.codec.codebook import WIDTHS
from tqindex.errors import ArgumentError
from tqindex.gpu.runtime import Kernel, Runtime
from tqindex.kernels.kv_layout import unit_codes
from tqindex.kernels.simd_kv import LANES

#: As in attend.cu: threads of a block at most, and codes of the vectors that are in shared memory at a time.
_THREADS, MOST_CODES = 128, 512
_WARP = 32
#: Queries of a head that a thread has at a time, for which the kernels are made, and that a head may have in a call.
QUERIES, MOST_QUERIES = (1, 4, 8), 16
#: Blocks of a launch at most, unless there are more heads, and the fewest pages of a block: it writes as many sums as
#: it has channels.
_BLOCKS, _LEAST_PAGES = 2048, 4


@dataclass(frozen=True, eq=False)
class DeviceStrips:
    """Packed keys or values of some heads on the device, in the layout of `tqindex.kernels.kv_layout`.

    Attributes
    ----------
    bits : int
    words : uint32 (heads, strips, units, words, 16) for keys, (heads, pages, strips, units, words, 16) for values
    norms : uint16 (heads, tokens), whole pages, as `tqindex.kernels.kv_norms` packs them
    levels : uint32 (4,), 16 levels of int8; 8 bits need none
    shift, half : int32 and float32
        A code stands for 2 * half * (its level + shift / 2); of 8 bits the level is the code less 128.
    """

    bits: int
    words: Any
    norms: Any
    levels: Any
    shift: np.int32
    half: np.float32

    @classmethod
    def send(cls, runtime: Runtime, bits: int, words: Any, norms: Any, reading: Any) -> "DeviceStrips":
        """Copy NumPy's arrays to the device; reading: as `tqindex.kernels.kv` takes it.

        Raises
        ------
        ArgumentError
            Lanes are longer than what the kernels keep in shared memory.
        """
        depth = words.shape[-3] * unit_codes(bits)
        if depth > MOST_CODES:
            raise ArgumentError(f"head_dim and page must be at most {MOST_CODES} on a GPU, got {depth}")
        table, twice_shift, factor = reading
        levels = (table[:LANES].astype(np.int16) - 128).astype(np.int8).view(np.uint32)
        sent = runtime.upload(words), runtime.upload(norms), runtime.upload(levels)
        return cls(bits, *sent, np.int32(256 - twice_shift), np.float32(factor * 0.5))

    def kernel(self, name: str, n: int) -> Kernel:
        """Return the specialisation for n queries of a head."""
        return Kernel("attend.cu", name, (("CODE_BITS", self.bits), ("QUERIES", count_queries(n))))

    def arguments(self) -> tuple[Any, ...]:
        """Return what kernels take of them, but for their sizes."""
        return self.words, self.norms, self.levels, self.shift, self.half


class SumGrid(NamedTuple):
    """A launch of `weigh_values`: blocks of pages, blocks of channels, threads, and pages of a block."""

    blocks: int
    channel_blocks: int
    threads: int
    block_pages: int


def count_queries(n: int) -> int:
    """Return how many of n queries of a head a thread has at a time.

    Raises
    ------
    ArgumentError
        There are none, or too many.
    """
    if not 1 <= n <= MOST_QUERIES:
        raise ArgumentError(f"queries of a head must be 1 to {MOST_QUERIES}, got {n}")
    return next((count for count in QUERIES if count >= n), QUERIES[-1])


def count_key_blocks(tokens: int, heads: int) -> int:
    """Return the blocks of `score_keys` for each head; with many heads a block takes more tokens in turn."""
    return max(1, min(-(-tokens // _THREADS), _BLOCKS // heads))


def plan_sums(pages: int, heads: int, dim: int) -> SumGrid:
    """Return the launch of `weigh_values`: a thread for each channel, as many blocks as are worth their sums."""
    threads = min(_THREADS, -(-dim // _WARP) * _WARP)
    channel_blocks = -(-dim // threads)
    block_pages = max(_LEAST_PAGES, -(-pages * heads * channel_blocks // _BLOCKS))
    return SumGrid(-(-pages // block_pages), channel_blocks, threads, block_pages)


def specialisations() -> Iterator[Kernel]:
    """Yield every kernel that some cache runs."""
    for bits in WIDTHS:
        for count in QUERIES:
            for name in ("score_means", "score_keys", "weigh_values", "add_sums"):
                yield Kernel("attend.cu", name, (("CODE_BITS", bits), ("QUERIES", count)))


def score_means(runtime: Runtime, keys: DeviceStrips, means: Any, queries: Any) -> Any:
    """Return the products of pages' means with queries, float32 (heads, n, pages).

    Parameters
    ----------
    runtime : Runtime
    keys : DeviceStrips
        Those without the means.
    means : uint16 (heads, pages, dim) of the device, the bits of bfloat16
    queries : float32 (heads, n, dim) of the device, not rotated
    """
    (heads, pages, dim), n = means.shape, queries.shape[1]
    out = runtime.xp.empty((heads, n, pages), np.float32)
    threads = -(-n * LANES // _WARP) * _WARP
    launch = runtime.function(keys.kernel("score_means", n))
    launch((pages, heads), (threads,), (means, queries, np.int32(n), np.int32(dim), out))
    return out


def score_keys(
    runtime: Runtime,
    keys: DeviceStrips,
    queries: Any,
    at: int,
    tokens: int,
    out: Any,
    mean_scores: Any = None,
    page: int = 1,
) -> None:
    """Write the logits of each head's first tokens to out[:, :, at : at + tokens].

    Parameters
    ----------
    runtime : Runtime
    keys : DeviceStrips
    queries : float32 (heads, n, dim) of the device, rotated; n up to `MOST_QUERIES`
    at, tokens : int
    out : float32 (heads, n, columns) of the device
    mean_scores : float32 (heads, n, pages) of the device, optional
        What each page of `page` tokens adds. Without them, the products are added to what `out` holds.
    page : int, optional
    """
    (heads, n, dim), strips = queries.shape, keys.words.shape[1]
    pages = 0 if mean_scores is None else mean_scores.shape[2]
    of_keys = *keys.arguments(), np.int64(strips), np.int32(keys.words.shape[2])
    of_means = runtime.xp.empty(0, np.float32) if mean_scores is None else mean_scores, np.int64(pages), np.int32(page)
    of_queries = queries, np.int32(n), np.int32(dim)
    columns = np.int64(at), np.int64(tokens), np.int64(out.shape[2])
    launch = runtime.function(keys.kernel("score_keys", n))
    launch((count_key_blocks(tokens, heads), heads), (_THREADS,), (*of_keys, *of_queries, *of_means, *columns, out))


def weigh_values(runtime: Runtime, values: DeviceStrips, weights: Any, at: int, tokens: int, out: Any) -> None:
    """Add each head's first tokens times weights[:, :, at : at + tokens] to out, in the rotated basis.

    The result does not depend on the order in which blocks run.

    Parameters
    ----------
    runtime : Runtime
    values : DeviceStrips
    weights : float32 (heads, n, columns) of the device, n up to `MOST_QUERIES`
    at, tokens : int
    out : float32 (heads, n, dim) of the device
    """
    (heads, n, dim), (_, pages, strips, units) = out.shape, values.words.shape[:4]
    grid = plan_sums(-(-tokens // (units * unit_codes(values.bits))), heads, dim)
    sums = runtime.xp.empty((grid.blocks, *out.shape), np.float32)
    of_values = *values.arguments(), np.int64(pages), np.int32(strips), np.int32(units)
    of_weights = weights, np.int32(n), np.int64(at), np.int64(tokens), np.int64(weights.shape[2])
    blocks = grid.blocks, heads, grid.channel_blocks
    launch = runtime.function(values.kernel("weigh_values", n))
    threads = grid.threads, -(-n // count_queries(n))
    launch(blocks, threads, (*of_values, *of_weights, np.int32(dim), np.int32(grid.block_pages), sums))
    count = heads * n * dim
    add = runtime.function(values.kernel("add_sums", n))
    add((-(-count // _THREADS),), (_THREADS,), (sums, np.int32(grid.blocks), np.int64(count), out))
