"""Caches to be measured beside each other, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import DynamicCache, PreTrainedConfig, QuantizedCache

from tqindex.errors import ArgumentError, MissingPackageError
from tqindex.kv.cache import TurboQuantCache
from tqindex.kv.presets import parse_preset

#: transformers' QuantizedCache, each backend and width at the axes that gave the least divergence (docs).
PEERS = ("hqq 4 1/1", "quanto 4 -1/-1", "hqq 2 0/1", "quanto 2 -1/-1")
_BACKENDS = ("hqq", "quanto")


@dataclass(frozen=True)
class Case:
    """A cache to be measured.

    Attributes
    ----------
    name : str
    make : callable
        Returns a new cache for a model's configuration.
    """

    name: str
    make: Callable[[PreTrainedConfig], Any]


#: The uncompressed cache.
DENSE = Case("dense", lambda config: DynamicCache(config=config))


def parse_case(name: str) -> Case:
    """Return the case of a name: a preset (`tqindex.kv.presets`), or "BACKEND BITS KEY_AXIS/VALUE_AXIS" of a peer.

    Raises
    ------
    ArgumentError
        Another form.
    """
    backend, *rest = name.split() or [""]
    if backend in _BACKENDS:
        return Case(name, _peer(name, backend, rest))
    options = parse_preset(name)
    return Case(name, lambda config: TurboQuantCache(config, **options.__dict__))


def present_peers(config: PreTrainedConfig) -> list[Case]:
    """Return those of `PEERS` whose package is installed; none for a model with other layers than full attention."""
    cases = [parse_case(name) for name in PEERS]
    return [case for case in cases if _can_make(case, config)]


def _can_make(case: Case, config: PreTrainedConfig) -> bool:
    try:
        case.make(config)
    except (MissingPackageError, ValueError):  # ValueError: QuantizedCache refuses the model
        return False
    return True


def _peer(name: str, backend: str, rest: list[str]) -> Callable[[PreTrainedConfig], Any]:
    try:
        bits, axes = rest
        key_axis, value_axis = (int(axis) for axis in axes.split("/"))
        nbits = int(bits)
    except ValueError as error:
        raise ArgumentError(
            f"peer must be BACKEND BITS KEY_AXIS/VALUE_AXIS, such as hqq 4 1/1, got {name!r}"
        ) from error

    def make(config: PreTrainedConfig) -> Any:
        try:
            return QuantizedCache(backend, config, nbits=nbits, axis_key=key_axis, axis_value=value_axis)
        except ImportError as error:
            raise MissingPackageError(f"{name} needs a package that is not here: {error}") from error

    return make
