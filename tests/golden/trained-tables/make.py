"""Trains adapters of embedding and output head with PEFT: products of either table, and rows of single tokens, on two tiny base
models, tied and untied. Each adapter alone, from random initial values, for six steps of AdamW with accumulation and clipping.

    python tests/golden/trained-tables/make.py                       # with torch, transformers 5.24.0 and peft 0.21.2
    python tests/golden/trained-tables/make.py --check FOLDER BASE   # an export of mlora: FOLDER/NAME of each adapter of BASE

golden.json has the recipes, rows and numbers; each adapter's folder has what PEFT began with and came to. With --check the
exports are loaded into PEFT and compared with PEFT's own logits of a probe.
"""

import argparse
import json
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

HERE = Path(__file__).resolve().parent
SIZES = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
VOCAB, STEPS, PROBE = 43, 6, 14
COMMON = dict(betas=[0.9, 0.999], eps=1e-8, scheduler="constant", warmup=0, min_lr_ratio=0.0, method="lora")


def adapter(name: str, rank: int, alpha: float, rows: int, batch_size: int, accumulation: int, **keys: object) -> dict:
    defaults = dict(rslora=False, rank_pattern={}, alpha_pattern={}, trainable_tokens=None, learning_rate=5e-3, weight_decay=0.1, max_grad_norm=0.5)
    return dict(name=name, rank=rank, alpha=alpha, batch_size=batch_size, accumulation=accumulation, rows=rows, **(COMMON | defaults | keys))


HEAD = adapter("head", 3, 4.0, 5, 2, 1, targets=["q_proj", "lm_head"], rank_pattern={"q_proj": 2}, weight_decay=0.0)
EMBEDDING = adapter("embedding", 2, 5.0, 6, 1, 2, targets=["down_proj", "embed_tokens"], rslora=True, max_grad_norm=None)
BOTH = adapter("both", 4, 6.0, 4, 2, 2, targets=["embed_tokens", "lm_head"], alpha_pattern={"lm_head": 3.0}, rank_pattern={"embed_tokens": 3})
TOKENS = adapter("tokens", 2, 4.0, 6, 2, 2, targets=["v_proj"], trainable_tokens=[3, 31, 7, 40, 12])
EACH = adapter("each", 3, 4.0, 6, 1, 2, targets=["o_proj"], trainable_tokens=dict(embed_tokens=[3, 31, 7], lm_head=[5, 11]), learning_rate=1e-2)
MODELS = {"tied": [HEAD, EMBEDDING, TOKENS], "untied": [BOTH, TOKENS, EACH]}


def generator(*words: object) -> torch.Generator:
    return torch.Generator().manual_seed(sum(ord(letter) * 31**i for i, letter in enumerate("/".join(map(str, words)))) % 2**31)


def load_model(base: str) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(HERE / base / "model", dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def write_model(base: str) -> None:
    config = LlamaConfig(**SIZES, vocab_size=VOCAB, max_position_embeddings=64, tie_word_embeddings=base == "tied", bos_token_id=None, eos_token_id=None, pad_token_id=None)
    model = AutoModelForCausalLM.from_config(config).float()
    random = generator(base)
    for name, parameter in sorted(model.named_parameters()):
        parameter.copy_((1 if "norm" in name else 0) + 0.3 * torch.randn(parameter.shape, generator=random))
    model.save_pretrained(HERE / base / "model")
    (HERE / base / "model" / "generation_config.json").unlink(missing_ok=True)


def make_rows(base: str, of: dict) -> list[dict]:
    random = generator(base, of["name"], "rows")
    below = lambda low, high: int(torch.randint(low, high, (1,), generator=random))  # noqa: E731
    rows = []
    for i in range(of["rows"]):
        length = 18 if i == 0 else below(4, 19)
        prompt = below(1, max(2, length // 2))
        rows.append({"ids": torch.randint(0, VOCAB, (length,), generator=random).tolist(), "mask": [int(at >= prompt) for at in range(length)]})
    return rows


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in sorted(model.named_parameters()) if parameter.requires_grad}


def wrap(base: str, of: dict) -> PeftModel:
    keys = dict(rank_pattern=of["rank_pattern"], alpha_pattern=of["alpha_pattern"], use_rslora=of["rslora"], trainable_token_indices=of["trainable_tokens"])
    model = get_peft_model(load_model(base), LoraConfig(r=of["rank"], lora_alpha=of["alpha"], target_modules=of["targets"], task_type="CAUSAL_LM", **keys))
    random = generator(base, of["name"], "initial")
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=random))
    return model


