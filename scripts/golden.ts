// Golden files made again: compared with those that are kept, or put in their place.
//
//   bun run golden --list              the makers, their packages and files
//   bun run golden --check [NAME..]    makes files in a temporary folder and compares: bytes, or numbers within a tolerance
//   bun run golden --update NAME..     the same, and takes what was made
//
// scripts/golden/index.ts is the index. Packages come into out/golden, an environment for each set of them; with
// MLORA_GOLDEN_PYTHON=/path/to/python that Python is taken as it is, and differences from the pins are named.

import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { parseArgs } from "node:util";
import { counted } from "../src/base/units.ts";
import { compareFiles } from "./golden/compare.ts";
import { HELPERS, INPUTS, MAKERS, type Maker } from "./golden/index.ts";
import { call, pythonWith } from "./golden/python.ts";

const ROOT = join(import.meta.dir, "..");
const KEPT = join(ROOT, "tests", "golden");

/** Files under `folder` that match one of `globs`, sorted. */
export const matching = (folder: string, globs: readonly string[]): string[] =>
  [...new Set(globs.flatMap((glob) => [...new Bun.Glob(glob).scanSync(folder)]))]
    .filter((path) => !path.endsWith(".py"))
    .sort();

/**
 * Where the index and the files of `folder` do not agree, each in a line: files without a maker or with several, makers without
 * files.
 */
export function indexFaults(folder: string): string[] {
  const all = [...new Bun.Glob("**/*").scanSync(folder)].filter((path) => !path.includes("__pycache__")).sort();
  const inputs = matching(folder, INPUTS);
  const scripts = [...Object.values(MAKERS).map(({ script }) => script), ...HELPERS];
  const made = Object.entries(MAKERS).map(
    ([name, { makes }]) => [name, matching(folder, makes).filter((path) => !inputs.includes(path))] as const,
  );
  return [
    ...all.flatMap((path) => {
      if (path.endsWith(".py")) return scripts.includes(path) ? [] : [`${path}: no maker of scripts/golden/index.ts`];
      const by = made.filter(([, paths]) => paths.includes(path)).map(([name]) => name);
      if (by.length === 1 || (by.length === 0 && inputs.includes(path))) return [];
      return [
        by.length === 0 ? `${path}: made by no maker of scripts/golden/index.ts` : `${path}: made by ${by.join(" and ")}`,
      ];
    }),
    ...scripts.filter((path) => !all.includes(path)).map((path) => `${path}: in the index, but missing`),
    ...Object.entries(MAKERS).flatMap(([name, { makes }]) =>
      makes
        .filter((glob) => matching(folder, [glob]).length === 0)
        .map((glob) => `${name} makes ${glob}, but no such file is kept`),
    ),
  ];
}

function run({ list, check, update }: { list?: boolean; check?: boolean; update?: boolean }, given: readonly string[]): number {
  const unknown = given.filter((name) => MAKERS[name] === undefined);
  const modes = [list, check, update].filter(Boolean).length;
  if (modes !== 1 || (update && given.length === 0)) return fail("expected --list, --check [NAME..] or --update NAME..");
  if (unknown.length > 0) return fail(`no maker is called ${unknown.join(", ")}; there are ${Object.keys(MAKERS).join(", ")}`);
  const faults = indexFaults(KEPT);
  if (faults.length > 0) return fail(faults.join("\n"));
  const names = given.length > 0 ? given : Object.keys(MAKERS);
  if (list) {
    for (const name of names) console.log(describe(name, MAKERS[name]!));
    return 0;
  }
  const wrong = names.filter((name) => !remake(name, MAKERS[name]!, update === true));
  console.log(`golden: ${names.length - wrong.length} of ${names.length} ${update ? "updated" : "as kept"}`);
  return wrong.length === 0 ? 0 : 1;
}

function fail(why: string): number {
  console.error(`golden: ${why}`);
  return 1;
}

function describe(name: string, { script, makes, packages, tolerance }: Maker): string {
  const files = matching(KEPT, makes).length;
  const how = tolerance === null ? "bytes" : `numbers within ${tolerance}`;
  return `${name.padEnd(10)} ${script}: ${files} files (${makes.join(", ")}), ${how}, with ${packages.join(", ")}`;
}

/**
 * A copy of tests/golden in `work`, which is returned. The rest of the checkout is links around it, as makers start programs of
 * it (`ROOT / "node_modules/.bin/bun"`).
 */
