"""How often a packed cache leads to the same next token as the uncompressed one.

Fed the uncompressed cache's own tokens, each position is one comparison. Running free, one other token changes all
that follow, so that this share says less about the cache than about the text.
"""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from tqindex.checks import check_integer
from tqindex.kv.cases import Case


@dataclass(frozen=True)
class Agreement:
    """Shares of equal greedy tokens: fed with the uncompressed cache's, and running free."""

    name: str
    fed: float
    free: float


def greedy_tokens(model: PreTrainedModel, prompts: torch.Tensor, case: Case, tokens: int) -> torch.Tensor:
    """Return the tokens that follow prompts, int64 (rows, n) of equal lengths, when each most probable one is fed."""
    return _follow(model, prompts, case, tokens, None)


def agreement(model: PreTrainedModel, prompts: torch.Tensor, expected: torch.Tensor, case: Case) -> Agreement:
    """Compare a cache's next tokens with those of the uncompressed one, `greedy_tokens` of `tqindex.kv.cases.DENSE`.

    Parameters
    ----------
    model : PreTrainedModel
    prompts : torch.Tensor int64 (rows, n)
    expected : torch.Tensor int64 (rows, tokens)
    case : Case
    """
    fed = _follow(model, prompts, case, expected.shape[1], expected)
    free = greedy_tokens(model, prompts, case, expected.shape[1])
    return Agreement(case.name, float((fed == expected).float().mean()), float((free == expected).float().mean()))


def cut_prompts(ids: torch.Tensor, rows: int, length: int) -> torch.Tensor:
    """Return prompts, (rows, length), that begin at equal distances in a text; they may overlap."""
    check_integer("prompts", rows, 1)
    check_integer("length of a prompt", length, 1, len(ids))
    starts = [row * (len(ids) - length) // max(rows - 1, 1) for row in range(rows)]
    return torch.stack([ids[start : start + length] for start in starts])


@torch.inference_mode()
def _follow(
    model: PreTrainedModel, prompts: torch.Tensor, case: Case, tokens: int, fed: torch.Tensor | None
) -> torch.Tensor:
    cache = case.make(model.config)
    step, found = prompts.to(model.device), []
    for column in range(tokens):
        chosen = model(step, past_key_values=cache, logits_to_keep=1).logits[:, -1].argmax(dim=1)
        found.append(chosen.cpu())
        step = (chosen if fed is None else fed[:, column].to(model.device))[:, None]
    return torch.stack(found, dim=1)
