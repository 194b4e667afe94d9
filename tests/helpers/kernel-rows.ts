// The rows of kernels/triton/variants.py, as the manifest lists them where nothing is compiled.

import { join } from "node:path";
import { type Manifest, parseManifest } from "../../src/device/cuda/manifest.ts";

const ROOT = join(import.meta.dir, "..", "..");

export function kernelRows(): Manifest["kernels"] {
  const command = [join(ROOT, ".venv/bin/python"), "-B", join(ROOT, "kernels/triton/compile.py"), "--rows"];
  const { stdout, stderr, success } = Bun.spawnSync(command);
  if (!success) throw new Error(`compile.py --rows failed: ${stderr}`);
  return parseManifest(stdout.toString());
}

/** Of each row, in their order: its parameters with Triton's types. */
export function kernelSignatures(): readonly Readonly<Record<string, string>>[] {
  const script = "import json, compile; print(json.dumps([row['signature'] for row in compile.variants()]))";
  const { stdout, stderr, success } = Bun.spawnSync([join(ROOT, ".venv/bin/python"), "-B", "-c", script], {
    env: { ...process.env, PYTHONPATH: join(ROOT, "kernels/triton") },
  });
  if (!success) throw new Error(`the signatures of the kernels cannot be read: ${stderr}`);
  return JSON.parse(stdout.toString());
}
