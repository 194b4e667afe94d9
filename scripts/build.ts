// Bundles src/main.ts and the assets of this checkout into dist/mlora, or with --arm64 into dist/arm64/mlora. Called by
// scripts/build, which sees to the assets; those for 64-bit Arm are made by scripts/arm64. With --without-kernels FOLDER it is
// FOLDER/mlora, without GPU kernels: what scripts/test has tests start.
//
// Kernels that a GPU loads are embedded as one file, other assets as one each, with assets/manifest.json, which says where each
// lies: src/base/assets.ts reads them. What is compressed here xz could not pack again: the archive would be 2 MB larger. Forms
// in which xz finds more that repeats (src/base/asset-codings.ts) make it 1.7 MB smaller.

import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { CODINGS, type CodingName } from "../src/base/asset-codings.ts";
import { type AssetManifest, assetNames, readAsset } from "../src/base/assets.ts";
import { formatBytes } from "../src/base/units.ts";
import { VERSION } from "../src/base/version.ts";
import { filesOf, isCompiled, type Manifest, parseManifest } from "../src/device/cuda/manifest.ts";
import { PAGE_ASSETS } from "../src/web/assets.ts";
import { bundlePage, PAGE_FILES } from "../src/web/bundle.ts";

const ROOT = join(import.meta.dir, "..");
const isArm64 = process.argv.includes("--arm64");
const ARM64 = join(ROOT, "ffi", "build-arm64");
const withoutKernels = process.argv[2] === "--without-kernels" ? process.argv[3] : undefined;
const DIST = withoutKernels ?? join(ROOT, "dist", ...(isArm64 ? ["arm64"] : []));
const NEEDED = ["libmlora.so", "libscipy_openblas.so", "nats-server"];
const KERNELS = "kernels/manifest.json";

if (isArm64) execFileSync(join(ROOT, "scripts", "arm64"), { stdio: "inherit" });
mkdirSync(DIST, { recursive: true });
const stage = mkdtempSync(join(DIST, ".building-")); // two builds at once do not meet
try {
  const hasKernels = withoutKernels === undefined && assetNames().includes(KERNELS);
  const manifest = hasKernels ? released(readAsset(KERNELS)) : Buffer.of();
  const kernels = manifest.length > 0 ? parseManifest(manifest.toString()).filter(isCompiled) : [];
  const files = kernels.flatMap(filesOf).map((file) => `kernels/${file}`);
  const own = new Map(kernels.length > 0 ? [[KERNELS, manifest]] : []);
  await stageAssets(join(stage, "assets"), [...NEEDED, ...files], own);
  await bundle(stage);
  renameSync(join(stage, "mlora"), join(DIST, "mlora"));
  const size = formatBytes(Bun.file(join(DIST, "mlora")).size);
  console.log(`build: ${relative(ROOT, join(DIST, "mlora"))}, ${size}, mlora ${VERSION} with ${kernels.length} GPU kernels`);
} finally {
  rmSync(stage, { recursive: true, force: true });
}

/**
 * The manifest without the compiled code of rows that tests alone launch, on heads that no released model has, and without
 * hashes of compiled files, which only builds compare: no hash can be packed.
 */
function released(content: Uint8Array): Buffer {
  const manifest: Manifest = JSON.parse(new TextDecoder().decode(content));
  const kernels = manifest.kernels.map((row) => {
    const kept = Object.fromEntries(Object.entries(row).filter(([key]) => key !== "ptx_sha256" && key !== "cubins_sha256"));
    if (!row.launch["tests"] || !isCompiled(row)) return kept;
    const { entry: _, ptx: __, cubins: ___, ...listed } = kept;
    return listed;
  });
  return Buffer.from(JSON.stringify({ ...manifest, kernels }));
}

/** PTX without comments and indents, which are 0.2 of the packed program's 60 MB. */
function bare(ptx: Uint8Array): Buffer {
  return Buffer.from(new TextDecoder().decode(ptx).replace(/[ \t]*\/\/.*|^[ \t]+/gm, ""));
}

