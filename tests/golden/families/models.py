"""The tiny models of the families' goldens, with the traps of each set to values that show them: unequal scalars, windows
shorter than rows, heads whose sizes do not follow from the hidden size, layers without rotary embedding, heads rotated in
part.

Their weights are not kept: each is a hash of its name in the file and the element's index, so that tests write the same model.
`plain` undoes a trap; `check` in make.py proves that each changes the logits.
"""

from dataclasses import dataclass, field
from typing import Callable

import torch
import transformers as hf

SMALL = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=64,
    max_position_embeddings=128,
    rms_norm_eps=1e-3,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WITHIN = {name: f"{'mlp' if name.startswith(('gate', 'up', 'down')) else 'self_attn'}.{name}" for name in ALL}


@dataclass(frozen=True)
class Family:
    """A model, how its files are called, and the linears of a layer by their paths."""

    name: str
    config: Callable[[], hf.PreTrainedConfig]
    linears: dict[str, str] = field(default_factory=lambda: WITHIN)
    tower: str = "model"
    #: Changes of the text config that undo what sets the family apart, one by one.
    plain: tuple[dict, ...] = ()
    #: New names of tensors: what a prefix becomes in the files.
    renamed: dict[str, str] = field(default_factory=dict)
    #: Edits config.json, for keys of older files.
    edit: Callable[[dict], dict] = lambda config: config
    norm_middle: float = 1.0
    longest: int = 30
    #: The longest row of the adapter "few", where it differs.
    few_longest: int | None = None
    #: Tokens of the rows of each adapter, in turn, where they are not random.
    lengths: tuple[int, ...] = ()
    #: Middle and scale of tensors by the end of their names, where they are not the usual ones.
    values: dict[str, tuple[float, float]] = field(default_factory=dict)
    #: Tokens of the row whose logits are kept, and of these the prompt that is continued.
    probe: int = 14
    prompt: int = 6
    #: How transformers computes attention; sinks it has in "eager" alone.
    attention: str = "sdpa"
    #: Tokens of the greedy continuation: where it passes the original positions transformers begins anew with the long factors.
    grown: int = 12
    #: Whether the greedy continuation is over a cache. There transformers' Mamba layers take steps without their limits.
    cached: bool = True


def mix(x: torch.Tensor) -> torch.Tensor:
    """lowbias32, of i64 that hold 32 bits."""
    low = 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & low
    x = ((x ^ (x >> 15)) * 0x846CA68B) & low
    return x ^ (x >> 16)


def hashed(name: str, shape: list[int], middle: float, scale: float) -> torch.Tensor:
    """Uniform in middle +- scale, by a hash of the name (FNV-1a, mixed) and the element's index; rounded once."""
    key = 0x811C9DC5
    for byte in name.encode():
        key = ((key ^ byte) * 0x01000193) & 0xFFFFFFFF
    size = int(torch.tensor(shape).prod())
    bits = mix(mix(torch.tensor(key)) ^ torch.arange(size))
    return (middle + ((bits >> 8).double() * 2**-23 - 1) * scale).float().reshape(shape)


def old_qwen_vl(config: dict) -> dict:
    """As released: the text's keys at the top, rope_scaling of type mrope."""
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text |= dict(rope_theta=rope["rope_theta"], rope_scaling=dict(type="mrope", mrope_section=rope["mrope_section"]))
    del text["model_type"]
    return config | {key: value for key, value in text.items() if key not in ("architectures", "tie_word_embeddings")}


def without_tie(config: dict) -> dict:
    """A wrapper that leaves out whether its head is tied."""
    del config["tie_word_embeddings"]
    return config


