// What a run writes over and removes: its own files and no others, whatever links lead elsewhere.

import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { RequestError } from "../../src/base/errors.ts";
import { stampOfProcess } from "../../src/base/process.ts";
import { claimOutput, removeAdapter } from "../../src/files/output.ts";
import { foldersIn, removeFiles, removeFolder } from "../../src/files/owned.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-owned-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
let made = 0;
function fresh(files: readonly string[] = []): string {
  const folder = join(root, `${made++}`);
  mkdirSync(folder);
  for (const name of files) put(folder, name);
  return folder;
}

function put(folder: string, name: string): void {
  mkdirSync(join(folder, name, ".."), { recursive: true });
  writeFileSync(join(folder, name), "mine");
}

/** All files below, links left as they are. */
const filesIn = (folder: string): string[] => readdirSync(folder, { recursive: true }).map(String).sort();

function codeOf(work: () => unknown): string {
  try {
    work();
  } catch (error) {
    expect(error).toBeInstanceOf(RequestError);
    return (error as RequestError).code;
  }
  return "accepted";
}

const PLACES = { adapters: ["a"], checkpoints: "checkpoints" };
/** Names that only this program gives, below the run's folder. */
const HALVES = [
  "run.json.4711.tmp",
  "metrics.jsonl.4711-abc123.tmp",
  "a/adapter_model.safetensors.12-zzzzzz.tmp",
  "checkpoints/a/step-000000007.part/state.safetensors",
  "checkpoints/a/best/step-000000007-2.part/checkpoint.json.3.tmp",
];
/** Names much like them. */
const MINE = [
  "notes.tmp",
  "run.json.bak.tmp",
  "a/mine.safetensors.1.tmp",
  "other/run.json.4711.tmp",
  "other/step-000000007.part/state.safetensors",
  "checkpoints/step-000000007.part/state.safetensors",
  "checkpoints/a/step-000000009.part/thesis.txt",
];

/** A folder in which a run has begun. */
function begun(): string {
  const folder = fresh();
  using claim = claimOutput(folder);
  claim.begin(PLACES);
  return folder;
}

describe("clean-up", () => {
  test("removes what a killed run has left half written, and nothing of a like name", () => {
    const folder = begun();
    for (const name of [...HALVES, ...MINE]) put(folder, name);
    using claim = claimOutput(folder);
    expect(claim.continued).toBe(true);
    claim.begin(PLACES);
    for (const name of HALVES) expect(existsSync(join(folder, name))).toBe(false);
    for (const name of MINE) expect(readFileSync(join(folder, name), "utf8")).toBe("mine");
    expect(foldersIn(join(folder, "checkpoints", "a"))).toEqual(["best", "step-000000009.part"]);
  });

  test("follows no link, wherever it is", () => {
    const outside = fresh([...HALVES, "step-000000007.part/state.safetensors"]);
    const before = filesIn(outside);
    const folder = begun();
    mkdirSync(join(folder, "checkpoints"));
    symlinkSync(join(outside, "checkpoints", "a"), join(folder, "checkpoints", "a"));
    symlinkSync(outside, join(folder, "checkpoints", "b"));
    symlinkSync(join(outside, "run.json.4711.tmp"), join(folder, "run.json.4712.tmp"));
    symlinkSync(join(outside, "step-000000007.part"), join(folder, "step-000000007.part"));
    using claim = claimOutput(folder);
    claim.begin(PLACES);
    expect(filesIn(outside)).toEqual(before);
    removeAdapter(join(folder, "checkpoints", "b"));
    removeFolder(join(folder, "step-000000007.part"), () => true);
    removeFiles(folder, () => true);
    expect(filesIn(outside)).toEqual(before);
  });

  test("has to wait until the request is accepted", () => {
    const folder = begun();
    for (const name of HALVES) put(folder, name);
    const before = filesIn(folder);
    claimOutput(folder)[Symbol.dispose]();
    expect(filesIn(folder)).toEqual(before);
  });

  test("of an adapter's folder leaves what others have put there", () => {
    const folder = fresh(["a/adapter_model.safetensors", "a/README.md", "a/thesis.txt", "b/adapter_config.json"]);
    for (const name of ["a", "b", "none"]) removeAdapter(join(folder, name));
    expect(filesIn(folder)).toEqual(["a", "a/thesis.txt"]);
  });
});

describe("a folder", () => {
  for (const files of [["thesis.txt"], ["recipe.toml"], ["recipe.toml", "metrics.jsonl"], ["run.json", "recipe.toml"]])
    test(`with ${files.join(", ")} and no marker is not a run's`, () => {
      const folder = fresh(files);
      expect(codeOf(() => claimOutput(folder))).toBe("output.foreign");
      expect(filesIn(folder)).toEqual(files.toSorted());
    });

  test("whose marker is a link, or of another format or program, is refused", () => {
    const marker = ".mlora-run.json";
    const linked = fresh();
    symlinkSync(join(begun(), marker), join(linked, marker));
    expect(codeOf(() => claimOutput(linked))).toBe("output.foreign");
    for (const text of [
      '{"program":"mlora","format":1,"identity":"x"}',
      '{"program":"other","format":2,"identity":"x"}',
      "{",
    ]) {
      const folder = fresh();
      writeFileSync(join(folder, marker), text);
      expect(codeOf(() => claimOutput(folder))).toBe("output.marker");
    }
  });

  test("in which an adapter's place is a link is refused, and nothing is removed", () => {
    const outside = fresh(["adapter_model.safetensors"]);
    for (const name of ["a", "checkpoints"]) {
      const folder = begun();
      put(folder, "run.json.4711.tmp");
      symlinkSync(outside, join(folder, name));
      using claim = claimOutput(folder);
      expect(codeOf(() => claim.begin(PLACES))).toBe("output.foreign");
      expect(existsSync(join(folder, "run.json.4711.tmp"))).toBe(true);
    }
    expect(filesIn(outside)).toEqual(["adapter_model.safetensors"]);
  });
});

test("folders that are renamed while they are listed are left out, and no fault", async () => {
  const folder = fresh();
  const turns = `const { renameSync, mkdirSync } = require("node:fs");
const at = (name) => ${JSON.stringify(folder)} + "/" + name;
for (let i = 0; i < 64; i++) mkdirSync(at("step-" + i));
postMessage("begun");
for (let turn = 0; turn < 400; turn++)
  for (let i = 0; i < 64; i++) renameSync(at("step-" + i + ".part".repeat(turn % 2)), at("step-" + i + ".part".repeat((turn + 1) % 2)));
postMessage("done");`;
  const worker = new Worker(URL.createObjectURL(new Blob([turns])));
  const heard = new Set<string>();
  worker.onmessage = ({ data }) => void heard.add(data);
  let listed = 0;
  while (!heard.has("done")) {
    if (heard.has("begun")) listed += foldersIn(folder).length;
    await new Promise(setImmediate);
  }
  worker.terminate();
  expect(listed).toBeGreaterThan(0);
  expect(foldersIn(folder)).toHaveLength(64);
});

test("a run's folder keeps nothing of processes that were killed while they took it", () => {
  const folder = fresh();
  const [gone, alive] = [".mlora.lock.abcdefghjkmn", ".mlora.lock.npqrstuvwxyz"];
  writeFileSync(join(folder, gone), "999999999 of-another-boot\n");
  writeFileSync(join(folder, alive), `${stampOfProcess()}\n`);
  using claim = claimOutput(folder);
  claim.begin({ adapters: [], checkpoints: "checkpoints" });
  const left = readdirSync(folder).filter((name) => name.startsWith(".mlora.lock."));
  expect(left).toEqual([alive]);
});