/** Content in the form that xz packs best, proven to decode to the same bytes. */
function codedOf(name: string, content: Uint8Array): [CodingName | undefined, Uint8Array] {
  const coding = name.endsWith(".ptx") ? "registers" : NEEDED.includes(name) && !isArm64 ? "addresses" : undefined;
  if (!coding) return [coding, content];
  const coded = CODINGS[coding].encode(content);
  if (!Buffer.from(content).equals(CODINGS[coding].decode(coded))) throw new Error(`${name} does not decode to itself`);
  return [coding, coded];
}

/** Writes assets as src/base/assets.ts expects them, with `own` contents of some. Throws a RunError where one is not there. */
async function stageAssets(folder: string, names: readonly string[], own: ReadonlyMap<string, Buffer>): Promise<void> {
  const page = await bundlePage();
  const made = new Map([...own, ...PAGE_FILES.map((name) => [PAGE_ASSETS + name, page[name]] as const)]);
  mkdirSync(folder);
  const manifest: Record<string, AssetManifest[string]> = {};
  const native = (name: string) => {
    if (isArm64 && NEEDED.includes(name)) return readFileSync(join(ARM64, name));
    return name.endsWith(".ptx") ? bare(readAsset(name)) : readAsset(name);
  };
  for (const [i, pack] of packsOf([...names, ...made.keys()], (name) => made.get(name) ?? native(name)).entries()) {
    const file = `${i}.pack`;
    const parts: Uint8Array[] = [];
    let from = 0;
    for (const { name, content } of pack) {
      const [coding, coded] = codedOf(name, content);
      parts.push(coded);
      const form = coding ? { coding } : {};
      const hash = NEEDED.includes(name) ? { sha256: sha256(content) } : {};
      manifest[name] = { file, from, bytes: coded.length, ...form, ...hash };
      from += coded.length;
    }
    writeFileSync(join(folder, file), Buffer.concat(parts));
  }
  writeFileSync(join(folder, "manifest.json"), JSON.stringify(manifest));
}

function sha256(content: Uint8Array): string {
  return new Bun.CryptoHasher("sha256").update(content).digest("hex");
}

/**
 * What one GPU loads lies together: machine code of all kernels for a generation ("sm_90" and "sm_90a"), or their PTX. Kernels
 * are much alike, so that they are packed better next to each other.
 */
function packsOf(names: readonly string[], read: (name: string) => Uint8Array) {
  const alike = Map.groupBy(names, (name) => /^kernels\/.*\.(sm_\d+(?=\da?\.cubin$)|ptx$)/.exec(name)?.[1] ?? name);
  return [...alike.values()].map((group) => group.map((name) => ({ name, content: read(name) })));
}

async function bundle(folder: string): Promise<void> {
  process.chdir(folder); // assets keep the path that they have from here
  await Bun.build({
    // A thread's code is a program of its own.
    entrypoints: [
      "main.ts",
      "bus/heartbeat-worker.ts",
      "link/transport-worker.ts",
      "files/saver.ts",
      "data/reader.ts",
      "data/row-worker.ts",
    ].map((file) => join(ROOT, "src", file)),
    root: ROOT,
    minify: { whitespace: true, syntax: true, identifiers: false }, // the stack of a bug names our functions
    sourcemap: "none", // of lines, which would be 1.9 of the packed program's 60 MB
    bytecode: true, // not parsed again at each start
    format: "esm",
    splitting: true, // a command is loaded when it is called
    compile: {
      outfile: join(folder, "mlora"),
      ...(isArm64 ? { target: "bun-linux-arm64", executablePath: join(ARM64, "bun") } : {}),
      assets: ["./assets"],
      autoloadDotenv: false, // a .env or bunfig.toml that lies in some folder is not ours to obey
      autoloadBunfig: false,
    },
  });
}
