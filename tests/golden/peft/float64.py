"""Makes a transformers model compute in float64 throughout: the yardstick for what float32 itself loses.

`model.double()` alone is not enough: the norms, the rotary tables and the frequencies under them go through float32 whatever
the model's type is.
"""

import math
from types import MethodType

import torch


def to_float64(model: torch.nn.Module) -> torch.nn.Module:
    """In place. Attention has to be sdpa, which computes in its inputs' type (eager takes its softmax in float32)."""
    assert model.config._attn_implementation == "sdpa"
    frequencies = rope_frequencies(model.config)
    model.double()
    for module in model.modules():
        kind = type(module).__name__
        if kind.endswith("RMSNorm"):
            module.forward = MethodType(rms_norm, module)
        if kind.endswith("RotaryEmbedding"):
            assert torch.allclose(module.inv_freq, frequencies, rtol=1e-6), "not transformers' frequencies"
            module.frequencies = frequencies
            module.forward = MethodType(rotary, module)
    return model


def rms_norm(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    assert x.dtype == torch.float64
    return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)


@torch.no_grad()
def rotary(self: torch.nn.Module, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    angles = position_ids[..., None].double() * self.frequencies
    both = torch.cat((angles, angles), dim=-1)
    return both.cos(), both.sin()


def rope_frequencies(config: object) -> torch.Tensor:
    """Of each pair of a head, with Llama 3's scaling where the config asks for it."""
    rope = config.rope_parameters
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    plain = rope["rope_theta"] ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if rope["rope_type"] == "default":
        return plain
    assert rope["rope_type"] == "llama3", rope
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] * plain / (2 * math.pi)
    share = ((turns - low) / (high - low)).clamp(0, 1)  # of the plain frequency
    return plain * (share + (1 - share) / rope["factor"])
