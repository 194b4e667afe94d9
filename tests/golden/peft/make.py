"""Makes the golden files that mlora's training is tested against: three adapters on each of four tiny models, each adapter
trained alone by transformers and PEFT, in fp32 on one CPU thread.

    python tests/golden/peft/make.py [NAME ...]        # with the packages of scripts/bench/requirements.txt

Conventions, the ones of Hugging Face's Trainer: token i of a row is a target where mask[i] is 1, and is predicted from the
tokens before it; the loss of a mini-batch (all rows of an optimizer step) is the sum of its targets' cross-entropies over the
number of its targets, whatever micro-batches it is cut into; gradients are those of that loss; the rate of step i (from 0) is
the schedule's value at i, so that with warm-up the first step has rate 0. Gradients and norms are taken before clipping.

Each adapter is trained three times: as it goes into the goldens, with each row in a micro-batch of its own (no padding, another
order of sums), and in float64. How far these lie apart is kept next to the numbers: it is what a tolerance must allow. AdamW
divides a gradient by its own size, so an entry whose gradient is nearly zero makes a step of full size out of rounding; a
golden that hangs on such an entry measures nothing, and is refused (another `seed` in models.py has none).
"""

import argparse
import json
import re
import shutil
import warnings
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import peft
import torch
import transformers
from float64 import to_float64
from models import GOLDENS, Golden, check, generator, load_model, write_model
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
STEPS = 10
PROBE_LENGTH = 10  # tokens of the row whose logits are kept
MOST_SPREAD = dict(losses=1e-6, grad_norms=2e-6, gradients=3e-6, weights=5e-6)  # a tenth of what the tests may allow, or less
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Adapter:
    """Settings of an adapter; the names are the recipe's."""

    name: str
    rank: int
    alpha: float
    targets: list[str] | str
    rows: int
    batch_size: int
    accumulation: int
    learning_rate: float
    weight_decay: float
    max_grad_norm: float | None
    scheduler: str
    warmup: int
    min_lr_ratio: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    rslora: bool = False
    method: str = "lora"
    lora_plus_ratio: float = 1.0  # the rate of B over that of A
    random_b: bool = False  # else PEFT's own initialisation, B = 0
    projection_seed: int = 0
    init: str = "default"
    exclude: list[str] | str | None = None
    layers: list[int] | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)


ADAPTERS = [
    # 14 rows, 6 a step: the third step of each epoch has 2. Every step is clipped.
    Adapter("all", 3, 6.0, ALL, 14, 2, 3, 1e-2, 0.1, 0.5, "cosine", 2, min_lr_ratio=0.1, random_b=True),
    # Fewer rows than a batch, and no clipping.
    Adapter("few", 16, 8.0, ["q_proj", "v_proj"], 3, 4, 1, 5e-3, 0.0, None, "constant", 0),
    # 7 rows, 2 a step, each in its own micro-batch: the last step of an epoch has 1. Some steps are clipped, some are not.
    Adapter(
        "some", 5, 16.0, ["o_proj", "gate_proj", "down_proj"], 7, 1, 2, 4e-3, 0.01, 9.0, "linear", 3,
        betas=[0.8, 0.98], eps=1e-7, rslora=True,
    ),
]  # fmt: skip

# The other kinds of adapters, on one of the models.
KINDS_ON = "llama"
KINDS = [
    Adapter("plus", 4, 6.0, ALL, 9, 2, 2, 2e-3, 0.1, 0.5, "cosine", 2, random_b=True, lora_plus_ratio=4.0),
    Adapter("dora", 3, 6.0, ALL, 14, 2, 3, 1e-2, 0.1, 0.5, "cosine", 2, min_lr_ratio=0.1, random_b=True, method="dora"),
    # B begins as zero, so that the norms are those of the frozen rows.
    Adapter("fresh", 5, 16.0, ["o_proj", "gate_proj", "down_proj"], 7, 1, 2, 4e-3, 0.0, None, "linear", 0, rslora=True, method="dora"),
]  # fmt: skip

