// Bundles src/main.ts and the assets of this checkout into dist/mlora. Called by scripts/build, which sees to the assets.
//
// Assets are embedded compressed, each as assets/NAME.zst, with assets/manifest.json beside them: src/base/assets.ts reads them.

import { mkdirSync, mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { type AssetManifest, assetNames, readAsset } from "../src/base/assets.ts";
import { formatBytes } from "../src/base/units.ts";
import { VERSION } from "../src/base/version.ts";
import { isCompiled, readManifest } from "../src/device/cuda/manifest.ts";

const ROOT = join(import.meta.dir, "..");
const DIST = join(ROOT, "dist");
/** zstd's: level 19 takes twenty times as long and saves one hundredth of the file. */
const LEVEL = 9;
const NEEDED = ["libmlora.so", "libscipy_openblas.so", "nats-server"];
const KERNELS = "kernels/manifest.json";

mkdirSync(DIST, { recursive: true });
const stage = mkdtempSync(join(DIST, ".building-")); // two builds at once do not meet
try {
  const kernels = assetNames().includes(KERNELS) ? readManifest().filter(isCompiled) : [];
  const kernelFiles = kernels.flatMap(({ ptx, cubins }) => [ptx, ...Object.values(cubins)].map((file) => `kernels/${file}`));
  stageAssets(join(stage, "assets"), [...NEEDED, ...(kernels.length > 0 ? [KERNELS] : []), ...kernelFiles]);
  await bundle(stage);
  renameSync(join(stage, "mlora"), join(DIST, "mlora"));
  const size = formatBytes(Bun.file(join(DIST, "mlora")).size);
  console.log(`build: dist/mlora, ${size}, mlora ${VERSION} with ${kernels.length} GPU kernels`);
} finally {
  rmSync(stage, { recursive: true, force: true });
}

/** Writes assets as src/base/assets.ts expects them. Throws a RunError where one is not there. */
function stageAssets(folder: string, names: readonly string[]): void {
  const entries = names.map((name) => {
    const content = readAsset(name);
    const sha256 = new Bun.CryptoHasher("sha256").update(content).digest("hex");
    const file = join(folder, `${name}.zst`);
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, Bun.zstdCompressSync(content as Uint8Array<ArrayBuffer>, { level: LEVEL }));
    return [name, { sha256, bytes: content.length }] as const;
  });
  const manifest: AssetManifest = Object.fromEntries(entries);
  writeFileSync(join(folder, "manifest.json"), JSON.stringify(manifest));
}

async function bundle(folder: string): Promise<void> {
  process.chdir(folder); // assets keep the path that they have from here
  await Bun.build({
    // A thread's code is a program of its own.
    entrypoints: ["main.ts", "bus/heartbeat-worker.ts", "link/transport-worker.ts", "files/saver.ts", "data/reader.ts"].map(
      (file) => join(ROOT, "src", file),
    ),
    root: ROOT,
    minify: true,
    sourcemap: "linked", // embedded, so that the stack of a bug names our lines
    bytecode: true, // not parsed again at each start
    format: "esm",
    splitting: true, // a command is loaded when it is called
    compile: {
      outfile: join(folder, "mlora"),
      assets: ["./assets"],
      autoloadDotenv: false, // a .env or bunfig.toml that lies in some folder is not ours to obey
      autoloadBunfig: false,
    },
  });
}
