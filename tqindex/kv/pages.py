"""What one layer keeps of one sequence: exact sinks, packed pages, an exact recent window.

Tokens of a sequence are counted from its first real one, without left padding, so that a page holds the same tokens
however calls are cut and whatever else is in the batch. Packed pages never change: sequences that share a beginning,
like beams, share its pages.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tqindex.errors import VectorError
from tqindex.kv.quantiser import Packed, Quantiser

Float32Array = npt.NDArray[np.float32]
UInt16Array = npt.NDArray[np.uint16]

#: Pages are kept together up to so many tokens: few enough to copy when one is added, enough to outweigh a call.
_BLOCK_TOKENS = 1024


@dataclass(frozen=True)
class PageForm:
    """How a layer's tokens are kept.

    Attributes
    ----------
    keys, values : Quantiser
    heads : int
    sinks, recent, page : int
        First tokens that stay exact, last tokens that are exact at least, tokens of a page (a multiple of 32).
    center : bool
        Whether keys are packed without the mean of their page.
    """

    keys: Quantiser
    values: Quantiser
    heads: int
    sinks: int
    recent: int
    page: int
    center: bool

    @property
    def trellis(self) -> bool:
        """Whether codes are of a trellis."""
        return any(part.trellis for part in (*self.keys.parts, *self.values.parts))

    @property
    def room(self) -> int:
        """Exact tokens between two calls at most."""
        return self.sinks + self.recent + self.page


@dataclass(frozen=True, eq=False)
class PageBlock:
    """Pages that follow each other; the first `tokens` tokens count.

    Attributes
    ----------
    keys, values : one `Packed` for each part of the quantiser
    means : uint16 (heads, pages, dim), the bits of bfloat16, whose range is float32's; no pages without centring
    """

    tokens: int
    keys: tuple[Packed, ...]
    values: tuple[Packed, ...]
    means: UInt16Array

    def decode(self, side: str, form: PageForm, rotated: bool = False) -> torch.Tensor:
        """Return "keys" or "values", float32 (heads, tokens, dim), in the channels or without undoing the rotation."""
        quantiser: Quantiser = getattr(form, side)
        rows = quantiser.decode_rotated(getattr(self, side), form.heads, self.tokens)
        if not rotated:
            rows = rows @ quantiser.rotation
        if side == "keys" and form.center:
            means = self.key_means() @ quantiser.rotation.T if rotated else self.key_means()
            rows += means.repeat_interleave(form.page, dim=1)[:, : self.tokens]
        return rows

    def key_means(self) -> torch.Tensor:
        """float32 (heads, pages, dim)."""
        return torch.from_numpy((self.means.astype(np.uint32) << np.uint32(16)).view(np.float32))


@dataclass(frozen=True, eq=False)
class SequenceView:
    """What a call reads of a sequence: its padding, exact tokens and packed pages, in the order of the tokens.

    The first `sinks` exact tokens come before the pages, the others after them.
    """

    padding: int
    sinks: int
    blocks: tuple[PageBlock, ...]
    keys: torch.Tensor
    values: torch.Tensor

    @property
    def packed(self) -> int:
        """Tokens in pages."""
        return sum(block.tokens for block in self.blocks)

    @property
    def columns(self) -> int:
        """Tokens, padding included."""
        return self.padding + self.packed + self.keys.shape[1]

    def write_dense(self, side: str, out: torch.Tensor, form: PageForm) -> None:
        """Write all "keys" or "values", decoded, to out, (heads, tokens, dim)."""
        exact, limit = getattr(self, side), torch.finfo(out.dtype).max
        at = min(self.sinks, exact.shape[1])
        out[:, :at] = exact[:, :at]
        for block in self.blocks:
            rows = block.decode(side, form)
            # Beside the largest numbers of a narrow type there may be larger ones.
            out[:, at : at + block.tokens] = rows.clamp_(-limit, limit)
            at += block.tokens
        out[:, at:] = exact[:, self.sinks :]


@dataclass(eq=False)
class Sequence:
    """One sequence of a layer.

    Attributes
    ----------
    form : PageForm
    padding : int
        Columns before the first real token.
    columns : int
        Tokens seen, padding included.
    keys, values : torch.Tensor (heads, form.room, dim), of the model's dtype
        Room for the exact tokens, of which there are `exact`.
    blocks : tuple of PageBlock
    """

    form: PageForm
    padding: int
    keys: torch.Tensor
    values: torch.Tensor
    columns: int = 0
    exact: int = 0
    blocks: tuple[PageBlock, ...] = field(default=())

    @property
    def packed(self) -> int:
        """Tokens in pages."""
        return sum(block.tokens for block in self.blocks)

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> SequenceView:
        """Add tokens, (heads, tokens, dim); returns what the call that brought them reads: them, and all before."""
        skipped = min(max(self.padding - self.columns, 0), keys.shape[1])
        self.columns += keys.shape[1]
        keys, values = keys[:, skipped:], values[:, skipped:]
        end = self.exact + keys.shape[1]
        if end <= self.form.room:
            self.keys[:, self.exact : end], self.values[:, self.exact : end] = keys, values
            keys, values = self.keys[:, :end], self.values[:, :end]
        else:
            keys = torch.cat([self.keys[:, : self.exact], keys], dim=1)
            values = torch.cat([self.values[:, : self.exact], values], dim=1)
        self.exact = end
        view = SequenceView(min(self.padding, self.columns), self.form.sinks, self.blocks, keys, values)
        self._pack(keys, values)
        return view

    def _pack(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Pack the pages that have left the recent window; keys, values: all exact tokens."""
        form = self.form
        pages = max(self.exact - form.sinks - form.recent, 0) // form.page
        if pages == 0:
            return
        at_once = max(1, _BLOCK_TOKENS // form.page)
        for page in range(0, pages, at_once):
            first, last = (form.sinks + form.page * p for p in (page, min(page + at_once, pages)))
            block = self._pack_block(keys[:, first:last], values[:, first:last])
            self.blocks = _append_block(self.blocks, block, form)
        rest = slice(form.sinks + pages * form.page, self.exact)
        # New room, since what a call reads may be a view of the old one.
        self.keys, self.values = self._moved(self.keys, keys, rest), self._moved(self.values, values, rest)
        self.exact -= pages * form.page

    def _moved(self, room: torch.Tensor, tokens: torch.Tensor, rest: slice) -> torch.Tensor:
        moved = torch.empty_like(room)
        sinks, kept = self.form.sinks, rest.stop - rest.start
        moved[:, :sinks], moved[:, sinks : sinks + kept] = tokens[:, :sinks], tokens[:, rest]
        return moved

    def _pack_block(self, keys: torch.Tensor, values: torch.Tensor) -> PageBlock:
        form = self.form
        rows = _as_float32(keys, "keys")
        means = np.empty((form.heads, 0, rows.shape[2]), np.uint16)
        if form.center:
            paged = rows.reshape(form.heads, -1, form.page, rows.shape[2])
            means = _to_bfloat16(paged.mean(axis=2, dtype=np.float64).astype(np.float32))
            exact_means = (means.astype(np.uint32) << np.uint32(16)).view(np.float32)
            rows = (paged - exact_means[:, :, np.newaxis]).reshape(rows.shape)
        return PageBlock(
            rows.shape[1], form.keys.encode(rows), form.values.encode(_as_float32(values, "values")), means
        )

    def crop(self, tokens: int) -> None:
        """Forget the last `tokens` tokens."""
        self.columns = max(self.columns - tokens, 0)
        length, packed = max(self.columns - self.padding, 0), self.packed
        kept = max(length - self.form.sinks, 0)
        if kept < packed:
            self.blocks = _crop_blocks(self.blocks, kept, self.form)
            packed = kept
        self.exact = length - packed

    def copy(self) -> "Sequence":
        """Return a sequence of its own that goes on from here; it shares the packed pages."""
        return Sequence(
            self.form, self.padding, self.keys.clone(), self.values.clone(), self.columns, self.exact, self.blocks
        )

    def copies(self, n: int) -> "list[Sequence]":
        """Return n of them."""
        return [self.copy() for _ in range(n)]

    def arrays(self) -> list[tuple[str, Any]]:
        """Return what it holds, packed pages by kind of content and exact tokens, as pairs (kind, array or tensor)."""
        held: list[tuple[str, Any]] = [("exact", self.keys), ("exact", self.values)]
        for block in self.blocks:
            held.append(("means", block.means))
            for packed in (*block.keys, *block.values):
                held += [("codes" if name in ("words", "signs") else "norms", a) for name, a in packed.arrays().items()]
        return held


def _append_block(blocks: tuple[PageBlock, ...], block: PageBlock, form: PageForm) -> tuple[PageBlock, ...]:
    """Join a block with the last one if that has room and ends with a whole page."""
    if not blocks or blocks[-1].tokens % form.page or blocks[-1].tokens + block.tokens > _BLOCK_TOKENS:
        return (*blocks, block)
    pair = [blocks[-1], block]
    keys, values = (
        tuple(Packed.join(parts) for parts in zip(*sides, strict=True))
        for sides in ([b.keys for b in pair], [b.values for b in pair])
    )
    means = np.concatenate([b.means for b in pair], axis=1)
    return (*blocks[:-1], PageBlock(pair[0].tokens + block.tokens, keys, values, means))


def _crop_blocks(blocks: tuple[PageBlock, ...], tokens: int, form: PageForm) -> tuple[PageBlock, ...]:
    """Keep the first tokens; a page that is cut keeps its codes and mean, since they belong together."""
    kept: list[PageBlock] = []
    for block in blocks:
        left = min(tokens, block.tokens)
        tokens -= left
        if left == block.tokens:
            kept.append(block)
        elif left:
            pages = -(-left // form.page)
            keys, values = (
                tuple(packed.first(pages * form.page) for packed in side) for side in (block.keys, block.values)
            )
            kept.append(PageBlock(left, keys, values, block.means[:, :pages].copy()))
    return tuple(kept)


def _as_float32(tokens: torch.Tensor, name: str) -> Float32Array:
    """Return tokens, (heads, tokens, dim), as an array; refuses NaN and inf."""
    rows: Float32Array = tokens.to("cpu", torch.float32).numpy()
    if not np.isfinite(rows).all():
        raise VectorError(f"{name} must be finite, got {rows[~np.isfinite(rows)][0]}")
    return rows


def _to_bfloat16(values: Float32Array) -> UInt16Array:
    """Round to the nearest bfloat16, as its bits."""
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)).astype(np.uint16)
