"""Models and texts that commands are given."""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from tqindex.checks import check_choice, check_integer
from tqindex.errors import ArgumentError, FileFormatError
from tqindex.kv.support import check_name

#: Tokens that a prompt is read in at once.
BLOCK = 512
_DTYPES = ("float32", "bfloat16", "float16")


def load_model(
    name: str, dtype: str = "float32", threads: int | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a causal language model, ready to predict, and its tokenizer.

    Parameters
    ----------
    name : str
        A folder, or a name on the Hub.
    dtype : {"float32", "bfloat16", "float16"}
    threads : int, optional
        Threads of torch, for the whole process.

    Raises
    ------
    ArgumentError
        There is none, or it cannot be used.
    """
    check_choice("dtype", dtype, _DTYPES)
    check_name(name, "a causal language model with its tokenizer")
    if threads is not None:
        torch.set_num_threads(check_integer("threads", threads, 1))
    if not sys.stderr.isatty():
        disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ArgumentError(f"{name} must be a causal language model with its tokenizer: {error}") from error
    return model.eval(), tokenizer


def encode_file(tokenizer: PreTrainedTokenizerBase, path: Path) -> torch.Tensor:
    """Return a text file's tokens, int64 (n,).

    Raises
    ------
    FileFormatError
        It is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} must be text in UTF-8: {error}") from error
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.int64)


@torch.inference_mode()
def read_prompt(model: PreTrainedModel, ids: torch.Tensor, cache: Any) -> torch.Tensor:
    """Read a prompt, int64 (rows, n), with a cache, in blocks; returns the logits behind its last token."""
    for first in range(0, ids.shape[1], BLOCK):
        logits = model(ids[:, first : first + BLOCK], past_key_values=cache, logits_to_keep=1).logits
    return logits
