// OpenAI's own clients, of Python and of npm, against `mlora serve` on a tiny model: upload, train, watch, sample, delete.

import { afterAll, expect, test } from "bun:test";
import { join } from "node:path";
import { needs } from "../helpers/needs.ts";
import { Workplace } from "../helpers/program.ts";
import { KEYS, serverFolder, startServer } from "../helpers/server.ts";

const CLIENTS = join(import.meta.dir, "..", "clients");
const MADE = join(import.meta.dir, "..", "..", ".clients");

needs("clients")("official clients of OpenAI", () => {
  const place = new Workplace(2);
  afterAll(() => place[Symbol.dispose]());

  test("Python's and npm's openai, at one time", async () => {
    const { url, running } = await startServer(place, serverFolder(place, "server"));
    const clients = [
      [join(MADE, "python", "bin", "python"), join(CLIENTS, "openai_client.py"), url, KEYS.one, KEYS.three, "local/tiny"],
      ["node", join(CLIENTS, "openai_client.mjs"), join(MADE, "npm"), url, KEYS.two, KEYS.three, "local/tiny"],
    ];
    const ends = await Promise.all(
      clients.map(async (command) => {
        const child = Bun.spawn(command, { stdout: "pipe", stderr: "pipe" });
        const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text()]);
        return { code: await child.exited, out, err };
      }),
    );
    for (const { code, out, err } of ends) expect({ code, out: out.slice(0, 2), err }).toEqual({ code: 0, out: "ok", err: "" });
    running.kill("SIGTERM");
    const { code, err } = await running.ended;
    expect(code).toBe(0);
    expect(err).not.toContain('"event":"error"');
    for (const key of Object.values(KEYS)) expect(err).not.toContain(key);
  }, 60_000);
});
