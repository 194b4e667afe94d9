// No source file is longer than one idea needs. Run by scripts/test: prints those that are, and fails if there is one.

import { readFileSync } from "node:fs";
import { join } from "node:path";

const MOST_LINES = 400;

const root = join(import.meta.dir, "..");
const files = new Bun.Glob("{src,ffi,kernels/triton,scripts,tests}/**/*.{ts,c,h,py}");
const lengths = [...files.scanSync(root)].map((path) => {
  const lines = readFileSync(join(root, path), "utf8").split("\n").length - 1;
  return { path, lines };
});
const long = lengths.filter(({ path, lines }) => lines > MOST_LINES && !path.startsWith("ffi/build/"));
for (const { path, lines } of long) console.log(`${path}: ${lines} lines, ${MOST_LINES} at most`);
console.log(`lengths: ${lengths.length} files, ${long.length} too long`);
process.exit(long.length === 0 ? 0 : 1);
