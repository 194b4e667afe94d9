"""Proves that a Hugging Face directory of the Llama kind is a language model, not only files of the right size.

    python check_model.py FOLDER

The tokenizer must give back every one of a list of hard strings; every tensor must be there, of the right shape and
finite; and the model must find a plain English sentence unsurprising and continue another sensibly. The forward pass
below is the textbook one in numpy, on purpose: it shares no line with mlora, so neither can hide the other's mistake.
Rows of q and k in the wrong order, the likeliest fault of a conversion, pass every check but the last two.
"""

import json
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

HARD_STRINGS = [
    "",
    " ",
    "Hello, world!",
    "  two spaces, a\ttab and\r\nlines\n\n\n end ",
    "don't we'll I'M they've",
    "0 1 22 333 4096 3.14159 1,000,000 2024-02-29 v1.2.3-rc4",
    "naïve café, Ærøskøbing, Łódź, e\u0301",
    "Привет, мир. Γειά σου. שלום. مرحبا",
    "你好，世界。こんにちは 안녕하세요",
    "🙂👩‍👩‍👧‍👦🇨🇭 ﷽ ½ ²",
    "def f(x):\n    return {'a': [x ** 2, ~x]}  # <- see https://example.org/?q=1&r=%20",
    "SELECT * FROM t WHERE a <> 'b\\'s' AND c >= 1e-5;",
    "find /var -name '*.log' -size +10M -mtime -7",
    '{"intent": "refund", "order": 48213}',
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "\u00a0\u200b\ufeff\u2028\u0000\u001b[0m",
    "a" * 300,
]
# Loss in nats a token, and continuations, of the right conversion; in brackets with q and k in the wrong order.
SENTENCE = (
    "Once upon a time there was a little girl who lived with her mother in a small house at the edge of the forest. "
    "Every morning she walked to the village to buy bread and milk."
)
SENTENCE_LOSS = 2.9  # 2.4 [3.5]
CONTINUATIONS = {
    "The capital of France is": " Paris",
    "Monday, Tuesday, Wednesday, Thursday,": " Friday, Saturday, Sunday",  # [2020...]
}


def fail(message: str) -> None:
    raise SystemExit(f"check_model: {message}")


def check_tokenizer(tokenizer: Tokenizer) -> None:
    for text in HARD_STRINGS:
        ids = tokenizer.encode(text).ids
        back = tokenizer.decode(ids, skip_special_tokens=False)
        if back != text:
            fail(f"the tokenizer turns {text!r} into {back!r}")
    numbers = tokenizer.encode("12 345").tokens
    if numbers != ["1", "2", "Ġ", "3", "4", "5"]:
        fail(f"digits are not split one by one: {numbers}")
    if len(tokenizer.encode("<|im_start|>").ids) != 1:
        fail("<|im_start|> is not one token")


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Tensors as float32. Only bf16, which is what gguf_to_hf.py writes and what the hub has."""
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "BF16":
            fail(f"{name} is {entry['dtype']}, not BF16")
        first, last = entry["data_offsets"]
        half = np.frombuffer(data, np.uint16, (last - first) // 2, begin + first)
        tensors[name] = (half.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])
    return tensors


def expected_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{at}.self_attn.{p}_proj.weight": (rows, hidden) for p, rows in zip("qkvo", (hidden, kv, kv, hidden))}
        shapes |= {f"{at}.mlp.{p}_proj.weight": (inner, hidden) for p in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (hidden, inner)
    return shapes


def check_tensors(config: dict, tensors: dict[str, np.ndarray]) -> None:
    expected = expected_shapes(config)
    if missing := expected.keys() ^ tensors.keys():
        fail(f"tensors missing or unexpected: {', '.join(sorted(missing)[:5])}")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            fail(f"{name} is {tensors[name].shape}, expected {shape}")
        if not np.isfinite(tensors[name]).all():
            fail(f"{name} has values that are not finite")


def log_probabilities(config: dict, w: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """Of the next token after each of `ids`: [tokens, vocabulary], float32."""
    heads, kv_heads, eps = config["num_attention_heads"], config["num_key_value_heads"], config["rms_norm_eps"]
    size, count = config["hidden_size"] // heads, len(ids)

    def norm(x, weight):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight

    def split(x, parts):
        return x.reshape(count, parts, size).swapaxes(0, 1)

    angle = np.arange(count)[:, None] / config["rope_theta"] ** (np.arange(0, size, 2) / size)
    cos, sin = (np.tile(f(angle), 2).astype(np.float32) for f in (np.cos, np.sin))

    def rotate(x):
        return x * cos + np.concatenate((-x[..., size // 2 :], x[..., : size // 2]), -1) * sin

    future = np.triu(np.full((count, count), -np.inf, np.float32), 1)
    x = w["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        at = {part: w[f"model.layers.{layer}.{part}.weight"].T for part in BLOCK}
        h = norm(x, at["input_layernorm"])
        q = rotate(split(h @ at["self_attn.q_proj"], heads))
        k, v = rotate(split(h @ at["self_attn.k_proj"], kv_heads)), split(h @ at["self_attn.v_proj"], kv_heads)
        k, v = (t.repeat(heads // kv_heads, 0) for t in (k, v))
        scores = q @ k.swapaxes(1, 2) / np.float32(size**0.5) + future
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        x = x + mixed.swapaxes(0, 1).reshape(count, -1) @ at["self_attn.o_proj"]
        h = norm(x, at["post_attention_layernorm"])
        gate = h @ at["mlp.gate_proj"]
        x = x + (gate / (1 + np.exp(-gate)) * (h @ at["mlp.up_proj"])) @ at["mlp.down_proj"]
    logits = norm(x, w["model.norm.weight"]) @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


BLOCK = ["input_layernorm", "post_attention_layernorm", *(f"self_attn.{p}_proj" for p in "qkvo")]
BLOCK += [f"mlp.{p}_proj" for p in ("gate", "up", "down")]


def check_language(config: dict, tensors: dict[str, np.ndarray], tokenizer: Tokenizer) -> str:
    ids = tokenizer.encode(SENTENCE).ids
    scores = log_probabilities(config, tensors, ids)
    loss = -float(np.mean([scores[i, token] for i, token in enumerate(ids[1:])]))
    if not loss < SENTENCE_LOSS:
        fail(f"loss {loss:.2f} nats a token on {SENTENCE!r}; at most {SENTENCE_LOSS} is sensible")

    for beginning, expected in CONTINUATIONS.items():
        ids = tokenizer.encode(beginning).ids
        begun, more = len(ids), len(tokenizer.encode(expected).ids)
        for _ in range(more):
            ids.append(int(log_probabilities(config, tensors, ids)[-1].argmax()))
        continuation = tokenizer.decode(ids[begun:])
        if continuation != expected:
            fail(f"{beginning!r} continues with {continuation!r}, not {expected!r}")
    return f"{beginning}{continuation}  (loss on a plain sentence: {loss:.2f} nats a token)"


def main(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    check_tokenizer(tokenizer)
    tensors = read_safetensors(folder / "model.safetensors")
    check_tensors(config, tensors)
    print(f"check_model: {check_language(config, tensors, tokenizer)}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
