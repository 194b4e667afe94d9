// No source file is longer than one idea needs. Run by scripts/test: prints those that are, and fails if there is one.

import { readFileSync } from "node:fs";
import { join } from "node:path";

const MOST_LINES = 400;

const root = join(import.meta.dir, "..");
const FOLDERS = ["src", "ffi", "kernels/triton", "scripts", "tests"]; // Bun's glob finds nothing by braces with a slash in them
const paths = FOLDERS.flatMap((folder) =>
  [...new Bun.Glob("**/*.{ts,c,h,py}").scanSync(join(root, folder))].map((path) => `${folder}/${path}`),
);
const lengths = paths.map((path) => {
  const lines = readFileSync(join(root, path), "utf8").split("\n").length - 1;
  return { path, lines };
});
const long = lengths.filter(({ path, lines }) => lines > MOST_LINES && !path.startsWith("ffi/build/"));
for (const { path, lines } of long) console.log(`${path}: ${lines} lines, ${MOST_LINES} at most`);
console.log(`lengths: ${lengths.length} files, ${long.length} too long`);
process.exit(long.length === 0 && lengths.length > 0 ? 0 : 1);
