"""What a cache takes, from a model's configuration alone."""

from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from tqindex.checks import check_integer
from tqindex.errors import ArgumentError
from tqindex.kv.options import LayerOptions
from tqindex.kv.pages import PageForm
from tqindex.kv.quantiser import Quantiser
from tqindex.kv.support import check_model, check_name, nothing_to_pack

#: Bytes of a number in a 16-bit model, of a stored norm, and of a channel of a page's mean.
_HALF = 2


@dataclass(frozen=True)
class LayerShape:
    """What one layer keeps of every token.

    Attributes
    ----------
    packed : bool
        Whether `TurboQuantCache` packs it; other layers stay as the library has them.
    heads, dim : int
        Key-value heads, and their width.
    limit : int or None
        Tokens that a sliding window keeps at most; None without one; 0 for a layer whose state does not grow.
    """

    packed: bool
    heads: int
    dim: int
    limit: int | None


@dataclass(frozen=True)
class Memory:
    """Bytes of a cache.

    Attributes
    ----------
    dense : int
        Keys and values of all tokens in 16 bits.
    parts : dict of str to int
        As `TurboQuantCache.memory`: "codes", "norms", "means", "exact", "other".
    values : int
        Numbers that the packed layers stand for.
    packed_values : int
        Those of them that are in pages.
    """

    dense: int
    parts: dict[str, int]
    values: int
    packed_values: int

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(self.parts.values())

    @property
    def page_bits(self) -> float:
        """Bits of a value in a page, with its share of norms and means; 0 where no page is full."""
        bits = 8 * sum(self.parts[name] for name in ("codes", "norms", "means"))
        return bits / self.packed_values if self.packed_values else 0.0

    @property
    def bits(self) -> float:
        """Bits of a value in packed layers, exact windows included."""
        return 8 * (self.total - self.parts["other"]) / self.values


def read_config(name: str) -> PreTrainedConfig:
    """Read a model's configuration: a folder, its config.json, or a name on the Hub.

    Raises
    ------
    ArgumentError
        There is none, or it cannot be used.
    """
    check_name(name, "a model's configuration")
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise ArgumentError(f"{name} must be a model's configuration: {error}") from error
    return config


def layer_shapes(config: PreTrainedConfig) -> list[LayerShape]:
    """Return the shapes of a model's layers, by its own layer types.

    Layers that share the keys and values of others are left out, as the library does. The fixed state of linear
    attention is counted as nothing.

    Raises
    ------
    ArgumentError, MissingPackageError
        A model that `TurboQuantCache` refuses.
    """
    check_model(config)
    decoder = config.get_text_config(decoder=True)
    shapes = [_layer_shape(decoder, layer) for layer in DynamicCache(config=config).layers]
    if not any(shape.packed for shape in shapes):
        raise nothing_to_pack(config)
    return shapes


def _layer_shape(config: Any, layer: Any) -> LayerShape:
    if isinstance(layer, DynamicSlidingWindowLayer):
        return LayerShape(False, *_heads_and_dim(config, sliding=True), limit=layer.sliding_window - 1)
    if isinstance(layer, DynamicLayer):
        return LayerShape(type(layer) is DynamicLayer, *_heads_and_dim(config, sliding=False), limit=None)
    return LayerShape(False, 0, 0, limit=0)


def _heads_and_dim(config: Any, sliding: bool) -> tuple[int, int]:
    """Key-value heads and their width."""
    if not getattr(config, "num_attention_heads", None):
        raise ArgumentError(f"config must be of a model with attention, got {config.model_type!r}")
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if not sliding:  # Gemma 4 has layers of two shapes
        dim = getattr(config, "global_head_dim", None) or dim
        if getattr(config, "attention_k_eq_v", False):
            heads = getattr(config, "num_global_key_value_heads", None) or heads
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        heads = 1
    return heads, dim


def estimate_memory(shapes: list[LayerShape], options: LayerOptions, context: int, batch: int = 1) -> Memory:
    """Return the bytes of a cache of `context` tokens in each of `batch` rows, for a 16-bit model.

    A page is counted as packed when it has left the recent window; exact tokens take their whole room, used or not.

    Raises
    ------
    ArgumentError
        A context or batch below 1.
    """
    check_integer("context", context, 1)
    check_integer("batch", batch, 1)
    parts = dict.fromkeys(("codes", "norms", "means", "exact", "other"), 0)
    dense = values = packed_values = 0
    for shape in shapes:
        row = shape.heads * shape.dim * 2  # a token's key and value
        tokens = context if shape.limit is None else min(context, shape.limit)
        dense += batch * tokens * row * _HALF
        if shape.packed:
            values += batch * tokens * row
            packed_values += batch * _packed_tokens(options, context) * row
            for name, size in _packed_layer(shape, options, context).items():
                parts[name] += batch * size
        else:
            parts["other"] += batch * tokens * row * _HALF
    return Memory(dense, parts, values, packed_values)


def _packed_tokens(options: LayerOptions, context: int) -> int:
    return max(context - options.sinks - options.recent, 0) // options.page * options.page


def _packed_layer(shape: LayerShape, options: LayerOptions, context: int) -> dict[str, int]:
    """Bytes of one row of one layer by part."""
    keys = Quantiser(shape.dim, options.key_bits, options.kind, options.seed)
    values = Quantiser(shape.dim, options.value_bits, options.value_kind, options.seed, options.page)
    form = PageForm(keys, values, shape.heads, options.sinks, options.recent, options.page, options.center)
    tokens = _packed_tokens(options, context)
    packed = [*keys.allocate(shape.heads, tokens), *values.allocate(shape.heads, tokens)]
    return {
        "codes": sum(one.words.nbytes + one.signs.nbytes for one in packed),
        "norms": sum(one.norms.nbytes + one.sketch_norms.nbytes for one in packed),
        "means": tokens // options.page * shape.heads * shape.dim * _HALF if options.center else 0,
        "exact": shape.heads * form.room * shape.dim * 2 * _HALF,
    }
