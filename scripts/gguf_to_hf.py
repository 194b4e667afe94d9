"""Turns a GGUF file of the Llama kind with a GPT-2 style tokenizer into a Hugging Face directory in bf16.

    python gguf_to_hf.py MODEL.gguf FOLDER

It writes config.json, generation_config.json, model.safetensors, tokenizer.json, tokenizer_config.json and
special_tokens_map.json. What a quantised file has lost stays lost: the weights are the dequantised ones. It is not a
general converter: whatever it does not know is an error, never a guess. Whether the result is right is
check_model.py's business.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader, dequantize

# Pre-tokenizers by llama.cpp's name for them. SmolLM's splits every digit off, then cuts as GPT-2 does.
PRE_TOKENIZERS = {
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ],
    },
}
NORMAL, CONTROL = 1, 3  # GGUF token types; a Llama-style byte or unused token would need more than this script knows

NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
BLOCK_NAMES = {
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


def hf_name(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    block, layer, part, kind = name.split(".")
    if block != "blk" or kind != "weight" or part not in BLOCK_NAMES:
        raise SystemExit(f"gguf_to_hf: no name is known for the tensor {name}")
    return f"model.layers.{layer}.{BLOCK_NAMES[part]}.weight"


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k projection, from llama.cpp's order to Hugging Face's.

    llama.cpp rotates neighbouring rows (0,1), (2,3), ...; Hugging Face rotates row i of a head with row i + half.
    """
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def bf16(values: np.ndarray) -> np.ndarray:
    """The upper halves of float32 values as uint16, rounded to nearest, ties to even. Finite values only."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_synced(path: Path, parts) -> None:
    with open(path, "wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value) -> None:
    write_synced(path, [json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"])


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """`tensors` are bf16 as uint16. The format: a length in 8 bytes, a JSON header of it, then the data."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    write_synced(path, [len(text).to_bytes(8, "little"), text, *(tensor.tobytes() for tensor in tensors.values())])


def tokenizer_json(tokens: list[str], kinds: list[int], merges: list[str], pre: str) -> dict:
    if pre not in PRE_TOKENIZERS:
        raise SystemExit(f"gguf_to_hf: pre-tokenizer {pre} is not known; known: {', '.join(PRE_TOKENIZERS)}")
    if unknown := set(kinds) - {NORMAL, CONTROL}:
        raise SystemExit(f"gguf_to_hf: tokens of types {sorted(unknown)} are not known")
    special = [{"id": i, **added(token)} for i, (token, kind) in enumerate(zip(tokens, kinds)) if kind == CONTROL]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": PRE_TOKENIZERS[pre],
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": merges,
        },
    }


def added(token: str) -> dict:
    return {"content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def convert(source: Path, target: Path) -> None:
    reader = GGUFReader(source)

    def field(key: str):
        if key not in reader.fields:
            raise SystemExit(f"gguf_to_hf: {source.name} has no {key}")
        return reader.fields[key].contents()

    for key, known in {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2"}.items():
        if field(key) != known:
            raise SystemExit(f"gguf_to_hf: {key} is {field(key)}; this script knows {known}")

    heads, kv_heads = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    tensors = {}
    for tensor in reader.tensors:
        name = hf_name(tensor.name)
        weight = dequantize(tensor.data, tensor.tensor_type)
        if name.endswith("q_proj.weight"):
            weight = unpermute(weight, heads)
        if name.endswith("k_proj.weight"):
            weight = unpermute(weight, kv_heads)
        tensors[name] = bf16(weight)

    tokens, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    bos, eos, pad = (field(f"tokenizer.ggml.{which}_token_id") for which in ("bos", "eos", "padding"))
    context = field("llama.context_length")
    named = {
        "bos_token": tokens[bos],
        "eos_token": tokens[eos],
        "pad_token": tokens[pad],
        "unk_token": tokens[field("tokenizer.ggml.unknown_token_id")],
    }

    target.mkdir(parents=True)
    write_json(
        target / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "hidden_act": "silu",
            "hidden_size": field("llama.embedding_length"),
            "initializer_range": 0.041666666666666664,
            "intermediate_size": field("llama.feed_forward_length"),
            "max_position_embeddings": context,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": heads,
            "num_hidden_layers": field("llama.block_count"),
            "num_key_value_heads": kv_heads,
            "pad_token_id": pad,
            # float32 in GGUF, so 1e-05 reads 9.99999974e-06: the shortest decimal that rounds to it is what was meant
            "rms_norm_eps": float(str(np.float32(field("llama.attention.layer_norm_rms_epsilon")))),
            "rope_scaling": None,
            "rope_theta": field("llama.rope.freq_base"),
            "tie_word_embeddings": "lm_head.weight" not in tensors,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": len(tokens),
        },
    )
    write_json(target / "generation_config.json", {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad})
    write_json(target / "special_tokens_map.json", named)
    write_json(target / "tokenizer.json", tokenizer_json(tokens, kinds, field("tokenizer.ggml.merges"), field("tokenizer.ggml.pre")))
    write_json(
        target / "tokenizer_config.json",
        {
            "add_prefix_space": field("tokenizer.ggml.add_space_prefix"),
            "added_tokens_decoder": {str(i): added(t) for i, (t, k) in enumerate(zip(tokens, kinds)) if k == CONTROL},
            **named,
            "chat_template": field("tokenizer.chat_template"),
            "clean_up_tokenization_spaces": False,
            "model_max_length": context,
            # not GPT2Tokenizer, with which transformers 5 ignores the pre-tokenizer in tokenizer.json
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
    write_safetensors(target / "model.safetensors", tensors)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