def token_losses(model: torch.nn.Module, row: dict) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([row["ids"]])
    logits = model(input_ids=ids).logits[0, :-1]
    counts = torch.tensor(row["mask"][1:], dtype=torch.bool)
    losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    return losses[counts], (logits.argmax(-1) == ids[0, 1:])[counts]


def train(model: PeftModel, of: dict, rows: list[dict]) -> list[dict]:
    parameters = list(trained(model).values())
    optimizer = torch.optim.AdamW(parameters, of["learning_rate"], tuple(of["betas"]), of["eps"], of["weight_decay"])
    per_step = of["batch_size"] * of["accumulation"]
    epoch = [list(range(at, min(at + per_step, len(rows)))) for at in range(0, len(rows), per_step)]
    steps = []
    for step in range(STEPS):
        used = epoch[step % len(epoch)]
        targets = sum(sum(rows[row]["mask"][1:]) for row in used)
        total = 0.0
        for row in used:
            loss = token_losses(model, rows[row])[0].sum() / targets
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(parameters, of["max_grad_norm"] or torch.inf).item()
        batches = [used[at : at + of["batch_size"]] for at in range(0, len(used), of["batch_size"])]
        steps.append(dict(micro_batches=batches, targets=targets, loss=total, grad_norm=norm, loss64=total, grad_norm64=norm, learning_rate=of["learning_rate"]))
        optimizer.step()
        optimizer.zero_grad()
    return steps


@torch.no_grad()
def evaluate(model: torch.nn.Module, rows: list[dict]) -> list[dict]:
    found = [token_losses(model, row) for row in rows]
    return [dict(loss_sum=losses.sum().item(), targets=len(losses), hits=int(right.sum())) for losses, right in found]


def save(model: PeftModel, folder: Path, base: str) -> None:
    """What PEFT writes, without the copies of the base model's tables."""
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | dict(base_model_name_or_path=base)
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name: t for name, t in tensors.items() if "base_layer" not in name}, folder / "adapter_model.safetensors", {"format": "pt"})


@torch.no_grad()
def logits_of(base: str, folder: Path, ids: list[int]) -> torch.Tensor:
    return PeftModel.from_pretrained(load_model(base), folder).eval()(input_ids=torch.tensor([ids])).logits[0]


def make() -> None:
    models = {}
    for base, adapters in MODELS.items():
        shutil.rmtree(HERE / base, ignore_errors=True)
        write_model(base)
        probe = torch.randint(0, VOCAB, (PROBE,), generator=generator(base, "probe")).tolist()
        parts = []
        for of in adapters:
            rows, model = make_rows(base, of), wrap(base, of)
            folder = HERE / base / of["name"]
            save(model, folder / "initial", base)
            steps = train(model, of, rows)
            save(model, folder / "final", base)
            parts.append(of | dict(rows=rows, steps=steps, after=evaluate(model, rows)))
            again = logits_of(base, folder / "final", probe)
            assert torch.equal(again, model.eval()(input_ids=torch.tensor([probe])).logits[0]), "PEFT does not read what it wrote"
            print(f"{base}/{of['name']}: loss {steps[0]['loss']:.3f} to {steps[-1]['loss']:.3f}")
        models[base] = dict(probe=probe, adapters=parts)
    versions = {package.__name__: package.__version__ for package in (torch, transformers, peft)}
    (HERE / "golden.json").write_text(json.dumps(dict(made_with=versions, models=models)) + "\n")


def check(exports: Path, base: str) -> None:
    probe = json.loads((HERE / "golden.json").read_text())["models"][base]["probe"]
    worst = 0.0
    for of in MODELS[base]:
        with tempfile.TemporaryDirectory() as own:
            model = PeftModel.from_pretrained(load_model(base), exports / of["name"], is_trainable=True)
            names = {name.replace(".default", "") for name in trained(model)}
            stored = load_file(exports / of["name"] / "adapter_model.safetensors").keys()
            assert len(names) == len(stored), f"{of['name']}: PEFT trains {sorted(names)}, the file has {sorted(stored)}"
        apart = (logits_of(base, exports / of["name"], probe) - logits_of(base, HERE / base / of["name"] / "final", probe)).abs().max().item()
        print(f"{base}/{of['name']}: logits of the export in PEFT are {apart:.1e} from those of PEFT's own training")
        worst = max(worst, apart)
    sys.exit(1 if worst > 1e-3 else 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Makes the golden files of tests/golden/trained-tables.")
    parser.add_argument("--check", nargs=2, metavar=("FOLDER", "BASE"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if arguments.check:
        check(Path(arguments.check[0]), arguments.check[1])
    make()