export function copyForMakers(work: string): string {
  const folder = join(work, "tests", "golden");
  cpSync(KEPT, folder, { recursive: true });
  for (const [at, copied] of [
    [".", "tests"],
    ["tests", "golden"],
  ] as const)
    for (const name of readdirSync(join(ROOT, at)))
      if (name !== copied && name !== ".git") symlinkSync(join(ROOT, at, name), join(work, at, name));
  return folder;
}

/** Makes the files of one maker in a copy of tests/golden. False where they are not those kept, or not made. */
function remake(name: string, maker: Maker, update: boolean): boolean {
  const work = mkdtempSync(join(tmpdir(), "mlora-golden-"));
  try {
    const { python, differences } = pythonWith(maker, join(ROOT, "out", "golden"));
    for (const difference of differences) console.log(`${name}: ${python}: ${difference}`);
    const { reads, args = [] } = maker;
    const source = reads && join(ROOT, reads.path);
    if (source && !existsSync(source)) throw new Error(`${reads.path} is missing: run ${reads.from}`);
    const folder = copyForMakers(work);
    const kept = outputs(KEPT, maker);
    if (!maker.updates) for (const path of kept) rmSync(join(folder, path));
    const before = everything(folder);
    const copied = Math.max(...[...before].map((path) => statSync(join(folder, path)).mtimeMs));
    call([python, join(folder, maker.script), ...(source ? [source] : []), ...args], folder, {
      HF_HUB_OFFLINE: "1",
      PYTHONDONTWRITEBYTECODE: "1",
      CUDA_VISIBLE_DEVICES: "",
    });
    const made = outputs(folder, maker).filter((path) => !before.has(path) || statSync(join(folder, path)).mtimeMs > copied);
    const stray = [...everything(folder)].filter((path) => !before.has(path) && !made.includes(path));
    if (stray.length > 0) throw new Error(`made ${stray.join(", ")}, which the index does not list`);
    return update ? take(name, folder, kept, made) : compare(name, maker, folder, kept, made);
  } catch (error) {
    console.log(`${name}: ${(error as Error).message}`);
    return false;
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

const everything = (folder: string): Set<string> => new Set(new Bun.Glob("**/*").scanSync(folder));

const outputs = (folder: string, { makes }: Maker): string[] => {
  const inputs = matching(folder, INPUTS);
  return matching(folder, makes).filter((path) => !inputs.includes(path));
};

function compare(
  name: string,
  { tolerance }: Maker,
  folder: string,
  kept: readonly string[],
  made: readonly string[],
): boolean {
  const missing = kept.filter((path) => !made.includes(path)).map((path) => `${path}: not made`);
  const fresh = made.filter((path) => !kept.includes(path)).map((path) => `${path}: made, but not kept`);
  let most = 0;
  let same = 0;
  const added = new Set<string>();
  const different = kept
    .filter((path) => made.includes(path))
    .flatMap((path) => {
      const result = compareFiles(join(KEPT, path), join(folder, path), tolerance);
      if (!result.same) return [`${path}: ${result.why}`];
      if (result.distance === 0) same++;
      most = Math.max(most, result.distance);
      for (const key of result.added) added.add(key);
      return [];
    });
  const faults = [...missing, ...fresh, ...different];
  for (const fault of faults) console.log(`${name}: ${fault}`);
  const apart =
    most > 0
      ? `, ${kept.length - same - different.length} with numbers up to ${most.toExponential(1)} apart (${tolerance} allowed)`
      : "";
  const more = added.size > 0 ? `; the maker now also writes ${[...added].join(", ")}` : "";
  if (faults.length === 0) console.log(`${name}: ${same} of ${kept.length} files the same${apart}${more}`);
  return faults.length === 0;
}

/** Puts what was made in the place of what is kept. */
function take(name: string, folder: string, kept: readonly string[], made: readonly string[]): boolean {
  for (const path of kept.filter((old) => !made.includes(old))) rmSync(join(KEPT, path));
  for (const path of made) {
    mkdirSync(dirname(join(KEPT, path)), { recursive: true });
    cpSync(join(folder, path), join(KEPT, path));
  }
  console.log(`${name}: wrote ${counted(made.length, "file")}`);
  return true;
}

if (import.meta.main) {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { list: { type: "boolean" }, check: { type: "boolean" }, update: { type: "boolean" } },
  });
  process.exit(run(values, positionals));
}
