"""Makes losses.json and the adapters that mlora's contrastive instruction tuning is tested against, by torch's autograd alone.

    python tests/golden/cit/make.py        # with the packages of scripts/bench/requirements.txt

losses.json: the loss of random pooled states and log-probabilities in float64, with its gradients. The folders: an adapter on
one of the tiny models of ../peft, trained for ten steps in fp32 on one thread; each row runs alone, so nothing is padded. The
formula is the one of the authors' code (luka-group/CoIN) and of mLoRA's CITTask: the cross-entropy of InfoNCE in both
directions over cosines, times min(lambda, generation / contrast) without a gradient, next to the mean cross-entropy of the
targets of both answers. Pooled is what the model makes of all tokens but the last, which is only a target.
"""

import json
import sys
from pathlib import Path

import peft
import torch
import torch.nn.functional as F
import transformers

HERE = Path(__file__).resolve().parent
PEFT = HERE.parent / "peft"
sys.path.insert(0, str(PEFT))
from float64 import to_float64  # noqa: E402
from models import load_model  # noqa: E402

STEPS = 10
random = torch.Generator().manual_seed(20262)

RUNS = [
    # 6 rows, 4 a step: the second step of each epoch has 2. The ratio of the losses bounds the weight as a rule.
    dict(name="last", model="llama", adapter="all", pooling="last", temperature=0.05, **{"lambda": 1.0}, learning_rate=4e-3,
         lengths=[(9, 14), (5, 6), (20, 17), (4, 4), (11, 12), (8, 9)], batch_size=4, accumulation=1, cut=[[[0, 1, 2, 3]], [[4, 5]]]),
    # 7 rows, 2 micro-batches of 2 a step, as schedule/steps.ts cuts them: rows are told apart within those only; the last row
    # is alone.
    dict(name="mean", model="qwen3", adapter="some", pooling="mean", temperature=0.2, **{"lambda": 0.3}, learning_rate=3e-3,
         lengths=[(9, 14), (5, 6), (20, 17), (4, 5), (11, 12), (8, 9), (16, 13)], batch_size=2, accumulation=2, cut=[[[0, 1], [2, 3]], [[4, 5], [6]]]),
]  # fmt: skip


def cit(us, vs, losses, targets, of, temperature, most):
    """(contrast, loss) of a micro-batch; losses: sums of the sequences' cross-entropies; of: rows and targets of the
    mini-batch."""
    similar = F.cosine_similarity(us.unsqueeze(1), vs.unsqueeze(0), dim=2) / temperature
    labels = torch.arange(len(us))
    contrast = (F.cross_entropy(similar, labels) + F.cross_entropy(similar.T, labels)) / 2
    generation = losses.sum() / targets.sum()
    weight = min(most, generation.item() / contrast.item()) if contrast.item() > 0 else most
    return contrast, losses.sum() / of[1] + weight * contrast * len(us) / of[0]


def make_losses() -> None:
    cases = []
    for most, temperature, rows in ((0.2, 0.5, 5), (1.0, 0.05, 4), (1000.0, 0.3, 3), (1.0, 0.1, 1)):
        normal = lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64)  # noqa: E731
        us = (normal(rows, 12) + 1).requires_grad_()
        vs = (us.detach() + normal(rows, 12)).requires_grad_()
        logps = (-20 * torch.rand(rows, 2, generator=random, dtype=torch.float64) - 1).requires_grad_()
        targets = torch.randint(1, 12, (rows, 2), generator=random)
        of = (rows + 3, int(targets.sum()) + 11)
        contrast, loss = cit(us, vs, -logps, targets, of, temperature, most)
        loss.backward()
        cases.append(
            dict(
                objective={"name": "cit", "lambda": most, "temperature": temperature, "pooling": "last"}, whole=of,
                us=us.tolist(), vs=vs.tolist(), logps=logps.tolist(), targets=targets.tolist(),
                contrast=contrast.item(), loss=loss.item(),
                gradients=dict(us=us.grad.tolist(), vs=vs.grad.tolist(), logps=logps.grad.tolist()),
            )
        )  # fmt: skip
    (HERE / "losses.json").write_text(json.dumps(cases) + "\n")


