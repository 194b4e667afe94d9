"""Makes steps.json, which mlora's optimizer kernel is tested against: what torch.optim's SGD and AdamW make of random
parameters and gradients in ten steps, in float32, each step at a rate of its own.

    python tests/golden/optimizers/make.py        # with the torch of scripts/bench/requirements.txt
"""

import json
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
SIZE, STEPS = 17, 10
random = torch.Generator().manual_seed(20261)

CASES = [
    dict(name="sgd", momentum=0.0, nesterov=False, weight_decay=0.0),
    dict(name="sgd", momentum=0.0, nesterov=False, weight_decay=0.1),
    dict(name="sgd", momentum=0.9, nesterov=False, weight_decay=0.03),
    dict(name="sgd", momentum=0.8, nesterov=True, weight_decay=0.2),
    dict(name="adamw", beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.1),
]


def optimizer(parameter: torch.nn.Parameter, name: str, weight_decay: float, **more):
    if name == "sgd":
        return torch.optim.SGD([parameter], lr=1.0, weight_decay=weight_decay, foreach=False, **more)
    betas = (more["beta1"], more["beta2"])
    return torch.optim.AdamW([parameter], lr=1.0, betas=betas, eps=more["eps"], weight_decay=weight_decay, foreach=False)


def main() -> None:
    found = []
    for case in CASES:
        start = torch.randn(SIZE, generator=random)
        gradients = torch.randn(STEPS, SIZE, generator=random)
        rates = [0.02 * (1 + i % 4) for i in range(STEPS)]
        coefficients = [1.0 if i % 3 else 0.25 for i in range(STEPS)]
        parameter = torch.nn.Parameter(start.clone())
        steps = optimizer(parameter, **case)
        for gradient, rate, coefficient in zip(gradients, rates, coefficients):
            parameter.grad = gradient * coefficient
            steps.param_groups[0]["lr"] = rate
            steps.step()
        found.append(
            dict(
                optimizer=case, start=start.tolist(), gradients=gradients.tolist(), rates=rates, coefficients=coefficients,
                end=parameter.detach().tolist(),
            )
        )  # fmt: skip
    (HERE / "steps.json").write_text(json.dumps(found) + "\n")


main()
