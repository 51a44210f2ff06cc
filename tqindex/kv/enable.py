"""One call that gives every `generate` of a model a packed cache."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click
import torch

from tqindex.checks import check_choice, check_number
from tqindex.errors import ArgumentError
from tqindex.kv.cache import TurboQuantCache
from tqindex.kv.memory import estimate_memory, layer_shapes
from tqindex.kv.options import LayerOptions
from tqindex.kv.quantiser import KIND_WIDTHS

#: Widths to choose from, most accurate first; keys get the larger share, since errors in them are amplified.
_LADDER = ((8, 8), (8, 4), (4, 4), (4, 3), (3, 3), (3, 2), (2, 2))
#: What may be asked for; widths follow from the ratio, and padding from each call's mask.
_OPTIONS = ("kind", "sinks", "recent", "page", "center", "seed")
#: Tokens at which the ratio with exact windows is told.
_CONTEXT = 8192


def enable_turbo_quant(model: Any, compression_ratio: float = 4, **options: Any) -> LayerOptions:
    """Let `model.generate` keep keys and values packed, and print the widths that are chosen and the measured ratio.

    Calls that bring or ask for a cache of their own keep it. Padding on the left is taken from `attention_mask`, or
    where none is given from the tokens, as transformers does.

    Parameters
    ----------
    model : PreTrainedModel
    compression_ratio : float
        Of packed pages to 16-bit keys and values, norms and means included: the most accurate widths that reach it.
    options : kind, sinks, recent, page, center, seed
        As `TurboQuantCache` takes them.

    Returns
    -------
    LayerOptions
        What the caches are made with.

    Raises
    ------
    ArgumentError
        A ratio that cannot be reached in the kind, an option that breaks its rule, or a model that cannot be served.
    """
    for name in options:
        check_choice("an option", name, _OPTIONS)
    if not hasattr(model, "config") or not hasattr(model, "generate"):
        raise ArgumentError(f"model must be one of transformers that generates, got {type(model).__name__}")
    chosen = _choose(model, check_number("compression_ratio", compression_ratio), LayerOptions(**options))
    in_pages, in_all = _measure(model, chosen)
    if isinstance(model.generate, _Generate):
        disable_turbo_quant(model)
    model.generate = _Generate(model, model.generate, chosen)
    packed = sum(shape.packed for shape in layer_shapes(model.config))
    click.echo(
        f"TurboQuant: keys {chosen.key_bits:g} bits, values {chosen.value_bits:g} bits in {packed} layers; measured "
        f"{in_pages:.2f} x smaller than 16 bits in pages, {in_all:.2f} x with the exact windows at {_CONTEXT:,} tokens"
    )
    return chosen


def disable_turbo_quant(model: Any) -> None:
    """Undo `enable_turbo_quant`; the model's attention stays what it is.

    Raises
    ------
    ArgumentError
        A model for which it was not called.
    """
    if not isinstance(getattr(model, "generate", None), _Generate):
        raise ArgumentError("model must be one that enable_turbo_quant was called for")
    del model.generate


def _choose(model: Any, ratio: float, base: LayerOptions) -> LayerOptions:
    if ratio <= 0:
        raise ArgumentError(f"compression_ratio must be above 0, got {ratio:g}")
    shapes, widths, value_widths = layer_shapes(model.config), KIND_WIDTHS[base.kind], KIND_WIDTHS[base.value_kind]
    for key_bits, value_bits in _LADDER:
        if key_bits not in widths or value_bits not in value_widths:
            continue
        options = replace(base, key_bits=key_bits, value_bits=value_bits)
        reached = 16 / estimate_memory(shapes, options, _CONTEXT).page_bits
        if reached >= ratio:
            return options
    raise ArgumentError(f"compression_ratio must be at most {reached:.2f} for this model, got {ratio:g}")


def _measure(model: Any, options: LayerOptions) -> tuple[float, float]:
    """Pack random keys and values of one layer; returns how much smaller pages are than 16 bits, and the whole."""
    cache = TurboQuantCache(model.config, **options.__dict__)
    number, shape = next((i, s) for i, s in enumerate(layer_shapes(model.config)) if s.packed)
    tokens = torch.randn((2, 1, shape.heads, _CONTEXT, shape.dim), dtype=torch.bfloat16)
    layer: Any = cache.layers[number]
    layer.update(*tokens)
    parts = cache.memory()
    in_pages = parts["codes"] + parts["norms"] + parts["means"]
    row = 2 * shape.heads * shape.dim * tokens.element_size()
    return layer.sequences[0].packed * row / in_pages, _CONTEXT * row / sum(parts.values())


class _Generate:
    """A model's `generate` that gives every call a packed cache.

    An object that holds the model and its bound method, so that a copy of the model has one of its own.
    """

    def __init__(self, model: Any, original: Callable[..., Any], options: LayerOptions) -> None:
        self.__doc__ = original.__doc__
        self.__wrapped__ = original  # by this name whoever asks finds the signature
        self._model, self._options = model, options

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        positional = arguments[1] if len(arguments) > 1 else None
        config = keywords.get("generation_config") or positional or self._model.generation_config

        def setting(name: str) -> Any:
            return keywords.get(name, getattr(config, name, None))

        if not _has_own_cache(keywords, setting):
            mask = keywords.get("attention_mask")
            if mask is None:
                ids = arguments[0] if arguments else keywords.get("inputs", keywords.get("input_ids"))
                mask = _inferred_mask(ids, setting)
            chosen = replace(self._options, left_padding=_left_padding(mask))
            keywords["past_key_values"] = TurboQuantCache(self._model.config, **chosen.__dict__)
        return self.__wrapped__(*arguments, **keywords)


def _has_own_cache(keywords: dict[str, Any], setting: Callable[[str], Any]) -> bool:
    """Whether a call to `generate` brings a cache, asks for another kind, or wants none."""
    return (
        keywords.get("past_key_values") is not None
        or setting("cache_implementation") is not None
        or setting("use_cache") is False
    )


def _inferred_mask(ids: Any, setting: Callable[[str], Any]) -> torch.Tensor | None:
    """Return the mask that transformers makes where none is given: of what is not padding, if that can be told."""
    pad, end = setting("pad_token_id"), setting("eos_token_id")
    if pad is None or not isinstance(ids, torch.Tensor) or ids.dim() != 2 or ids.is_floating_point():
        return None
    ends = end if isinstance(end, list | tuple) else [end]
    return None if pad in ends else ids != pad


def _left_padding(mask: torch.Tensor | None) -> tuple[int, ...] | None:
    """Columns before each row's first token of a mask (rows, columns); None where there are none."""
    if mask is None or mask.dim() != 2:
        return None
    columns = ((mask != 0).cumsum(dim=1) == 0).sum(dim=1).tolist()
    return tuple(columns) if any(columns) else None
