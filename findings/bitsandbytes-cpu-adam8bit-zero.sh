#!/usr/bin/env bash
# bitsandbytes 0.50.2 (with torch 2.15.0), on a CPU: what AdamW8bit keeps of a moment that is 0 is not 0. Its blockwise 8-bit
# quantisation looks codes up in a table that is too coarse for the dynamic map: every share of the block's largest value below
# about 2e-5, 0 among them, becomes code 131 (2.1e-5) of the signed map and code 7 (1.6e-5) of the unsigned one, where the nearest
# code is 127 or 0 (its GPU kernels and its own PyTorch implementation take that). So a parameter whose gradient is always
# exactly 0 is moved by AdamW8bit from the second step on, as long as another of its block has a gradient.
#
#   findings/bitsandbytes-cpu-adam8bit-zero.sh        # makes a temporary folder, installs there, prints, cleans up
#
# Seen: codes 131 and 7 for 0; after 20 steps the untouched parameter has moved away from 1, by the 8-bit optimizer alone.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.15.0 bitsandbytes==0.50.2 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON' 2>/dev/null
import bitsandbytes
import torch
from bitsandbytes import functional
from bitsandbytes.optim import AdamW8bit

codes = {}
for signed in (True, False):
    code = functional.create_dynamic_map(signed)
    given = torch.tensor([1.0, 0.0, 1e-7, 1e-6])
    got, _ = torch.ops.bitsandbytes.quantize_blockwise(given, code, 256)
    codes[signed] = [int(c) for c in got]
    nearest = (code[None] - given[:, None]).abs().argmin(1).tolist()
    print(f"{'signed' if signed else 'unsigned'} map: codes {codes[signed]} for {given.tolist()}, the nearest are {nearest}")


def trained(optimizer, **more):
    parameter = torch.nn.Parameter(torch.ones(256))
    steps = optimizer([parameter], lr=1e-2, weight_decay=0.0, **more)
    random = torch.Generator().manual_seed(1)
    for _ in range(20):
        parameter.grad = torch.randn(256, generator=random)
        parameter.grad[0] = 0.0
        steps.step()
    return float(parameter[0])


eight, exact = trained(AdamW8bit, min_8bit_size=0), trained(torch.optim.AdamW)
print(f"bitsandbytes {bitsandbytes.__version__}: a parameter without a gradient, from 1: {eight} with 8 bits, {exact} with 32")
assert codes[True][1:3] == [131, 131] and codes[False][1:3] == [7, 7], codes
assert exact == 1.0 and eight != 1.0, (eight, exact)
print("as described")
PYTHON
