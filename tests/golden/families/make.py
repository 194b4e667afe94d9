"""Makes the goldens of families of base models: three adapters on a tiny model of each, trained alone by transformers and PEFT
in fp32 on one CPU thread, with the logits and the greedy continuation of the trained model.

    python tests/golden/families/make.py [NAME ...]                  # with the packages of scripts/golden/index.ts
    python tests/golden/families/make.py --check EXPORT NAME         # an adapter that mlora exported: PEFT's logits of it are
                                                                     # those of NAME's adapter "all"; exit code 1 if not

Conventions are those of ../peft/make.py. Weights of the model and first values of the adapters are hashes (models.py), so that
only what training makes of them is kept. Each adapter is trained once more with each row in a micro-batch of its own: how far
the two lie apart is what a tolerance must allow, and a golden where they lie far apart is refused.
"""

import argparse
import copy
import json
import re
import shutil
import sys
import tempfile
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path

import peft
import torch
import transformers
from latents import LATENT_FAMILIES
from models import EXPERTS, FAMILIES, Family, hashed
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
STEPS = 6
MOST_SPREAD = dict(losses=2e-6, weights=2e-5)


@dataclass(frozen=True)
class Adapter:
    """Settings of an adapter; the names are the recipe's."""

    name: str
    rank: int
    alpha: float
    #: Which of the family's linears: every n-th, from the first or the last on.
    every: int
    last: bool
    rows: int
    batch_size: int
    accumulation: int
    learning_rate: float
    weight_decay: float
    max_grad_norm: float | None
    scheduler: str
    warmup: int
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-6
    rslora: bool = False
    min_lr_ratio: float = 0.0


ADAPTERS = [
    Adapter("all", 3, 6.0, 1, False, 5, 2, 2, 1e-2, 0.1, 0.5, "cosine", 1, min_lr_ratio=0.1),
    Adapter("few", 4, 8.0, 3, False, 3, 4, 1, 5e-3, 0.0, None, "constant", 0),
    Adapter("some", 2, 5.0, 2, True, 4, 1, 2, 4e-3, 0.01, 3.0, "linear", 2, betas=[0.8, 0.98], rslora=True),
]


def generator(*words: object) -> torch.Generator:
    return torch.Generator().manual_seed(sum(ord(letter) * 31**i for i, letter in enumerate("/".join(map(str, words)))) % 2**31)


def linears_of(family: Family, adapter: Adapter) -> list[str]:
    names = list(family.linears)
    return names[::-1][:: adapter.every] if adapter.last else names[:: adapter.every]


