// OpenAI's own clients, of Python and of npm, and Tinker's, against `mlora serve` on a tiny model.

import { afterAll, expect, test } from "bun:test";
import { join } from "node:path";
import { KillingProxy } from "../helpers/killing-proxy.ts";
import { needs } from "../helpers/needs.ts";
import { Workplace } from "../helpers/program.ts";
import { KEYS, serverFolder, startServer } from "../helpers/server.ts";

const CLIENTS = join(import.meta.dir, "..", "clients");
const MADE = join(import.meta.dir, "..", "..", ".clients");

/** When the server is killed: as Tinker's client comes to them in a loop of training. */
const MOMENTS = [
  ["create_model", "after"],
  ["forward_backward", "after"],
  ["optim_step", "before"],
  ["retrieve_future", "after"],
  ["save_weights_for_sampler", "after"],
  ["asample", "after"],
  ["optim_step", "after"],
  ["save_weights_for_sampler", "before"],
  ["asample", "before"],
] as const;

type Command = readonly string[];

/** Runs clients at one time, each of which prints "ok"; returns what they print besides. */
async function runAll(commands: readonly Command[], environment: Readonly<Record<string, string>> = {}): Promise<string[]> {
  const ends = await Promise.all(
    commands.map(async (command) => {
      const child = Bun.spawn([...command], { stdout: "pipe", stderr: "pipe", env: { ...process.env, ...environment } });
      const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text()]);
      return { code: await child.exited, out, err };
    }),
  );
  for (const { code, out, err } of ends) {
    const last = out.trimEnd().split("\n").at(-1)!;
    // Thrown, as what is expected is shown shortened.
    if (code !== 0 || !last.startsWith("ok")) throw new Error(`a client ended with ${code}:\n${out}${err}`);
  }
  return ends.map(({ out, err }) => out + err);
}

needs("clients")("official clients", () => {
  const place = new Workplace(2);
  afterAll(() => place[Symbol.dispose]());

  test("Tinker's, a new and an older one, at one time", async () => {
    const { url, running } = await startServer(place, serverFolder(place, "tinker"));
    const environment = { HF_ENDPOINT: url, HF_HOME: join(place.root, "hub"), TINKER_TELEMETRY: "0" };
    const versions = ["0.38.0", "0.24.1"];
    const client = (version: string, key: string) => [
      ...[join(MADE, `tinker-${version}`, "bin", "python"), join(CLIENTS, "tinker_client.py")],
      ...[url, key, KEYS.three, "local/tiny"],
    ];
    const said = await runAll([client("0.38.0", KEYS.one), client("0.24.1", KEYS.two)], environment);
    for (const [i, text] of said.entries()) expect(text).toContain(`ok ${versions[i]}`);
    running.kill("SIGTERM");
    const { code, err } = await running.ended;
    expect(code).toBe(0);
    expect(err).not.toContain('"event":"error"');
  }, 120_000);

  test("Tinker's, while the server is killed at each kind of request: the same as without", async () => {
    await using proxy = await KillingProxy.open(place, serverFolder(place, "killed", "[jobs]\nsave_seconds = 0.2\n"));
    const command = [join(MADE, "tinker-0.38.0", "bin", "python"), join(CLIENTS, "tinker_killed.py")];
    const child = Bun.spawn([...command, proxy.url, KEYS.one, "local/tiny"], {
      stdin: "pipe",
      stdout: "pipe",
      stderr: "pipe",
      env: { ...process.env, TINKER_TELEMETRY: "0" },
    });
    const err = child.stderr.text();
    let said = "";
    for await (const piece of child.stdout.pipeThrough(new TextDecoderStream())) {
      said += piece;
      if (!said.endsWith("again\n")) continue;
      proxy.moments = MOMENTS.map(([path, when]) => ({ path, when }));
      child.stdin.write("\n");
      await child.stdin.end();
    }
    const text = `${said}${await err}`;
    if ((await child.exited) !== 0) throw new Error(`the client ended with ${child.exitCode}:\n${text}`);
    expect({ said, left: proxy.moments }).toEqual({ said: "again\nok\n", left: [] });
    const { running } = await proxy.server;
    running.kill("SIGTERM");
    expect((await running.ended).code).toBe(0);
  }, 120_000);

  test("Python's and npm's openai, at one time", async () => {
    const { url, running } = await startServer(place, serverFolder(place, "server"));
    const clients = [
      [join(MADE, "python", "bin", "python"), join(CLIENTS, "openai_client.py"), url, KEYS.one, KEYS.three, "local/tiny"],
      ["node", join(CLIENTS, "openai_client.mjs"), join(MADE, "npm"), url, KEYS.two, KEYS.three, "local/tiny"],
    ];
    for (const said of await runAll(clients)) expect(said.startsWith("ok")).toBe(true);
    running.kill("SIGTERM");
    const { code, err } = await running.ended;
    expect(code).toBe(0);
    expect(err).not.toContain('"event":"error"');
    for (const key of Object.values(KEYS)) expect(err).not.toContain(key);
  }, 60_000);
});