# Linears of every shape: the projections are as wide as the widest, and each reads its corner.
VERA = [
    Adapter("all", 12, 12.0, ALL, 14, 2, 3, 4e-2, 0.1, 0.05, "cosine", 2, min_lr_ratio=0.1, random_b=True, method="vera", projection_seed=5),
    Adapter("fresh", 33, 33.0, ["k_proj", "o_proj", "up_proj"], 7, 1, 2, 2e-2, 0.0, None, "linear", 0, method="vera"),
]  # fmt: skip

# Factors that begin as a part of the weight. PEFT takes it off the weight.
PRINCIPAL = [
    Adapter("pissa", 5, 8.0, ["q_proj", "k_proj", "o_proj", "gate_proj", "down_proj"], 14, 2, 3, 4e-3, 0.0, 0.5, "cosine", 2, init="pissa"),
    Adapter("olora", 4, 6.0, ["v_proj", "o_proj", "up_proj", "down_proj"], 7, 1, 2, 4e-3, 0.0, None, "linear", 0, init="olora", rslora=True),
]  # fmt: skip

# Layers and linears that differ. In "regex" the second layer's first linear has the pattern's rank; the first has no target.
PLACES = [
    Adapter("patterns", 4, 6.0, ALL, 9, 2, 2, 1e-2, 0.1, 0.5, "cosine", 2, random_b=True, exclude=["k_proj"],
        rank_pattern={r"layers\.1\.self_attn\..*": 7, "up_proj": 2, "q_proj": 3}, alpha_pattern={r"0\.mlp\..*_proj": 5.0, "o_proj": 16.0}),
    Adapter("regex", 5, 8.0, r"model\.layers\.(1\.self_attn\.[qv]_proj|\d\.mlp\.down_proj)", 7, 1, 2, 4e-3, 0.0, None, "linear", 0,
        rslora=True, method="dora", exclude=r".*\.0\.mlp.*", rank_pattern={"q_proj": 8}),
    Adapter("layers", 3, 6.0, ["q_proj", "gate_proj", "down_proj"], 7, 2, 1, 1e-2, 0.0, None, "constant", 0, layers=[1], random_b=True),
]  # fmt: skip
ON_ONE = dict(kinds=KINDS, vera=VERA, principal=PRINCIPAL, places=PLACES)


def mix(x: torch.Tensor) -> torch.Tensor:
    """lowbias32, of i64 that hold 32 bits."""
    low = 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & low
    x = ((x ^ (x >> 15)) * 0x846CA68B) & low
    return x ^ (x >> 16)


def projection(seed: int, side: int, fan_in: int, shape: torch.Size) -> torch.Tensor:
    """VeRA's A (side 1) or B (2), as mlora draws them: PEFT's bounds, but a hash for PyTorch's generator."""
    key = mix(mix(torch.tensor(seed)) ^ 1) ^ (0x80000000 if side == 2 else 0)
    bits = mix(key ^ torch.arange(shape.numel()))
    bound = torch.tensor((6 / fan_in) ** 0.5).float()
    return (((bits >> 8).double() * 2**-23 - 1).float() * bound).reshape(shape)


