#!/usr/bin/env bash
# scipy-openblas32 0.3.34.481.3 for arm64: products are wrong on a processor with SME, which it chooses its ARMV9SME kernels for.
#
# What one might expect: cblas_sgemm gives the product on every Arm processor, by kernels for SME or by others.
# What happens: it says "empty sgemm_alpha_beta2x2 should never get called!!!" and leaves C unscaled or unwritten. With
# OPENBLAS_CORETYPE=ARMV8 the same call is right. Seen with Bun's arm64 program under Debian's qemu-user, whose processor has SME.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download -qq qemu-user-static 2>/dev/null
dpkg -x qemu-user-static*.deb qemu
apt-get download -qq libc6-arm64-cross libgcc-s1-arm64-cross 2>/dev/null
for package in libc6-arm64-cross*.deb libgcc-s1-arm64-cross*.deb; do dpkg -x "$package" system; done
npm pack --silent @oven/bun-linux-aarch64@1.4.4 >/dev/null
tar -xzf oven-bun-linux-aarch64-1.4.4.tgz
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --platform manylinux_2_28_aarch64 scipy-openblas32==0.3.34.481.3
python3 -m zipfile -e scipy_openblas32-*.whl wheel
cat >try.ts <<'TS'
import { dlopen } from "bun:ffi";
const [i, f, p] = ["i32", "f32", "ptr"] as const;
const { symbols } = dlopen(`${process.cwd()}/wheel/scipy_openblas32/lib/libscipy_openblas.so`, {
  scipy_cblas_sgemm: { args: [i, i, i, i, i, i, f, p, i, p, i, f, p, i], returns: "void" },
  scipy_openblas_get_corename: { args: [], returns: "cstring" },
});
const n = 16;
const ones = new Float32Array(n * n).fill(1);
const found = new Float32Array(n * n).fill(2);
symbols.scipy_cblas_sgemm(101, 111, 112, n, n, n, 1, ones, n, ones, n, 1, found, n); // C += A B^T: 2 + 16 everywhere
console.log(`${symbols.scipy_openblas_get_corename()}: ${found.every((value) => value === 18) ? "right" : "wrong"}`);
TS
run=(qemu/usr/bin/qemu-aarch64-static -L "$work/system/usr/aarch64-linux-gnu" package/bin/bun try.ts)
env -u OPENBLAS_CORETYPE "${run[@]}" 2>&1 | tee chosen.txt
OPENBLAS_CORETYPE=ARMV8 "${run[@]}" | tee asked.txt
if ! grep -q "armv9sme: wrong" chosen.txt; then
  echo "changed: it does not choose the kernels for SME here, or they are right"
  exit 1
fi
grep -qx "armv8: right" asked.txt
echo "as stated: wrong by its own choice for a processor with SME, right for ARMV8"
