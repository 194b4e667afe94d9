// All checks and tests, counted. Called by scripts/test, whose first lines say how.
//
// Tests run in processes of their own, under a limit: native code can crash or hang where no test framework gets a word in. If
// it ends so, its files are run again one by one, so that it hides nothing but the file that is to blame.
// All folders share the processors, the longest files first (tests/timings.json), so that none waits at the end of a folder.
// One file more runs than there are processors, since tests wait for processes often enough; those of GPUs run alone: these
// measure the memory of a device. What is built takes the time that tests leave.
// The program that tests start is built first, without GPU kernels: of sources each start costs twice as much.

import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { type Report, readReport } from "./junit.ts";

const ROOT = join(import.meta.dir, "..");
const BUN = join(ROOT, "node_modules", ".bin", "bun");
/** Limits are for what hangs: next to busy neighbours a test takes many times as long as alone. */
const TEST_MS = 180_000;
const PROCESS_MS = 2_400_000;
/** These test dist/mlora. */
const BUILT = "tests/build/";
const GPU = "tests/gpu/";
/** Milliseconds by file, as `scripts/test --timings` measured them: an order, which no machine has to keep. */
const TIMINGS = "tests/timings.json";
/** In a file that tests kernels of this checkout. */
const NEEDS_KERNELS = /needs\("(kernels|gpu)"/;
/** Folders whose tests start the program. */
const STARTS = /^tests\/(bus|cpu)\//;
const CRASHED = "(worker crashed)"; // how bun test reports one

const CHECKS: Readonly<Record<string, readonly string[]>> = {
  // One thread and room for garbage: 0.55 of the CPU that it takes otherwise, which other checks and tests can use.
  types: ["env", "GOGC=400", BUN, "node_modules/typescript/bin/tsc", "-p", ".", "--singleThreaded"],
  "types of the page": [BUN, "node_modules/typescript/bin/tsc", "-p", "src/web/page"],
  "lint and format": [
    BUN,
    "node_modules/@biomejs/biome/bin/biome",
    "check",
    "--error-on-warnings",
    "--max-diagnostics=20",
    ".",
  ],
  "import rules": [BUN, "scripts/imports.ts"],
  "file lengths": [BUN, "scripts/lengths.ts"],
  prose: [BUN, "scripts/prose.ts"],
};
const BUILD = ["nice", "-n", "19", "scripts/build"];
/** What a test that needs it fetches when it is not there (tests/helpers/needs.ts): begun early, since it takes the network. */
const FETCHED: Readonly<Record<string, string>> = { clients: "scripts/clients", chromium: "scripts/chromium" };
/** After the build, which makes those that are not: it can fail where MLORA_SKIP_KERNELS=1 kept old ones. */
const KERNELS = {
  name: "kernels up to date",
  command: ["scripts/kernels", "--verify"],
  manifest: "kernels/build/manifest.json",
};

let passed = 0;
let failed = 0;
const skipped: string[] = [];
const work = mkdtempSync(join(tmpdir(), "mlora-test-"));
try {
  const isMeasuring = process.argv[2] === "--timings";
  await all(isMeasuring ? undefined : process.argv[2], isMeasuring);
} finally {
  rmSync(work, { recursive: true, force: true });
}
for (const line of summaryOf(skipped)) console.log(line);
console.log(`${passed} passed, ${failed} failed${skipped.length > 0 ? `, ${skipped.length} skipped` : ""}`);
process.exit(failed === 0 && passed > 0 ? 0 : 1);

async function all(pattern: string | undefined, isMeasuring: boolean): Promise<void> {
  const files = [...new Bun.Glob("tests/**/*.test.ts").scanSync(ROOT)].sort().filter((path) => path.includes(pattern ?? ""));
  if (files.length === 0) fail(`no test file's path contains '${pattern}'`);
  for (const [what, script] of Object.entries(FETCHED))
    if (files.some((path) => textOf(path).includes(`needs("${what}")`))) fetchEarly(script);
  if (pattern === undefined) await checkAll();
  const program = files.some((path) => STARTS.test(path)) ? await programOfTests() : undefined;
  const building = files.some((path) => path.startsWith(BUILT)) ? build(pattern === undefined) : Promise.resolve();
  const isOfBuilt = (path: string) => path.startsWith(BUILT) || NEEDS_KERNELS.test(textOf(path));
  await runFiles(
    files.filter((path) => !isOfBuilt(path)),
    isMeasuring,
    program,
  );
  await building;
  const built = Map.groupBy(files.filter(isOfBuilt), (path) => path.startsWith(GPU));
  await runFiles(built.get(false) ?? [], isMeasuring);
  await runFiles(built.get(true) ?? [], false);
}

/** The path of the program that tests start; undefined where it cannot be built, which is a failure. */
async function programOfTests(): Promise<string | undefined> {
  const isBuilt = await check("program for the tests", [BUN, "scripts/build.ts", "--without-kernels", work]);
  return isBuilt ? join(work, "mlora") : undefined;
}

function textOf(path: string): string {
  return readFileSync(join(ROOT, path), "utf8");
}

/** The test that needs it waits for it, and is skipped where it fails. */
function fetchEarly(script: string): void {
  Bun.spawn([script], { cwd: ROOT, stdin: "ignore", stdout: "ignore", stderr: "ignore" });
}

async function build(isVerified: boolean): Promise<void> {
  await check("build", BUILD);
  if (isVerified && existsSync(join(ROOT, KERNELS.manifest))) await check(KERNELS.name, KERNELS.command);
}

/** As many at once as there are processors. */
async function checkAll(): Promise<void> {
  const left = Object.entries(CHECKS);
  const lane = async () => {
    for (let next = left.shift(); next !== undefined; next = left.shift()) await check(...next);
  };
  await Promise.all(Array.from({ length: availableParallelism() }, lane));
}

function fail(why: string): void {
  failed++;
  console.log(`FAIL  ${why}`);
}

/** Whether it passed; its output is shown only when it fails. */
async function check(name: string, command: readonly string[]): Promise<boolean> {
  const child = Bun.spawn([...command], { cwd: ROOT, stdin: "ignore", stdout: "pipe", stderr: "pipe" });
  const [stdout, stderr, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  if (code !== 0) {
    fail(`${name}\n${stdout}${stderr}`);
    return false;
  }
  passed++;
  console.log(`ok    ${name}`);
  return true;
}

async function runFiles(files: readonly string[], isMeasuring: boolean, program?: string): Promise<void> {
  if (files.length === 0) return;
  const together = await runTests(files, isMeasuring, program);
  if (together !== null) {
    const before = failed;
    for (const [folder, inside] of Map.groupBy(files, (path) => path.split("/").slice(0, 2).join("/")))
      count(
        folder,
        inside,
        together.tests.filter(({ file }) => inside.includes(file)),
      );
    if (together.code !== 0 && failed === before) fail(`all tests passed, but they ended with ${together.code}`);
    return;
  }
  console.log("ended without a report; again, file by file");
  for (const file of files) {
    const alone = await runTests([file], false, program);
    if (alone === null) fail(`${file}: crashed, hung for ${PROCESS_MS / 1000} s, or ran no test`);
    else count(file, [file], alone.tests);
  }
}

function count(name: string, files: readonly string[], tests: Report["tests"]): void {
  const of = (state: string) => tests.filter((test) => test.state === state);
  console.log(`${of("failed").length === 0 ? "ok  " : "FAIL"}  ${name}: ${of("passed").length} passed`);
  passed += of("passed").length;
  failed += of("failed").length;
  skipped.push(...of("skipped").map(({ file, suite, name }) => `${file}: ${suite || name}`));
  for (const file of files.filter((path) => !tests.some(({ file }) => file === path))) fail(`${file}: ran no test`);
}

/** Null when the process ended without a report. What fails is shown as it goes. */
async function runTests(
  files: readonly string[],
  isMeasuring: boolean,
  program?: string,
): Promise<(Report & { readonly code: number }) | null> {
  const report = join(work, `${Bun.hash(files.join("\n"))}.xml`);
  const flags = ["--only-failures", `--timeout=${TEST_MS}`, "--reporter=junit", `--reporter-outfile=${report}`];
  if (files.length > 1 && !files[0]!.startsWith(GPU)) {
    flags.push(`--parallel=${availableParallelism() + 1}`, `--timings=${TIMINGS}`);
    if (isMeasuring) flags.push("--update-timings");
  }
  const child = Bun.spawn([BUN, "--no-orphans", "test", ...flags, ...files.map((file) => `./${file}`)], {
    cwd: ROOT,
    env: {
      ...process.env,
      MLORA_CACHE: join(work, "cache"), // what earlier runs left is not in the way
      ...(program === undefined ? {} : { MLORA_TEST_PROGRAM: program }),
    },
    stdin: "ignore",
    stdout: "inherit",
    stderr: "inherit",
    timeout: PROCESS_MS,
    killSignal: "SIGKILL",
  });
  const code = await child.exited;
  if (!existsSync(report)) return null;
  const { tests } = readReport(readFileSync(report, "utf8"));
  // a crash ends the other processes of --parallel, too
  return tests.some(({ name }) => name === CRASHED) ? null : { tests, code };
}

/** What was skipped, by suite: the suites' names say what is missing here (tests/helpers/needs.ts). */
function summaryOf(names: readonly string[]): string[] {
  const suites = Map.groupBy(names, (name) => name);
  return [...suites].map(([name, tests]) => `SKIP  ${name} (${tests.length})`);
}
