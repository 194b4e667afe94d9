"""Makes adamw-8bit.json, which mlora's AdamW with moments of 8 bits is tested against: six steps of bitsandbytes' own, in the
implementation that it has in plain PyTorch, in float32. bitsandbytes gives one largest value to 256 elements, mlora to 128, so
each 128 are a tensor of their own here. Its CPU kernel is no oracle: it takes every small share, 0 too, for about 2e-5.

    python tests/golden/optimizers/make_8bit.py        # with torch and bitsandbytes, as scripts/golden/index.ts has them
"""

import json
from pathlib import Path

import torch
from bitsandbytes.backends.triton.kernels_optim import optimizer_update_8bit_blockwise_pytorch as update
from bitsandbytes.functional import create_dynamic_map

HERE = Path(__file__).resolve().parent
SIZE, STEPS, BLOCK = 300, 6, 128
random = torch.Generator().manual_seed(20262)


def short(tensor: torch.Tensor) -> list[float]:
    """Numbers of three digits, which are the same in float32 after they were written."""
    return [float(f"{x:.3g}") for x in tensor.tolist()]


def main() -> None:
    maps = [create_dynamic_map(signed) for signed in (True, False)]
    start = short(torch.randn(SIZE, generator=random))
    # over four decades within a block, as features with outliers have them; the third block has no gradient before step 3
    sizes = 10 ** (4 * torch.rand(SIZE, generator=random) - 4)
    gradients = [short(torch.randn(SIZE, generator=random) * sizes) for _ in range(STEPS)]
    for gradient in gradients[:2]:
        gradient[2 * BLOCK :] = [0.0] * (SIZE - 2 * BLOCK)
    rates = [0.02 * (1 + i % 3) for i in range(STEPS)]
    coefficients = [1.0 if i % 3 else 0.25 for i in range(STEPS)]
    settings = dict(beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1)
    blocks = [slice(first, min(first + BLOCK, SIZE)) for first in range(0, SIZE, BLOCK)]
    params = [torch.tensor(start[of]) for of in blocks]
    zero_code = [int((m == 0).nonzero()) for m in maps]
    codes = [[torch.full_like(p, zero, dtype=torch.uint8) for p in params] for zero in zero_code]
    absmax = [[torch.zeros(1) for _ in params] for _ in maps]
    found = []
    for t, (gradient, rate, coefficient) in enumerate(zip(gradients, rates, coefficients), 1):
        for b, of in enumerate(blocks):
            update(
                params[b], torch.tensor(gradient[of]), codes[0][b], codes[1][b], settings["beta1"], settings["beta2"], 0.0, 0.0,
                settings["eps"], t, rate, maps[0], maps[1], absmax[0][b], absmax[1][b], settings["weight_decay"], coefficient,
                False, optimizer_name="adam",
            )  # fmt: skip
        found.append({
            "params": [float(f"{x:.8g}") for x in torch.cat(params).tolist()] if t == STEPS else None,
            "codes": [bytes(torch.cat(of).tolist()).hex() for of in codes],
            "absmax": [torch.cat(of).tolist() for of in absmax],
        })  # fmt: skip
    written = dict(
        settings=settings, maps=[m.view(torch.int32).tolist() for m in maps], start=start, gradients=gradients, rates=rates,
        coefficients=coefficients, steps=found,
    )  # fmt: skip
    (HERE / "adamw-8bit.json").write_text(json.dumps(written) + "\n")


main()
