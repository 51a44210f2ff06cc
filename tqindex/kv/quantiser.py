"""Blocks of keys or values as packed codes: the index's codec, made and read by its kernels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tqindex.codec import Codec
from tqindex.codec.codec import Kind
from tqindex.codec.effort import SEARCHED_WIDTHS
from tqindex.codec.packing import BLOCK
from tqindex.codec.rotation import HadamardRotation, MatrixProjection
from tqindex.kernels.encoder import encode_rows
from tqindex.kernels.kv import decode_rows, score_rows, sum_rows
from tqindex.kernels.kv_norms import pack_norms
from tqindex.kernels.product import level_tables
from tqindex.kernels.rows import StoredRows

Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]
UInt16Array = npt.NDArray[np.uint16]

#: Widths of keys and values; a half is a split of the channels between its two neighbours.
WIDTHS = (1, 2, 2.5, 3, 3.5, 4, 8)
PROD_WIDTHS = (2, 2.5, 3, 3.5, 4)


@dataclass(frozen=True, eq=False)
class Packed:
    """One codec's codes of `tokens` tokens of every head, a multiple of 8, head after head.

    Attributes
    ----------
    lead : uint8 (L, heads * tokens / 8, 8 * width), rest : uint8 (heads * tokens, R)
        Code planes as `tqindex.kernels.rows.StoredRows` keeps them.
    norms : uint16 (heads * tokens,), the codec's scales
    sketch_norms : uint16 (heads * tokens,), its sketch scales, or (0,)
    """

    lead: UInt8Array
    rest: UInt8Array
    norms: UInt16Array
    sketch_norms: UInt16Array

    @property
    def rows(self) -> tuple[Any, ...]:
        """What `tqindex.kernels.kv` reads of the code book's part."""
        return self.lead, self.rest, self.norms

    @property
    def sketched(self) -> tuple[Any, ...]:
        """The same of the sketch."""
        return self.lead, self.rest, self.sketch_norms

    def tokens(self, heads: int) -> int:
        """Return the tokens of each head."""
        return len(self.norms) // heads

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays by name."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def join(cls, parts: "list[Packed]", heads: int) -> "Packed":
        """Put blocks of the same heads one after the other."""
        by_name = {name: [_by_head(part, name, heads) for part in parts] for name in cls.__dataclass_fields__}
        return cls(**{name: _flat(np.concatenate(arrays, axis=-2), name) for name, arrays in by_name.items()})

    def first(self, tokens: int, heads: int) -> "Packed":
        """Return a copy of each head's first tokens, a multiple of 8."""
        fields = {}
        for name in self.__dataclass_fields__:
            array = _by_head(self, name, heads)
            count = tokens // BLOCK if name == "lead" else tokens
            fields[name] = _flat(array[..., :count, :].copy(), name)
        return Packed(**fields)

    def of_head(self, head: int, heads: int) -> "Packed":
        """Return a copy of one head's tokens."""
        arrays = {name: _by_head(self, name, heads) for name in self.__dataclass_fields__}
        one = slice(head, head + 1)
        return Packed(
            **{
                name: _flat(array[:, one].copy() if name == "lead" else array[one].copy(), name)
                for name, array in arrays.items()
            }
        )


