"""Makes adapters of PEFT's that change the embedding and the output head, on two tiny base models, tied and untied.

    python tests/golden/tables/make.py        # with torch, transformers 5.24.0 and peft 0.21.2

cases.json has the loss of one row of each, by PEFT with the adapter that was saved and loaded again. Values are random; the
base models are float32.
"""

import json
import shutil
import warnings
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

HERE = Path(__file__).resolve().parent
SIZES = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
LENGTH = 20
Q = ["q_proj"]
CASES = {
    "head": dict(target_modules=[*Q, "lm_head"]),
    "embedding": dict(target_modules=[*Q, "embed_tokens"]),
    "both": dict(target_modules=[*Q, "embed_tokens", "lm_head"], rank_pattern={"lm_head": 2}, alpha_pattern={"embed_tokens": 5}),
    "both-rslora": dict(target_modules=["embed_tokens", "lm_head"], use_rslora=True),
    "one-for-both": dict(target_modules=[*Q, "embed_tokens"], ensure_weight_tying=True),
    "tokens": dict(target_modules=Q, trainable_token_indices=[3, 31, 7]),
    "tokens-of-head": dict(target_modules=Q, trainable_token_indices=dict(embed_tokens=[3, 31, 7], lm_head=[5])),
    "copies": dict(target_modules=Q, modules_to_save=["embed_tokens", "lm_head"]),
    "copy": dict(target_modules=Q, modules_to_save=["embed_tokens"]),
}


@torch.no_grad()
def main() -> None:
    warnings.filterwarnings("ignore")
    for old in HERE.glob("*/"):
        shutil.rmtree(old)
    cases = []
    for tied in (True, False):
        base = "tied" if tied else "untied"
        torch.manual_seed(3)
        config = LlamaConfig(**SIZES, vocab_size=40, max_position_embeddings=64, tie_word_embeddings=tied, bos_token_id=None, eos_token_id=None, pad_token_id=None)
        model = AutoModelForCausalLM.from_config(config).float()
        for name, parameter in model.named_parameters():
            parameter.normal_(1 if "norm" in name else 0, 0.3)
        model.save_pretrained(HERE / base)
        (HERE / base / "generation_config.json").unlink(missing_ok=True)
        for i, (name, keys) in enumerate(CASES.items()):
            if tied and name == "tokens-of-head":
                continue  # tied tokens are one row
            load = lambda: AutoModelForCausalLM.from_pretrained(HERE / base, dtype=torch.float32)
            adapted = get_peft_model(load(), LoraConfig(r=3, lora_alpha=4, **keys))
            generator = torch.Generator().manual_seed(100 + i)
            for parameter_name, parameter in sorted(adapted.named_parameters()):
                if parameter.requires_grad and not (name == "one-for-both" and "lm_head" in parameter_name):
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
            folder = HERE / f"{base}-{name}"
            adapted.save_pretrained(folder)
            (folder / "README.md").unlink()
            path = folder / "adapter_config.json"
            saved = json.loads(path.read_text()) | dict(base_model_name_or_path=base)
            saved["target_modules"] = sorted(saved["target_modules"])
            path.write_text(json.dumps(saved, indent=1, sort_keys=True) + "\n")
            loaded = PeftModel.from_pretrained(load(), folder).eval()
            ids = torch.randint(0, 40, (LENGTH,), generator=generator)
            logits = loaded(ids[None]).logits[0]
            loss = torch.nn.functional.cross_entropy(logits[:-1], ids[1:]).item()
            cases.append(dict(name=f"{base}-{name}", base=base, ids=ids.tolist(), loss=loss))
            print(f"{base}-{name}: {loss:.6f}")
    head = json.dumps(dict(made_with=dict(torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__)))[:-1]
    (HERE / "cases.json").write_text(head + ', "cases": [\n  ' + ",\n  ".join(json.dumps(case) for case in cases) + "\n]}\n")


if __name__ == "__main__":
    main()
