"""Which models a packed cache can serve: what cannot be is refused when the cache is made."""

import inspect
import re
from pathlib import Path
from typing import Any

import transformers

from tqindex.errors import ArgumentError, MissingPackageError

#: The first version with today's interface of cache layers.
LEAST_TRANSFORMERS = (5, 17)


def check_model(config: Any) -> None:
    """Refuse a model that would not work with packed layers.

    Raises
    ------
    MissingPackageError
        An older transformers.
    ArgumentError
        An encoder-decoder, multi-head latent attention, a model without cache, or an attention with one of its own.
    """
    version = tuple(int(number) for number in re.findall(r"\d+", transformers.__version__)[:2])
    if version < LEAST_TRANSFORMERS:
        least = ".".join(map(str, LEAST_TRANSFORMERS))
        raise MissingPackageError(f"tqindex.kv needs transformers {least} or newer, got {transformers.__version__}")
    if not isinstance(config, transformers.PreTrainedConfig):
        raise ArgumentError(f"config must be the model's configuration, got {type(config).__name__}")
    decoder = config.get_text_config(decoder=True)
    if config.is_encoder_decoder or decoder.is_encoder_decoder:
        raise ArgumentError(f"config must be of a decoder-only model, got the encoder-decoder {config.model_type!r}")
    if getattr(decoder, "kv_lora_rank", None):
        raise ArgumentError(
            f"config must be of a model that caches keys and values, got {config.model_type!r} with latent attention "
            f"(kv_lora_rank={decoder.kv_lora_rank})"
        )
    if not _takes_cache(config):
        raise ArgumentError(f"config must be of a model that takes past_key_values, got {config.model_type!r}")
    attention = getattr(decoder, "_attn_implementation", None) or ""
    if attention.startswith("paged"):
        raise ArgumentError(f"the attention must read this cache, got {attention!r}, which keeps its own")


def _takes_cache(config: transformers.PreTrainedConfig) -> bool:
    """Whether the library's language model of a configuration takes a cache; older ones keep a state of their own."""
    known: Any = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    return type(config) not in known or "past_key_values" in inspect.signature(known[type(config)].forward).parameters


def nothing_to_pack(config: Any) -> ArgumentError:
    """Return what to raise for a model without a layer of full attention."""
    return ArgumentError(
        f"config and per_layer must leave layers of full attention to pack, got none of {config.model_type!r}: "
        "sliding-window and linear layers stay as the library has them"
    )


def check_length(config: Any, tokens: int, what: str) -> None:
    """Refuse more tokens than a model has positions for, where its configuration says how many these are."""
    most = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    if most is not None and tokens > most:
        raise ArgumentError(f"{what} must be at most {most:,}, the model's longest context, got {tokens:,}")


def check_name(name: str, what: str) -> None:
    """Refuse the path of a model that is not there; a name on the Hub has one slash at most and begins with a letter.

    Raises
    ------
    ArgumentError
    """
    path = Path(name)
    if not path.exists() and (name.count("/") > 1 or not name[:1].isalnum() or path.is_absolute()):
        raise ArgumentError(f"{name} must be {what}: there is no such folder")
