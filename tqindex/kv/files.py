"""A prompt's cache as one file: a mark, a header, the tensors as safetensors, and a checksum of all before it.

The header says which model and which configuration the cache is of. Configurations are compared by checksum, and so is
a sample of the weights: keys and values mean nothing to another model, even one of the same shape.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import safetensors.torch
import torch
from transformers import DynamicCache, PreTrainedModel

from tqindex.errors import ArgumentError, CorruptIndexError, FormatVersionError, MissingFileError, StorageError
from tqindex.kv.layer import TurboQuantLayer
from tqindex.kv.state import Tensors, read_layer, write_layer
from tqindex.storage.files import storage_errors, write_file

if TYPE_CHECKING:
    from tqindex.kv.cache import TurboQuantCache

_Cache = TypeVar("_Cache", bound="TurboQuantCache")
_MARK = b"tqindex kv\n\0\0\0\0\0"
_VERSION = 2
_LENGTH_BYTES = 8
_DIGEST_BYTES = 32
#: Numbers of each weight that are compared.
_SAMPLE = 64
#: What a configuration says of itself and not of the model.
_VOLATILE = (
    *("transformers_version", "_name_or_path", "name_or_path", "dtype", "torch_dtype", "architectures"),
    *("use_cache", "output_hidden_states", "output_attentions", "return_dict", "problem_type", "id2label", "label2id"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
)


def save_cache(cache: "TurboQuantCache", path: Path, model: PreTrainedModel, overwrite: bool) -> None:
    """Write a cache to a file, whole or not at all (`TurboQuantCache.save`).

    Raises
    ------
    StorageError
        The file exists, or cannot be written.
    """
    tensors = Tensors()
    layers = [write_layer(layer, tensors) for layer in cache.layers]
    if len(cache.layers) != len(DynamicCache(config=model.config).layers):
        raise ArgumentError(f"model must be the one that filled the cache, of {len(cache.layers)} layers")
    header = {
        "version": _VERSION,
        "model": _fingerprint(model),
        "options": cache.options.__dict__,
        "per_layer": sorted(cache.per_layer.items()),
        "layers": layers,
    }
    text = json.dumps(header).encode()
    pieces = [_MARK, len(text).to_bytes(_LENGTH_BYTES, "little"), text, safetensors.torch.save(tensors.by_name)]
    checksum = hashlib.sha256()
    for piece in pieces:
        checksum.update(piece)
    with storage_errors(path, "written"):
        if path.exists() and not overwrite:
            raise StorageError(f"{path} exists: pass overwrite=True to replace it")
        write_file(path, *pieces, checksum.digest())


def load_cache(kind: type[_Cache], path: Path, model: PreTrainedModel) -> _Cache:
    """Read a cache that `save_cache` wrote (`TurboQuantCache.load`); its exact tokens go to the model's device.

    Raises
    ------
    MissingFileError, StorageError, CorruptIndexError, FormatVersionError
        Nothing there; cannot be read; not such a file, truncated or altered; written by a newer version.
    ArgumentError
        The file is of another model, or of the same with other weights or in another dtype.
    """
    header, tensors = _parse(path, _read(path))
    found, wanted = header["model"], _fingerprint(model)
    for part, others in (("dtype", "is another"), ("configuration", "is another"), ("weights", "are others")):
        if found[part] != wanted[part]:
            told = f"{found['kind']}, {found['dtype'].removeprefix('torch.')}"
            raise ArgumentError(f"{path} must be of this model: its {part} {others} ({told})")
    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in header["options"].items()
    }
    cache = kind(model.config, **options, per_layer=dict(header["per_layer"]))
    if len(header["layers"]) != len(cache.layers):
        raise CorruptIndexError(f"{path} must have {len(cache.layers)} layers, got {len(header['layers'])}")
    for number, (layer, state) in enumerate(zip(cache.layers, header["layers"], strict=True)):
        if isinstance(layer, TurboQuantLayer) != ("sequences" in state):
            raise CorruptIndexError(f"{path} has a layer {number} of another kind than the model's")
        read_layer(layer, state, tensors, model.device)
    return cache


def _fingerprint(model: PreTrainedModel) -> dict[str, str]:
    """What tells a model from others: its configuration, numbers from each of its weights, and its dtype."""
    fields = {name: value for name, value in model.config.to_dict().items() if name not in _VOLATILE}
    configuration = hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode())
    weights = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        flat = weight.detach().reshape(-1)
        sample = flat[:: max(flat.numel() // _SAMPLE, 1)][:_SAMPLE]
        weights.update(name.encode() + sample.to("cpu", torch.float32).numpy().astype("<f4").tobytes())
    return {
        "kind": model.config.model_type,
        "configuration": configuration.hexdigest(),
        "weights": weights.hexdigest(),
        "dtype": str(model.dtype),
    }


def _read(path: Path) -> bytes:
    with storage_errors(path, "read"):
        if not path.is_file():
            raise MissingFileError(f"{path} does not exist")
        return path.read_bytes()


def _parse(path: Path, content: bytes) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the header and the tensors of a file whose checksum is right."""
    start = len(_MARK) + _LENGTH_BYTES
    if not content.startswith(_MARK) or len(content) < start + _DIGEST_BYTES:
        raise CorruptIndexError(f"{path} is not a saved KV cache: it does not begin like one")
    if hashlib.sha256(memoryview(content)[:-_DIGEST_BYTES]).digest() != content[-_DIGEST_BYTES:]:
        raise CorruptIndexError(f"{path} is truncated or altered: its checksum does not match")
    end = start + int.from_bytes(content[len(_MARK) : start], "little")
    try:
        header = json.loads(content[start:end])
        if header["version"] != _VERSION:
            raise FormatVersionError(f"{path} has version {header['version']!r}; this tqindex reads {_VERSION}")
        return header, safetensors.torch.load(content[end:-_DIGEST_BYTES])
    except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        if isinstance(error, FormatVersionError):
            raise
        raise CorruptIndexError(f"{path} cannot be used: {error}") from error
