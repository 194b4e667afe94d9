#!/usr/bin/env bash
# Triton 3.6.0 and 3.7.1 convert f32 to e4m3 (tl.float8e4nv) otherwise for Ada (sm_89) than for Hopper (sm_90), though PTX has the same conversion for both. For Hopper it is one, to the nearest
# (cvt.rn.satfinite.e4m3x2.f32); for Ada f32 is cut toward zero to f16 (cvt.rz.f16.f32) and this is then rounded to the nearest e4m3. A number just above the middle of two codes is on the
# middle once it is cut, and goes to the even one: 1.0626 is 1.0 on Ada and 1.125 on Hopper. Of uniform numbers of 1 to 400 one in 270 is rounded to the farther code, always toward zero.
#
# Reads the PTX, and does in numpy what its instructions say, with ml_dtypes' e4m3. Way out: set the last bit that f16 keeps wherever bits are cut off (round to odd) before the conversion.
#
# Needs python3 with venv, no GPU. Exits 0 as long as that is as seen on 2026-12-01.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
cat >convert.py <<'P'
import re

import ml_dtypes
import numpy as np
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def convert(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i).to(tl.float8e4nv))


def steps(capability):
    """The conversions of the PTX, in their order, once each."""
    source = ASTSource(fn=convert, signature={"x": "*fp32", "out": "*fp8e4nv", "BLOCK": "constexpr"}, constexprs={"BLOCK": 512})
    ptx = triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["ptx"]
    return " ".join(dict.fromkeys(re.findall(r"\bcvt\.\S*(?:f16|e4m3)\S*", ptx)))


def nearest(x):
    return x.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)


def by_f16(x):
    """Cut to the 11 digits of f16: x is within its normal numbers."""
    return nearest((x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32))


one = np.array([1.0626], np.float32)
x = np.random.default_rng(1).uniform(1, 400, 1 << 22).astype(np.float32)
other = by_f16(x) != nearest(x)
farther = np.abs(by_f16(x) - x) > np.abs(nearest(x) - x)
print(f"triton {triton.__version__} sm_89: {steps(89)}")
print(f"triton {triton.__version__} sm_90: {steps(90)}")
print(f"1.0626: {by_f16(one)[0]} by f16, {nearest(one)[0]} nearest; farther of {x.size} numbers: one in {x.size // farther.sum()}, toward zero: {bool((by_f16(x) <= nearest(x)).all())}, other {other.sum() == farther.sum()}")
P
for version in 3.6.0 3.7.1; do
  python3 -m venv "v$version"
  "v$version/bin/pip" install --quiet "triton==$version" numpy==2.3.5 ml_dtypes==0.5.4
  TRITON_CACHE_DIR="$work/cache$version" "v$version/bin/python" convert.py
done | tee seen
{
  for version in 3.6.0 3.7.1; do
    echo "triton $version sm_89: cvt.rz.f16.f32 cvt.rn.satfinite.e4m3x2.f16x2"
    echo "triton $version sm_90: cvt.rn.satfinite.e4m3x2.f32"
    echo "1.0626: 1.0 by f16, 1.125 nearest; farther of 4194304 numbers: one in 270, toward zero: True, other True"
  done
} >expected
diff expected seen