def make_rows(golden: Golden, adapter: Adapter) -> list[dict]:
    """Random tokens; 3 to 40 of them, both bounds among them, after a prompt of random length."""
    random = generator(golden.name, golden.seed, adapter.name, "rows")
    below = lambda low, high: int(torch.randint(low, high, (1,), generator=random))  # noqa: E731
    rows = []
    for i in range(adapter.rows):
        length = [40, 3][i] if i < 2 else below(3, 41)
        prompt = below(1, max(2, length * 2 // 3))
        mask = [int(at >= prompt) for at in range(length)]
        if i % 3 == 0:  # two turns: the targets have a hole
            mask[length // 2 + prompt // 2] = 0
        ids = torch.randint(0, golden.config.vocab_size, (length,), generator=random).tolist()
        rows.append({"ids": ids, "mask": mask})
    return rows


def steps_of(adapter: Adapter) -> list[list[list[int]]]:
    """Of each step its micro-batches, as row numbers in the order of the file. An epoch's last step takes what is left."""
    per_step = adapter.batch_size * adapter.accumulation
    epoch = [list(range(at, min(at + per_step, adapter.rows))) for at in range(0, adapter.rows, per_step)]
    cut = [[rows[at : at + adapter.batch_size] for at in range(0, len(rows), adapter.batch_size)] for rows in epoch]
    return [cut[step % len(cut)] for step in range(STEPS)]


def wrap(base: torch.nn.Module, golden: Golden, adapter: Adapter) -> peft.PeftModel:
    """The base model with the adapter at its initial values, which are fp32 numbers whatever the model's type is."""
    if adapter.method == "vera":
        return wrap_vera(base, golden, adapter)
    config = peft.LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=0.0,
        target_modules=adapter.targets,
        exclude_modules=adapter.exclude,
        layers_to_transform=adapter.layers,
        rank_pattern=adapter.rank_pattern,
        alpha_pattern=adapter.alpha_pattern,
        use_rslora=adapter.rslora,
        use_dora=adapter.method == "dora",
        init_lora_weights=True if adapter.init == "default" else adapter.init,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(generator(golden.name, golden.seed, adapter.name).initial_seed() % 2**32)
    model = peft.get_peft_model(base, config).train()
    with torch.no_grad():
        for name, parameter in trained(model).items():
            if adapter.random_b and ".lora_B." in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator(golden.name, name)))
            parameter.copy_(parameter.float())
    return model


def wrap_vera(base: torch.nn.Module, golden: Golden, adapter: Adapter) -> peft.PeftModel:
    config = peft.VeraConfig(
        r=adapter.rank,
        target_modules=adapter.targets,
        projection_prng_key=adapter.projection_seed,
        save_projection=True,
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(base, config).train()
    a, b = model.base_model.vera_A["default"], model.base_model.vera_B["default"]
    with torch.no_grad():
        a.copy_(projection(adapter.projection_seed, 1, a.shape[1], a.shape))
        b.copy_(projection(adapter.projection_seed, 2, adapter.rank, b.shape))
        for name, parameter in trained(model).items():
            if adapter.random_b:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(golden.name, name)))
            parameter.copy_(parameter.float())
    return model


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """A and B of each linear by their names in adapter_model.safetensors."""
    return {name.replace(".default.", "."): p for name, p in model.named_parameters() if p.requires_grad}


def token_losses(model: torch.nn.Module, rows: list[dict]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cross-entropy [rows, length - 1] in the model's type, which of them count, and where greedy decoding is right."""
    length = max(len(row["ids"]) for row in rows)
    padded = lambda values: torch.tensor([list(v) + [0] * (length - len(v)) for v in values])  # noqa: E731
    ids = padded(row["ids"] for row in rows)
    attended = padded([1] * len(row["ids"]) for row in rows)
    counts = padded(row["mask"] for row in rows)[:, 1:].bool()
    logits = model(input_ids=ids, attention_mask=attended).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return losses, counts, (logits.argmax(-1) == ids[:, 1:])


def check_loss_convention(model: torch.nn.Module, rows: list[dict]) -> None:
    """Our mean over targets is what transformers computes for a Trainer that tells it the number of targets."""
    row = max(rows, key=lambda row: len(row["ids"]))
    ids, mask = torch.tensor([row["ids"]]), torch.tensor([row["mask"]])
    labels = torch.where(mask.bool(), ids, -100)
    losses, counts, _ = token_losses(model, [row])
    theirs = model(input_ids=ids, labels=labels, num_items_in_batch=torch.tensor(int(mask[:, 1:].sum()))).loss
    assert torch.isclose(losses[counts].mean(), theirs, rtol=1e-6), (losses[counts].mean(), theirs)


def make_scheduler(optimizer: torch.optim.Optimizer, adapter: Adapter) -> torch.optim.lr_scheduler.LRScheduler:
    name, extra = adapter.scheduler, None
    if name == "constant" and adapter.warmup:
        name = "constant_with_warmup"
    if adapter.min_lr_ratio:
        assert name == "cosine"
        name, extra = "cosine_with_min_lr", {"min_lr_rate": adapter.min_lr_ratio}
    return transformers.get_scheduler(name, optimizer, adapter.warmup, STEPS, extra)


def train(model: peft.PeftModel, adapter: Adapter, rows: list[dict]) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """The steps' numbers, and the first step's gradients."""
    parameters = trained(model)
    ups = [parameter for name, parameter in parameters.items() if ".lora_B." in name]
    others = [parameter for name, parameter in parameters.items() if ".lora_B." not in name]
    groups = [dict(params=others), dict(params=ups, lr=adapter.learning_rate * adapter.lora_plus_ratio)]
    optimizer = torch.optim.AdamW(groups, adapter.learning_rate, tuple(adapter.betas), adapter.eps, adapter.weight_decay)
    scheduler = make_scheduler(optimizer, adapter)
    steps, first = [], {}
    for micro_batches in steps_of(adapter):
        targets = sum(sum(rows[row]["mask"][1:]) for rows_of in micro_batches for row in rows_of)
        total = 0.0
        for rows_of in micro_batches:
            losses, counts, _ = token_losses(model, [rows[row] for row in rows_of])
            loss = losses[counts].sum() / targets
            loss.backward()
            total += loss.item()
        first = first or {name: parameter.grad.clone() for name, parameter in parameters.items()}
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), adapter.max_grad_norm or torch.inf).item()
        numbers = dict(targets=targets, loss=total, grad_norm=norm, learning_rate=scheduler.get_last_lr()[0])
        steps.append(dict(micro_batches=micro_batches, **numbers))
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return steps, first


