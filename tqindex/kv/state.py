"""What a layer holds, as JSON types and named tensors, and back."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tqindex.errors import CorruptIndexError
from tqindex.kv.layer import TurboQuantLayer
from tqindex.kv.pages import PageBlock, Sequence
from tqindex.kv.quantiser import Packed, Quantiser

#: What a layer of the library learns from its first tokens, beside what it has from the start.
_LEARNED = {"dtype", "device"}


class Tensors:
    """Tensors by name; those that are stored more than once, as beams share pages, are kept once.

    Attributes
    ----------
    by_name : dict of str to torch.Tensor
    """

    def __init__(self) -> None:
        self.by_name: dict[str, torch.Tensor] = {}
        self._names: dict[int, str] = {}
        self._kept: list[Any] = []  # so that no id is given twice

    def add(self, array: npt.NDArray[Any] | torch.Tensor) -> str:
        """Keep an array or a tensor and return its name."""
        if id(array) not in self._names:
            name = str(len(self.by_name))
            tensor = array if isinstance(array, torch.Tensor) else torch.from_numpy(array)
            # Of its own: safetensors refuses tensors that share memory.
            self.by_name[name] = tensor.detach().to("cpu", copy=True).contiguous()
            self._names[id(array)] = name
            self._kept.append(array)
        return self._names[id(array)]


def write_layer(layer: Any, tensors: Tensors) -> dict[str, Any]:
    """Return a layer's state; its tensors are added to `tensors`."""
    if not isinstance(layer, TurboQuantLayer):
        return {"fields": {name: _to_json(value, tensors) for name, value in vars(layer).items()}}
    if not layer.is_initialized:
        return {"sequences": None}
    sequences = [_write_sequence(sequence, tensors) for sequence in layer.sequences]
    shapes = [list(layer.sequences[0].keys.shape[::2]), list(layer.sequences[0].values.shape[::2])]
    return {"sequences": sequences, "shapes": shapes, "dtype": _to_json(layer.dtype, tensors)}


def read_layer(layer: Any, state: dict[str, Any], tensors: dict[str, torch.Tensor], device: torch.device) -> None:
    """Give a new layer a state.

    Raises
    ------
    CorruptIndexError
        The state is not one of such a layer.
    """
    try:
        if isinstance(layer, TurboQuantLayer):
            _read_turbo_layer(layer, state, tensors, device)
            return
        _read_other_layer(layer, state, tensors, device)
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError, AttributeError) as error:
        raise CorruptIndexError(f"a layer's state cannot be used: {error}") from error


# -- packed layers


def _write_sequence(sequence: Sequence, tensors: Tensors) -> dict[str, Any]:
    exact = slice(0, sequence.exact)
    return {
        "padding": sequence.padding,
        "columns": sequence.columns,
        "keys": tensors.add(sequence.keys[:, exact]),
        "values": tensors.add(sequence.values[:, exact]),
        "blocks": [_write_block(block, tensors) for block in sequence.blocks],
    }


def _write_block(block: PageBlock, tensors: Tensors) -> dict[str, Any]:
    sides = {
        side: [{name: tensors.add(array) for name, array in packed.arrays().items()} for packed in getattr(block, side)]
        for side in ("keys", "values")
    }
    return {"tokens": block.tokens, "means": tensors.add(block.means), **sides}


def _read_turbo_layer(
    layer: TurboQuantLayer, state: dict[str, Any], tensors: dict[str, torch.Tensor], device: torch.device
) -> None:
    if state["sequences"] is None:
        return
    batch, dtype = len(state["sequences"]), _from_json(state["dtype"], tensors, device)
    (heads, dim), (_, value_dim) = state["shapes"]
    layer.lazy_initialization(
        torch.empty((batch, heads, 0, dim), dtype=dtype, device=device),
        torch.empty((batch, heads, 0, value_dim), dtype=dtype, device=device),
    )
    # Copies: a view would keep the whole file in memory.
    packed = {name: tensor for name, tensor in tensors.items() if tensor.dtype in (torch.uint32, torch.uint16)}
    arrays = {name: tensor.numpy().copy() for name, tensor in packed.items()}
    for sequence, fields in zip(layer.sequences, state["sequences"], strict=True):
        _read_sequence(sequence, fields, tensors, arrays)


def _read_sequence(
    sequence: Sequence, fields: dict[str, Any], tensors: dict[str, torch.Tensor], arrays: dict[str, npt.NDArray[Any]]
) -> None:
    keys, values = tensors[fields["keys"]], tensors[fields["values"]]
    sequence.padding, sequence.columns, sequence.exact = fields["padding"], fields["columns"], keys.shape[1]
    sequence.keys[:, : sequence.exact], sequence.values[:, : sequence.exact] = keys, values
    sequence.blocks = tuple(_read_block(sequence, block, arrays) for block in fields["blocks"])
    if sequence.packed + sequence.exact != max(sequence.columns - sequence.padding, 0):
        raise ValueError(f"{sequence.packed} packed and {sequence.exact} exact tokens are not {sequence.columns}")


def _read_block(sequence: Sequence, fields: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> PageBlock:
    form, tokens = sequence.form, fields["tokens"]
    pages = -(-tokens // form.page)
    means = _array(arrays, fields["means"], np.uint16, (form.heads, pages if form.center else 0, form.keys.dim))

    def read_side(quantiser: Quantiser, side: str) -> tuple[Packed, ...]:
        # Kernels read arrays without looking at their shapes.
        forms = quantiser.allocate(form.heads, pages * form.page)
        return tuple(_read_packed(one, names, arrays) for one, names in zip(forms, fields[side], strict=True))

    return PageBlock(tokens, read_side(form.keys, "keys"), read_side(form.values, "values"), means)


def _read_packed(form: Packed, names: dict[str, str], arrays: dict[str, npt.NDArray[Any]]) -> Packed:
    fields = form.arrays().items()
    return Packed(**{field: _array(arrays, names[field], one.dtype, one.shape) for field, one in fields})


def _array(
    arrays: dict[str, npt.NDArray[Any]], name: str, dtype: npt.DTypeLike, shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    array = arrays[name]
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"an array must be {np.dtype(dtype)} {shape}, got {array.dtype} {array.shape}")
    return array


# -- the library's layers


def _read_other_layer(
    layer: Any, state: dict[str, Any], tensors: dict[str, torch.Tensor], device: torch.device
) -> None:
    known = set(vars(layer)) | _LEARNED
    for name, value in state["fields"].items():
        if name not in known:
            raise ValueError(f"unknown field {name!r} of {type(layer).__name__}")
        setattr(layer, name, _from_json(value, tensors, device))


def _to_json(value: Any, tensors: Tensors) -> Any:
    """Return a field as JSON types, in which an object with one key stands for what JSON does not have."""
    if isinstance(value, torch.Tensor):
        return {"tensor": tensors.add(value)}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": None}
    if isinstance(value, dict):
        return {"dict": [[key, _to_json(part, tensors)] for key, part in value.items()]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a layer's field must be a number, text or tensor, got {type(value).__name__}")


def _from_json(value: Any, tensors: dict[str, torch.Tensor], device: torch.device) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content].to(device)
    if kind == "dtype":
        return getattr(torch, content)
    if kind == "device":
        return device
    return {key: _from_json(part, tensors, device) for key, part in content}
