// Tests are sorted by what they need. A suite that needs what this machine lacks is skipped aloud: its name says what is
// missing, and scripts/test lists it. MLORA_REQUIRE=gpu,nats on a machine that must have them turns the skip into a failure.

import { describe } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { assetNames } from "../../src/base/assets.ts";
import { environment } from "../../src/base/env.ts";
import { MloraError } from "../../src/base/errors.ts";
import { processor } from "../../src/base/machine.ts";
import { listGpus } from "../../src/device/cuda/gpus.ts";
import { isCompiled, readManifest } from "../../src/device/cuda/manifest.ts";
import { canMount } from "./disk.ts";
import { canMakeHosts, sshdPath } from "./hosts.ts";
import { canInject } from "./injector.ts";

const ROOT = join(import.meta.dir, "..", "..");

const QUIET = { stdout: "ignore", stderr: "ignore" } as const;

/** How many there are of each thing that tests may need. */
const HAVE = {
  gpu: countGpus,
  nats: () => (assetNames().includes("nats-server") ? 1 : 0),
  /** A processor that multiplies in bf16. */
  bf16: () => (processor().missingBf16.length === 0 ? 1 : 0),
  /** The quickstart's base model: scripts/model makes it. */
  model: () => (existsSync(join(ROOT, "models", "SmolLM2-135M-Instruct", "config.json")) ? 1 : 0),
  /** All GPU kernels: scripts/kernels makes them. */
  kernels: () => (assetNames().includes("kernels/manifest.json") && readManifest().every(isCompiled) ? 1 : 0),
  /** The right to mount small disks. */
  disks: () => (canMount() ? 1 : 0),
  /** Debian's openssh-server. */
  sshd: () => (sshdPath() !== null ? 1 : 0),
  /** The right to make namespaces of users, mounts, processes and networks, and the programs that do (util-linux, iproute2). */
  namespaces: () => (canMakeHosts() ? 1 : 0),
  /** Files of other users are made, and read, by root alone. */
  root: () => (process.getuid!() === 0 ? 1 : 0),
  /** The official clients of what `mlora serve` speaks: scripts/clients makes them, now if it can. */
  clients: () => (Bun.spawnSync([join(ROOT, "scripts", "clients")], { ...QUIET, timeout: 400_000 }).success ? 1 : 0),
  /** A Chromium: of this machine, or fetched by scripts/chromium, now if it can. */
  chromium: () => (Bun.spawnSync([join(ROOT, "scripts", "chromium")], { ...QUIET, timeout: 180_000 }).success ? 1 : 0),
  /** A git checkout with all commits before this one. */
  history: () => (hasHistory() ? 1 : 0),
  openssl: () => (Bun.which("openssl") ? 1 : 0),
  /** Debian's packages of these names. */
  zsh: () => (Bun.which("zsh") ? 1 : 0),
  fish: () => (Bun.which("fish") ? 1 : 0),
  mandoc: () => (Bun.which("mandoc") ? 1 : 0),
  groff: () => (Bun.which("groff") ? 1 : 0),
  /** A C compiler, and a kernel that lets system calls be answered by another process. */
  faults: () => (canInject() ? 1 : 0),
} as const;

/**
 * `describe` where this machine has `n` of something, else a skipped suite that says what is missing:
 *
 *     needs("gpu", 2)("activations cross a link", () => { ... });
 */
export function needs(what: keyof typeof HAVE, n = 1): (name: string, body: () => void) => void {
  const have = HAVE[what]();
  if (have >= n) return describe;
  if (environment("MLORA_REQUIRE")?.split(",").includes(what))
    throw new Error(`MLORA_REQUIRE says that this machine has ${what}: ${n} needed, ${have} found`);
  return (name, body) => describe.skip(`${name} [needs ${n} ${what}, found ${have}]`, body);
}

/** Of a shallow clone, or of files that were committed anew elsewhere, the project's first commit is not there. */
const FIRST = "5cafb8b4";
const hasHistory = (): boolean =>
  Bun.which("git") !== null &&
  Bun.spawnSync(["git", "merge-base", "--is-ancestor", FIRST, "HEAD"], { ...QUIET, cwd: ROOT }).success;

function countGpus(): number {
  try {
    return listGpus().gpus.length;
  } catch (error) {
    if (error instanceof MloraError) return 0;
    throw error;
  }
}
