"""Attention on codes for tensors of a CUDA device, by the kernels of `tqindex.gpu.attention`.

Pages stay in host memory, where they are packed. A block of them, of up to 1,024 tokens, is sent to the device when it
is first read, and its copy is kept as long as the block; a block that grows is sent anew. Each block is a launch.

Tests use the host run of the kernels on torch's CPU tensors; how CUDA tensors become CuPy's arrays is tested by
`pytest -m gpu` alone.
"""

import functools
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from tqindex.gpu.attention import DeviceStrips, score_keys, score_means, weigh_values
from tqindex.gpu.cuda import open_device
from tqindex.gpu.engine import given_runtime
from tqindex.gpu.runtime import Runtime
from tqindex.kv.pages import PageBlock, PageForm, SequenceView
from tqindex.kv.quantiser import SIGNS, Packed, Quantiser


@dataclass(frozen=True, eq=False)
class _Strips:
    """A part of keys or values on the device, with the signs of a sketch or without."""

    codes: DeviceStrips
    signs: DeviceStrips | None


@dataclass(frozen=True, eq=False)
class _Block:
    """A block of pages on the device; means: uint16 (heads, pages, dim), no pages without centring."""

    keys: list[_Strips]
    values: list[_Strips]
    means: Any


class DeviceReader:
    """Reads pages on one device. All tensors are the device's, float32.

    Parameters
    ----------
    runtime : Runtime
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._blocks: WeakKeyDictionary[PageBlock, _Block] = WeakKeyDictionary()

    def score_blocks(
        self, queries: torch.Tensor, view: SequenceView, form: PageForm, logits: torch.Tensor, first: int
    ) -> None:
        """As `tqindex.kv.attention.score_blocks`."""
        queries = queries.contiguous()
        shares = form.keys.split_queries(queries @ form.keys.rotation.T.to(queries.device))
        with self._runtime.guard():
            plain, out, at = self._array(queries), self._array(logits), first
            given = [(self._array(share), None if s is None else self._array(s)) for share, s in shares]
            for block in view.blocks:
                sent = self._sent(block, form)
                bases = self._bases(sent, plain, -(-block.tokens // form.page))
                for part, (share, sketched) in zip(sent.keys, given, strict=True):
                    score_keys(self._runtime, part.codes, share, at, block.tokens, out, bases, form.page)
                    bases = None  # the other parts add to what is there
                    if part.signs is not None:
                        score_keys(self._runtime, part.signs, sketched, at, block.tokens, out)
                at += block.tokens

    def _bases(self, sent: _Block, queries: Any, pages: int) -> Any:
        """Return what pages add to their keys' logits."""
        if not sent.means.shape[1]:
            return self._runtime.xp.zeros((*queries.shape[:2], pages), np.float32)
        return score_means(self._runtime, sent.keys[0].codes, sent.means, queries)

    def sum_blocks(self, weights: torch.Tensor, view: SequenceView, form: PageForm, first: int) -> torch.Tensor:
        """As `tqindex.kv.attention.sum_blocks`."""
        sums = [weights.new_zeros((*weights.shape[:2], part.codec.dim)) for part in form.values.parts]
        with self._runtime.guard():
            given, outs, at = self._array(weights.contiguous()), [self._array(total) for total in sums], first
            for block in view.blocks:
                for part, out in zip(self._sent(block, form).values, outs, strict=True):
                    weigh_values(self._runtime, part.codes, given, at, block.tokens, out)
                at += block.tokens
        return torch.cat(sums, dim=2) @ form.values.rotation.to(weights.device)

    def _array(self, tensor: torch.Tensor) -> Any:
        """Return a tensor's memory as the runtime's array; what torch has queued for it is waited for."""
        return tensor.numpy() if tensor.device.type == "cpu" else self._runtime.xp.from_dlpack(tensor)

    def _sent(self, block: PageBlock, form: PageForm) -> _Block:
        """Return a block's copy on the device."""
        if block not in self._blocks:
            keys, values = self._send(form.keys, block.keys), self._send(form.values, block.values)
            self._blocks[block] = _Block(keys, values, self._runtime.upload(block.means))
        return self._blocks[block]

    def _send(self, quantiser: Quantiser, packed: tuple[Packed, ...]) -> list[_Strips]:
        return [
            _Strips(
                DeviceStrips.send(self._runtime, part.bits, codes.words, codes.norms, part.reading),
                None
                if part.sketch is None
                else DeviceStrips.send(self._runtime, 1, codes.signs, codes.sketch_norms, SIGNS),
            )
            for part, codes in zip(quantiser.parts, packed, strict=True)
        ]


def device_reader(device: torch.device) -> DeviceReader | None:
    """Return what reads pages for tensors of a CUDA device; None for others, whose tensors go to the CPU.

    Raises
    ------
    tqindex.errors.DeviceError
        CuPy, a driver or the device is missing; the message says what to do.
    """
    runtime: Any = given_runtime()  # mypy does not take a protocol's objects for hashable
    if runtime is None and device.type == "cuda":
        runtime = open_device(device.index or 0)
    return None if runtime is None else _reader_on(runtime)


@functools.lru_cache(maxsize=16)
def _reader_on(runtime: Runtime) -> DeviceReader:
    return DeviceReader(runtime)
