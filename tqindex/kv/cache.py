"""The cache: a packed layer for every layer of full attention, the library's own class for the others."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from tqindex.codec.codec import Kind
from tqindex.kv.files import load_cache, save_cache
from tqindex.kv.layer import TurboQuantLayer
from tqindex.kv.options import LayerOptions, check_per_layer
from tqindex.kv.support import check_model, nothing_to_pack

#: Parts of `TurboQuantCache.memory`, of which the first three are what packed tokens take.
PARTS = ("codes", "norms", "means", "exact", "other")


class TurboQuantCache(Cache):
    """A KV cache of 1 to 8 bits per value: ``model.generate(..., past_key_values=TurboQuantCache(model.config))``.

    Keys and values are rotated and quantised by the index's codec (TurboQuant, arXiv 2504.19874), page by page, once
    they have left a window of exact tokens; nothing is ever quantised twice. Layers of sliding-window or linear
    attention keep the library's own classes.

    Parameters
    ----------
    config : PreTrainedConfig
        The model's.
    key_bits, value_bits : {1, 2, 2.5, 3, 3.5, 4, 8}
        2.5 and 3.5: half of the channels with one bit more than the other half. Kinds other than "mse" take 2 to 4.
    kind : {"mse", "prod", "trellis"}
        How keys and values are packed: "trellis" leaves less error in as many bits, for more work (`tqindex.Codec`);
        attention "tqindex" does not read it on a GPU. "prod" spends one bit of keys on a sketch (TurboQuant_prod);
        values are then "mse".
    sinks : int
        First tokens of a sequence that stay exact.
    recent : int
        Last tokens that are exact at least, but where `crop` has cut a packed page; at most `page` - 1 more are.
    page : int, a multiple of 32
        Tokens that are packed together.
    center : bool
        Whether the mean of each page's keys is subtracted, and kept in 16 bits.
    per_layer : mapping of int to (key_bits, value_bits) or None, optional
        Other widths for single layers, by number; None leaves one as the library has it.
    left_padding : sequence of int, optional
        Columns of padding before each row's first token, by default none.
    seed : int

    Attributes
    ----------
    layers : list
        `TurboQuantLayer`, or the library's classes.
    options : LayerOptions

    Raises
    ------
    ArgumentError
        A parameter breaks its rule, or the model is of a kind that cannot be served.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        key_bits: float = 4,
        value_bits: float = 4,
        kind: Kind = "mse",
        sinks: int = 4,
        recent: int = 128,
        page: int = 64,
        center: bool = True,
        per_layer: Mapping[int, tuple[float, float] | None] | None = None,
        left_padding: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        check_model(config)
        self.options = LayerOptions(key_bits, value_bits, kind, sinks, recent, page, center, left_padding, seed)
        decoder = config.get_text_config(decoder=True)
        layers: list[Any] = list(DynamicCache(config=config).layers)
        self.per_layer = check_per_layer(per_layer, len(layers))
        for number, layer in enumerate(layers):
            widths = self.per_layer.get(number, (key_bits, value_bits))
            # Other classes, derived ones among them, keep more than keys and values, or less than all of them.
            if type(layer) is DynamicLayer and widths is not None:
                layers[number] = TurboQuantLayer(self.options.with_widths(widths), decoder)
        if not any(isinstance(layer, TurboQuantLayer) for layer in layers):
            raise nothing_to_pack(config)
        super().__init__(layers=layers)

    def memory(self) -> dict[str, int]:
        """Return the bytes held, by part, each storage counted once.

        "codes", "norms" and "means" of packed pages; "exact": the room of sinks and recent windows; "other": the
        layers of other classes.
        """
        held = dict.fromkeys(PARTS, 0)
        seen = set()
        for layer in self.layers:
            for part, array in _arrays(layer):
                key, size = _storage(array)
                if key not in seen:
                    seen.add(key)
                    held[part] += size
        return held

    def save(self, path: str | Path, model: PreTrainedModel, overwrite: bool = False) -> None:
        """Write the cache of a prompt to a file, whole or not at all; `model` is the one that filled it.

        Raises
        ------
        StorageError
            The file exists (pass `overwrite`), or cannot be written.
        """
        save_cache(self, Path(path), model, overwrite)

    @classmethod
    def load(cls, path: str | Path, model: PreTrainedModel) -> Self:
        """Read a cache that `save` wrote, to go on with its prompt.

        Raises
        ------
        MissingFileError, StorageError, CorruptIndexError, FormatVersionError
            Nothing there; cannot be read; truncated, altered or no such file; written by a newer version.
        ArgumentError
            The file is of another model: another configuration, other weights or another dtype.
        """
        return load_cache(cls, Path(path), model)


def _arrays(layer: Any) -> list[tuple[str, Any]]:
    if isinstance(layer, TurboQuantLayer):
        return [pair for sequence in layer.sequences for pair in sequence.arrays()]
    fields = vars(layer).values()
    # Linear attention keeps its states in dicts, by number.
    held = [item for field in fields for item in (field.values() if isinstance(field, dict) else [field])]
    return [("other", tensor) for tensor in held if isinstance(tensor, torch.Tensor)]


def _storage(array: Any) -> tuple[int, int]:
    """Return what tells a storage from others, and its bytes."""
    if isinstance(array, torch.Tensor):
        storage = array.untyped_storage()
        return storage.data_ptr(), storage.nbytes()
    while array.base is not None:
        array = array.base
    return id(array), array.nbytes
