"""Blocks of keys or values as packed codes: the index's codec, made and read by its kernels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tqindex.codec import Codec
from tqindex.codec.codec import Kind
from tqindex.codec.effort import SEARCHED_WIDTHS
from tqindex.codec.packing import BLOCK
from tqindex.kernels.encoder import encode_rows
from tqindex.kernels.kv import decode_rows
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


def _by_head(part: Packed, name: str, heads: int) -> npt.NDArray[Any]:
    """One array as (..., heads, tokens or blocks of them, numbers of each)."""
    array: npt.NDArray[Any] = getattr(part, name)
    if name == "lead":
        return array.reshape(len(array), heads, -1, array.shape[2])
    return array.reshape(heads, -1, array.shape[1] if name == "rest" else 1)


def _flat(array: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """Undo `_by_head`."""
    if name == "lead":
        return array.reshape(len(array), -1, array.shape[3])
    return array.reshape(-1, array.shape[2]) if name == "rest" else array.reshape(-1)


class Part:
    """Some channels under one codec.

    Attributes
    ----------
    channels : slice
    codec : Codec
    reading : as `tqindex.kernels.kv` takes it
    rotation : float32 (dim, dim)
        Rows of the rotated basis times this are rows in the channels.
    """

    def __init__(self, channels: slice, codec: Codec) -> None:
        self.channels, self.codec = channels, codec
        bits, table, sketch_table = level_tables(codec)
        book = codec.codebook
        twice_shift = 255 if book.offset else 256
        self.reading = (0, bits, table, twice_shift, float(book.step))
        self.rotation = codec.rotate.transpose(np.eye(codec.dim, dtype=np.float32))
        self.sketch_reading: tuple[Any, ...] | None = None
        if codec.sketch_projection is not None:
            self.sketch_reading = (bits - 1, 1, sketch_table, 1, 2.0)
            self.sketch_rotation = codec.sketch_projection.transpose(np.eye(codec.dim, dtype=np.float32))


class Quantiser:
    """Packs and unpacks one layer's keys, or its values.

    Parameters
    ----------
    dim : int, at least 2
        Channels of a head.
    bits : {1, 2, 2.5, 3, 3.5, 4, 8} for kind "mse", {2, 2.5, 3, 3.5, 4} for kind "prod"
        2.5 and 3.5 split the channels: the first half of them under a codec of one bit more.
    kind : {"mse", "prod"}
    seed : int
    """

    def __init__(self, dim: int, bits: float, kind: Kind, seed: int) -> None:
        self.dim, self.bits = dim, bits
        widths = [int(bits)] if bits == int(bits) else [int(bits) + 1, int(bits)]
        cuts = [0, dim] if len(widths) == 1 else [0, (dim + 1) // 2, dim]
        self.parts = [
            Part(slice(cuts[i], cuts[i + 1]), _make_codec(cuts[i + 1] - cuts[i], width, kind, seed))
            for i, width in enumerate(widths)
        ]

    def encode(self, block: Float32Array) -> tuple[Packed, ...]:
        """Pack keys or values, float32 (heads, tokens, dim), tokens a multiple of 8: one `Packed` for each part."""
        return tuple(self._encode_part(part, block) for part in self.parts)

    def _encode_part(self, part: Part, block: Float32Array) -> Packed:
        codec = part.codec
        rows = np.ascontiguousarray(block[:, :, part.channels]).reshape(-1, codec.dim)
        stored = StoredRows.allocate(codec, "ip", len(rows))
        encode_rows(codec, rows, "ip", stored, threads=1)
        return Packed(stored.lead, stored.rest, pack_norms(stored.scales), pack_norms(stored.sketch_scales))

    def decode(self, packed: tuple[Packed, ...], heads: int, first: int, count: int) -> Float32Array:
        """Return each head's tokens first..first + count, float32 (heads, count, dim)."""
        out = np.empty((heads, count, self.dim), np.float32)
        for part, codes in zip(self.parts, packed, strict=True):
            tokens = len(codes.norms) // heads
            rows = np.zeros((heads, count, part.codec.dim), np.float32)
            if part.sketch_reading is not None:
                signs = np.zeros_like(rows)
                decode_rows((codes.lead, codes.rest, codes.sketch_norms), tokens, first, part.sketch_reading, signs)
                rows = signs @ part.sketch_rotation
            decode_rows((codes.lead, codes.rest, codes.norms), tokens, first, part.reading, rows)
            out[:, :, part.channels] = rows @ part.rotation
        return out


def _make_codec(dim: int, bits: int, kind: Kind, seed: int) -> Codec:
    levels = bits - 1 if kind == "prod" else bits
    return Codec(dim, bits, kind=kind, seed=seed, effort="search" if levels in SEARCHED_WIDTHS else "plain")
