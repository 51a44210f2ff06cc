"""A sentence hidden in a long text, at every depth and length: whether it is found."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tqindex.checks import check_integer
from tqindex.errors import ArgumentError
from tqindex.kv.cases import Case
from tqindex.kv.models import read_prompt
from tqindex.kv.support import check_length

_NEEDLE = "\nThe secret number of the old lighthouse is {number}.\n"
_QUESTION = (
    "\n\nQuestion: What is the secret number of the old lighthouse?\nAnswer: The secret number of the old lighthouse is"
)
_NUMBER = "58213"
#: Tokens of the answer; a tokenizer may take two for a digit with its space.
_ANSWER_TOKENS = 8
#: Not found, found: apart for the colour-blind too.
_COLOURS = "#c0552b", "#a9c8e8"


@dataclass(frozen=True)
class Haystack:
    """A prompt of exact length with the sentence at a depth.

    Attributes
    ----------
    length : int
        Tokens, the question included.
    depth : float
        From 0, the sentence first, to 1, the sentence last.
    ids : torch.Tensor int64 (length,)
    """

    length: int
    depth: float
    ids: torch.Tensor


def make_haystacks(
    tokenizer: PreTrainedTokenizerBase, text: str, lengths: Sequence[int], depths: Sequence[float]
) -> list[Haystack]:
    """Return a prompt for every length and depth; the text is repeated where it is too short.

    Raises
    ------
    ArgumentError
        An empty text, a length with no room for the sentence and the question, or a depth outside 0 to 1.
    """
    straw, needle, question = (_encode(tokenizer, part) for part in (text, _NEEDLE.format(number=_NUMBER), _QUESTION))
    if not len(straw):
        raise ArgumentError("text must not be empty")
    haystacks = []
    for length in lengths:
        room = check_integer("length", length, len(needle) + len(question) + 1) - len(needle) - len(question)
        filler = straw.repeat(-(-room // len(straw)))[:room]
        for depth in depths:
            if not 0 <= depth <= 1:
                raise ArgumentError(f"depth must be from 0 to 1, got {depth}")
            at = round(depth * room)
            haystacks.append(Haystack(length, depth, torch.cat([filler[:at], needle, filler[at:], question])))
    return haystacks


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.int64)


@torch.inference_mode()
def is_found(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, haystack: Haystack, case: Case) -> bool:
    """Say whether the greedy answer, read with a cache, holds the hidden number.

    Raises
    ------
    ArgumentError
        More tokens than the model's context.
    """
    check_length(model.config, haystack.length, "length")
    cache, ids = case.make(model.config), haystack.ids.to(model.device)[None]
    logits = read_prompt(model, ids, cache)
    answer = []
    for _ in range(_ANSWER_TOKENS):
        answer.append(int(logits[0, -1].argmax()))
        logits = model(torch.tensor([answer[-1:]], device=model.device), past_key_values=cache).logits
    return _NUMBER in tokenizer.decode(answer)


def draw_heat_map(path: Path, found: dict[str, dict[tuple[int, float], bool]]) -> None:
    """Write a PNG with one panel for every cache: lengths to the right, depths down, found or not.

    Parameters
    ----------
    path : Path
    found : by cache's name, by (length, depth)
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    places = list(next(iter(found.values())))
    lengths, depths = sorted({length for length, _ in places}), sorted({depth for _, depth in places})
    width = max(0.45 * len(lengths), 2.0)
    figure = Figure(figsize=(1 + width * len(found), 1.5 + 0.35 * len(depths)), layout="constrained")
    panels: Any = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for panel, (name, cells) in zip(panels, found.items(), strict=True):
        grid = [[cells[length, depth] for length in lengths] for depth in depths]
        panel.imshow(grid, aspect="auto", vmin=0, vmax=1, cmap=ListedColormap(_COLOURS))
        for row, column in np.argwhere(np.logical_not(grid)):
            panel.text(column, row, "not", ha="center", va="center", fontsize=8, color="white")
        panel.set_title(f"{name}: {sum(cells.values())} of {len(cells)} found", fontsize=9)
        panel.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], rotation=60, fontsize=8)
        panel.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths], fontsize=8)
        panel.set_xlabel("tokens")
    panels[0].set_ylabel("depth of the sentence")
    figure.savefig(path, format="png", dpi=150)
