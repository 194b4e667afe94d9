"""Makes the goldens of Gemma 3 and 4: what tests/golden/peft/make.py makes of a model, and how transformers' generate
continues some prompts, with its cache, alone and with the trained adapters.

    python tests/golden/gemma/make.py [NAME ...]        # with torch, transformers 5.24.0 and peft 0.21.2

A margin is the least distance of the largest logit from the next over all steps: where it is far above 1e-4 (the noise of sums
in another order), another program must choose the same tokens.
"""

import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from transformers import Gemma3TextConfig, Gemma4TextConfig

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "peft"))
import make as goldens  # noqa: E402
from models import SMALL, Golden, generator, load_model  # noqa: E402

TINY = SMALL | dict(hidden_size=32, intermediate_size=48, num_attention_heads=2, num_key_value_heads=1, head_dim=16, vocab_size=120)
LOCAL_ROPE, GLOBAL_ROPE = dict(rope_type="default", rope_theta=40.0), dict(rope_type="default", rope_theta=700.0)
PROPORTIONAL_ROPE = dict(rope_type="proportional", rope_theta=500.0, partial_rotary_factor=0.5)
SLIDING, FULL = "sliding_attention", "full_attention"
# The final norm has factors of either sign, or tied heads would repeat tokens. q and k's alone scale Gemma 4's scores: of 1
# they would be large.
GEMMA4_NORMS = (("model.norm.weight", 0.0, 1.0), ("q_norm.weight", 0.5, 0.3), ("k_norm.weight", 0.5, 0.3))

GOLDENS = [
    # A window shorter than the rows, a scale of scores that is not the head size's, another rope in each kind of layer, a head
    # size that is not hidden / heads; in bf16, of which 1 + w is no number.
    Golden(
        "gemma3",
        Gemma3TextConfig(
            **TINY | dict(num_hidden_layers=3),
            sliding_window=6,
            layer_types=[SLIDING, FULL, SLIDING],
            query_pre_attn_scalar=5,
            final_logit_softcapping=3.0,
            rope_parameters={SLIDING: LOCAL_ROPE, FULL: GLOBAL_ROPE | dict(rope_type="linear", factor=4.0)},
        ),
        torch.bfloat16,
        seed=0,
        plain=(
            dict(sliding_window=4096),
            dict(query_pre_attn_scalar=16),
            dict(final_logit_softcapping=None),
            dict(rope_parameters={SLIDING: LOCAL_ROPE, FULL: GLOBAL_ROPE}),
            dict(rope_parameters={SLIDING: GLOBAL_ROPE, FULL: GLOBAL_ROPE}),
        ),
        as_on_hub=True,
        norms=(("model.norm.weight", -1.0, 1.0), ("", 0.0, 0.3)),
    ),
    # As E2B and E4B: the last layers have no keys and values, two of them with those of one layer, and wider MLPs; an input of
    # their own for each layer; heads of another size in full layers. Layer scalars are not 1.
    Golden(
        "gemma4",
        Gemma4TextConfig(
            **TINY | dict(num_hidden_layers=6, head_dim=8),
            sliding_window=6,
            layer_types=[SLIDING, FULL, SLIDING, SLIDING, SLIDING, FULL],
            global_head_dim=16,
            num_kv_shared_layers=3,
            use_double_wide_mlp=True,
            hidden_size_per_layer_input=16,
            vocab_size_per_layer_input=120,
            final_logit_softcapping=3.0,
            rope_parameters={SLIDING: LOCAL_ROPE, FULL: PROPORTIONAL_ROPE},
        ),
        torch.bfloat16,
        seed=0,
        plain=(
            dict(sliding_window=4096),
            dict(final_logit_softcapping=None),
            dict(rope_parameters={SLIDING: LOCAL_ROPE, FULL: PROPORTIONAL_ROPE | dict(partial_rotary_factor=1.0)}),
            dict(rope_parameters={SLIDING: GLOBAL_ROPE, FULL: PROPORTIONAL_ROPE}),
        ),
        norms=GEMMA4_NORMS,
    ),
    # As 31B and 12B: full layers whose keys are their values, of fewer heads.
    Golden(
        "gemma4-k-eq-v",
        Gemma4TextConfig(
            **TINY | dict(num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8),
            sliding_window=6,
            layer_types=[FULL, SLIDING, FULL],
            global_head_dim=16,
            num_global_key_value_heads=1,
            attention_k_eq_v=True,
            hidden_size_per_layer_input=0,
            rope_parameters={SLIDING: LOCAL_ROPE, FULL: PROPORTIONAL_ROPE},
        ),
        torch.float16,
        seed=0,
        plain=(dict(sliding_window=4096),),
        norms=GEMMA4_NORMS,
    ),
]
ALL, FEW, SOME = goldens.ADAPTERS
ADAPTERS = [replace(ALL, rank=2, learning_rate=3e-3), replace(FEW, rank=5), replace(SOME, rank=3, max_grad_norm=3.5)]
PROMPTS = (1, 5, 17)  # tokens: below a window, and beyond two
NEW = 16
LEAST_MARGIN = 0.01  # of prompts that are taken


def generate(model: torch.nn.Module, ids: list[int]) -> dict:
    """New tokens, and the least margin."""
    options = dict(max_new_tokens=NEW, do_sample=False, use_cache=True, return_dict_in_generate=True, output_logits=True)
    made = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), **options)
    top = torch.stack([logits[0] for logits in made.logits]).topk(2, dim=-1).values
    return dict(tokens=made.sequences[0, len(ids) :].tolist(), margin=round((top[:, 0] - top[:, 1]).min().item(), 6))


def goes_on(golden: Golden, folder: Path) -> None:
    """Writes generated.json."""
    random = generator(golden.name, "prompts")
    models = {name: load_model(folder / "model").eval() for name in ("base", "all", "few")}
    for name in ("all", "few"):
        models[name] = PeftModel.from_pretrained(models[name], folder / name / "final").eval()
    prompts, made = [], {name: [] for name in models}
    while len(prompts) < len(PROMPTS):
        ids = torch.randint(0, golden.config.vocab_size, (PROMPTS[len(prompts)],), generator=random).tolist()
        found = {name: generate(model, ids) for name, model in models.items()}
        if min(one["margin"] for one in found.values()) > LEAST_MARGIN:
            prompts.append(ids)
            for name, one in found.items():
                made[name].append(one)
    assert len({json.dumps([one["tokens"] for one in of]) for of in made.values()}) == 3, "the adapters change nothing that is said"
    (folder / "generated.json").write_text(json.dumps(dict(prompts=prompts, **made)) + "\n")
    print(f"{golden.name}: margins", [one["margin"] for of in made.values() for one in of])


if __name__ == "__main__":
    warnings.simplefilter("ignore", FutureWarning)  # transformers about itself
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    goldens.HERE = HERE
    for golden in GOLDENS:
        if golden.name in sys.argv[1:] or len(sys.argv) == 1:
            goldens.make(golden, golden.name, ADAPTERS)
            goes_on(golden, HERE / golden.name)
            for path in (HERE / golden.name).rglob("gradients.safetensors"):
                path.unlink()  # small files: weights after steps tell as much
