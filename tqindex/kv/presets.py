"""Settings of a cache by name: "4/3" has keys of 4 bits and values of 3, "4/4 prod recent=32" more words."""

from dataclasses import replace
from typing import Any

from tqindex.checks import check_choice
from tqindex.errors import ArgumentError
from tqindex.kv.options import LayerOptions
from tqindex.kv.quantiser import WIDTHS

#: What `tqindex kv memory` and `tqindex kv eval` show, widest first.
PRESETS = ("8/8", "4/4", "4/3", "3.5/3.5", "3/3", "2/4", "2.5/2.5", "2/2")
#: Kinds that a name may ask for; without one it is "mse".
_KINDS = ("prod", "trellis")
#: Fields of `LayerOptions` that a name may set to an integer.
_INTEGERS = ("sinks", "recent", "page", "seed")


def parse_preset(name: str, base: LayerOptions | None = None) -> LayerOptions:
    """Return the options of a name.

    Parameters
    ----------
    name : str
        "KEY_BITS/VALUE_BITS", then any of "trellis", "prod" (keys with a sketch), "uncentred", and "sinks=N",
        "recent=N", "page=N", "seed=N".
    base : LayerOptions, optional
        Where what the name leaves out is taken from.

    Raises
    ------
    ArgumentError
        Another form, or a value that breaks a rule.
    """
    widths, *words = name.split() or [""]
    try:
        key_bits, value_bits = (check_choice("bits", float(width), WIDTHS) for width in widths.split("/"))
        changes: dict[str, Any] = dict(_parse_word(word) for word in words)
    except ValueError as error:
        raise ArgumentError(
            f"preset must be KEY_BITS/VALUE_BITS, each one of {', '.join(map(str, WIDTHS))}, then any of "
            f"{', '.join((*_KINDS, 'uncentred', *(f'{field}=N' for field in _INTEGERS)))}; got {name!r}"
        ) from error
    return replace(base or LayerOptions(), key_bits=key_bits, value_bits=value_bits, **changes)


def _parse_word(word: str) -> tuple[str, Any]:
    if word in _KINDS:
        return "kind", word
    if word == "uncentred":
        return "center", False
    field, _, value = word.partition("=")
    if field not in _INTEGERS:
        raise ValueError(f"unknown word {word!r}")
    return field, int(value)