VISION = dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2)
PIXTRAL = dict(model_type="pixtral", hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8, patch_size=4, image_size=16)
LLAVA = {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head.", "model.": ""}
YARN = dict(
    rope_type="yarn", rope_theta=500.0, factor=4.0, original_max_position_embeddings=16, beta_fast=4.0, beta_slow=1.0,
    mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.3,
)  # fmt: skip
GPT_OSS_ROPE = dict(rope_type="yarn", rope_theta=500.0, factor=4.0, original_max_position_embeddings=16, beta_fast=2.0, beta_slow=0.25, truncate=False)
GRANITE = dict(embedding_multiplier=6.3, residual_multiplier=0.37, attention_multiplier=0.21, logits_scaling=3.1)
LONGROPE = dict(
    rope_type="longrope", rope_theta=300.0, partial_rotary_factor=0.75, short_factor=[1.0, 1.3, 2.0], long_factor=[1.5, 4.0, 9.0],
    original_max_position_embeddings=16,
)  # fmt: skip
ATTENTION = {name: WITHIN[name] for name in ALL[:4]}
LONG_ROPE_FULL = dict(rope_type="default", rope_theta=300.0)
OLMO3_ROPE = dict(
    full_attention=dict(rope_type="yarn", rope_theta=500.0, factor=4.0, original_max_position_embeddings=16, beta_fast=4.0, beta_slow=1.0),
    sliding_attention=dict(rope_type="default", rope_theta=90.0),
)

EXPERTS = {name: name for name in ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")}


DELTA_HEADS = dict(linear_num_key_heads=4, linear_num_value_heads=8, linear_key_head_dim=8, linear_value_head_dim=12)
DELTA_VALUES = {"linear_attn.norm.weight": (1.0, 0.5), "A_log": (-3.0, 2.0), "dt_bias": (0.0, 1.0)}
HYBRID = SMALL | DELTA_HEADS | dict(head_dim=16, num_hidden_layers=3, layer_types=["linear_attention", "full_attention", "linear_attention"], max_position_embeddings=256)
HYBRID_EXPERTS = dict(num_experts=8, num_experts_per_tok=3, moe_intermediate_size=24, shared_expert_intermediate_size=16)
PARTIAL_ROPE = dict(rope_type="default", rope_theta=500.0, partial_rotary_factor=0.5)
SHARED = {path: path for path in ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert.down_proj")}
DELTA_LINEARS = {name: f"linear_attn.{name}" for name in ["in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"]}
CONVOLVED = {key: value for key, value in SMALL.items() if key != "rms_norm_eps"} | dict(num_hidden_layers=3, norm_eps=1e-3, tie_word_embeddings=True)
CONVOLVED_LINEARS = {name: f"self_attn.{name}" for name in ALL[:3]} | {
    "self_attn.out_proj": "self_attn.out_proj", "in_proj": "conv.in_proj", "conv.out_proj": "conv.out_proj",
}  # fmt: skip


MAMBA_VALUES = {"A_log": (-1.0, 2.0), "dt_bias": (0.0, 1.0), ".D": (1.0, 0.5)}
#: Of heads that share B and C by twos; steps with limits that many of them pass.
MAMBA = dict(mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=4, mamba_d_state=12, mamba_expand=2, mamba_chunk_size=16, time_step_limit=(0.3, 1.5))


def gpt_oss(**changes: int) -> hf.GptOssConfig:
    sizes = SMALL | dict(intermediate_size=24, num_hidden_layers=3, num_local_experts=8) | changes
    return hf.GptOssConfig(**sizes, head_dim=12, num_experts_per_tok=3, sliding_window=6, swiglu_limit=0.9, rope_parameters=GPT_OSS_ROPE)


FAMILIES = [
    Family(
        "qwen2_5_vl",
        lambda: hf.Qwen2_5_VLConfig(
            text_config=SMALL
            | dict(use_sliding_window=True, sliding_window=6, max_window_layers=1, rope_parameters=dict(rope_type="default", rope_theta=500.0, mrope_section=[1, 1, 2])),
            vision_config=VISION | dict(out_hidden_size=32, patch_size=4),
            tie_word_embeddings=True,
        ),
        tower="model.language_model",
        plain=(dict(layer_types=["full_attention"] * 2),),
        renamed={"model.language_model.": "model.", "model.visual.": "visual."},
        edit=old_qwen_vl,
    ),
    Family(
        "qwen3_vl",
        lambda: hf.Qwen3VLConfig(
            text_config=SMALL
            | dict(head_dim=12, rope_parameters=dict(rope_type="default", rope_theta=500.0, mrope_section=[2, 2, 2], mrope_interleaved=True)),
            vision_config=VISION | dict(out_hidden_size=32, patch_size=4, deepstack_visual_indexes=[0]),
            tie_word_embeddings=False,
        ),
        tower="model.language_model",
        edit=lambda config: config | dict(text_config=config["text_config"] | dict(tie_word_embeddings=True)),
    ),
    Family(
        "mistral3",
        lambda: hf.Mistral3Config(
            text_config=SMALL | dict(model_type="mistral", head_dim=12, sliding_window=None, rope_theta=500.0),
            vision_config=PIXTRAL,
            tie_word_embeddings=True,
        ),
        tower="model.language_model",
        renamed=LLAVA,
        edit=without_tie,
    ),
    Family(
        "ministral3",
        lambda: hf.Mistral3Config(
            text_config=SMALL | dict(model_type="ministral3", head_dim=12, rope_parameters=YARN),
            vision_config=PIXTRAL,
            tie_word_embeddings=False,
        ),
        tower="model.language_model",
        plain=(dict(rope_parameters=YARN | dict(llama_4_scaling_beta=0.0)), dict(rope_parameters=YARN | dict(factor=1.0))),
    ),
    Family(
        "smollm3",
        lambda: hf.SmolLM3Config(
            **SMALL | dict(num_hidden_layers=3),
            no_rope_layers=[1, 0, 1], use_sliding_window=True, sliding_window=6, rope_parameters=dict(rope_type="default", rope_theta=500.0),
        ),
        plain=(dict(no_rope_layers=[1, 1, 1]), dict(layer_types=["full_attention"] * 3)),
    ),  # fmt: skip
    Family("granite", lambda: hf.GraniteConfig(**SMALL, **GRANITE, mlp_bias=True, attention_bias=True), plain=tuple({key: 1.0} for key in GRANITE)),
    Family(
        "granitemoehybrid",
        lambda: hf.GraniteMoeHybridConfig(
            **SMALL, **GRANITE, shared_intermediate_size=40, num_local_experts=0, position_embedding_type=None,
            layer_types=["full_attention"] * 2, mamba_n_heads=4, tie_word_embeddings=True,
        ),
        linears={**{name: WITHIN[name] for name in ALL[:4]}, "input_linear": "shared_mlp.input_linear", "output_linear": "shared_mlp.output_linear"},
        plain=(*({key: 1.0} for key in GRANITE), dict(position_embedding_type="rope")),
    ),  # fmt: skip
    Family(
        "phi3",
        lambda: hf.Phi3Config(**SMALL, sliding_window=20, original_max_position_embeddings=16, rope_parameters=dict(LONGROPE)),
        linears={"qkv_proj": "self_attn.qkv_proj", "o_proj": "self_attn.o_proj", "gate_up_proj": "mlp.gate_up_proj", "down_proj": "mlp.down_proj"},
        plain=(dict(sliding_window=None), dict(rope_parameters=LONGROPE | dict(long_factor=LONGROPE["short_factor"]))),
        few_longest=16,
        grown=10,
    ),
    Family(
        "muse_glimmer",
        lambda: hf.MuseGlimmerConfig(
            text_config=SMALL
            | dict(
                head_dim=12, num_hidden_layers=3, sliding_window=6, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                layer_rope_theta=[500.0, 0, 500.0], rope_parameters=dict(rope_type="default", rope_theta=500.0), qk_scale_factor=2.3,
                output_multiplier=0.6, final_logit_softcapping=4.0, post_norm_eps=1e-2,
            ),
            vision_config=dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=4, pos_emb_height=4, pos_emb_width=4),
            out_hidden_size=16, projector_hidden_size=16,
        ),
        linears={**WITHIN, "self_attn.gate_proj": "self_attn.gate_proj"},
        tower="model.language_model",
        plain=(
            dict(layer_types=["full_attention"] * 3), dict(layer_rope_theta=[500.0] * 3), dict(qk_scale_factor=1.0), dict(output_multiplier=1.0),
            dict(final_logit_softcapping=20.0), dict(post_norm_eps=1e-6),
        ),
        norm_middle=0.0,
    ),  # fmt: skip
    Family(
        "mixtral",
        lambda: hf.MixtralConfig(**SMALL | dict(intermediate_size=24), num_local_experts=8, num_experts_per_tok=2, sliding_window=6, rope_parameters=dict(rope_type="default", rope_theta=500.0)),
        linears=ATTENTION,
        plain=(dict(sliding_window=None), dict(num_experts_per_tok=3)),
    ),
    Family(
        "qwen3_moe",
        lambda: hf.Qwen3MoeConfig(
            **SMALL | dict(num_hidden_layers=3), head_dim=12, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=24, mlp_only_layers=[1],
            use_sliding_window=True, sliding_window=6, rope_parameters=dict(rope_type="default", rope_theta=500.0),
        ),
        linears=ATTENTION,
        plain=(dict(norm_topk_prob=True), dict(sliding_window=None), dict(num_experts_per_tok=2)),
    ),  # fmt: skip
    Family("gpt_oss_experts", lambda: gpt_oss(num_hidden_layers=2), linears=ATTENTION | EXPERTS, attention="eager"),
    Family(
        "gpt_oss",
        gpt_oss,
        linears=ATTENTION,
        plain=(dict(sliding_window=40), dict(num_experts_per_tok=2), dict(swiglu_limit=7.0), dict(rope_parameters=GPT_OSS_ROPE | dict(truncate=True))),
        attention="eager",
    ),  # fmt: skip
    Family(
        "granitemoe",
        lambda: hf.GraniteMoeConfig(**SMALL | dict(intermediate_size=24), **GRANITE, num_local_experts=8, num_experts_per_tok=3, attention_bias=True),
        linears=ATTENTION,
        plain=(dict(num_experts_per_tok=2), *({key: 1.0} for key in GRANITE)),
    ),
    Family(
        "glm4_moe",
        lambda: hf.Glm4MoeConfig(
            **SMALL | dict(num_hidden_layers=3), head_dim=12, moe_intermediate_size=16, n_routed_experts=8, num_experts_per_tok=3, n_group=4, topk_group=2,
            n_shared_experts=2, routed_scaling_factor=2.5, first_k_dense_replace=1, use_qk_norm=True, attention_bias=True,
            rope_parameters=dict(rope_type="default", rope_theta=500.0, partial_rotary_factor=0.5),
        ),
        linears=ATTENTION,
        plain=(dict(topk_group=4), dict(routed_scaling_factor=1.0), dict(norm_topk_prob=False), dict(num_experts_per_tok=2)),
    ),  # fmt: skip
    Family(
        "qwen3_vl_moe",
        lambda: hf.Qwen3VLMoeConfig(
            text_config=SMALL
            | dict(
                head_dim=12, num_hidden_layers=3, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=24, mlp_only_layers=[1],
                rope_parameters=dict(rope_type="default", rope_theta=500.0, mrope_section=[2, 2, 2], mrope_interleaved=True),
            ),
            vision_config=VISION | dict(out_hidden_size=32, patch_size=4, deepstack_visual_indexes=[0]),
            tie_word_embeddings=False,
        ),
        linears=ATTENTION,
        tower="model.language_model",
        plain=(dict(num_experts_per_tok=2),),
    ),  # fmt: skip
    Family("olmo2", lambda: hf.Olmo2Config(**SMALL | dict(num_key_value_heads=4), rope_parameters=dict(rope_type="default", rope_theta=500.0))),
    Family(
        "olmo3",
        lambda: hf.Olmo3Config(**SMALL | dict(num_hidden_layers=3), sliding_window=6, layer_types=["sliding_attention", "full_attention", "sliding_attention"], rope_parameters=OLMO3_ROPE),
        plain=(dict(layer_types=["full_attention"] * 3), dict(rope_parameters=OLMO3_ROPE | dict(full_attention=OLMO3_ROPE["sliding_attention"]))),
    ),
    Family(
        "qwen3_5",
        lambda: hf.Qwen3_5Config(
            text_config=HYBRID | dict(rope_parameters=PARTIAL_ROPE | dict(mrope_section=[2, 1, 1], mrope_interleaved=True)),
            vision_config=dict(hidden_size=16, intermediate_size=16, depth=1, num_heads=2, patch_size=4, out_hidden_size=32, num_position_embeddings=16),
        ),
        linears=WITHIN | DELTA_LINEARS,
        tower="model.language_model",
        plain=(dict(rope_parameters=PARTIAL_ROPE | dict(partial_rotary_factor=1.0, mrope_section=[2, 1, 1])), dict(rms_norm_eps=1e-6)),
        norm_middle=0.0,
        values=DELTA_VALUES | {"language_model.norm.weight": (0.0, 0.5)},
        # Below the taps of the convolution, a chunk of 64 (the last token is not read), several, a token more than one.
        lengths=(3, 65, 170, 2, 66),
        probe=76,
        prompt=70,
    ),  # fmt: skip
    Family(
        "qwen3_5_moe",
        lambda: hf.Qwen3_5MoeConfig(
            text_config=HYBRID | HYBRID_EXPERTS | dict(rope_parameters=PARTIAL_ROPE | dict(mrope_section=[2, 1, 1], mrope_interleaved=True)),
            vision_config=dict(hidden_size=16, intermediate_size=16, depth=1, num_heads=2, patch_size=4, out_hidden_size=32, num_position_embeddings=16),
        ),
        linears=ATTENTION | DELTA_LINEARS | SHARED,
        tower="model.language_model",
        plain=(dict(num_experts_per_tok=2),),
        norm_middle=0.0,
        values=DELTA_VALUES | {"language_model.norm.weight": (0.0, 0.5)},
        lengths=(3, 65, 70, 2, 66),
    ),
    Family(
        "qwen3_next",
        lambda: hf.Qwen3NextConfig(**HYBRID, **HYBRID_EXPERTS, mlp_only_layers=[1], rope_parameters=dict(PARTIAL_ROPE)),
        # PEFT takes the shared expert's linears for the experts (findings/peft-moe-dense-mlp.sh).
        linears=ATTENTION | {name: f"linear_attn.{name}" for name in ["in_proj_qkvz", "in_proj_ba", "out_proj"]},
        plain=(dict(num_experts_per_tok=2), dict(norm_topk_prob=False)),
        norm_middle=0.0,
        values=DELTA_VALUES | {"model.norm.weight": (0.0, 0.5)},
        lengths=(65, 3, 70, 66, 2),
    ),
    Family(
        "lfm2",
        lambda: hf.Lfm2Config(
            **CONVOLVED, layer_types=["conv", "full_attention", "conv"], block_multiple_of=16, block_ffn_dim_multiplier=1.25,
            rope_parameters=dict(rope_type="default", rope_theta=500.0),
        ),
        linears=CONVOLVED_LINEARS | {f"feed_forward.{name}": f"feed_forward.{name}" for name in ["w1", "w3", "w2"]},
        plain=(dict(norm_eps=1e-6), dict(rope_parameters=dict(rope_type="default", rope_theta=1e6))),
        # Below the taps of the convolution, as many, more.
        lengths=(30, 2, 9, 3, 2),
    ),  # fmt: skip
    Family(
        "lfm2_moe",
        lambda: hf.Lfm2MoeConfig(
            **CONVOLVED, layer_types=["conv", "full_attention", "conv"], num_dense_layers=1, num_experts=8, num_experts_per_tok=3,
            moe_intermediate_size=24, routed_scaling_factor=1.7, rope_parameters=dict(rope_type="default", rope_theta=500.0),
        ),
        linears=CONVOLVED_LINEARS,
        plain=(dict(num_experts_per_tok=2), dict(norm_topk_prob=False), dict(routed_scaling_factor=1.0)),
        lengths=(30, 2, 9, 3, 2),
    ),  # fmt: skip
    Family(
        "granite_h",
        lambda: hf.GraniteMoeHybridConfig(
            **SMALL | dict(num_hidden_layers=3, intermediate_size=24, max_position_embeddings=256), **GRANITE, **MAMBA, mamba_proj_bias=True, shared_intermediate_size=40,
            num_local_experts=8, num_experts_per_tok=3, layer_types=["linear_attention", "full_attention", "linear_attention"],
        ),
        linears=ATTENTION | {"mamba.in_proj": "mamba.in_proj", "mamba.out_proj": "mamba.out_proj", "input_linear": "shared_mlp.input_linear", "output_linear": "shared_mlp.output_linear"},
        plain=(*({key: 1.0} for key in GRANITE), dict(num_experts_per_tok=2), dict(position_embedding_type="rope"), dict(time_step_limit=(0.0, 1.5)), dict(time_step_limit=(0.3, float("inf")))),
        values=MAMBA_VALUES,
        # Below the taps of the convolution, a chunk of 64 (the last token is not read), several, a token more than one.
        lengths=(3, 65, 170, 2, 66),
        probe=40,
        prompt=20,
        cached=False,
    ),  # fmt: skip
    Family(
        "nemotron_h",
        lambda: hf.NemotronHConfig(
            **{key: value for key, value in SMALL.items() if key not in ("num_hidden_layers", "rms_norm_eps")}, layer_norm_epsilon=1e-3, head_dim=12,
            layers_block_type=["linear_attention", "mlp", "full_attention", "moe", "linear_attention"], mamba_num_heads=8, mamba_head_dim=8, n_groups=2, ssm_state_size=12, chunk_size=16,
            time_step_min=0.4, time_step_limit=(0.0, 0.5), use_bias=True, mlp_bias=True, n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=24,
            moe_shared_expert_intermediate_size=24, n_group=4, topk_group=2, routed_scaling_factor=1.7,
        ),
        # PEFT refuses out_proj in models of this type.
        linears={
            path: path
            for path in (f"mixer.{name}" for name in ["q_proj", "k_proj", "v_proj", "o_proj", "in_proj", "up_proj", "down_proj", "shared_experts.up_proj", "shared_experts.down_proj"])
        },
        plain=(dict(time_step_min=0.001), dict(num_experts_per_tok=2), dict(topk_group=4), dict(routed_scaling_factor=1.0), dict(norm_topk_prob=False)),
        values=MAMBA_VALUES,
        lengths=(65, 3, 30, 2, 66),
        probe=40,
        prompt=20,
        cached=False,
    ),  # fmt: skip
]
