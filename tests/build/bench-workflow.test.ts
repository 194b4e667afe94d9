// The steps of .github/workflows/bench.yml as bash runs them, on a repository and an origin of their own.

import { afterAll, expect, test } from "bun:test";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { benchReport, versioned } from "../helpers/bench-program.ts";

const ROOT = join(import.meta.dir, "..", "..");
const root = mkdtempSync(join(tmpdir(), "mlora-bench-workflow-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

type Step = { readonly name?: string; readonly run?: string; readonly env?: Readonly<Record<string, string>> };
const workflow = Bun.YAML.parse(readFileSync(join(ROOT, ".github", "workflows", "bench.yml"), "utf8")) as {
  readonly jobs: Readonly<Record<"build" | "measure", { readonly steps: readonly Step[] }>>;
};
const { steps } = workflow.jobs.measure;
/** Of a step that takes no value from an expression. */
const fixed = ({ env = {} }: Step) => Object.fromEntries(Object.entries(env).filter(([, value]) => !value.includes("${{")));

const repository = join(root, "repository");
const run = (command: readonly string[], environment: Readonly<Record<string, string>> = {}) => {
  const env = { PATH: process.env["PATH"]!, HOME: join(root, "home"), ...environment };
  const { exitCode, stdout, stderr } = Bun.spawnSync([...command], { cwd: repository, env });
  return { code: exitCode, text: `${stdout}${stderr}` };
};
const git = (...args: readonly string[]) => {
  const { code, text } = run(["git", "-c", "user.name=a", "-c", "user.email=a@example.org", ...args]);
  if (code !== 0) throw new Error(text);
  return text;
};

/** Of one run of the workflow: its steps' exit codes and words. */
function measured(number: number, speed: number, event: { readonly pull: string }) {
  const temporary = join(root, `runner-${number}`);
  mkdirSync(join(temporary, "built"), { recursive: true });
  const report = benchReport(8000 / speed, { device: "NVIDIA H200", compute: "bf16" });
  const dist = join(temporary, "dist");
  mkdirSync(dist);
  // Each case is a shape of its own.
  const told = `echo '${JSON.stringify(report)}' | sed "s/tiny/$(echo "$*" | cksum | cut -d ' ' -f 1)/"`;
  writeFileSync(join(dist, "mlora"), versioned(told), { mode: 0o755 });
  expect(Bun.spawnSync([join(ROOT, "scripts", "release"), dist]).exitCode).toBe(0);
  cpSync(join(dist, "mlora-1.2.3-linux-x64.tar.xz"), join(temporary, "built", "now.tar.xz"));
  const said = {
    HOST: "local",
    KEY: "a secret",
    KNOWN_HOSTS: "",
    ROUNDS: "3",
    OPTIONS: "--no-peers",
    PULL: event.pull,
    GH_TOKEN: "",
  };
  const given = {
    RUNNER_TEMP: temporary,
    GITHUB_STEP_SUMMARY: join(temporary, "summary.md"),
    GITHUB_SHA: `${number}`.repeat(40),
  };
  return steps
    .filter(({ name, run }) => run !== undefined && name !== undefined && (event.pull === "" || name !== "Keep the history"))
    .map((step) => ({
      name: step.name,
      ...run(["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step.run!], { ...given, ...said, ...fixed(step) }),
    }));
}

test("the first run begins the history, each adds its rows, and one that is slower fails and adds them, too", () => {
  mkdirSync(repository);
  run(["git", "init", "--quiet", "--bare", join(root, "origin.git")]);
  cpSync(join(ROOT, "scripts"), join(repository, "scripts"), { recursive: true });
  symlinkSync(join(ROOT, "node_modules"), join(repository, "node_modules"));
  git("init", "--quiet");
  git("add", "scripts");
  git("commit", "--quiet", "-m", "Begin");
  git("remote", "add", "origin", join(root, "origin.git"));
  const codes = [];
  for (const [i, speed] of [100, 101, 90].entries()) {
    const all = measured(i, speed, { pull: "" });
    codes.push(all.map(({ name, code }) => `${name}: ${code}`));
    expect(all.map(({ text }) => text).join("")).not.toContain("a secret");
  }
  const passed = ["The history: 0", "Measure: 0", "Say what was found: 0", "Keep the history: 0"];
  expect(codes).toEqual([passed, passed, passed.with(1, "Measure: 1")]);
  expect(readFileSync(join(root, "runner-2", "summary.md"), "utf8")).toMatch(/^### Benchmarks: \d of \d worse\n/);
  const history = run(["git", "--git-dir", join(root, "origin.git"), "show", "bench-history:history.csv"])
    .text.trimEnd()
    .split("\n");
  const speeds = new Set(history.slice(1).map((line) => line.match(/,3,(\d+),/)?.[1]));
  expect([...speeds]).toEqual(["100", "101", "90"]);
  expect(git("status", "--porcelain").trim()).toBe("?? node_modules");
  expect(existsSync(join(root, "runner-0", "key"))).toBe(false);
});