@torch.no_grad()
def evaluate(model: torch.nn.Module, rows: list[dict]) -> list[dict]:
    """Of each row alone: the sum of its targets' losses, how many they are, how many greedy decoding hits."""
    out = []
    for row in rows:
        losses, counts, right = token_losses(model, [row])
        out.append(dict(loss_sum=losses[counts].sum().item(), targets=int(counts.sum()), hits=int(right[counts].sum())))
    return out


def snapshot(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def far(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> float:
    """Relative distance of all tensors taken together, in the Euclidean norm."""
    squares = lambda of: sum(of(name).double().square().sum().item() for name in want)  # noqa: E731
    return (squares(lambda name: got[name].double() - want[name].double()) / squares(lambda name: want[name])) ** 0.5


def distance(a: tuple, b: tuple) -> dict[str, float]:
    """How far run `a` (steps, first gradients, initial and final weights) lies from `b`, each in its worst step."""
    worst = lambda key: max(abs(x[key] - y[key]) / y[key] for x, y in zip(a[0], b[0], strict=True))  # noqa: E731
    update = [{name: final[name].double() - initial[name].double() for name in final} for *_, initial, final in (a, b)]
    return dict(
        losses=worst("loss"),
        grad_norms=worst("grad_norm"),
        gradients=far(a[1], b[1]),
        weights=far(a[3], b[3]),
        update=far(*update),
    )


@torch.no_grad()
def logits_of(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    """[tokens, vocabulary]"""
    return model(torch.tensor([ids])).logits[0].clone()


def save_adapter(model: peft.PeftModel, folder: Path) -> None:
    config = model.peft_config["default"]
    for key in ("target_modules", "exclude_modules"):
        of = getattr(config, key)  # a set's order would change from run to run
        setattr(config, key, sorted(of) if isinstance(of, set) else of)
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()


def make_adapter(golden: Golden, adapter: Adapter, base: Path, folder: Path, probe: list[int]) -> tuple[dict, torch.Tensor]:
    """Trains and writes one adapter; returns its part of golden.json, and the trained model's logits of the probe."""
    rows = make_rows(golden, adapter)
    check(golden, base, [row["ids"] for row in rows])
    before = evaluate(load_model(base), rows)

    def run(model: peft.PeftModel, settings: Adapter, keep: bool = False) -> tuple:
        initial = snapshot(trained(model))
        if keep:
            save_adapter(model, folder / "initial")
            check_loss_convention(model, rows)
        steps, gradients = train(model, settings, rows)
        return steps, gradients, initial, snapshot(trained(model))

    model = wrap(load_model(base), golden, adapter)
    result = run(model, adapter, keep=True)
    steps, gradients, _, _ = result
    save_adapter(model, folder / "final")
    save_file({name: gradient.contiguous() for name, gradient in gradients.items()}, folder / "gradients.safetensors")
    one_by_one = replace(adapter, batch_size=1, accumulation=adapter.batch_size * adapter.accumulation)
    other = run(wrap(load_model(base), golden, adapter), one_by_one)
    double = wrap(to_float64(load_model(base)), golden, replace(adapter, init="default"))
    with torch.no_grad():  # magnitudes begin as norms, which are rounded in fp32
        for name, parameter in trained(double).items():
            parameter.copy_(result[2][name])
        if adapter.init != "default":  # which PEFT knows in 32 bits only
            for module in double.modules():
                if isinstance(module, peft.tuners.lora.Linear):
                    module.weight.sub_(module.get_delta_weight("default"))
    exact = run(double, adapter)

    spread = dict(float64=distance(result, exact), one_by_one=distance(other, result))
    for key, most in MOST_SPREAD.items():
        lost = max(numbers[key] for numbers in spread.values())
        assert lost < most, f"{golden.name}/{adapter.name}: fp32 itself loses {lost:.1e} of the {key}; try another seed"
    clipped = [adapter.max_grad_norm is not None and step["grad_norm"] > adapter.max_grad_norm for step in steps]
    assert any(clipped) == (adapter.max_grad_norm is not None), [step["grad_norm"] for step in steps]
    for step, double in zip(steps, exact[0], strict=True):
        step |= dict(loss64=double["loss"], grad_norm64=double["grad_norm"])
    norms = sorted(step["grad_norm"] for step in steps)
    print(
        f"  {golden.name}/{adapter.name}: loss {steps[0]['loss']:.3f} to {steps[-1]['loss']:.3f},"
        f" gradient norms {norms[0]:.2f} to {norms[-1]:.2f}, {sum(clipped)} of {STEPS} clipped"
    )
    for kind, numbers in spread.items():
        print(f"    {kind:>10}: " + ", ".join(f"{key} {value:.1e}" for key, value in numbers.items()))

    logits = logits_of(model.eval(), probe)
    settings = {key: value for key, value in asdict(adapter).items() if key not in ("rows", "random_b")}
    return settings | dict(rows=rows, before=before, after=evaluate(model, rows), steps=steps, spread=spread), logits


def make(golden: Golden, name: str, adapters_of: list[Adapter]) -> None:
    """Adapters on the golden's model, in the folder `name`; the model is written into the one that has its name."""
    folder, base = HERE / name, HERE / golden.name / "model"
    shutil.rmtree(folder, ignore_errors=True)
    if name == golden.name:
        write_model(golden, base)
    probe = torch.randint(0, golden.config.vocab_size, (PROBE_LENGTH,), generator=generator(golden.name, "probe")).tolist()
    adapters, logits = [], {"base": logits_of(load_model(base), probe)}
    for adapter in adapters_of:
        part, logits[adapter.name] = make_adapter(golden, adapter, base, folder / adapter.name, probe)
        adapters.append(part)
    save_file(logits, folder / "logits.safetensors")
    versions = {package.__name__: package.__version__ for package in (torch, transformers, peft)}
    text = json.dumps(dict(made_with=versions, probe=probe, adapters=adapters), indent=1)
    flat = re.sub(r"\[[^\[\]{}]*\]", lambda numbers: re.sub(r"\s+", " ", numbers[0]), text)  # one list of numbers, one line
    (folder / "golden.json").write_text(flat + "\n")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{name}: {size / 1000:.0f} kB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Makes the golden files of tests/golden/peft.")
    parser.add_argument("names", nargs="*", choices=[*(golden.name for golden in GOLDENS), *ON_ONE, []], metavar="NAME")
    names = parser.parse_args().names
    warnings.simplefilter("ignore", FutureWarning)  # transformers about itself
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for golden in (golden for golden in GOLDENS if not names or golden.name in names):
        make(golden, golden.name, ADAPTERS)
    for name, adapters in ON_ONE.items():
        if not names or name in names:
            make(next(golden for golden in GOLDENS if golden.name == KINDS_ON), name, adapters)
