"""Blocks of keys or values as packed codes: the index's codec, made and read by its kernels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tqindex.codec import Codec
from tqindex.codec.codec import Kind
from tqindex.codec.effort import SEARCHED_WIDTHS
from tqindex.codec.packing import plane_bytes, unpack_codes
from tqindex.codec.rotation import HadamardRotation, MatrixProjection
from tqindex.codec.trellis import WINDOW, TrellisCodebook, starts_of
from tqindex.kernels.encoder import encode_rows
from tqindex.kernels.kv import make_decode_keys, make_decode_values, make_score_keys, make_sum_values
from tqindex.kernels.kv_layout import pack_strips, strips_shape
from tqindex.kernels.kv_norms import pack_norms
from tqindex.kernels.rows import EncodedRows

Float32Array = npt.NDArray[np.float32]
UInt16Array = npt.NDArray[np.uint16]

#: Widths of keys and values; a half is a split of the channels between its two neighbours.
WIDTHS = (1, 2, 2.5, 3, 3.5, 4, 8)
#: Those of the kinds that do not have all.
KIND_WIDTHS: dict[Kind, tuple[float, ...]] = {
    "mse": WIDTHS,
    "prod": (2, 2.5, 3, 3.5, 4),
    "trellis": (2, 2.5, 3, 3.5, 4),
}


@dataclass(frozen=True, eq=False)
class Packed:
    """Codes of whole pages under one codec, as `tqindex.kernels.kv` reads them, and norms in 16 bits.

    Attributes
    ----------
    words : uint32 (heads, strips, units, words, 16) for keys, (heads, pages, strips, units, words, 16) for values
    norms : uint16 (heads, tokens), the codec's scales; their lowest bits hold the starts of trellis codes
    signs : uint32, as `words`, or (heads, 0, ...)
        A sketch's signs.
    sketch_norms : uint16 (heads, tokens) or (heads, 0), the codec's sketch scales
    """

    words: npt.NDArray[np.uint32]
    norms: UInt16Array
    signs: npt.NDArray[np.uint32]
    sketch_norms: UInt16Array

    @property
    def tokens(self) -> int:
        """Tokens of each head."""
        return int(self.norms.shape[1])

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays by name."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def join(cls, parts: Sequence["Packed"]) -> "Packed":
        """Put pages of the same heads one after the other."""
        by_name = [part.arrays() for part in parts]
        return cls(**{name: np.concatenate([arrays[name] for arrays in by_name], axis=1) for name in by_name[0]})

    def first(self, tokens: int) -> "Packed":
        """Return a copy of each head's first tokens, whole pages."""
        kept = {name: array[:, : array.shape[1] * tokens // self.tokens] for name, array in self.arrays().items()}
        return Packed(**{name: array.copy() for name, array in kept.items()})

    def of_head(self, head: int) -> "Packed":
        """Return a copy of one head's tokens."""
        return Packed(**{name: array[head : head + 1].copy() for name, array in self.arrays().items()})


#: How a sketch's signs are read: 0 as -1, 1 as 1.
SIGNS = np.tile(np.resize(np.array([0, 1], np.uint8), 16), 4), 1, 2.0


class Part:
    """Some channels under one codec.

    Attributes
    ----------
    channels : slice
    codec : Codec
    bits : int
        Of a code, without the sketch's sign.
    trellis : bool
        Whether codes are read by windows.
    reading : as `tqindex.kernels.kv` takes it
    sketch : torch.Tensor (dim, dim), float32, or None
        Sketched rows times this are rows in the rotated basis.
    """

    def __init__(self, channels: slice, codec: Codec) -> None:
        self.channels, self.codec = channels, codec
        book, projection = codec.codebook, codec.sketch_projection
        self.bits, self.trellis = book.bits, isinstance(book, TrellisCodebook)
        levels = (book.levels.astype(np.int16) + 128).astype(np.uint8)
        # Of 8 bits the plain codes are multiplied, and stand for step * (code - 127.5).
        table = levels if self.trellis else np.tile(np.resize(levels, 16), 4)
        self.reading = table, 255 if book.offset else 256, float(book.step)
        self.sketch = None if projection is None else _matrix(projection, codec.dim)


class Quantiser:
    """Packs one layer's keys, or its values, and reads them.

    What is read is in the rotated basis, in which codes are products with levels: rows in it times `rotation` are rows
    in the channels, queries times its transpose are queries in it.

    Parameters
    ----------
    dim : int, at least 2
        Channels of a head.
    bits : {1, 2, 2.5, 3, 3.5, 4, 8} for kind "mse", {2, 2.5, 3, 3.5, 4} for kinds "prod" and "trellis"
        2.5 and 3.5 split the channels: the first half of them under a codec of one bit more. With rotary positions
        each half has one channel of every pair, so neither is favoured.
    kind : {"mse", "prod", "trellis"}
    seed : int
    page : int, optional
        Given for values: their strips are channels of a page's tokens. For keys they are tokens.

    Attributes
    ----------
    parts : list of Part
    rotation : torch.Tensor (dim, dim), float32
    """

    def __init__(self, dim: int, bits: float, kind: Kind, seed: int, page: int | None = None) -> None:
        self.dim, self.bits, self.page = dim, bits, page
        widths = [int(bits)] if bits == int(bits) else [int(bits) + 1, int(bits)]
        cuts = [0, dim] if len(widths) == 1 else [0, (dim + 1) // 2, dim]
        self.parts = [
            Part(slice(cuts[i], cuts[i + 1]), _make_codec(cuts[i + 1] - cuts[i], width, kind, seed))
            for i, width in enumerate(widths)
        ]
        self.rotation = torch.block_diag(*[_matrix(part.codec.rotate, part.codec.dim) for part in self.parts])

    def encode(self, block: Float32Array) -> tuple[Packed, ...]:
        """Pack keys or values, float32 (heads, tokens, dim), whole pages: one `Packed` for each part."""
        return tuple(self._encode_part(part, block) for part in self.parts)

    def _encode_part(self, part: Part, block: Float32Array) -> Packed:
        codec = part.codec
        rows = np.ascontiguousarray(block[:, :, part.channels]).reshape(-1, codec.dim)
        encoded = EncodedRows.allocate(codec, "ip", len(rows))
        encode_rows(codec, rows, "ip", encoded, threads=1)
        codes: npt.NDArray[Any] = unpack_codes(encoded.planes, 8 * plane_bytes(codec.dim), codec.bits)[:, : codec.dim]
        codes = codes.reshape(*block.shape[:2], codec.dim)
        heads, sketched = len(block), part.sketch is not None
        starts = (starts_of(encoded.scales), WINDOW - part.bits) if part.trellis else ()
        return Packed(
            self._pack(codes >> 1 if sketched else codes, codec.codebook.bits),
            pack_norms(encoded.scales, *starts).reshape(heads, -1),
            self._pack((codes & 1)[:, : codes.shape[1] * sketched], 1),
            pack_norms(encoded.sketch_scales).reshape(heads, -1),
        )

    def _pack(self, codes: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint32]:
        """Arrange codes, (heads, tokens, channels), in strips of tokens, or of the channels of a page of values."""
        if self.page is None:
            return pack_strips(codes, bits)
        pages = codes.reshape(len(codes), codes.shape[1] // self.page, self.page, codes.shape[2])
        return pack_strips(pages.swapaxes(2, 3), bits)

    def allocate(self, heads: int, tokens: int) -> tuple[Packed, ...]:
        """Return what `encode` returns of so many tokens, whole pages, all zeros."""
        return tuple(self._allocate_part(part, heads, tokens) for part in self.parts)

    def _allocate_part(self, part: Part, heads: int, tokens: int) -> Packed:
        dim, sketched = part.codec.dim, tokens * (part.sketch is not None)
        return Packed(
            np.zeros(self._shape(part.bits, heads, tokens, dim), np.uint32),
            np.zeros((heads, tokens), np.uint16),
            np.zeros(self._shape(1, heads, sketched, dim), np.uint32),
            np.zeros((heads, sketched), np.uint16),
        )

    def _shape(self, bits: int, heads: int, tokens: int, dim: int) -> tuple[int, ...]:
        """Return the shape of `_pack`'s result."""
        if self.page is None:
            return (heads, *strips_shape(bits, tokens, dim))
        return (heads, tokens // self.page, *strips_shape(bits, dim, self.page))

    def decode_rotated(self, packed: tuple[Packed, ...], heads: int, tokens: int) -> torch.Tensor:
        """Return each head's first tokens in the rotated basis, float32 (heads, tokens, dim)."""
        out = torch.empty((heads, tokens, self.dim))
        make = make_decode_keys if self.page is None else make_decode_values
        for part, codes in zip(self.parts, packed, strict=True):
            rows = torch.zeros((heads, tokens, part.codec.dim))
            if part.sketch is not None:
                make(1)(codes.signs, codes.sketch_norms, SIGNS, rows.numpy())
                rows = torch.matmul(rows, part.sketch)
            make(part.bits, part.trellis)(codes.words, codes.norms, part.reading, rows.numpy())
            out[:, :, part.channels] = rows
        return out

    def split_queries(self, queries: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Return each part's share of rotated queries, (heads, n, dim) float32, and the same for its sketch."""
        shares = [queries[:, :, part.channels].contiguous() for part in self.parts]
        return [
            (share, None if part.sketch is None else share @ part.sketch.T.to(share.device))
            for part, share in zip(self.parts, shares, strict=True)
        ]

    def add_scores(
        self,
        packed: tuple[Packed, ...],
        queries: list[tuple[torch.Tensor, torch.Tensor | None]],
        at: int,
        tokens: int,
        out: Float32Array,
    ) -> None:
        """Add the products of each head's first tokens with its queries to out[:, :, at : at + tokens].

        queries : as `split_queries` gives them, of the CPU; out : float32 (heads, n, columns)
        """
        for part, codes, (share, sketched) in zip(self.parts, packed, queries, strict=True):
            score = make_score_keys(part.bits, part.trellis)
            score(codes.words, codes.norms, part.reading, share.numpy(), at, tokens, out)
            if sketched is not None:
                make_score_keys(1)(codes.signs, codes.sketch_norms, SIGNS, sketched.numpy(), at, tokens, out)

    def make_sums(self, heads: int, n: int) -> list[Float32Array]:
        """Return zeros that `add_values` sums up in: (heads, n, channels) for each part."""
        return [np.zeros((heads, n, part.codec.dim), np.float32) for part in self.parts]

    def add_values(
        self, packed: tuple[Packed, ...], weights: Float32Array, at: int, tokens: int, sums: list[Float32Array]
    ) -> None:
        """Add each head's first tokens times weights[:, :, at : at + tokens] to sums.

        weights : float32 (heads, n, columns). Not of kind "prod": there is no sketch in the sums.
        """
        for part, codes, total in zip(self.parts, packed, sums, strict=True):
            add = make_sum_values(part.bits, part.trellis)
            add(codes.words, codes.norms, part.reading, weights, at, tokens, total)

    def join_sums(self, sums: list[Float32Array]) -> torch.Tensor:
        """Return sums in the channels, float32 (heads, n, dim)."""
        joined = torch.cat([torch.from_numpy(total) for total in sums], dim=2)
        return torch.matmul(joined, self.rotation)


def _matrix(projection: HadamardRotation | MatrixProjection, dim: int) -> torch.Tensor:
    """Return the matrix by which rows are multiplied on the right to undo a projection."""
    return torch.from_numpy(projection.transpose(np.eye(dim, dtype=np.float32)))


def _make_codec(dim: int, bits: int, kind: Kind, seed: int) -> Codec:
    levels = bits - 1 if kind == "prod" else bits
    searched = kind != "trellis" and levels in SEARCHED_WIDTHS
    return Codec(dim, bits, kind=kind, seed=seed, effort="search" if searched else "plain")
