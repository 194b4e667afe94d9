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
    ropes = frequencies_by_layer(model.config)
    model.double()
    for module in model.modules():
        kind = type(module).__name__
        if kind.endswith("RMSNorm"):
            module.forward = MethodType(rms_norm, module)
        if kind.endswith("RotaryEmbedding"):
            for kind, frequencies in ropes.items():
                theirs = getattr(module, f"{kind}_inv_freq" if kind else "inv_freq")
                assert torch.allclose(theirs, frequencies, rtol=1e-6), "not transformers' frequencies"
            module.frequencies = ropes
            module.forward = MethodType(rotary, module)
    return model


def rms_norm(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    assert x.dtype == torch.float64
    eps = self.eps if hasattr(self, "eps") else self.variance_epsilon
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    if not getattr(self, "with_scale", True):
        return normed
    return normed * (1 + self.weight if type(self).__name__ == "Gemma3RMSNorm" else self.weight)


@torch.no_grad()
def rotary(self: torch.nn.Module, x: torch.Tensor, position_ids: torch.Tensor, layer_type: str = "") -> tuple[torch.Tensor, torch.Tensor]:
    angles = position_ids[..., None].double() * self.frequencies[layer_type]
    both = torch.cat((angles, angles), dim=-1)
    return both.cos(), both.sin()


def frequencies_by_layer(config: object) -> dict[str, torch.Tensor]:
    """By the kind of layer, "" where all are alike."""
    ropes = config.rope_parameters
    alike = "rope_type" in ropes
    if alike:
        return {"": rope_frequencies(config, ropes)}
    of_layers = getattr(config, "per_layer_config", None)
    return {kind: rope_frequencies(of_layers[kind] if of_layers else config, rope) for kind, rope in ropes.items()}


def rope_frequencies(config: object, rope: dict) -> torch.Tensor:
    """Of each pair of a head, scaled as the config asks."""
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    plain = rope["rope_theta"] ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if rope["rope_type"] == "default":
        return plain
    if rope["rope_type"] == "linear":
        return plain / rope["factor"]
    if rope["rope_type"] == "proportional":  # pairs of the whole head, of which the first share is rotated
        return plain * (torch.arange(dim // 2) < int(rope["partial_rotary_factor"] * dim // 2))
    assert rope["rope_type"] == "llama3", rope
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] * plain / (2 * math.pi)
    share = ((turns - low) / (high - low)).clamp(0, 1)  # of the plain frequency
    return plain * (share + (1 - share) / rope["factor"])
