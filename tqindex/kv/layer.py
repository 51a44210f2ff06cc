"""One attention layer's cache, as transformers asks for it."""

import copy
from collections.abc import Sequence as Many
from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin

from tqindex.errors import ArgumentError
from tqindex.kv.attention import ATTENTION, CodesHandle, without_gradient
from tqindex.kv.options import LayerOptions
from tqindex.kv.pages import PageForm, Sequence, SequenceView
from tqindex.kv.quantiser import Quantiser


class TurboQuantLayer(CacheLayerMixin):
    """Keys and values of one layer of full attention, packed.

    Made by `TurboQuantCache`. `keys` and `values` stay None: what attention reads is made anew in every call.

    Parameters
    ----------
    options : LayerOptions
    config : PreTrainedConfig, optional
        The decoder's, which tells what attention reads the layer; without one it is read densely.

    Attributes
    ----------
    options : LayerOptions
    sequences : list of Sequence
        One for each row of the batch.
    """

    is_sliding = False
    is_croppable = True

    def __init__(self, options: LayerOptions, config: Any = None) -> None:
        super().__init__()
        self.options, self.config = options, config
        self.sequences: list[Sequence] = []

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make room for a batch like the given keys and values, (batch, heads, tokens, dim)."""
        options = self.options
        batch, heads, _, dim = key_states.shape
        self.dtype, self.device = key_states.dtype, key_states.device
        keys = Quantiser(dim, options.key_bits, options.kind, options.seed)
        values = Quantiser(value_states.shape[3], options.value_bits, options.value_kind, options.seed, options.page)
        self.form = PageForm(keys, values, heads, options.sinks, options.recent, options.page, options.center)
        self.sequences = [self._new_sequence(pads, key_states, value_states) for pads in options.paddings(batch)]
        self.is_initialized = True

    def _new_sequence(self, padding: int, keys: torch.Tensor, values: torch.Tensor) -> Sequence:
        key_room, value_room = (
            tokens.new_empty((tokens.shape[1], self.form.room, tokens.shape[3])) for tokens in (keys, values)
        )
        return Sequence(self.form, padding, key_room, value_room)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Add tokens, (batch, heads, tokens, dim), and return all keys and values as the attention reads them.

        The tokens of this call, and those still in the window, are read exactly; pages are packed after that.

        Raises
        ------
        ArgumentError
            A batch of another size than before, or other heads.
        VectorError
            Keys or values that are not finite.
        """
        # In the layer's own precision whatever autocast is told; gradients end here, and say so.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(key_states.device.type, enabled=False):
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            if len(key_states) != len(self.sequences):
                raise ArgumentError(f"the batch must have {len(self.sequences)} rows as before, got {len(key_states)}")
            known, given = (self.form.heads, self.form.keys.dim), (key_states.shape[1], key_states.shape[3])
            if given != known:
                raise ArgumentError(f"a cache must go on with its own model: of {known} heads and width, got {given}")
            new = zip(self.sequences, key_states, value_states, strict=True)
            views = [sequence.append(keys, values) for sequence, keys, values in new]
            if self.reads_codes():
                handle = CodesHandle(views, self.form)
                return handle, handle
            keys, values = self.decode(views)
        return without_gradient(keys, key_states), without_gradient(values, value_states)

    def __deepcopy__(self, memo: dict[int, Any]) -> "TurboQuantLayer":
        """Copy all but the model's configuration, by which the layer learns of its attention."""
        layer = self.__class__.__new__(self.__class__)
        memo[id(self)] = layer
        layer.__dict__ = {
            name: value if name == "config" else copy.deepcopy(value, memo) for name, value in vars(self).items()
        }
        return layer

    def reads_codes(self) -> bool:
        """Whether the model's attention reads codes now: it can be changed between calls."""
        return getattr(self.config, "_attn_implementation", None) == ATTENTION

    def decode(self, views: Many[SequenceView]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return dense keys and values, (batch, heads, columns, dim), zero in the columns of padding."""
        columns = max(view.columns for view in views)
        outs = []
        for side in ("keys", "values"):
            exact = getattr(views[0], side)
            out = exact.new_zeros((len(views), exact.shape[0], columns, exact.shape[2]))
            for row, view in zip(out, views, strict=True):
                view.write_dense(side, row[:, view.padding :], self.form)
            outs.append(out)
        return outs[0], outs[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of columns of the mask and its offset."""
        return self.get_seq_length() + int(query_length), 0

    def get_seq_length(self) -> int:
        """Return the tokens seen, padding included."""
        return self.sequences[0].columns if self.sequences else 0

    def get_max_length(self) -> int:
        """Return -1: there is no limit."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, given as a number of at most 0.

        Packed pages that are cut keep their codes and their mean. Where at most `recent` tokens are forgotten, none of
        them was packed: fed again, they give the same cache as before.

        Raises
        ------
        ArgumentError
            A positive number, which older versions of transformers took for the length to keep.
        """
        if tokens_to_remove > 0:
            raise ArgumentError(f"tokens_to_remove must be at most 0, got {tokens_to_remove}")
        for sequence in self.sequences:
            sequence.crop(-int(tokens_to_remove))

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Let row i go on from what is row beam_idx[i]."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row so many times; copies share the packed pages."""
        self.sequences = [copy for sequence in self.sequences for copy in sequence.copies(repeats)]

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows that int64 or bool indices, (rows,), name, in their order."""
        self.sequences = [self.sequences[i].copy() for i in torch.arange(len(self.sequences))[indices.cpu()].tolist()]

    @property
    def batch_size(self) -> int:
        """Rows of the batch; as for the library's layers there is no such attribute before the first call."""
        if not self.is_initialized:
            raise AttributeError("a layer has no batch_size before its first tokens")
        return len(self.sequences)

    def reset(self) -> None:
        """Forget everything."""
        self.sequences = []
        self.is_initialized = False

    def offload(self) -> None:
        """Move what is on the device, the exact tokens, to the CPU."""
        self._move("cpu")

    def prefetch(self) -> None:
        """Undo `offload`."""
        if self.is_initialized:
            self._move(self.device)

    def _move(self, device: torch.device | str) -> None:
        for sequence in self.sequences:
            sequence.keys, sequence.values = sequence.keys.to(device), sequence.values.to(device)