def make_rows(family: Family, adapter: Adapter) -> list[dict]:
    """Random tokens after a prompt of random length; one row is as long as the longest."""
    random = generator(family.name, adapter.name)
    below = lambda low, high: int(torch.randint(low, high, (1,), generator=random))  # noqa: E731
    longest = family.few_longest if adapter.name == "few" and family.few_longest else family.longest
    rows = []
    for i in range(adapter.rows):
        length = longest if i == 0 else below(3, longest + 1)
        if family.lengths:
            length = family.lengths[i % len(family.lengths)]
        prompt = below(1, max(2, length * 2 // 3))
        ids = torch.randint(0, 64, (length,), generator=random).tolist()
        rows.append({"ids": ids, "mask": [int(at >= prompt) for at in range(length)]})
    return rows


def model_class(config: transformers.PreTrainedConfig) -> type:
    return getattr(transformers, config.architectures[0])


def architecture_of(config: transformers.PreTrainedConfig) -> str:
    name = type(config).__name__.removesuffix("Config")
    return name + ("ForConditionalGeneration" if hasattr(config, "vision_config") else "ForCausalLM")


def file_name(family: Family, name: str) -> str:
    for old, new in family.renamed.items():
        if name.startswith(old):
            return new + name[len(old) :]
    return name


def values_of(family: Family, name: str, shape: list[int]) -> list:
    """[shape, middle, scale] of a tensor, by its name in the file."""
    for end, (middle, scale) in family.values.items():
        if name.endswith(end):
            return [shape, middle, scale]
    if "norm" in name:
        return [shape, family.norm_middle if family.norm_middle == 0.0 and not name.endswith("language_model.norm.weight") else 1.0, 0.5]
    if name.endswith("bias"):
        return [shape, 0.0, 0.5]
    if "embed" in name or "lm_head" in name:
        return [shape, 0.0, 0.9]
    return [shape, 0.0, round(2.2 / shape[-1] ** 0.5, 6)]


def write_model(family: Family, folder: Path) -> dict:
    """The model's folder, and what of it is kept: config.json, and of each tensor its shape, middle and scale."""
    config = family.config()
    config.architectures = [architecture_of(config)]
    model = model_class(config)(config)
    model.save_pretrained(folder)
    names = {file_name(family, name): list(t.shape) for name, t in load_file(folder / "model.safetensors").items()}
    kept = {name: values_of(family, name, shape) for name, shape in sorted(names.items())}
    save_file({name: hashed(name, *of) for name, of in kept.items()}, folder / "model.safetensors", {"format": "pt"})
    written = family.edit(json.loads((folder / "config.json").read_text()))
    (folder / "config.json").write_text(json.dumps(written, indent=1))
    (folder / "generation_config.json").unlink(missing_ok=True)
    return dict(config=written, tensors=kept)


def load_model(folder: Path, family: Family) -> torch.nn.Module:
    config = transformers.AutoConfig.from_pretrained(folder)
    model, told = model_class(config).from_pretrained(folder, dtype=torch.float32, attn_implementation=family.attention, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    model.name_or_path = model.config._name_or_path = "model"
    return model.eval()


def token_losses(model: torch.nn.Module, rows: list[dict], length: int):
    """Cross-entropy [rows, length - 1], which count, where greedy decoding is right; rows are padded to `length`."""
    padded = lambda values: torch.tensor([list(v) + [0] * (length - len(v)) for v in values])  # noqa: E731
    ids, attended = padded(row["ids"] for row in rows), padded([1] * len(row["ids"]) for row in rows)
    counts = padded(row["mask"] for row in rows)[:, 1:].bool()
    logits = model(input_ids=ids, attention_mask=attended, position_ids=positions_of(model, ids)).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return losses, counts, logits.argmax(-1) == ids[:, 1:]


def positions_of(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor | None:
    """Left to the model, whose own positions of text these are."""
    return None


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name.replace(".default.", "."): p for name, p in model.named_parameters() if p.requires_grad}


def ending(family: Family, path: str) -> str:
    """The last component of a linear's path, or all of it where another linear has the same."""
    last = path.split(".")[-1]
    return last if sum(other.split(".")[-1] == last for other in family.linears.values()) == 1 else path


def wrap(base: torch.nn.Module, family: Family, adapter: Adapter) -> peft.PeftModel:
    every = [family.linears[name] for name in linears_of(family, adapter)]
    paths, parameters = [path for path in every if path not in EXPERTS], [path for path in every if path in EXPERTS]
    pattern = rf"{re.escape(family.tower)}\.layers\.\d+\.({'|'.join(map(re.escape, paths))})"
    config = peft.LoraConfig(
        r=adapter.rank, lora_alpha=adapter.alpha, lora_dropout=0.0, use_rslora=adapter.rslora, task_type="CAUSAL_LM",
        target_parameters=parameters or None,
        target_modules=pattern if family.tower != "model" else sorted(ending(family, path) for path in paths),
    )  # fmt: skip
    model = peft.get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in trained(model).items():
            scale = 1.7 / parameter.shape[1] ** 0.5 if ".lora_A." in name else 0.2
            parameter.copy_(hashed(f"{adapter.name}/{name}", list(parameter.shape), 0.0, scale))
    return model


def train(model: peft.PeftModel, adapter: Adapter, rows: list[dict], batch_size: int) -> list[dict]:
    parameters = trained(model)
    optimizer = torch.optim.AdamW(parameters.values(), adapter.learning_rate, tuple(adapter.betas), adapter.eps, adapter.weight_decay)
    name, extra = (adapter.scheduler, None) if not adapter.min_lr_ratio else ("cosine_with_min_lr", {"min_lr_rate": adapter.min_lr_ratio})
    scheduler = transformers.get_scheduler(name, optimizer, adapter.warmup, STEPS, extra)
    per_step, longest = adapter.batch_size * adapter.accumulation, max(len(row["ids"]) for row in rows)
    epoch = [list(range(at, min(at + per_step, len(rows)))) for at in range(0, len(rows), per_step)]
    steps = []
    for step in range(STEPS):
        of = epoch[step % len(epoch)]
        micro_batches = [of[at : at + batch_size] for at in range(0, len(of), batch_size)]
        targets = sum(sum(rows[row]["mask"][1:]) for row in of)
        total = 0.0
        for batch in micro_batches:
            losses, counts, _ = token_losses(model, [rows[row] for row in batch], longest)
            loss = losses[counts].sum() / targets
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), adapter.max_grad_norm or torch.inf).item()
        steps.append(dict(micro_batches=micro_batches, targets=targets, loss=total, grad_norm=norm, learning_rate=scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return steps


@torch.no_grad()
def evaluate(model: torch.nn.Module, rows: list[dict]) -> list[dict]:
    longest, out = max(len(row["ids"]) for row in rows), []
    for row in rows:
        losses, counts, right = token_losses(model, [row], longest)
        out.append(dict(loss_sum=losses[counts].sum().item(), targets=int(counts.sum()), hits=int(right[counts].sum())))
    return out


@torch.no_grad()
def logits_of(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids])).logits[0].clone()


@torch.no_grad()
def greedy(model: torch.nn.Module, ids: list[int], family: Family) -> list[int]:
    """As transformers generates; without a mask it takes the token 0 for padding."""
    tokens = torch.tensor([ids])
    settings = dict(max_new_tokens=family.grown, do_sample=False, eos_token_id=None, pad_token_id=0, use_cache=family.cached)
    out = model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), **settings)
    return out[0, len(ids) :].tolist()


