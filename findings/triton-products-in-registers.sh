#!/usr/bin/env bash
# Triton 3.6.0 and 3.7.1 (not 3.8.0) leave products of Hopper's tensor cores (wgmma) whose left operand is in registers under way into the next turn of a loop, where PTX gives these registers
# other values before the wait that covers the product, which its manual calls undefined. A product of int8 codes that are made bf16 is such a one. In a kernel bound by arithmetic
# an H200 then gave other bits, now and then and for some sizes of tiles: for 5 of 18. Where loads are what a loop waits for, as in most kernels, nothing shows.
#
# Reads the PTX: for each such product of a loop, whether its registers are written again before enough groups have been waited for. Way out: wait for all at the end of a turn.
#
# Needs python3 with venv, no GPU. Exits 0 as long as that is as seen on 2026-11-30.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
cat >product.py <<'P'
import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def product(codes, x, out, N, M, K, BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr):
    n, m = tl.program_id(0) * BN + tl.arange(0, BN), tl.program_id(1) * BM + tl.arange(0, BM)
    total = tl.zeros((BN, BM), tl.float32)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        w_NK, x_MK = tl.load(codes + n[:, None] * K + k[None, :]), tl.load(x + m[:, None] * K + k[None, :])
        total = tl.dot(w_NK.to(tl.bfloat16), x_MK.T, total)
    tl.store(out + m[None, :] * N + n[:, None], total)


def hazards(ptx):
    """Writes, in the order of a loop, to registers of a left operand before a wait that its product is among."""
    lines, found = ptx.split("\n"), 0
    labels = {line.split(":")[0]: i for i, line in enumerate(lines) if re.match(r"\$\w+:", line)}
    for end, line in enumerate(lines):
        to = re.search(r"\bbra(?:\.uni)?\s+(\$\w+);", line)
        begin = labels.get(to[1], end) if to else end
        for i in range(begin, end):
            read = re.search(r"wgmma\.mma_async[^;]*\}\s*,\s*\{([^}]*)\}", lines[i])
            if not read:
                continue
            registers, groups = set(re.split(r"\s*,\s*", read[1])), -1
            for step in range(1, end - begin + 1):
                other = lines[begin + (i - begin + step) % (end - begin)]
                groups += "wgmma.commit_group" in other
                left = re.search(r"wgmma\.wait_group\.sync\.aligned (\d+)", other)
                if left and groups >= int(left[1]):
                    break
                written = re.match(r"\s*(?:@!?%p\d+ )?[\w.:]+\s+(?:\{([^}]*)\}|(%\w+)),", other)
                if written and "wgmma" not in other:
                    found += bool(registers & set(re.split(r"\s*,\s*", written[1] or written[2])))
    return found


constants = dict(BN=128, BM=128, BK=64)
signature = dict(codes="*i8", x="*bf16", out="*fp32", N="i32", M="i32", K="i32") | dict.fromkeys(constants, "constexpr")
attrs = {(i,): [["tt.divisibility", 16]] for i in range(6)}
source = ASTSource(fn=product, signature=signature, constexprs=constants, attrs=attrs)
ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(num_warps=4, num_stages=4)).asm["ptx"]
print(f"Triton {triton.__version__}: registers of products under way are written: {'yes' if hazards(ptx) else 'no'}")
P
for version in 3.6.0 3.7.1 3.8.0; do
  python3 -m venv "py-$version"
  "py-$version/bin/pip" install --quiet --disable-pip-version-check "triton==$version" setuptools==84.2.1
  TRITON_CACHE_DIR="$work/cache-$version" "py-$version/bin/python" product.py 2>said.txt || { cat said.txt; exit 1; }
done | tee got.txt
cat >want.txt <<'W'
Triton 3.6.0: registers of products under way are written: yes
Triton 3.7.1: registers of products under way are written: yes
Triton 3.8.0: registers of products under way are written: no
W
diff want.txt got.txt
echo "as described"
