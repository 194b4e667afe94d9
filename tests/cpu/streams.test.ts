// What the program does when its output is not taken: a pipe that was closed, a disk that is full.

import { afterAll, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { inTheMiddle } from "../helpers/middle.ts";
import { PROGRAM, SUMS, unlike, Workplace } from "../helpers/program.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());

/** A shell's line, in which `$M` is the program; `code` is the program's own. */
async function shell(line: string) {
  const child = Bun.spawn(["bash", "-c", `${line}; exit \${PIPESTATUS[0]}`], {
    cwd: place.root,
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    env: { ...process.env, M: PROGRAM.join(" "), MLORA_CACHE: join(place.root, "cache") },
  });
  const [out, err, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  return { out, err, code };
}

test("a run continues when its progress is read by no one, and says so when its results cannot be written", async () => {
  const recipe = () => place.project(unlike([0, 1], "cpu"), SUMS);
  const saved = (path: string) => existsSync(join(path, "..", "out", "a1", "adapter_model.safetensors"));

  const [unheard, full, unsaid] = [recipe(), recipe(), recipe()];
  expect((await shell(`$M run ${unheard} 2>&1 | head -n 1`)).code).toBe(0);
  expect(saved(unheard)).toBe(true);
  const { code, out } = await shell(`$M run ${full} 2>/dev/full`);
  expect([code, out]).toEqual([0, expect.stringContaining("a1")]);
  expect(saved(full)).toBe(true);

  const lost = await shell(`$M run ${unsaid} >/dev/full`);
  expect([lost.code, lost.err]).toEqual([1, expect.stringContaining("error[cli.output]: standard output cannot be written")]);
  expect(lost.err).not.toContain("bug");
  expect(saved(unsaid)).toBe(true);
});

test("generation ends when its reader has enough", async () => {
  const flags = `${place.model} --raw --prompts rows.jsonl --max-new-tokens 20 --json`;
  const rows = (count: number) =>
    Bun.write(join(place.root, "rows.jsonl"), `${JSON.stringify({ prompt: "One and" })}\n`.repeat(count));
  await rows(100);
  const whole = await shell(`$M generate ${flags}`);
  expect([whole.code, whole.out.trim().split("\n").length]).toEqual([0, 100]);
  expect(whole.err).toContain("tokens in");
  await inTheMiddle(async (factor) => {
    await rows(400 * factor);
    const { code, out, err } = await shell(`$M generate ${flags} | head -n 2`);
    expect([code, out.trim().split("\n").length]).toEqual([0, 2]);
    expect(err).not.toContain("error");
    return err.includes("tokens in") ? null : err; // it was all made before its reader had its two lines
  });
});
