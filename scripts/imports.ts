// Which folder may import which, that no values are imported in a circle, and the one door of each foreign effect: the rules of
// docs/architecture.md, as tables and a check.
//
// Run by scripts/test: prints every breach with its place, and fails if there is one. Holds for src and ffi; tests and scripts
// may reach everywhere.

import { readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { FAMILY_NAMES } from "../src/families/registry.ts";
import { PEFT_METHODS } from "../src/methods/registry.ts";
import { OBJECTIVE_NAMES } from "../src/objectives/registry.ts";

export type Source = { readonly path: string; readonly text: string };
type Import = { readonly from: string; readonly typeOnly: boolean; readonly isLate: boolean; readonly at: number };

/** What a folder may import: folders or single files; under `types`, as types only. `base` goes without saying. */
const MAY: Readonly<Record<string, { readonly values: readonly string[]; readonly types?: readonly string[] }>> = {
  base: { values: ["package.json"] },
  ffi: { values: [] },
  families: { values: [] },
  methods: { values: ["families"] },
  objectives: { values: [], types: ["schedule"] },
  recipe: { values: ["methods", "objectives"], types: ["schedule"] },
  schedule: { values: ["objectives"] },
  plan: {
    // A plan takes the sizes of a stage from the code that allocates them, so that a plan and a run cannot drift apart.
    values: [
      "methods",
      "objectives",
      "recipe",
      "schedule",
      "families",
      "engine/pool/adapter-pool.ts",
      "engine/layers/buffers.ts",
      "engine/pool/gradient-buffers.ts",
      "engine/generation/kv-cache.ts",
      "engine/pool/pool-memory.ts",
      "engine/stage-buffers.ts",
      "engine/weights/weights.ts",
      "device/scratch.ts",
      "device/tile.ts",
    ],
    types: ["device"],
  },
  data: { values: ["families", "objectives"], types: ["recipe"] },
  files: { values: ["families", "ffi", "methods"] },
  sources: { values: ["data/data-file.ts", "data/row-digest.ts", "data/rows.ts", "files/fingerprint.ts"], types: ["data"] },
  device: { values: ["families", "ffi", "methods"] },
  ops: { values: ["device", "ffi", "methods/layout.ts"] },
  engine: {
    values: ["bus", "device", "families", "files", "link", "methods", "objectives", "ops", "schedule/micro-batch.ts"],
    types: ["schedule"],
  },
  bus: { values: ["methods", "schedule/micro-batch.ts"] },
  link: { values: ["bus", "device"] },
  cluster: { values: ["bus", "device", "engine", "files", "link", "plan"] },
  session: {
    values: [
      ...["bus", "cluster", "data", "engine", "families", "files", "methods", "objectives", "plan", "recipe", "schedule"],
      "sources",
    ],
  },
  // A front end: it knows sessions, recipes, and plans as data.
  cli: { values: ["recipe", "session", "serve", "web"], types: ["plan"] },
  // Another front end, which the command line only starts.
  serve: { values: ["recipe", "session", "web"], types: ["plan"] },
  // What a live page shows of sessions and jobs; serve has its routes.
  web: { values: ["session"], types: ["plan"] },
  main: { values: ["cli", "recipe", "cluster/spawn.ts"], types: ["serve"] },
};

/** What of cli reaches below session: `doctor` examines each layer, and `stage` is a stage, not a client of a run. */
const BELOW_SESSION: Readonly<Record<string, readonly string[]>> = {
  "src/cli/doctor/": ["bus", "cluster", "engine", "ffi"],
  "src/cli/stage.ts": ["bus", "cluster"],
};

/** Files that import each other's values: formats read attributes of Python's values, and are methods of its texts. */
const TOGETHER: readonly string[] = ["format", "methods", "operators"].map((name) => `src/data/jinja/${name}.ts`);

/** Packages and built-in modules that one file stands for; no other may import them. */
const PACKAGE_DOORS: Readonly<Record<string, readonly string[]>> = {
  "bun:ffi": ["ffi/open.ts", "ffi/memory.ts"],
  "@nats-io/transport-node": ["src/bus/nats.ts"],
  "@msgpack/msgpack": ["src/bus/codec.ts"],
  cac: ["src/main.ts"],
  hyparquet: ["src/data/parquet.ts", "src/data/parquet-pages.ts"],
  "@valibot/to-json-schema": ["src/recipe/json-schema.ts", "src/serve/openapi.ts"],
  uplot: ["src/web/page/chart.ts"],
  "bun:sqlite": ["src/serve/store.ts"],
  "node:child_process": [],
  child_process: [],
};

/** Effects, as they are written, and the files that may cause them. */
const EFFECT_DOORS: readonly { readonly effect: RegExp; readonly what: string; readonly doors: readonly string[] }[] = [
  { what: "dlopen", effect: /\b(dlopen|linkSymbols)\(/g, doors: ["ffi/open.ts"] },
  { what: "the end of the process", effect: /\bprocess\.(exit|exitCode|abort|reallyExit)\b/g, doors: ["src/main.ts"] },
  { what: "the environment", effect: /\b(process|Bun|import\.meta)\.env\b/g, doors: ["src/base/env.ts"] },
  {
    what: "requests over HTTP",
    effect: /\b(await|return) fetch\(/g,
    doors: ["src/cli/server-client.ts", "src/sources/http.ts", "src/web/page/server.ts"],
  },
  { what: "other programs", effect: /\bBun\.(spawn|spawnSync|\$)|\bprocess\.execve\b/g, doors: ["src/cluster/spawn.ts"] },
  {
    what: "threads",
    effect: /\bnew Worker\(/g,
    doors: ["src/bus/heartbeat.ts", "src/link/nats.ts", "src/session/state/file-threads.ts", "src/data/reading.ts"],
  },
  {
    what: "the clock",
    effect: /\b(Date\.now|performance\.\w+|Bun\.nanoseconds|process\.hrtime)\b|\bnew Date\(\)/g,
    doors: ["src/base/clock.ts"],
  },
  {
    what: "text for a terminal",
    effect: /\bprocess\.(stdout|stderr)\.write\b|\bconsole\.\w+\(/g,
    doors: ["src/base/terminal.ts"],
  },
  {
    what: "randomness without a seed",
    effect: /\bMath\.random\b|\b(getRandomValues|randomUUID|randomBytes)\b/g,
    doors: ["src/base/secret.ts"],
  },
];

/**
 * Names of definitions: what differs by a name stands in the definition, so that a new one is complete without a search for the
 * others' names.
 */
const COMPARED = {
  effect: new RegExp(`([!=]==|\\bcase) "(${[...PEFT_METHODS, ...OBJECTIVE_NAMES, ...FAMILY_NAMES].join("|")})"`, "g"),
  folders: ["families", "methods", "objectives"],
};

/** All breaches, each as "path:line: what is wrong". */
export function breaches({ path, text }: Source): string[] {
  const code = withoutComments(text);
  const forbidden = importsOf(code).flatMap((item) => {
    const why = forbids(path, item);
    return why === null ? [] : [`${path}:${lineAt(code, item.at)}: ${why}`];
  });
  const effects = EFFECT_DOORS.filter(({ doors }) => !doors.includes(path)).flatMap(({ effect, what, doors }) =>
    [...code.matchAll(effect)].map(
      ({ 0: found, index }) => `${path}:${lineAt(code, index)}: '${found}': ${what} ${doorIs(doors)}`,
    ),
  );
  const compared = COMPARED.folders.includes(folderOf(path))
    ? []
    : [...code.matchAll(COMPARED.effect)].map(
        ({ 0: found, index }) => `${path}:${lineAt(code, index)}: '${found}' compares a name: ask its definition`,
      );
  return [...forbidden, ...effects, ...compared];
}

/** Folders whose parts, the folders in them and the files next to these, import no values of each other in a circle either. */
const IN_PARTS: readonly string[] = ["src/engine", "src/session"];

/** Circles in which files import values as they are loaded, each as "a.ts -> b.ts -> a.ts". Types may refer around. */
export function circles(sources: readonly Source[]): string[] {
  const importing = new Map(sources.map(({ path, text }) => [path, importedValues(path, text)]));
  const ofFiles = circlesOf(importing).filter((circle) => circle.some((one) => !TOGETHER.includes(one)));
  const ofParts = IN_PARTS.flatMap((folder) => circlesOf(betweenParts(folder, importing)));
  return [...ofFiles, ...ofParts].map((circle) => [...circle, circle[0]].join(" -> "));
}

/** Which of a folder's parts import values of which others. */
function betweenParts(folder: string, importing: ReadonlyMap<string, readonly string[]>): Map<string, string[]> {
  const parts = new Map<string, string[]>();
  const isIn = (path: string): boolean => path.startsWith(`${folder}/`);
  for (const [path, imported] of [...importing].filter(([path]) => isIn(path))) {
    const part = dirname(path);
    const others = imported.filter(isIn).map((other) => dirname(other));
    parts.set(part, [...(parts.get(part) ?? []), ...others.filter((other) => other !== part)]);
  }
  return parts;
}

function circlesOf(importing: ReadonlyMap<string, readonly string[]>): string[][] {
  const [found, seen]: [string[][], Set<string>] = [[], new Set()];
  const visit = (path: string, way: readonly string[]): void => {
    if (way.includes(path)) found.push(way.slice(way.indexOf(path)));
    if (seen.has(path)) return;
    seen.add(path);
    for (const next of importing.get(path) ?? []) visit(next, [...way, path]);
  };
  for (const path of importing.keys()) visit(path, []);
  return found;
}

const importedValues = (path: string, text: string): string[] =>
  importsOf(withoutComments(text))
    .filter(({ from, typeOnly, isLate }) => from.startsWith(".") && !typeOnly && !isLate)
    .map(({ from }) => normalize(join(dirname(path), from)));

function forbids(path: string, { from, typeOnly }: Import): string | null {
  if (!from.startsWith(".")) {
    const doors = PACKAGE_DOORS[from];
    return doors === undefined || doors.includes(path) ? null : `imports ${from}, which ${doorIs(doors)}`;
  }
  const target = normalize(join(dirname(path), from));
  const [mine, theirs] = [folderOf(path), folderOf(target)];
  const rule = MAY[mine];
  if (rule === undefined) return `the folder '${mine}' has no rule in scripts/imports.ts`;
  const below = Object.entries(BELOW_SESSION).flatMap(([of, values]) => (path.startsWith(of) ? values : []));
  const allowed = ["base", mine, ...rule.values, ...(typeOnly ? (rule.types ?? []) : []), ...below];
  if (allowed.includes(theirs) || allowed.includes(target.replace(/^src\//, ""))) return null;
  const types = rule.types ? `; as types ${rule.types.join(", ")}` : "";
  return `imports ${target}; ${mine} may import ${["base", ...rule.values].join(", ")}${types}`;
}

const doorIs = (doors: readonly string[]): string =>
  doors.length === 0 ? "has no door" : `has its door in ${doors.join(", ")}`;

/** "src/plan/plan.ts" is in plan, "src/main.ts" in main, "ffi/open.ts" in ffi. */
const folderOf = (path: string): string => path.replace(/^src\//, "").replace(/(\/.*|\.ts)$/, "");

const IMPORT =
  /^\s*(?:import\s+(type\s+)?(?:[^"';]*?\s+from\s+)?|export\s+(type\s+)?[{*][^"';]*?\s+from\s+)"([^"]+)"|(typeof\s+)?\bimport\(\s*"([^"]+)"\s*\)/gm;

const importsOf = (code: string): Import[] =>
  [...code.matchAll(IMPORT)].map(({ 0: found, 1: importType, 2: exportType, 3: fixed, 4: typeOf, 5: late, index }) => ({
    from: (fixed ?? late)!,
    isLate: fixed === undefined,
    typeOnly: (importType ?? exportType ?? typeOf) !== undefined,
    at: index + found.search(/\S/),
  }));

/** The same text with blanks for comments, so that places stay; strings are kept. */
const withoutComments = (text: string): string =>
  text.replace(
    /("(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`)|\/\/[^\n]*|\/\*[\s\S]*?\*\//g,
    (found, string) => string ?? found.replace(/[^\n]/g, " "),
  );

const lineAt = (text: string, index: number): number => text.slice(0, index).split("\n").length;

if (import.meta.main) {
  const root = join(import.meta.dir, "..");
  const paths = [...new Bun.Glob("{src,ffi}/**/*.ts").scanSync(root)].sort();
  const sources = paths.map((path) => ({ path, text: readFileSync(join(root, path), "utf8") }));
  const found = [...sources.flatMap(breaches), ...circles(sources).map((circle) => `a circle of imports: ${circle}`)];
  for (const line of found) console.log(line);
  console.log(`imports: ${paths.length} files, ${found.length} breaches`);
  process.exit(found.length === 0 ? 0 : 1);
}
