"""Attention on packed codes, registered with transformers as "tqindex": no dense copy of what is packed.

The query is rotated once; a packed key's logit is a product with levels, plus the product with its page's mean; the
softmax goes over packed and exact tokens together; packed values are summed in the rotated basis, and the sum is
rotated back once. For many queries in one call, pages are decoded block by block in the rotated basis, since then
matrix products are faster than products with codes, and the softmax is kept up to date block by block.

Tensors of a CUDA device are computed with there: few queries by the kernels of `tqindex.gpu.attention`, which
have run on an H100 in tests; for many, pages are decoded on the CPU and sent. All other tensors go to the CPU.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from tqindex.errors import ArgumentError
from tqindex.kernels.kv import score_means
from tqindex.kv.device import device_reader
from tqindex.kv.pages import PageForm, SequenceView

#: The name by which models are told to use this attention: ``model.set_attn_implementation(ATTENTION)``.
ATTENTION = "tqindex"
#: Up to so many queries of a head at once are multiplied with codes.
FEW_QUERIES = 16
#: Exact tokens, and rows of queries, that are taken together when there are many.
_TOKENS_AT_ONCE, _ROWS_AT_ONCE = 1024, 2048
#: Arguments that change the logits in ways that are not implemented.
_REFUSED = ("position_bias", "block_mask", "block_table", "cu_seq_lens_k")


class CodesHandle:
    """What a layer's update returns in place of keys and values when the attention reads codes.

    Attributes
    ----------
    views : list of SequenceView
    form : PageForm
    """

    def __init__(self, views: list[SequenceView], form: PageForm) -> None:
        self.views, self.form = views, form

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"a model that changes keys or values after caching them cannot use attention {ATTENTION!r} (it asked for "
            f"{name!r}): use another, which reads the same cache densely"
        )


class _WithoutGradient(torch.autograd.Function):
    """What is computed from codes, as if it came from a tensor that wants a gradient: asking for one fails."""

    @staticmethod
    def forward(_: Any, out: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        del source
        return out.view_as(out)

    @staticmethod
    def backward(_: Any, *gradients: torch.Tensor) -> Any:
        del gradients
        raise ArgumentError(
            "a model must be trained without packed caches and without attention 'tqindex': they have no gradients"
        )


def without_gradient(out: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Return out; where source wants a gradient, in a form that refuses to give one."""
    if not torch.is_grad_enabled() or not source.requires_grad:
        return out
    given: torch.Tensor = _WithoutGradient.apply(out, source)
    return given


@dataclass(frozen=True)
class _Rule:
    """What decides the weights besides queries and keys."""

    scaling: float
    softcap: float | None
    sinks: torch.Tensor | None  # one more logit for each head, (query heads,)
    causal: bool


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: Any,
    value: Any,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it; `key` and `value` are a `CodesHandle`, or tensors of other layers.

    Parameters
    ----------
    module : torch.nn.Module
    query : torch.Tensor (batch, heads, tokens, dim)
    attention_mask : torch.Tensor (batch, 1 or heads, tokens, columns), optional
        True where a query sees a column, or numbers to be added to logits.
    scaling : float, optional
        By default dim**-.5.
    softcap : float, optional
        Logits become softcap * tanh(logits / softcap).
    s_aux : torch.Tensor (heads,), optional
        A logit more for every softmax, of a token without value.

    Returns
    -------
    torch.Tensor (batch, tokens, heads, dim), and None for the weights, which are not kept.

    Raises
    ------
    ArgumentError
        Dropout, or an argument that is not implemented; left_padding that the mask contradicts; on a GPU, kind
        "trellis", a page or head_dim beyond 512.
    DeviceError
        Tensors of a CUDA device without CuPy, or the device failed; the message says what to do.
    """
    refused = [name for name in _REFUSED if kwargs.get(name) is not None]
    if refused or dropout:
        raise ArgumentError(f"attention {ATTENTION!r} must be called without {refused[0] if refused else 'dropout'}")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    rule = _Rule(query.shape[3] ** -0.5 if scaling is None else scaling, softcap, s_aux, causal)
    views, form = _as_views(key, value)
    place = query.device if query.is_cuda else torch.device("cpu")
    if form is not None:  # what is missing is told before pages are read
        reader = device_reader(place)
        if reader is not None and form.trellis:
            raise ArgumentError(
                f"attention {ATTENTION!r} must be of kind 'mse' or 'prod' on a GPU, got 'trellis': use another "
                "attention, which reads the same cache densely"
            )
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        outs = []
        for row, view in enumerate(views):
            queries = query[row].to(place, torch.float32)
            mask = None if attention_mask is None else attention_mask[min(row, len(attention_mask) - 1)].to(place)
            outs.append(_attend_sequence(queries, view, form, mask, rule))
        out = torch.stack(outs).transpose(1, 2).contiguous().to(query.device, query.dtype)
    return without_gradient(out, query), None


def _as_views(key: Any, value: Any) -> tuple[list[SequenceView], PageForm | None]:
    if isinstance(key, CodesHandle):
        return key.views, key.form
    return [SequenceView(0, 0, (), keys, values) for keys, values in zip(key, value, strict=True)], None


def _attend_sequence(
    queries: torch.Tensor, view: SequenceView, form: PageForm | None, mask: torch.Tensor | None, rule: _Rule
) -> torch.Tensor:
    """Return the attention of one sequence's queries, float32 (query heads, tokens, dim), as such."""
    heads, tokens, dim = queries.shape
    grouped = (queries * rule.scaling).reshape(view.keys.shape[0], -1, tokens, dim)
    if mask is not None:
        if mask.dtype == torch.bool and view.padding < view.columns and mask[:, -1, : view.padding].any():
            raise ArgumentError(
                f"left_padding must be of columns that the attention mask leaves out, got {view.padding} in a row "
                "whose last token sees some of them"
            )
        mask = mask[:, :, view.padding : view.columns]
    elif rule.causal and tokens > 1:
        seen = view.columns - view.padding
        mask = torch.ones((1, tokens, seen), dtype=torch.bool, device=queries.device).tril(seen - tokens)
    sinks = None
    if rule.sinks is not None:
        sinks = rule.sinks.to(grouped).reshape(*grouped.shape[:2], 1, 1).expand(*grouped.shape[:3], 1)
    attention = _attend_few if grouped.shape[1] * tokens <= FEW_QUERIES else _attend_many
    return attention(grouped, view, form, mask, rule.softcap, sinks).reshape(heads, tokens, -1)


