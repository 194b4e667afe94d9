// Bundles src/main.ts and the assets of this checkout into dist/mlora. Called by scripts/build, which sees to the assets.
//
// Assets are embedded compressed, each as assets/NAME.zst, with assets/manifest.json beside them: src/base/assets.ts reads them.

import { mkdirSync, mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { type AssetManifest, assetNames, readAsset } from "../src/base/assets.ts";
import { formatBytes } from "../src/base/bytes.ts";
import { VERSION } from "../src/base/version.ts";

const ROOT = join(import.meta.dir, "..");
const DIST = join(ROOT, "dist");
/** zstd's: level 19 takes twenty times as long and saves one hundredth of the file. */
const LEVEL = 9;
const NEEDED = ["libmlora.so", "libscipy_openblas.so", "nats-server"];

mkdirSync(DIST, { recursive: true });
const stage = mkdtempSync(join(DIST, ".building-")); // two builds at once do not meet
try {
  const assets = stageAssets(join(stage, "assets"));
  await bundle(stage);
  renameSync(join(stage, "mlora"), join(DIST, "mlora"));
  const kernels = Object.keys(assets).filter((name) => name.endsWith(".ptx")).length;
  const size = formatBytes(Bun.file(join(DIST, "mlora")).size);
  console.log(`build: dist/mlora, ${size}, mlora ${VERSION} with ${kernels} GPU kernels`);
} finally {
  rmSync(stage, { recursive: true, force: true });
}

function stageAssets(folder: string): AssetManifest {
  const names = assetNames();
  for (const name of NEEDED) if (!names.includes(name)) throw new Error(`${name} is not built: run scripts/setup`);
  const entries = names.map((name) => {
    const content = readAsset(name);
    const sha256 = new Bun.CryptoHasher("sha256").update(content).digest("hex");
    const file = join(folder, `${name}.zst`);
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, Bun.zstdCompressSync(content as Uint8Array<ArrayBuffer>, { level: LEVEL }));
    return [name, { sha256, bytes: content.length }] as const;
  });
  const manifest = Object.fromEntries(entries);
  writeFileSync(join(folder, "manifest.json"), JSON.stringify(manifest));
  return manifest;
}

async function bundle(folder: string): Promise<void> {
  process.chdir(folder); // assets keep the path that they have from here
  await Bun.build({
    entrypoints: [join(ROOT, "src", "main.ts")],
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
