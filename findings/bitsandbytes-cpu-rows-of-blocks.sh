#!/usr/bin/env bash
# bitsandbytes 0.50.2 dequantises 4-bit weights wrongly on a CPU with AVX-512 where a row is a multiple of 16 values and no multiple of the block (64): the
# quantisation cuts blocks from the flattened weight, the kernel begins a new block at every row, so rows get the scales of others. Nothing is said.
#
# The library's own computation for other devices (backends/default) is right, and so are rows of 40 or 72 values, for which the kernel takes another way.
# Weights of 96 or 160 columns are quantised without a warning, and come back with more than twice the error of 4 bits.
# Needs python3 with venv, and a processor with AVX-512 (without it the script says so and ends). Exits 0 as long as that is as seen on 2026-11-29.
set -euo pipefail
grep -qw avx512f /proc/cpuinfo || { echo "this processor has no AVX-512: nothing to see"; exit 0; }
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv py
py/bin/pip install --quiet --disable-pip-version-check bitsandbytes==0.50.2 torch==2.15.0 numpy==2.4.6

cat >rows.py <<'P'
import bitsandbytes.functional as bnb
import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute

torch.manual_seed(0)
for columns in (40, 64, 72, 96, 128, 160):
    weight = torch.randn(64, columns)
    codes, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    kernel = bnb.dequantize_4bit(codes, state)
    default = _dequantize_4bit_compute(codes.reshape(-1), state.absmax, state.code, 64, state.shape, torch.float32)
    error = lambda values: (values - weight).norm() / weight.norm()
    print(f"64 x {columns}: {'same' if torch.equal(kernel, default) else 'others'} ({error(kernel):.2f}, by the default {error(default):.2f})")
P
py/bin/python rows.py 2>/dev/null | tee got.txt
cut -d'(' -f1 got.txt >seen.txt
printf '64 x %s: %s \n' 40 same 64 same 72 same 96 others 128 same 160 others | diff - seen.txt
echo "as described"
