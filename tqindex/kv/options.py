"""What a cache is asked to be, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tqindex.checks import check_choice, check_integer
from tqindex.codec.codec import Kind
from tqindex.errors import ArgumentError
from tqindex.kv.quantiser import KIND_WIDTHS

#: What codes of any width fill whole words with.
PAGE_MULTIPLE = 32


@dataclass(frozen=True)
class LayerOptions:
    """How one layer's keys and values are kept: the parameters of `TurboQuantCache`, checked.

    Raises
    ------
    ArgumentError
        A parameter breaks its rule.
    """

    key_bits: float = 4
    value_bits: float = 4
    kind: Kind = "mse"
    sinks: int = 4
    recent: int = 128
    page: int = 64
    center: bool = True
    left_padding: Sequence[int] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, tuple(KIND_WIDTHS))
        for name, bits, kind in (
            ("key_bits", self.key_bits, self.kind),
            ("value_bits", self.value_bits, self.value_kind),
        ):
            check_choice(name if kind == "mse" else f"{name} of kind {kind!r}", bits, KIND_WIDTHS[kind])
        check_integer("sinks", self.sinks, 0)
        check_integer("recent", self.recent, 0)
        if check_integer("page", self.page, 1) % PAGE_MULTIPLE:
            raise ArgumentError(f"page must be a multiple of {PAGE_MULTIPLE}, got {self.page}")
        if not isinstance(self.center, bool):
            raise ArgumentError(f"center must be True or False, got {self.center!r}")
        if self.left_padding is not None:
            object.__setattr__(self, "left_padding", _as_padding(self.left_padding))
        check_integer("seed", self.seed, 0, 2**63 - 1)

    @property
    def value_kind(self) -> Kind:
        """How values are packed: they are averaged, not multiplied with a query, so a sketch is of no use to them."""
        return "mse" if self.kind == "prod" else self.kind

    def with_widths(self, widths: Any) -> "LayerOptions":
        """Return the same with other (key_bits, value_bits)."""
        if not isinstance(widths, Sequence) or len(widths) != 2:
            raise ArgumentError(f"per_layer must give (key_bits, value_bits) or None, got {widths!r}")
        return replace(self, key_bits=widths[0], value_bits=widths[1])

    def paddings(self, batch: int) -> list[int]:
        """Return the columns of padding of every row; a batch of beams repeats each row."""
        given = self.left_padding or (0,)
        if batch % len(given):
            raise ArgumentError(f"left_padding must be of as many rows as the batch, {batch}, got {len(given)}")
        return [padding for padding in given for _ in range(batch // len(given))]


def _as_padding(left_padding: Any) -> tuple[int, ...]:
    """Return the columns of padding of each row: of a sequence, an array or a tensor of integers.

    Raises
    ------
    ArgumentError
        Anything else, or none.
    """
    given = left_padding.tolist() if hasattr(left_padding, "tolist") else left_padding
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise ArgumentError(f"left_padding must give each row's columns of padding, got {left_padding!r}")
    return tuple(check_integer("left_padding", pads, 0) for pads in given)


def check_per_layer(per_layer: Mapping[int, Any] | None, layers: int) -> dict[int, Any]:
    """Return the widths of single layers by number.

    Raises
    ------
    ArgumentError
        No mapping, or numbers that are none of a layer.
    """
    if per_layer is not None and not isinstance(per_layer, Mapping):
        raise ArgumentError(f"per_layer must be a mapping of layers' numbers to widths, got {per_layer!r}")
    return {
        check_integer("a layer's number in per_layer", number, 0, layers - 1): value
        for number, value in (per_layer or {}).items()
    }
