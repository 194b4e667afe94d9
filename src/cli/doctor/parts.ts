// The parts of a machine that `mlora doctor` examines, in the order of its report. Each says what it found, for people and, as
// `facts`, for machines, or throws what is wrong with it.

import { existsSync, readFileSync, statfsSync } from "node:fs";
import { release } from "node:os";
import { dirname } from "node:path";
import { assetNames, assetPath, readAsset } from "../../base/assets.ts";
import { MloraError } from "../../base/errors.ts";
import { memory, processor, requireProcessor } from "../../base/machine.ts";
import { counted, formatBytes } from "../../base/units.ts";
import { describeDevice, type Gpus, listGpus } from "../../engine/probe.ts";
import { checkBus } from "./bus.ts";
import { checkProducts } from "./native.ts";

/** `none`: it is not there, and need not be. */
export type Answer = { readonly state?: "none"; readonly text: string; readonly facts?: object };
/** Nothing can be trained without a part that is `needed`. */
export type Part = { readonly name: string; readonly needed?: boolean; readonly examine: () => Answer | Promise<Answer> };

export const PARTS: readonly Part[] = [
  { name: "system", examine: system },
  { name: "processor", needed: true, examine: cpu },
  { name: "memory", examine: ram },
  { name: "disk", examine: disk },
  { name: "cache", examine: cache },
  { name: "products", needed: true, examine: products },
  { name: "nats-server", examine: nats },
  { name: "GPU", examine: gpus },
  { name: "GPU kernels", examine: gpuKernels },
  { name: "device", needed: true, examine: device },
];

function system(): Answer {
  const file = "/etc/os-release";
  const [, name = "Linux"] = /^PRETTY_NAME="?(.*?)"?$/m.exec(existsSync(file) ? readFileSync(file, "utf8") : "") ?? [];
  const facts = { name, kernel: release(), arch: process.arch };
  return { text: `${name}, kernel ${facts.kernel}, ${facts.arch}`, facts };
}

function cpu(): Answer {
  const { model, cores, avx512, missingBf16 } = requireProcessor();
  const bf16 = missingBf16.length === 0;
  const instructions = bf16 ? 'AVX-512 with bf16 (precision = "bf16" multiplies by it)' : avx512 ? "AVX-512" : "AVX2";
  const text = `${model}, ${counted(cores, "core")} to use, ${instructions}`;
  return { text, facts: { model, cores, avx512, bf16 } };
}

function ram(): Answer {
  const { totalBytes, availableBytes, limitBytes } = memory();
  const whose = limitBytes === null ? "" : ", the limit of this container";
  const facts = { total_bytes: totalBytes, available_bytes: availableBytes, limit_bytes: limitBytes };
  return { text: `${formatBytes(availableBytes)} available of ${formatBytes(totalBytes)}${whose}`, facts };
}

function disk(): Answer {
  const folder = process.cwd();
  const { bavail, bsize } = statfsSync(folder);
  return { text: `${formatBytes(bavail * bsize)} free in ${folder}`, facts: { folder, free_bytes: bavail * bsize } };
}

/** Where libraries are unpacked to, proved by unpacking one. */
function cache(): Answer {
  if (!Bun.isStandaloneExecutable)
    return { state: "none", text: "not used: this is a checkout, whose libraries lie in ffi/build" };
  const folder = dirname(dirname(assetPath("libmlora.so")));
  return { text: folder, facts: { folder } };
}

function products(): Answer {
  if (processor().missing.length > 0) return { state: "none", text: "not tried on this processor" };
  const { version, core } = checkProducts();
  return { text: `OpenBLAS ${version} for ${core} with our kernels: a product is right`, facts: { openblas: version, core } };
}

async function nats(): Promise<Answer> {
  const { version, roundMicroseconds } = await checkBus();
  return {
    text: `${version}: several processes can work together, a message goes round in ${roundMicroseconds} µs`,
    facts: { version, round_us: roundMicroseconds },
  };
}

function gpus(): Answer {
  let found: Gpus;
  try {
    found = listGpus();
  } catch (error) {
    if (!(error instanceof MloraError) || error.code !== "ffi.library") throw error;
    return { state: "none", text: "no NVIDIA driver (libcuda.so.1)", facts: { gpus: [] } };
  }
  const lines = found.gpus.map(
    ({ name, totalBytes, capability }) => `${name}, ${formatBytes(totalBytes)}, compute capability ${capability}`,
  );
  const facts = found.gpus.map(({ name, totalBytes, capability }) => ({ name, total_bytes: totalBytes, capability }));
  return { text: [...lines, `driver for CUDA ${found.cuda}`].join("\n"), facts: { cuda: found.cuda, gpus: facts } };
}

function gpuKernels(): Answer {
  if (!assetNames().includes("kernels/manifest.json")) return { state: "none", text: "none built", facts: { archs: {} } };
  const { kernels }: { readonly kernels: readonly { readonly arch: string; readonly ptx?: string }[] } = JSON.parse(
    new TextDecoder().decode(readAsset("kernels/manifest.json")),
  );
  const compiled = kernels.filter(({ ptx }) => ptx !== undefined);
  const counts = [...Map.groupBy(compiled, ({ arch }) => arch)].map(([arch, { length }]) => [arch, length] as const).sort();
  const missing = kernels.length - compiled.length;
  const note = missing === 0 ? "" : `; ${missing} more not compiled (scripts/kernels does it)`;
  return {
    text: `${counts.map(([arch, n]) => `${n} for ${arch}`).join(", ")}${note}`,
    facts: { archs: Object.fromEntries(counts), missing },
  };
}

/** What a recipe's device = "auto" means here. */
function device(): Answer {
  const { kind, name, compute, note } = describeDevice("auto", "auto");
  const why = note === null ? "" : `; ${note}`;
  return { text: `${kind}, in ${compute} (what "auto" means here)${why}`, facts: { kind, name, compute, note } };
}
