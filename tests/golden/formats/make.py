"""Makes base models as others quantise them, and what they stand for: python tests/golden/formats/make.py

    blocks.json      blocks of each type of GGUF with random bits, and their values by gguf's own dequantize, as base64
    */               tiny models: GGUF by gguf's writer, FP8 as transformers loads it, 4 bits by bitsandbytes
    models.json      of each: the SHA-256 of each tensor's values in f32, by the library that defines the format, and the loss
                     of one row by transformers with these values; of a GGUF also the keys of its configuration

Needs torch, transformers 5.24.0, bitsandbytes, gguf and safetensors. transformers also loads the GGUF by itself here, and must
come to the same weights.
"""
import base64
import hashlib
import json
import shutil
from pathlib import Path

import bitsandbytes.functional as bnb
import gguf
import numpy as np
import torch
import transformers
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from gguf import GGMLQuantizationType as Q
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config
from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

HERE = Path(__file__).resolve().parent
LENGTH = 20
BLOCKS = 512  # values of each type
SMALL = dict(
    hidden_size=32,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=260,  # of the tests' tokenizer of bytes
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)


def text_of(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def random_blocks(rng: np.random.Generator, kind: Q, values: int) -> np.ndarray:
    """Whole blocks with every bit random but those of the scales in half precision, which are small."""
    size, width = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (values // size, width), dtype=np.uint8)
    halves = {Q.Q4_1: [0, 2], Q.Q5_1: [0, 2], Q.Q4_K: [0, 2], Q.Q5_K: [0, 2], Q.Q6_K: [208]}.get(kind, [0])
    for at in halves:
        scale = rng.normal(0, 2e-3 if kind in (Q.Q4_K, Q.Q5_K, Q.Q6_K) else 0.02, (values // size, 1)).astype(np.float16)
        blocks[:, at : at + 2] = scale.view(np.uint8)
    if kind in (Q.Q4_K, Q.Q5_K, Q.Q6_K):  # their own scales are small whole numbers
        blocks[:, halves[0] : halves[0] + 2] = rng.normal(0, 1e-4, (values // size, 1)).astype(np.float16).view(np.uint8)
    return blocks.reshape(-1)


def make_blocks() -> None:
    rng = np.random.default_rng(5)
    cases = []
    for kind in (Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q4_K, Q.Q5_K, Q.Q6_K):
        raw = random_blocks(rng, kind, BLOCKS)
        cases.append(dict(type=kind.name, raw=text_of(raw), values=text_of(gguf.dequantize(raw[None], kind).astype(np.float32))))
    for kind, array in (
        (Q.F32, rng.normal(size=BLOCKS // 2).astype(np.float32)),
        (Q.F16, np.concatenate([rng.normal(size=250), [6e-8, -3e-5, 65504, np.inf, -0.0, 1]]).astype(np.float16)),
        (Q.BF16, rng.integers(0, 0x7F80, BLOCKS // 2, dtype=np.uint16)),
    ):
        raw = array.view(np.uint8)
        values = gguf.dequantize(raw if kind == Q.BF16 else array, kind).astype(np.float32)
        cases.append(dict(type=kind.name, raw=text_of(raw), values=text_of(values)))
    (HERE / "blocks.json").write_text(json.dumps(dict(gguf="0.19.0", cases=cases), indent=1) + "\n")


def permute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """As llama.cpp's convert_hf_to_gguf.py has it for Llama."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    return weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def random_model(config, seed: int):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1 if "norm" in name else 0, 0.12)
    return model.eval()


@torch.no_grad()
def measured(config, values: dict[str, torch.Tensor]) -> dict:
    """The sums of the values, and the loss of a row."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    missing = model.load_state_dict(values, strict=False).missing_keys
    assert missing == (["lm_head.weight"] if config.tie_word_embeddings else []), missing
    model.tie_weights()
    ids = torch.randint(0, config.vocab_size, (LENGTH,), generator=torch.Generator().manual_seed(11))
    loss = torch.nn.functional.cross_entropy(model(ids[None]).logits[0][:-1], ids[1:]).item()
    sums = {name: hashlib.sha256(value.float().contiguous().numpy().tobytes()).hexdigest() for name, value in sorted(values.items())}
    return dict(ids=ids.tolist(), loss=loss, tensors=sums)


LLAMA3 = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
KINDS = {
    "attn_q": Q.Q8_0, "attn_k": Q.Q4_0, "attn_v": Q.Q4_1, "attn_output": Q.BF16, "ffn_gate": Q.Q5_0, "ffn_up": Q.Q5_1,
    "ffn_down": Q.F16, "token_embd": Q.Q4_0, "output": Q.Q8_0,
}


def rope_factors(config) -> torch.Tensor:
    """What llama.cpp's converter writes for Llama 3."""
    rope = config.rope_parameters
    freqs = 1.0 / (rope["rope_theta"] ** (torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim))
    old, low, high, factor = (rope[key] for key in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor", "factor"))
    factors = []
    for freq in freqs:
        wavelength = 2 * np.pi / freq
        if wavelength < old / high:
            factors.append(1)
        elif wavelength > old / low:
            factors.append(factor)
        else:
            smooth = (old / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(factors, dtype=torch.float32)


def tokens() -> list[str]:
    """Of the tests' tokenizer: GPT-2's characters for the bytes 0 to 255, and four marks."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    characters = [chr(byte if byte in plain else next(others)) for byte in range(256)]
    return characters + ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]


def make_gguf(name: str, arch: str, config, kinds: dict[str, Q], split: int = 0) -> dict:
    """`split`: the most tensors of a file."""
    folder = HERE / name
    folder.mkdir()
    model = random_model(config, 7)
    writer = gguf.GGUFWriter(folder / "model.gguf", arch, split_max_tensors=split)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if arch == "llama":
        writer.add_rope_dimension_count(head_dim)
        writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens())
    writer.add_uint32("tokenizer.ggml.eos_token_id", 256)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH_NAMES and {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[arch], config.num_hidden_layers)
    rng = np.random.default_rng(3)
    values = {}
    for hf_name, tensor in model.state_dict().items():
        if hf_name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        own = names.get_name(hf_name, try_suffixes=(".weight", ".bias"))
        part = own.split(".")[2] if own.startswith("blk.") else own.split(".")[0]
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(part) if arch == "llama" else None
        weight = permute(tensor, heads) if heads else tensor
        kind = kinds.get(own, kinds.get(part, Q.F32)) if weight.ndim == 2 else Q.F32
        if kind in (Q.Q4_K, Q.Q5_K, Q.Q6_K):  # which gguf cannot make
            raw = random_blocks(rng, kind, weight.numel()).reshape(weight.shape[0], -1)
        else:
            raw = gguf.quantize(weight.numpy(), kind)
        writer.add_tensor(own, raw, raw_dtype=kind)
        value = gguf.dequantize(raw, kind).astype(np.float32)
        values[hf_name] = torch.from_numpy((unpermute(value, heads) if heads else value).copy())
    if config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", rope_factors(config).numpy(), raw_dtype=Q.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if split == 0:
        theirs = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32).state_dict()
        for tensor, value in values.items():
            assert torch.equal(theirs[tensor], value), f"{name}: transformers reads another {tensor}"
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
    rope = {key: value for key, value in config.rope_parameters.items() if key != "rope_theta"}
    facts = {key: getattr(config, key) for key in (*keys, "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")}
    facts |= dict(head_dim=head_dim, architectures=[type(model).__name__], rope_theta=config.rope_parameters["rope_theta"], rope_scaling=None if rope == {"rope_type": "default"} else rope)
    return dict(config=facts) | measured(config, values)


def save(name: str, config, tensors: dict[str, torch.Tensor], quantisation: dict) -> None:
    folder = HERE / name
    folder.mkdir()
    keys = dict(architectures=["LlamaForCausalLM"], model_type="llama") | SMALL
    keys |= dict(num_hidden_layers=1, intermediate_size=config.intermediate_size, rope_theta=10000.0, tie_word_embeddings=True, quantization_config=quantisation)
    (folder / "config.json").write_text(json.dumps({key: value for key, value in keys.items() if value is not None}, indent=1) + "\n")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def make_fp8(name: str, config, scale_type: torch.dtype, block: tuple[int, int] | None, suffix: str, quantisation: dict) -> dict:
    """`block`: rows and columns that share a scale; without one, (0, 0) for the weight and None for rows."""
    tensors, values = {}, {}
    for key, weight in random_model(config, 9).state_dict().items():
        if key == "lm_head.weight":
            continue
        if not key.endswith("_proj.weight"):
            tensors[key] = weight.bfloat16()
            values[key] = tensors[key].float()
            continue
        rows, columns = weight.shape
        high, wide = (rows, columns) if block == (0, 0) else block or (1, columns)
        down, across = -(-rows // high), -(-columns // wide)
        scales = torch.empty(down, across)
        for i in range(down):
            for j in range(across):
                scales[i, j] = weight[i * high : (i + 1) * high, j * wide : (j + 1) * wide].abs().max() / 448
        if scale_type == torch.float8_e8m0fnu:
            scales = torch.exp2(torch.ceil(torch.log2(scales)))
        scales = scales.to(scale_type)
        full = scales.float().repeat_interleave(high, 0)[:rows].repeat_interleave(wide, 1)[:, :columns]
        codes = (weight / full).clamp(-448, 448).to(torch.float8_e4m3fn)
        values[key] = _dequantize_fp8_weight(codes, scales.float(), [high, wide], torch.float32).clone()
        assert torch.equal(values[key], codes.float() * full)
        tensors[key] = codes
        tensors[key + suffix] = scales.reshape(()) if block == (0, 0) else scales
        if block == (0, 0):
            tensors[key.replace("weight", "activation_scale")] = torch.tensor(0.5)
    save(name, config, tensors, quantisation)
    return measured(config, values)


def dequantized(codes: torch.Tensor, state: bnb.QuantState) -> torch.Tensor:
    """By the library's computation for all devices: its kernel for CPUs is wrong where a row is no whole number of blocks."""
    absmax = state.absmax
    if state.nested:
        absmax = bnb.dequantize_blockwise(absmax, state.state2) + state.offset
    values = _dequantize_4bit_compute(codes.reshape(-1), absmax, state.code, state.blocksize, state.shape, torch.float32)
    if state.shape[1] % state.blocksize == 0:
        assert torch.equal(values, bnb.dequantize_4bit(codes, state))
    return values


def make_nf4(name: str, config, nested: bool, skipped: str = "none") -> dict:
    tensors, values = {}, {}
    for key, weight in random_model(config, 13).state_dict().items():
        if key == "lm_head.weight":
            continue
        if not key.endswith("_proj.weight") or skipped in key:
            tensors[key] = weight.bfloat16()
            values[key] = tensors[key].float()
            continue
        codes, state = bnb.quantize_4bit(weight, blocksize=64, compress_statistics=nested, quant_type="nf4")
        values[key] = dequantized(codes, state)
        tensors[key] = codes
        tensors |= {f"{key}.{part}": value for part, value in state.as_dict(packed=True).items()}
    skip = ["lm_head"] if skipped == "none" else ["lm_head", skipped]
    quantisation = dict(quant_method="bitsandbytes", load_in_4bit=True, load_in_8bit=False, _load_in_4bit=True, bnb_4bit_quant_type="nf4")
    quantisation |= dict(bnb_4bit_use_double_quant=nested, bnb_4bit_compute_dtype="float32", bnb_4bit_quant_storage="uint8", llm_int8_skip_modules=skip)
    save(name, config, tensors, quantisation)
    return measured(config, values)


def main() -> None:
    for old in HERE.glob("*/"):
        shutil.rmtree(old)
    make_blocks()
    small = dict(SMALL, num_hidden_layers=1)
    llama = LlamaConfig(**dict(SMALL, hidden_size=64, intermediate_size=256), num_hidden_layers=2, rope_parameters=LLAMA3, tie_word_embeddings=False)
    plain = dict(rope_type="default", rope_theta=10000.0)
    tied = LlamaConfig(**small, rope_parameters=plain, tie_word_embeddings=True)
    models = {
        "gguf-llama": make_gguf("gguf-llama", "llama", llama, KINDS | {"blk.1.ffn_down.weight": Q.Q6_K, "blk.0.ffn_down.weight": Q.Q4_K}),
        "gguf-qwen2": make_gguf("gguf-qwen2", "qwen2", Qwen2Config(**small, rope_parameters=plain, tie_word_embeddings=True), KINDS),
        "gguf-qwen3": make_gguf("gguf-qwen3", "qwen3", Qwen3Config(**small, head_dim=32, rope_parameters=plain, tie_word_embeddings=True), KINDS, split=6),
    }
    blocks = dict(quant_method="fp8", fmt="e4m3", activation_scheme="dynamic", weight_block_size=[24, 20])
    models["fp8-blocks"] = make_fp8("fp8-blocks", tied, torch.float32, (24, 20), "_scale_inv", blocks)
    powers = dict(blocks, weight_block_size=[16, 16], scale_fmt="ue8m0")
    models["fp8-powers"] = make_fp8("fp8-powers", tied, torch.float8_e8m0fnu, (16, 16), "_scale_inv", powers)
    static = dict(quant_method="fp8", activation_scheme="static", weight_block_size=None)
    models["fp8-tensor"] = make_fp8("fp8-tensor", tied, torch.bfloat16, (0, 0), "_scale_inv", static)
    weights = dict(num_bits=8, type="float", strategy="channel", symmetric=True, dynamic=False)
    rows = dict(quant_method="compressed-tensors", format="float-quantized", config_groups=dict(group_0=dict(targets=["Linear"], weights=weights)))
    models["fp8-rows"] = make_fp8("fp8-rows", tied, torch.bfloat16, None, "_scale", rows)
    wide = LlamaConfig(**dict(small, intermediate_size=544), rope_parameters=plain, tie_word_embeddings=True)
    models["nf4-nested"] = make_nf4("nf4-nested", wide, True)
    models["nf4-plain"] = make_nf4("nf4-plain", tied, False)
    models["nf4-some"] = make_nf4("nf4-some", tied, True, "v_proj")
    (HERE / "models.json").write_text(json.dumps(dict(transformers=transformers.__version__, models=models), indent=1) + "\n")
    for name, facts in models.items():
        print(f"{name}: loss {facts['loss']:.6f}")


if __name__ == "__main__":
    main()
