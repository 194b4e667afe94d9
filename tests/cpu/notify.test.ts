// Notifications, as a program and a server receive them; the run's result is its own.

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { chmodSync, existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Workplace } from "../helpers/program.ts";

let place: Workplace;
beforeAll(() => {
  place = new Workplace();
  const rows = Array.from({ length: 12 }, (_, i) => JSON.stringify({ prompt: `What is ${i} + 1?`, completion: `${i + 1}` }));
  writeFileSync(join(place.root, "rows.jsonl"), `${rows.join("\n")}\n`);
  writeFileSync(join(place.root, "keep"), '#!/bin/sh\nread -r line\necho "$line" >>"$1"\n');
  chmodSync(join(place.root, "keep"), 0o755);
});
afterAll(() => place[Symbol.dispose]());

let made = 0;
async function run(
  notify: string,
  { rate = 1e-3, environment = {} }: { rate?: number; environment?: Record<string, string> } = {},
) {
  const output = `out${made++}`;
  const recipe = `[model]\npath = "model"\n[run]\noutput = "${output}"\n${notify}
[[adapter]]\nname = "a"\ndata = { train = "rows.jsonl", split = 0.25 }\nsteps = 6\neval_every = 2\nlearning_rate = ${rate}\n`;
  writeFileSync(join(place.root, `${output}.toml`), recipe);
  return { ...(await place.start(["run", `${output}.toml`], environment).ended), output };
}
const keep = (file: string) => JSON.stringify([join(place.root, "keep"), join(place.root, file)]);
const told = (file: string) =>
  readFileSync(join(place.root, file), "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));

/** What was posted; `answers` has the status of each answer, then 200. */
function serve(answers: number[]) {
  const posted: { event: string; text: string; adapters?: unknown }[] = [];
  const server = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    fetch: async (request) => {
      const status = answers.shift() ?? 200;
      if (status === 200) posted.push((await request.json()) as (typeof posted)[number]);
      return new Response("", { status });
    },
  });
  return { posted, url: `http://127.0.0.1:${server.port}/a-secret`, [Symbol.dispose]: () => void server.stop(true) };
}

describe("a program", () => {
  test("is notified of each adapter, of a loss below a number once, and of the end", async () => {
    const { code } = await run(`notify = { command = ${keep("told")}, on = ["done", "adapter"], below = 100 }`);
    expect(code).toBe(0);
    const events = told("told");
    expect(events.map(({ event }) => event)).toEqual(expect.arrayContaining(["below", "adapter", "done"]));
    expect(events.length).toBe(3);
    const [end] = events.filter(({ event }) => event === "done");
    expect(end.adapters).toEqual([{ adapter: "a", status: "done", steps: 6, loss: expect.any(Number) }]);
    expect(end.text).toMatch(/^mlora out\d+: done after .* tokens$/);
  });

  test("is notified of what failed", async () => {
    const { code } = await run(`notify = { command = ${keep("failures")} }`, { rate: 1e30 });
    expect(code).toBe(1);
    const events = told("failures");
    expect(events.map(({ event }) => event)).toEqual(["failed", "failed"]); // the adapter, and the run
    expect(events.some(({ text }) => /a failed: .*loss/.test(text))).toBe(true);
  });

  test("that is not there is refused before any work, and one that fails changes nothing", async () => {
    const missing = await run('notify = { command = ["/nowhere/tell"] }');
    expect([missing.code, missing.err]).toEqual([2, expect.stringContaining("error[notify.command]")]);
    expect(existsSync(join(place.root, missing.output))).toBe(false);
    const nobody = await run('notify = { on = ["done"] }');
    expect([nobody.code, nobody.err]).toEqual([2, expect.stringContaining("run.notify has neither a command nor a url")]);
    const failing = await run('notify = { command = ["false"] }');
    expect([failing.code, failing.err]).toEqual([0, expect.stringContaining("a notification was not given")]);
  });
});

describe("an address", () => {
  test("gets it again where it did not answer well, and its path is in no message", async () => {
    using server = serve([500]);
    const { code, err } = await run(`notify = { url = "${server.url}" }`);
    expect([code, server.posted.map(({ event }) => event)]).toEqual([0, ["done"]]);
    using broken = serve([500, 500, 500]);
    const other = await run(`notify = { url = "${broken.url}" }`);
    expect([other.code, broken.posted]).toEqual([0, []]);
    expect(other.err).toContain("it answered 500");
    expect(err + other.err).not.toContain("a-secret");
  });

  test("may come from the environment, and must be https elsewhere", async () => {
    using server = serve([]);
    const { code, output } = await run("", { environment: { MLORA_NOTIFY_URL: server.url } });
    expect([code, server.posted.length]).toEqual([0, 1]);
    expect(readFileSync(join(place.root, output, "recipe.toml"), "utf8")).not.toContain("a-secret");
    // The last one's host is example.org too: what stands before @ is a name and a password.
    for (const url of ["http://example.org/x", "http://localhost.example.org/x", "http://localhost:80@example.org/x"]) {
      const plain = await run(`notify = { url = "${url}" }`);
      expect([plain.code, plain.err]).toEqual([2, expect.stringContaining("expected an https URL")]);
      const given = await run("", { environment: { MLORA_NOTIFY_URL: url } });
      expect([given.code, given.err]).toEqual([2, expect.stringContaining("MLORA_NOTIFY_URL is no https URL")]);
    }
  });
});