def _by_head(part: Packed, name: str, heads: int) -> npt.NDArray[Any]:
    """One array as (..., heads, tokens or blocks of them, numbers of each)."""
    array: npt.NDArray[Any] = getattr(part, name)
    if name == "lead":
        return array.reshape(len(array), heads, -1, array.shape[2])
    # Sizes are given, since there may be no other planes and no sketch.
    return array.reshape(heads, len(array) // heads, array.shape[1] if name == "rest" else 1)


def _flat(array: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """Undo `_by_head`."""
    if name == "lead":
        return array.reshape(len(array), -1, array.shape[3])
    return array.reshape(len(array) * array.shape[1], array.shape[2]) if name == "rest" else array.reshape(-1)


class Part:
    """Some channels under one codec.

    Attributes
    ----------
    channels : slice
    codec : Codec
    reading, sketch_reading : as `tqindex.kernels.kv` takes them; without a sketch None
    sketch : torch.Tensor (dim, dim), float32, or None
        Sketched rows times this are rows in the rotated basis.
    """

    def __init__(self, channels: slice, codec: Codec) -> None:
        self.channels, self.codec = channels, codec
        bits, table, sketch_table = level_tables(codec)
        book = codec.codebook
        self.reading = (0, bits, table, 255 if book.offset else 256, float(book.step))
        self.sketch_reading: tuple[Any, ...] | None = None
        self.sketch: torch.Tensor | None = None
        if codec.sketch_projection is not None:
            self.sketch_reading = (bits - 1, 1, sketch_table, 1, 2.0)
            self.sketch = _matrix(codec.sketch_projection, codec.dim)


class Quantiser:
    """Packs one layer's keys, or its values, and reads them.

    What is read is in the rotated basis, in which codes are products with levels: rows in it times `rotation` are rows
    in the channels, queries times its transpose are queries in it.

    Parameters
    ----------
    dim : int, at least 2
        Channels of a head.
    bits : {1, 2, 2.5, 3, 3.5, 4, 8} for kind "mse", {2, 2.5, 3, 3.5, 4} for kind "prod"
        2.5 and 3.5 split the channels: the first half of them under a codec of one bit more.
    kind : {"mse", "prod"}
    seed : int

    Attributes
    ----------
    parts : list of Part
    rotation : torch.Tensor (dim, dim), float32
    """

    def __init__(self, dim: int, bits: float, kind: Kind, seed: int) -> None:
        self.dim, self.bits = dim, bits
        widths = [int(bits)] if bits == int(bits) else [int(bits) + 1, int(bits)]
        cuts = [0, dim] if len(widths) == 1 else [0, (dim + 1) // 2, dim]
        self.parts = [
            Part(slice(cuts[i], cuts[i + 1]), _make_codec(cuts[i + 1] - cuts[i], width, kind, seed))
            for i, width in enumerate(widths)
        ]
        self.rotation = torch.block_diag(*[_matrix(part.codec.rotate, part.codec.dim) for part in self.parts])

    def encode(self, block: Float32Array) -> tuple[Packed, ...]:
        """Pack keys or values, float32 (heads, tokens, dim), tokens a multiple of 8: one `Packed` for each part."""
        return tuple(self._encode_part(part, block) for part in self.parts)

    def _encode_part(self, part: Part, block: Float32Array) -> Packed:
        codec = part.codec
        rows = np.ascontiguousarray(block[:, :, part.channels]).reshape(-1, codec.dim)
        stored = StoredRows.allocate(codec, "ip", len(rows))
        encode_rows(codec, rows, "ip", stored, threads=1)
        return Packed(stored.lead, stored.rest, pack_norms(stored.scales), pack_norms(stored.sketch_scales))

    def decode_rotated(self, packed: tuple[Packed, ...], heads: int, tokens: int) -> torch.Tensor:
        """Return each head's first tokens in the rotated basis, float32 (heads, tokens, dim)."""
        out = torch.empty((heads, tokens, self.dim))
        for part, codes in zip(self.parts, packed, strict=True):
            rows = torch.zeros((heads, tokens, part.codec.dim))
            if part.sketch is not None:
                decode_rows(codes.sketched, codes.tokens(heads), part.sketch_reading, rows.numpy())
                rows = rows @ part.sketch
            decode_rows(codes.rows, codes.tokens(heads), part.reading, rows.numpy())
            out[:, :, part.channels] = rows
        return out

    def split_queries(self, queries: torch.Tensor) -> list[tuple[Float32Array, Float32Array | None]]:
        """Return each part's share of rotated queries, (heads, n, dim) float32, and the same for its sketch."""
        shares = [queries[:, :, part.channels].contiguous() for part in self.parts]
        return [
            (share.numpy(), None if part.sketch is None else (share @ part.sketch.T).numpy())
            for part, share in zip(self.parts, shares, strict=True)
        ]

    def add_scores(
        self,
        packed: tuple[Packed, ...],
        queries: list[tuple[Float32Array, Float32Array | None]],
        at: int,
        tokens: int,
        out: Float32Array,
    ) -> None:
        """Add the products of each head's first tokens with its queries to out[:, :, at : at + tokens].

        queries : as `split_queries` gives them; out : float32 (heads, n, columns)
        """
        for part, codes, (share, sketched) in zip(self.parts, packed, queries, strict=True):
            room = codes.tokens(len(share))
            score_rows(codes.rows, room, part.reading, share, at, tokens, out)
            if sketched is not None:
                score_rows(codes.sketched, room, part.sketch_reading, sketched, at, tokens, out)

    def make_sums(self, heads: int, n: int) -> list[Float32Array]:
        """Return zeros that `add_values` sums up in: (heads, n, channels) for each part."""
        return [np.zeros((heads, n, part.codec.dim), np.float32) for part in self.parts]

    def add_values(
        self, packed: tuple[Packed, ...], weights: Float32Array, at: int, tokens: int, sums: list[Float32Array]
    ) -> None:
        """Add each head's first tokens times weights[:, :, at : at + tokens] to sums.

        weights : float32 (heads, n, columns). Kind "mse" only: there is no sketch in the sums.
        """
        for part, codes, total in zip(self.parts, packed, sums, strict=True):
            sum_rows(codes.rows, codes.tokens(len(weights)), part.reading, weights, at, tokens, total)

    def join_sums(self, sums: list[Float32Array]) -> torch.Tensor:
        """Return sums in the channels, float32 (heads, n, dim)."""
        joined = torch.cat([torch.from_numpy(total) for total in sums], dim=2)
        return torch.matmul(joined, self.rotation)


def _matrix(projection: HadamardRotation | MatrixProjection, dim: int) -> torch.Tensor:
    """Return the matrix by which rows are multiplied on the right to undo a projection."""
    return torch.from_numpy(projection.transpose(np.eye(dim, dtype=np.float32)))


def _make_codec(dim: int, bits: int, kind: Kind, seed: int) -> Codec:
    levels = bits - 1 if kind == "prod" else bits
    return Codec(dim, bits, kind=kind, seed=seed, effort="search" if levels in SEARCHED_WIDTHS else "plain")
