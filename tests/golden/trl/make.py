"""Makes losses.json, which mlora's preference objectives are tested against: what TRL's own loss functions make of random
log-probabilities, in float64, with the slopes of the mini-batch's loss by them.

    python tests/golden/trl/make.py        # with trl==0.15.2, the last release that has the functions by themselves

TRL averages a batch's losses over its rows, and the chosen answers' own loss (CPO, ORPO) over their targets. For KTO, rows are
told apart by their label, and the reference point comes from log-probabilities of mismatched answers.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from trl.trainer.cpo_trainer import CPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.orpo_trainer import ORPOTrainer

HERE = Path(__file__).resolve().parent
ROWS = 6
ACCELERATOR = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda t: t, gather=lambda t: t)
random = torch.Generator().manual_seed(20260)


def uniform(low: float, high: float) -> torch.Tensor:
    return low + (high - low) * torch.rand(ROWS, generator=random, dtype=torch.float64)


def make_rows() -> dict[str, torch.Tensor]:
    own, other = (uniform(-40, -0.5).requires_grad_() for _ in range(2))
    near = lambda of: (of.detach() + uniform(-3, 3)).clamp(max=-0.01)  # noqa: E731
    targets = lambda: torch.randint(1, 30, (ROWS,), generator=random)  # noqa: E731
    label = torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool)
    return dict(
        own=own, other=other, own_targets=targets(), other_targets=targets(), own_ref=near(own), other_ref=near(other), label=label
    )


def dpo(o: dict, r: dict):
    mean = o["loss"] == "ipo"
    at = lambda t, n: t / n if mean else t  # noqa: E731
    trainer = SimpleNamespace(
        accelerator=ACCELERATOR, loss_type=o["loss"], beta=o["beta"], label_smoothing=o["labelSmoothing"], reference_free=False,
        f_divergence_type="reverse_kl", f_divergence_params=None,
    )  # fmt: skip
    losses, *rewards = DPOTrainer.dpo_loss(
        trainer,
        at(r["own"], r["own_targets"]), at(r["other"], r["other_targets"]),
        at(r["own_ref"], r["own_targets"]), at(r["other_ref"], r["other_targets"]),
    )  # fmt: skip
    return losses.mean(), rewards


def nll(r: dict) -> torch.Tensor:
    return -r["own"].sum() / r["own_targets"].sum()


def cpo(o: dict, r: dict):
    trainer = SimpleNamespace(
        accelerator=ACCELERATOR, loss_type=o["loss"], beta=o["beta"], label_smoothing=o["labelSmoothing"], simpo_gamma=0.0
    )
    losses, *rewards = CPOTrainer.cpo_loss(trainer, r["own"], r["other"])
    return losses.mean() + o["alpha"] * nll(r), rewards


def simpo(o: dict, r: dict):
    trainer = SimpleNamespace(
        accelerator=ACCELERATOR, loss_type="simpo", beta=o["beta"], label_smoothing=o["labelSmoothing"], simpo_gamma=o["gamma"]
    )
    losses, *rewards = CPOTrainer.cpo_loss(trainer, r["own"] / r["own_targets"], r["other"] / r["other_targets"])
    return losses.mean(), rewards


def orpo(o: dict, r: dict):
    trainer = SimpleNamespace(accelerator=ACCELERATOR, beta=o["lambda"])
    losses, *rest = ORPOTrainer.odds_ratio_loss(trainer, r["own"] / r["own_targets"], r["other"] / r["other_targets"])
    return nll(r) - losses.mean(), rest[:2]


def kto(o: dict, r: dict):
    trainer = SimpleNamespace(
        accelerator=ACCELERATOR, loss_type="kto", beta=o["beta"], desirable_weight=o["desirable"],
        undesirable_weight=o["undesirable"], calculate_KL=True,
    )  # fmt: skip
    good, bad = r["label"], ~r["label"]
    losses, *_ = KTOTrainer.kto_loss(
        trainer,
        r["own"][good], r["own"][bad], r["other"].detach(),
        r["own_ref"][good], r["own_ref"][bad], r["other_ref"],
    )  # fmt: skip
    rewards = o["beta"] * (r["own"] - r["own_ref"])
    return losses.mean(), [rewards]


OBJECTIVES = [
    (dpo, dict(name="dpo", loss="sigmoid", beta=0.1, labelSmoothing=0.0, reference="base")),
    (dpo, dict(name="dpo", loss="sigmoid", beta=0.6, labelSmoothing=0.15, reference="base")),
    (dpo, dict(name="dpo", loss="hinge", beta=0.4, labelSmoothing=0.0, reference="base")),
    (dpo, dict(name="dpo", loss="ipo", beta=0.2, labelSmoothing=0.0, reference="base")),
    (cpo, dict(name="cpo", loss="sigmoid", beta=0.1, labelSmoothing=0.1, alpha=1.0)),
    (cpo, dict(name="cpo", loss="hinge", beta=0.05, labelSmoothing=0.0, alpha=0.5)),
    (simpo, dict(name="simpo", beta=2.0, gamma=0.9, labelSmoothing=0.0)),
    (orpo, {"name": "orpo", "lambda": 0.3}),
    (kto, dict(name="kto", beta=0.15, desirable=1.0, undesirable=1.3, reference="base")),
]


def main() -> None:
    cases = []
    for make, objective in OBJECTIVES:
        rows = make_rows()
        loss, rewards = make(objective, rows)
        loss.backward()
        slope = lambda t: (t.grad if t.grad is not None else torch.zeros_like(t)).tolist()  # noqa: E731
        cases.append(
            dict(
                objective=objective,
                rows={key: value.tolist() for key, value in rows.items()},
                loss=loss.item(),
                slopes=[slope(rows["own"]), slope(rows["other"])],
                rewards=[of.detach().tolist() for of in rewards],
            )
        )
    (HERE / "losses.json").write_text(json.dumps(cases, indent=1) + "\n")


main()
