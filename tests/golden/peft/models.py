"""The tiny base models of the goldens: one of each family, small enough for git, with nothing at its default.

Every parameter is random, norms and biases too, and what sets a family apart is made to matter: the sliding window is shorter
than the rows, the rotary scaling reaches positions that occur, biases are not zero. `check` proves that on each model. Weights
are rounded to the type they are saved in, so that every reader begins with the same numbers.
"""

import copy
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

SMALL = dict(
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=160,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
LLAMA3_ROPE = dict(
    rope_type="llama3",
    rope_theta=500.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)


@dataclass(frozen=True)
class Golden:
    """A model and how it is saved. Each of `plain` undoes one thing that sets it apart from an otherwise equal model."""

    name: str
    config: PreTrainedConfig
    dtype: torch.dtype
    seed: int  # of rows and adapters
    plain: tuple[dict, ...] = ()
    shard: str | None = None
    as_on_hub: bool = False
    norms: tuple[tuple[str, float, float], ...] = ()  # ends of names, the mean of such norms' weights and their deviation


GOLDENS = [
    Golden(
        "llama",
        LlamaConfig(**SMALL, rope_parameters=LLAMA3_ROPE),
        torch.bfloat16,
        seed=1,
        plain=(dict(rope_parameters=dict(rope_type="default", rope_theta=500.0)),),
        shard="64KB",
        as_on_hub=True,
    ),
    Golden("mistral", MistralConfig(**SMALL, sliding_window=6), torch.float16, seed=2, plain=(dict(sliding_window=None),)),
    Golden(
        "qwen2",
        Qwen2Config(**SMALL, tie_word_embeddings=True, use_sliding_window=True, sliding_window=9, max_window_layers=1),
        torch.bfloat16,
        seed=0,
        plain=(dict(sliding_window=None, layer_types=["full_attention"] * 2),),
    ),
    Golden("qwen3", Qwen3Config(**SMALL, tie_word_embeddings=True, head_dim=16), torch.float32, seed=1),
]


def generator(*words: object) -> torch.Generator:
    """Seeded by the words alone, so that one golden does not depend on what was made before it."""
    digest = hashlib.sha256(repr(words).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def write_model(golden: Golden, folder: Path) -> None:
    """A model's folder as `save_pretrained` writes it, without what only generation reads."""
    model = AutoModelForCausalLM.from_config(copy.deepcopy(golden.config), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator(golden.name, name))
            if "norm" in name:
                mean, deviation = next(((mean, deviation) for end, mean, deviation in golden.norms if name.endswith(end)), (1, 0.3))
                parameter.copy_(mean + deviation * noise)
            elif name.endswith("bias") or "embed" in name or "lm_head" in name:
                parameter.copy_(0.3 * noise)  # of a head: logits of deviation 2, far from the uniform guess
            else:
                parameter.copy_(1.3 / parameter.shape[1] ** 0.5 * noise)
        for name, scalar in model.named_buffers():
            if name.endswith("layer_scalar"):
                scalar.copy_(1 + 0.3 * torch.randn(1, generator=generator(golden.name, name)))
    model.to(golden.dtype).save_pretrained(folder, **({"max_shard_size": golden.shard} if golden.shard else {}))
    (folder / "generation_config.json").unlink()
    if golden.as_on_hub:
        write_config_as_on_hub(folder / "config.json")


def write_config_as_on_hub(path: Path) -> None:
    """The keys of transformers 4, which most published models have: rope_theta and rope_scaling apart, torch_dtype."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    if "full_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
        full = config.pop("layer_types").index("full_attention")
        config["sliding_window_pattern"] = full + 1
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(dict(sorted(config.items())), indent=2) + "\n")


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    model.config.use_cache = False
    model.name_or_path = model.config._name_or_path = "model"  # what adapter_config.json will say: never a machine's path
    return model


@torch.no_grad()
def check(golden: Golden, folder: Path, rows: list[list[int]]) -> None:
    """That the model is what was asked for, and that what sets it apart changes its numbers on these rows."""
    model = load_model(folder)
    files = sorted(path.name for path in folder.iterdir())
    assert len([name for name in files if name.endswith(".safetensors")]) == (2 if golden.shard else 1), files
    assert all(parameter.isfinite().all() and parameter.std() > 0.01 for parameter in model.parameters())

    longest = torch.tensor([max(rows, key=len)])
    logits = model(longest).logits
    eager = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    assert torch.allclose(eager(longest).logits, logits, atol=1e-4), "eager and sdpa attention disagree"

    for changes in golden.plain:
        config = copy.deepcopy(model.config)
        for key, value in changes.items():
            setattr(config, key, value)
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
        plain.load_state_dict(model.state_dict())
        far = (plain(longest).logits - logits).abs().max()
        assert far > 0.1, f"{golden.name}: with {changes} the logits differ by {far} only"
    if golden.name == "mistral":
        check_window(model, longest, golden.config.sliding_window)


def check_window(model: torch.nn.Module, ids: torch.Tensor, window: int) -> None:
    """A token sees the last `window` tokens, itself among them: over n layers it depends on n * (window - 1) before it."""
    reach = model.config.num_hidden_layers * (window - 1)
    changed = ids.clone()
    changed[0, 0] = (changed[0, 0] + 1) % model.config.vocab_size
    far = (model(changed).logits - model(ids).logits).abs().amax(dim=(0, 2))
    assert reach + 1 < len(far), "the row is too short to see the window's end"
    assert (far[: reach + 1] > 0).all() and (far[reach + 1 :] == 0).all(), far
