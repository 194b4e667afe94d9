"""What transformers' generate makes of SmolLM2-135M-Instruct, alone and with a PEFT adapter: greedy tokens, in float32.

    make.py MODEL_FOLDER     writes greedy.json next to this file; needs torch, transformers and peft

The adapter's factors are functions of a counter, which tests/helpers/smollm.ts computes again: so no weights lie here. Their
size makes the adapter change what is said, and leaves it text. A margin is the least distance of the largest logit from the
next over all steps: where it is far above 1e-4 (the noise of sums in another order), another program must choose the same
tokens.
"""
import json
import sys
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

RANK, ALPHA, TARGETS = 8, 16, ["q_proj", "v_proj", "gate_proj", "down_proj"]
SIZE = {"A": 0.06, "B": 0.03}
NEW = 24
PROMPTS = ["What is the capital of France?", "Write one line about the sea.", "List three colours.", "Why is the sky blue? Answer briefly."]


def mix(x):
    """base/rng.ts's finaliser of 32 bits."""
    x = (x ^ (x >> np.uint64(16))) * np.uint64(0x7FEB352D) & np.uint64(0xFFFFFFFF)
    x = (x ^ (x >> np.uint64(15))) * np.uint64(0x846CA68B) & np.uint64(0xFFFFFFFF)
    return x ^ (x >> np.uint64(16))


def factor(layer, linear, which, shape):
    """Uniform in [-SIZE, SIZE): element i of a factor is mix(i + key), and the key is of its place."""
    key = ((layer * 8 + TARGETS.index(linear)) * 2 + (which == "B")) * 0x01000193 & 0xFFFFFFFF
    bits = mix((np.arange(np.prod(shape), dtype=np.uint64) + np.uint64(key)) & np.uint64(0xFFFFFFFF))
    values = ((bits >> np.uint64(8)).astype(np.float64) / 2**23 - 1) * SIZE[which]
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def generate(model, ids):
    """New tokens, and the least margin."""
    made = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=NEW, do_sample=False,
                          return_dict_in_generate=True, output_logits=True)
    top = torch.stack([logits[0] for logits in made.logits]).topk(2, dim=-1).values
    return made.sequences[0, len(ids) :].tolist(), float((top[:, 0] - top[:, 1]).min())


def main():
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], torch_dtype=torch.float32).eval()
    text = [tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False) for prompt in PROMPTS]
    ids = [tokenizer(t, add_special_tokens=False).input_ids for t in text]
    base = [generate(model, i) for i in ids]
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM")).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parts = name.split(".")
                parameter.copy_(factor(int(parts[parts.index("layers") + 1]), parts[-4], parts[-3][-1], parameter.shape))
    adapted = [generate(model, i) for i in ids]
    rows = [dict(prompt=p, ids=i, base=b[0], base_margin=b[1], adapted=a[0], adapted_margin=a[1]) for p, i, b, a in zip(PROMPTS, ids, base, adapted)]
    for row in rows:
        print(tokenizer.decode(row["base"]), row["base_margin"], "|", tokenizer.decode(row["adapted"]), row["adapted_margin"], sep="\n  ")
    golden = dict(rank=RANK, alpha=ALPHA, targets=TARGETS, size=SIZE, new=NEW, rows=rows)
    (Path(__file__).parent / "greedy.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