def check_traps(family: Family, folder: Path, ids: list[int]) -> None:
    """That what sets the family apart changes its numbers on these tokens."""
    model = load_model(folder, family)
    logits = logits_of(model, ids)
    for change in family.plain:
        config = copy.deepcopy(model.config)
        text = config.get_text_config()
        for key, value in copy.deepcopy(change).items():
            setattr(text, key, value)
        plain = model_class(config)._from_config(config, dtype=torch.float32, attn_implementation=family.attention).eval()
        plain.load_state_dict(model.state_dict())
        far = (logits_of(plain, ids) - logits).abs().max()
        assert far > 0.01, f"{family.name}: with {change} the logits differ by {far} only"


def far(got: dict, want: dict) -> float:
    return (sum((got[n] - want[n]).double().square().sum() for n in want) / sum(want[n].double().square().sum() for n in want)).sqrt().item()


def make_adapter(family: Family, adapter: Adapter, folder: Path, probe: list[int]) -> tuple[dict, dict, dict]:
    rows = make_rows(family, adapter)
    model = wrap(load_model(folder, family), family, adapter)
    steps = train(model, adapter, rows, adapter.batch_size)
    final = {name: p.detach().clone() for name, p in trained(model).items()}
    other = wrap(load_model(folder, family), family, adapter)
    again = train(other, adapter, rows, 1)
    spread = dict(losses=max(abs(a["loss"] - b["loss"]) / a["loss"] for a, b in zip(steps, again)), weights=far(trained(other), final))
    for key, most in MOST_SPREAD.items():
        assert spread[key] < most, f"{family.name}/{adapter.name}: fp32 itself loses {spread[key]:.1e} of the {key}"
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        config = json.loads((Path(saved) / "adapter_config.json").read_text())
        stored = load_file(Path(saved) / "adapter_model.safetensors")
    assert stored.keys() == final.keys() and all(torch.equal(stored[name], final[name]) for name in final)
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    kept = {key: value for key, value in asdict(adapter).items() if key not in ("every", "last", "rows")}
    part = kept | dict(targets=linears_of(family, adapter), rows=rows, steps=steps, after=evaluate(model, rows), adapter_config=config)
    print(f"  {family.name}/{adapter.name}: loss {steps[0]['loss']:.3f} to {steps[-1]['loss']:.3f}, apart {spread['losses']:.1e} {spread['weights']:.1e}")
    numbers = {f"{adapter.name}/{name}": value for name, value in final.items()}
    if adapter.name == "all":
        part |= dict(greedy=greedy(model, probe[: family.prompt], family))
        numbers |= {"logits/all": logits_of(model, probe)}
    return part, numbers


def make(family: Family, folder: Path) -> None:
    probe = torch.randint(0, 64, (family.probe,), generator=generator(family.name, "probe")).tolist()
    model = write_model(family, folder)
    check_traps(family, folder, make_rows(family, ADAPTERS[0])[0]["ids"])
    adapters, numbers = [], {"logits/base": logits_of(load_model(folder, family), probe)}
    for adapter in ADAPTERS:
        part, own = make_adapter(family, adapter, folder, probe)
        adapters.append(part)
        numbers |= own
    out = HERE / family.name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    save_file({name: value.contiguous() for name, value in numbers.items()}, out / "numbers.safetensors")
    versions = {package.__name__: package.__version__ for package in (torch, transformers, peft)}
    text = json.dumps(dict(made_with=versions, probe=probe, prompt=family.prompt, model=model, adapters=adapters), indent=1)
    flat = re.sub(r"\[[^\[\]{}]*\]", lambda found: re.sub(r"\s+", " ", found[0]), text)  # one list of numbers, one line
    flat = re.sub(r"\[\s+(\[[^\[\]]*\]), ([-\d.]+),\s+([-\d.]+)\s+\]", r"[\1, \2, \3]", flat)
    (out / "golden.json").write_text(flat + "\n")
    print(f"{family.name}: {sum(path.stat().st_size for path in out.iterdir()) / 1000:.0f} kB")


def check_export(export: Path, family: Family, folder: Path) -> None:
    write_model(family, folder)
    golden = json.loads((HERE / family.name / "golden.json").read_text())
    base = load_model(folder, family)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing.*")  # PEFT only warns where a tensor is
        model = peft.PeftModel.from_pretrained(base, export).eval()
    loaded = peft.PeftModel.from_pretrained(load_model(folder, family), export, is_trainable=True)
    assert trained(loaded).keys() == load_file(export / "adapter_model.safetensors").keys(), "other modules have an adapter"
    apart = (logits_of(model, golden["probe"]) - load_file(HERE / family.name / "numbers.safetensors")["logits/all"]).abs().max().item()
    print(f"{family.name}: logits of the export in PEFT are {apart:.1e} from those of PEFT's own training")
    sys.exit(1 if apart > 1e-3 else 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Makes the golden files of tests/golden/families.")
    parser.add_argument("--check", type=Path)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for family in [*FAMILIES, *LATENT_FAMILIES]:
        if not arguments.names or family.name in arguments.names:
            with tempfile.TemporaryDirectory() as model:
                if arguments.check:
                    check_export(arguments.check, family, Path(model))
                make(family, Path(model))