def _finish(logits: torch.Tensor, softcap: float | None, mask: torch.Tensor | None) -> torch.Tensor:
    """Cap and mask logits, (..., tokens, columns)."""
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if mask is None:
        return logits
    return logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask.to(torch.float32)


def _attend_few(
    queries: torch.Tensor,
    view: SequenceView,
    form: PageForm | None,
    mask: torch.Tensor | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """All logits at once, those of packed keys from their codes.

    queries: (heads, group, tokens, dim), scaled; mask: (1 or heads * group, tokens, columns); sinks: (heads, group,
    tokens, 1)
    """
    heads, group, tokens, dim = queries.shape
    flat = queries.reshape(heads, -1, dim)
    keys, values = view.keys.to(queries), view.values.to(queries)
    first, packed = min(view.sinks, keys.shape[1]), view.packed
    exact = flat @ keys.transpose(1, 2)
    logits = flat.new_empty((*flat.shape[:2], packed + keys.shape[1]))
    logits[:, :, :first], logits[:, :, first + packed :] = exact[:, :, :first], exact[:, :, first:]
    if form is not None and packed:
        _kernels(queries.device)[0](flat, view, form, logits, first)
    by_head = logits.reshape(heads * group, tokens, -1)
    logits = _finish(by_head, softcap, mask).reshape(logits.shape)
    if sinks is not None:
        logits = torch.cat([logits, sinks.reshape(*flat.shape[:2], 1)], dim=2)
    # A query that sees nothing, as those of padding: zeros, not NaN.
    weights = torch.softmax(logits, dim=2).nan_to_num_(0.0)
    out = weights[:, :, :first] @ values[:, :first]
    out += weights[:, :, first + packed : packed + keys.shape[1]] @ values[:, first:]
    if form is not None and packed:
        out += _kernels(queries.device)[1](weights, view, form, first)
    return out


def _kernels(device: torch.device) -> tuple[Callable[..., None], Callable[..., torch.Tensor]]:
    """Return what reads codes for tensors of a device: `score_blocks` and `sum_blocks`, or the same on a GPU."""
    reader = device_reader(device)
    return (score_blocks, sum_blocks) if reader is None else (reader.score_blocks, reader.sum_blocks)


def score_blocks(queries: torch.Tensor, view: SequenceView, form: PageForm, logits: torch.Tensor, first: int) -> None:
    """Write the packed tokens' logits to columns `first` on; queries: (heads, n, dim), logits: (heads, n, columns)."""
    shares = form.keys.split_queries(queries @ form.keys.rotation.T)
    at = first
    for block in view.blocks:
        if form.center:
            score_means(block.means, form.page, queries.numpy(), at, block.tokens, logits.numpy())
        else:
            logits[:, :, at : at + block.tokens] = 0
        form.keys.add_scores(block.keys, shares, at, block.tokens, logits.numpy())
        at += block.tokens


def sum_blocks(weights: torch.Tensor, view: SequenceView, form: PageForm, first: int) -> torch.Tensor:
    """Return the packed values' sum by weights from column `first` on; weights: (heads, n, columns)."""
    sums, at = form.values.make_sums(*weights.shape[:2]), first
    for block in view.blocks:
        form.values.add_values(block.values, weights.numpy(), at, block.tokens, sums)
        at += block.tokens
    return form.values.join_sums(sums)


def _attend_many(
    queries: torch.Tensor,
    view: SequenceView,
    form: PageForm | None,
    mask: torch.Tensor | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """The same for many queries: block by block, with the softmax of what has been seen (Milakov, Gimelshein 2018)."""
    heads, group, tokens, dim = queries.shape
    step = max(1, _ROWS_AT_ONCE // group)
    cuts = [slice(at, min(at + step, tokens)) for at in range(0, tokens, step)]
    width = view.values.shape[2]
    totals = [
        [_Total(group, cut, width, None if sinks is None else sinks[head, :, cut], queries.device) for cut in cuts]
        for head in range(heads)
    ]
    rotated = None if form is None else queries @ form.keys.rotation.T.to(queries.device)
    for at, packed, keys, values in _pieces(view, form, queries.device):
        source = rotated if packed and rotated is not None else queries
        columns = slice(at, at + keys.shape[1])
        for head in range(heads):
            for total in totals[head]:
                seen = _cut_mask(mask, head, group, total.cut, columns)
                if seen is not None and seen.dtype == torch.bool and not seen.any():
                    continue
                products = source[head, :, total.cut].reshape(-1, dim) @ keys[head].T
                logits = _finish(products.reshape(group, -1, keys.shape[1]), softcap, seen)
                total.add(logits, values[head], packed)
    rotation = None if form is None else form.values.rotation.to(queries.device)
    out = queries.new_empty((heads, group, tokens, width))
    for head in range(heads):
        for total in totals[head]:
            out[head, :, total.cut] = total.result(rotation)
    return out


def _cut_mask(mask: torch.Tensor | None, head: int, group: int, cut: slice, columns: slice) -> torch.Tensor | None:
    """Return a mask's part for one head's group of queries, some tokens and columns."""
    if mask is None:
        return None
    heads = slice(0, 1) if len(mask) == 1 else slice(head * group, (head + 1) * group)
    return mask[heads, cut, columns]


def _pieces(
    view: SequenceView, form: PageForm | None, device: torch.device
) -> Iterator[tuple[int, bool, torch.Tensor, torch.Tensor]]:
    """Give tokens in pieces: their first column, whether they are packed, keys and values, (heads, tokens, dim).

    Packed ones are in the rotated basis; they are decoded on the CPU.
    """
    exact = view.keys.shape[1]
    first, at = min(view.sinks, exact), 0
    for start, stop in ((0, first), (first, exact)):
        for cut in range(start, stop, _TOKENS_AT_ONCE):
            tokens = slice(cut, min(cut + _TOKENS_AT_ONCE, stop))
            keys, values = (side[:, tokens].to(device, torch.float32) for side in (view.keys, view.values))
            yield at, False, keys, values
            at += keys.shape[1]
        if start == 0 and form is not None:
            for block in view.blocks:
                keys, values = (block.decode(side, form, rotated=True).to(device) for side in ("keys", "values"))
                yield at, True, keys, values
                at += block.tokens


class _Total:
    """The values' mean by softmax for some tokens' queries of one head, from the logits seen so far.

    Parameters
    ----------
    group : int
        Query heads of the head.
    cut : slice
        The tokens.
    width : int
        Channels of values.
    sinks : torch.Tensor (group, tokens, 1), optional
        Logits without value.
    device : torch.device
    """

    def __init__(self, group: int, cut: slice, width: int, sinks: torch.Tensor | None, device: torch.device) -> None:
        self.cut = cut
        shape = group, cut.stop - cut.start, 1
        self._largest = torch.full(shape, -torch.inf, device=device) if sinks is None else sinks.clone()
        self._weight = torch.full(shape, 0.0 if sinks is None else 1.0, device=device)
        self._sums = {packed: torch.zeros((shape[0] * shape[1], width), device=device) for packed in (False, True)}

    def add(self, logits: torch.Tensor, values: torch.Tensor, packed: bool) -> None:
        """Add values, (columns, width), by logits, (group, tokens, columns); packed: in the rotated basis."""
        largest = torch.maximum(self._largest, logits.amax(dim=2, keepdim=True))
        # What has seen nothing yet has no largest logit.
        base = largest.masked_fill(largest == -torch.inf, 0.0)
        fading = torch.exp(self._largest - base)
        weights = torch.exp(logits - base)
        self._weight = self._weight * fading + weights.sum(dim=2, keepdim=True)
        for packed_or_not in self._sums:
            self._sums[packed_or_not] *= fading.reshape(-1, 1)
        self._sums[packed].addmm_(weights.reshape(len(self._sums[packed]), -1), values)
        self._largest = largest

    def result(self, rotation: torch.Tensor | None) -> torch.Tensor:
        """Return (group, tokens, width); zeros where nothing was seen. rotation: from the packed basis to channels."""
        total = self._sums[False] if rotation is None else self._sums[False] + self._sums[True] @ rotation
        return total.reshape(*self._weight.shape[:2], -1) / self._weight.masked_fill(self._weight == 0.0, 1.0)


AttentionInterface.register(ATTENTION, attend)
# Without a mask of its own an attention gets none at all.
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