def make_rows(vocab: int, lengths) -> list[list[dict]]:
    """An answer of about half of the shorter instruction's length after each instruction; the first token is never a
    target."""
    rows = []
    for own, other in lengths:
        answer = torch.randint(0, vocab, (max(1, min(own, other) // 2),), generator=random).tolist()
        row = []
        for length in (own, other):
            prompt = torch.randint(0, vocab, (length - len(answer),), generator=random).tolist()
            row.append(dict(ids=prompt + answer, mask=[0] * len(prompt) + [1] * len(answer)))
        rows.append(row)
    return rows


def sequence(model, ids, mask, pooling):
    """(pooled state, sum of the targets' cross-entropies, targets)"""
    out = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    hidden = out.hidden_states[-1][0, :-1]  # after the final norm
    losses = F.cross_entropy(out.logits[0, :-1], torch.tensor(ids[1:]), reduction="none")
    counts = torch.tensor(mask[1:], dtype=torch.bool)
    return hidden[-1] if pooling == "last" else hidden.mean(0), losses[counts].sum(), int(counts.sum())


def train(model, run, rows):
    parameters = {n.replace(".default.", "."): p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), run["learning_rate"], weight_decay=0.01)
    steps = []
    for step in range(STEPS):
        micro_batches = run["cut"][step % len(run["cut"])]
        mine = [row for batch in micro_batches for row in batch]
        of = (len(mine), sum(sum(s["mask"][1:]) for row in mine for s in rows[row]))
        total = contrasts = 0.0
        for batch in micro_batches:
            found = [sequence(model, s["ids"], s["mask"], run["pooling"]) for row in batch for s in rows[row]]
            us, vs = (torch.stack([f[0] for f in found[i::2]]) for i in (0, 1))
            losses, targets = torch.stack([f[1] for f in found]), torch.tensor([f[2] for f in found])
            contrast, loss = cit(us, vs, losses, targets, of, run["temperature"], run["lambda"])
            loss.backward()
            total += loss.item()
            contrasts += contrast.item() * len(batch) / of[0]
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0).item()
        optimizer.step()
        optimizer.zero_grad()
        steps.append(dict(loss=total, contrast=contrasts, grad_norm=norm, micro_batches=micro_batches))
    return steps, {name: p.detach().clone() for name, p in parameters.items()}


def make_run(run: dict) -> None:
    folder = PEFT / run["model"]
    # noqa: E731
    load = lambda base: peft.PeftModel.from_pretrained(base, folder / run["adapter"] / "initial", is_trainable=True)
    base = load_model(folder / "model")
    rows = make_rows(base.config.vocab_size, run["lengths"])
    model = load(base)
    steps, weights = train(model, run, rows)
    exact_steps, exact = train(load(to_float64(load_model(folder / "model"))), run, rows)
    off = max((weights[n].double() - exact[n].double()).abs().max().item() for n in weights)
    print(f"{run['name']}: losses {steps[0]['loss']:.4f} to {steps[-1]['loss']:.4f}, contrast {steps[0]['contrast']:.4f} to"
          f" {steps[-1]['contrast']:.4f}; fp32 is {off:.1e} from float64")  # fmt: skip
    assert off < 5e-6, "fp32 itself is too far away"
    out = HERE / run["name"]
    config = model.peft_config["default"]
    config.target_modules = sorted(config.target_modules)  # a set, whose order would change from run to run
    model.save_pretrained(out, save_embedding_layers=False)
    (out / "README.md").unlink()
    (out / "run.json").write_text(json.dumps(run | dict(rows=rows, steps=steps)) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    make_losses()
    for run in RUNS:
        make_run(run)
