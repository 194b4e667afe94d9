"""The tiny models with attention over latents (models.py)."""

import transformers as hf
from models import ALL, SMALL, WITHIN, YARN, Family

#: Linears of attention over latents, without and with one of queries.
LATENT = {name: f"self_attn.{name}" for name in ("q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")}
LATENTS = {name: f"self_attn.{name}" for name in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")}
DENSE = {name: WITHIN[name] for name in ALL[4:]}
LATENT_YARN = {key: value for key, value in YARN.items() if not key.startswith("llama")} | dict(mscale=1.3, mscale_all_dim=0.7)
DEEPSEEK = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"} | dict(
    num_hidden_layers=3, num_key_value_heads=4, moe_intermediate_size=16, n_routed_experts=8, num_experts_per_tok=3, n_group=4, topk_group=2,
    n_shared_experts=2, routed_scaling_factor=2.5, first_k_dense_replace=1,
)  # fmt: skip
LATENT_SIZES = dict(kv_lora_rank=24, qk_nope_head_dim=16, qk_rope_head_dim=8)

LATENT_FAMILIES = [
    Family(
        "deepseek_v2",
        lambda: hf.DeepseekV2Config(
            **DEEPSEEK | LATENT_SIZES, q_lora_rank=None, v_head_dim=8, topk_method="group_limited_greedy", rope_parameters=LATENT_YARN, attention_bias=True,
        ),
        linears=LATENT,
        plain=(
            dict(topk_group=4), dict(topk_method="greedy"), dict(routed_scaling_factor=1.0), dict(num_experts_per_tok=2),
            dict(rope_parameters=LATENT_YARN | dict(mscale_all_dim=0.0)), dict(rope_parameters=LATENT_YARN | dict(rope_theta=10000.0)),
        ),
    ),  # fmt: skip
    Family(
        "deepseek_v3",
        lambda: hf.DeepseekV3Config(**DEEPSEEK | LATENT_SIZES, q_lora_rank=16, v_head_dim=16, rope_parameters=LATENT_YARN),
        linears=LATENTS,
        plain=(
            dict(topk_group=4), dict(routed_scaling_factor=1.0), dict(norm_topk_prob=False), dict(num_experts_per_tok=2), dict(rope_interleave=False),
            dict(rope_parameters=LATENT_YARN | dict(mscale_all_dim=0.0)),
        ),
    ),  # fmt: skip
    Family(
        "glm4_moe_lite",
        lambda: hf.Glm4MoeLiteConfig(
            **{key: value for key, value in DEEPSEEK.items() if key != "first_k_dense_replace"} | LATENT_SIZES, q_lora_rank=16, v_head_dim=24,
            mlp_layer_types=["dense", "sparse", "sparse"], rope_parameters=dict(rope_type="default", rope_theta=500.0), attention_bias=True,
        ),
        linears=LATENTS,
        plain=(dict(topk_group=4), dict(norm_topk_prob=False), dict(rope_interleave=False)),
    ),  # fmt: skip
    Family(
        "youtu",
        lambda: hf.YoutuConfig(
            **SMALL | dict(num_key_value_heads=4), kv_lora_rank=24, q_lora_rank=32, qk_nope_head_dim=8, qk_rope_head_dim=16, v_head_dim=40, rope_interleave=False,
            rope_parameters=dict(rope_type="default", rope_theta=500.0),
        ),
        linears=LATENTS | DENSE,
        plain=(dict(rope_interleave=True),),
    ),  # fmt: skip
    Family(
        "minicpm3",
        lambda: hf.MiniCPM3Config(
            **SMALL | dict(num_key_value_heads=4), kv_lora_rank=16, q_lora_rank=24, qk_nope_head_dim=16, qk_rope_head_dim=8, scale_emb=3.3, scale_depth=0.6, dim_model_base=9,
            mlp_bias=True, rope_parameters=dict(
                rope_type="longrope", rope_theta=300.0, short_factor=[1.0, 1.3, 1.6, 2.0], long_factor=[1.5, 3.0, 5.0, 9.0], original_max_position_embeddings=16,
            ),
        ),
        linears=LATENTS | DENSE,
        plain=(dict(scale_depth=1.4), dict(dim_model_base=32)),
        few_longest=16,
        grown=10,
    ),  # fmt: skip
]
