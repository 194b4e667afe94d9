"""How far bf16 is from fp32 on the goldens of tiny mixtures with attention over latents, and how much of that is other experts.

    python scripts/bench/expert_choices.py    # with the packages of scripts/golden/index.ts, on one CPU thread

By transformers and PEFT alone. Against the golden in fp32: bf16, and fp32 of weights that are rounded to bf16; each once more
with the experts that fp32 chose. Prints the largest relative differences, * beyond what tests/gpu/golden.test.ts allows, and
how many choices of a token are others.
"""
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tests" / "golden" / "families"))
import make  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from latents import LATENT_FAMILIES  # noqa: E402

ALLOWED = dict(loss=2e-2, grad_norm=0.1, weights=0.1, row=2e-2)
topk, cross_entropy = torch.topk, torch.nn.functional.cross_entropy


class Choices:
    """In place of torch.topk: what was chosen, in order; with `of` what that run chose is taken."""

    def __init__(self, of=None):
        self.seen, self.of = [], of

    def __call__(self, scores, k, dim=-1, largest=True, sorted=True):
        values, index = topk(scores, k, dim=dim, largest=largest, sorted=sorted)
        self.seen.append(index.detach().clone())
        if self.of is not None:
            index = self.of[len(self.seen) - 1]
            values = scores.gather(dim, index)
        return torch.return_types.topk((values, index))


def run(family, folder, adapter, rows, dtype, rounded, of):
    config = transformers.AutoConfig.from_pretrained(folder)
    base = make.model_class(config).from_pretrained(folder, dtype=dtype, attn_implementation=family.attention).eval()
    base.name_or_path = base.config._name_or_path = "model"
    if rounded:
        for parameter in base.parameters():
            parameter.data = parameter.data.bfloat16().to(parameter.dtype)
    model = make.wrap(base, family, adapter)
    for parameter in make.trained(model).values():
        parameter.data = parameter.data.float()
    torch.topk = choices = Choices(of)
    try:
        steps, after = make.train(model, adapter, rows, adapter.batch_size), make.evaluate(model, rows)
    finally:
        torch.topk = topk
    return steps, after, {name: p.detach().float() for name, p in make.trained(model).items()}, choices.seen


def farthest(got, want, key):
    return max(abs(a[key] - b[key]) / abs(b[key]) for a, b in zip(got, want))


def compare(family, folder, adapter):
    rows = make.make_rows(family, adapter)
    steps, after, weights, chosen = run(family, folder, adapter, rows, torch.float32, False, None)
    for name, dtype in (("bf16", torch.bfloat16), ("fp32 of rounded weights", torch.float32)):
        for of in (None, chosen) if chosen else (None,):
            got = run(family, folder, adapter, rows, dtype, True, of)
            off = [(a.sort(-1).values != b.sort(-1).values).any(-1) for a, b in zip(got[3], chosen)]
            found = dict(loss=farthest(got[0], steps, "loss"), grad_norm=farthest(got[0], steps, "grad_norm"), weights=make.far(got[2], weights), row=farthest(got[1], after, "loss_sum"))
            numbers = " ".join(f"{key} {value:.4f}{'*' if value > ALLOWED[key] else ' '}" for key, value in found.items())
            print(f"{family.name:14} {adapter.name:5} {name + (', its experts' if of else ''):37} {numbers} {sum(int(o.sum()) for o in off)} of {sum(o.numel() for o in off)}", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.nn.functional.cross_entropy = lambda logits, *rest, **named: cross_entropy(logits.float(), *rest, **named)
    for each in LATENT_FAMILIES:
        if each.name == "minicpm3":  # no mixture
            continue
        with tempfile.TemporaryDirectory() as made:
            make.write_model(each, Path(made))
            for one in make.ADAPTERS:
                compare(each, Path(made), one)
