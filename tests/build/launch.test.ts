// scripts/launch with real ones of all that it relies on: sshd, a network between hosts, dist/mlora copied to each.

import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, truncateSync } from "node:fs";
import { join } from "node:path";
import { until } from "../helpers/bus.ts";
import { Hosts, type Started, sshdPath } from "../helpers/hosts.ts";
import { needs } from "../helpers/needs.ts";
import { leftOf, metrics, SUMS, unlike, Workplace } from "../helpers/program.ts";

const ROOT = join(import.meta.dir, "..", "..");
const BUILT = join(ROOT, "dist", "mlora");
const SNIFF = join(ROOT, "tests", "helpers", "hosts", "sniff.ts");
/** For what copies dist/mlora next to a busy neighbour. */
const LONG_MS = 180_000;
/** Most that a whole start takes, and an end. */
const START_MS = 90_000;
const END_MS = 30_000;
/** Makes a run last until it is ended. */
const forever = (text: string) => text.replaceAll(/^steps = .*$/gm, "steps = 1000000");
const HINT = /^scripts\/launch: {3}/;
const linesOf = ({ err }: { readonly err: string }) => err.split("\n").filter((line) => line !== "");

const missing = sshdPath() === null ? "sshd" : Bun.which("openssl") === null ? "openssl" : "namespaces";
needs(missing)("scripts/launch, over hosts that ssh reaches", () => {
  const place = new Workplace(5);
  const temporary = join(place.root, "launch");
  let hosts: Hosts;
  beforeAll(async () => {
    if (!existsSync(BUILT)) throw new Error("dist/mlora is not there: run scripts/build");
    mkdirSync(temporary);
    const disks = { full: "size=32m", noexec: "size=300m,noexec" };
    hosts = await Hosts.start(join(place.root, "hosts"), { "host-a": "", "host-b": "", ...disks });
  }, LONG_MS);
  afterAll(async () => {
    await hosts?.[Symbol.asyncDispose]();
    place[Symbol.dispose]();
  });

  const outputOf = (path: string) => join(path, "..", "out");
  const project = (adapters: readonly number[], change = (text: string) => text) =>
    place.project(change(unlike(adapters, "cpu")), SUMS);
  const launch = (...args: readonly string[]): Promise<Started> =>
    hosts.start([join(ROOT, "scripts", "launch"), ...args], { TMPDIR: temporary, MLORA_CACHE: join(place.root, "cache") });
  const programs = async () =>
    (await hosts.processes()).filter(({ command }) => /mlora (run|stage|child) |nats-server|^ssh /.test(command));
  const underWay = (path: string) =>
    until("the run steps", START_MS, () => {
      const file = join(outputOf(path), "metrics.jsonl");
      return existsSync(file) && metrics(outputOf(path), "step").length > 0;
    });
  const expectNothingLeft = async () => {
    expect(readdirSync(temporary)).toEqual([]);
    await until("all processes end", END_MS, async () => (await programs()).length === 0);
  };
  /** What is in a host's folder of copies of mlora. */
  const copies = (host: string) => {
    const folder = join(hosts.homeOf(host), ".cache", "mlora", "bin");
    const names = existsSync(folder) ? (readdirSync(folder, { recursive: true }) as string[]) : [];
    return names.map((name) => join(folder, name)).filter((path) => statSync(path, { throwIfNoEntry: false })?.isFile());
  };
  let wires = 0;
  /** All bytes that cross the network to and from the run's server. */
  const sniffed = async (during: () => Promise<unknown>): Promise<string> => {
    const file = join(place.root, `wire-${wires++}`);
    const sniffer = await hosts.start([process.execPath, SNIFF, "4222", file]);
    await until("the sniffer listens", START_MS, () => existsSync(file));
    await during();
    process.kill(sniffer.pid);
    await sniffer.ended;
    return readFileSync(file, "latin1");
  };

  const slow = (name: string, body: () => Promise<void>) => test(name, body, LONG_MS);
  const copying = async (host: string) => {
    const run = await launch("--listen", "10.77.0.1:4222", project([0]), host);
    await until("the copy begins", START_MS, () => copies(host).some((path) => statSync(path).size > 0));
    return run;
  };

  slow("a connection that breaks while mlora is copied leaves no half of it", async () => {
    const run = await copying("host-b");
    await hosts.cable("host-b", "down"); // nothing more of it arrives
    const session = (await hosts.processes()).find(({ command }) => command.startsWith("sshd: runs@notty"));
    expect(await hosts.run("kill", "-KILL", session!.pid)).toMatchObject({ code: 0 });
    await hosts.cable("host-b", "up");
    const ended = await run.ended;
    expect([ended.code, linesOf(ended)]).toEqual([
      2,
      [
        "scripts/launch: copying mlora to host-b",
        expect.stringMatching(/^scripts\/launch: mlora could not be copied to host-b: ./),
        expect.stringMatching(HINT),
      ],
    ]);
    await until("the host is through", END_MS, () => copies("host-b").length === 0);
    await expectNothingLeft();
  });

  slow("SIGTERM while mlora is copied ends it, and leaves no half, either", async () => {
    const run = await copying("host-b");
    process.kill(run.pid, "SIGTERM");
    const ended = await run.ended;
    expect([ended.code, linesOf(ended)]).toEqual([143, ["scripts/launch: copying mlora to host-b"]]);
    await until("the host is through", END_MS, () => copies("host-b").length === 0);
    await expectNothingLeft();
  });

  slow("three stages on two hosts: exit code 0, the bytes of one process, and nothing to read on the wire", async () => {
    const adapters = [0, 1, 4];
    const [alone, path] = [project(adapters), project(adapters)];
    expect(await hosts.run(BUILT, "run", alone)).toMatchObject({ code: 0 });
    const wire = await sniffed(async () => {
      const run = await launch("--listen", "here:4222", path, "host-a:2", "host-b");
      const { code, err } = await run.ended;
      expect([code, err.match(/^(error|warning|notice).*/gm)]).toEqual([0, null]);
      for (const [stage, host] of ["host-a", "host-a", "host-b"].entries())
        expect(err).toMatch(new RegExp(`^  stage ${stage}: layers \\d to \\d( \\(\\d in part\\))? on ${host}, cpu 0`, "m"));
      expect(err).toMatch(/to stage 2 by nats/);
    });
    for (const i of adapters) expect(leftOf(outputOf(path), `a${i}`)).toEqual(leftOf(outputOf(alone), `a${i}`));
    expect(wire).toContain('"tls_required":true');
    expect(wire.length).toBeGreaterThan(100_000);
    for (const text of ["mlora.", "launch-", "CONNECT {", "auth_token", "What is"]) expect(wire).not.toContain(text);
    await expectNothingLeft();
  });

  slow("a copy that is damaged is replaced; --insecure says so aloud, and the wire shows it", async () => {
    expect(copies("host-a").length).toBe(1); // by the test before
    truncateSync(copies("host-a")[0]!, 1_000_000);
    const wire = await sniffed(async () => {
      const run = await launch("--insecure", "--listen", "10.77.0.1:4222", project([0]), "host-a", "host-b");
      const { code, err } = await run.ended;
      expect(code).toBe(0);
      expect(err).toContain("--insecure: the token and the names of subjects cross the network unencrypted\n");
      expect(err.match(/copying mlora to .*/g)).toEqual(["copying mlora to host-a"]);
    });
    for (const text of ["PUB mlora.launch-", "auth_token"]) expect(wire).toContain(text);
    expect(wire).not.toContain("What is");
    await expectNothingLeft();
  });

  slow("a host that goes away ends the run with one error that names it, and nothing is left, there or here", async () => {
    const path = project([0, 1], forever);
    const run = await launch("--listen", "10.77.0.1:4222", "--here", "1", path, "host-a", "host-b");
    await underWay(path);
    const all = await hosts.processes();
    const secrets = all.flatMap(({ environment }) => environment.match(/(?<=^MLORA_(NATS_TOKEN|RUN_KEY)=).+/gm) ?? []);
    expect(new Set(secrets).size).toBe(2);
    for (const secret of secrets) expect(all.filter(({ command }) => command.includes(secret))).toEqual([]);
    const begin = performance.now();
    await hosts.cable("host-b", "down");
    const { code, err } = await run.ended;
    expect(performance.now() - begin).toBeLessThan(END_MS);
    expect(code).toBe(1);
    expect(err.match(/^.*error\[.*$/gm)).toEqual([
      expect.stringMatching(/^error\[bus\.gone\]: stage 2 \(host-b, process \d+\) has not been heard of for 4 s$/),
    ]);
    await expectNothingLeft();
    await hosts.cable("host-b", "up");
  });

  test.each([
    [
      "a key that the host does not know",
      "stranger",
      "ssh does not let us into stranger: runs@10.77.0.2: Permission denied (publickey).",
    ],
    ["a host with another key than before", "impostor", "ssh does not let us into impostor: Host key verification failed."],
    [
      "a host that is not there",
      "10.77.0.99",
      "ssh does not let us into 10.77.0.99: ssh: connect to host 10.77.0.99 port 2222: No route to host",
    ],
    ["a full home folder", "full", "mlora could not be copied to full: cat: write error: No space left on device"],
  ])(
    "%s: one line, and nothing was begun",
    async (_, host, line) => {
      const path = project([0]);
      const run = await launch("--listen", "10.77.0.1:4222", path, host);
      const ended = await run.ended;
      const told = linesOf(ended).filter((text) => text !== `scripts/launch: copying mlora to ${host}`);
      expect([ended.code, told]).toEqual([2, [`scripts/launch: ${line}`, expect.stringMatching(HINT)]]);
      expect(existsSync(outputOf(path))).toBe(false);
      await expectNothingLeft();
      expect((await hosts.run("ssh", "full", "find .cache -type f")).out).toBe("");
    },
    LONG_MS,
  );

  slow("a host where mlora cannot start ends the run, which would wait for it", async () => {
    const run = await launch("--listen", "10.77.0.1:4222", project([0]), "host-a", "noexec");
    const ended = await run.ended;
    expect(ended.code).toBe(1);
    expect(linesOf(ended).at(-1)).toBe("scripts/launch: the stage on noexec ended before it had joined the run");
    expect(ended.err).toMatch(/^noexec: .*Permission denied$/m);
    await expectNothingLeft();
  });

  slow("a run that does not begin leaves no stage on the hosts, and its exit code is that of mlora run", async () => {
    const path = project([0], (text) => text.replace("rows.jsonl", "none.jsonl"));
    const run = await launch("--listen", "10.77.0.1:4222", path, "host-a");
    const { code, err } = await run.ended;
    expect([code, err.match(/^error.*/gm)]).toEqual([2, [expect.stringContaining("none.jsonl")]]);
    await expectNothingLeft();
  });

  slow("mlora run that is killed: its exit code, one line, and no stage stays on the hosts", async () => {
    const path = project([0], forever);
    const run = await launch("--listen", "10.77.0.1:4222", path, "host-a");
    await underWay(path);
    const coordinator = (await hosts.processes()).find(({ command }) => command.includes(`mlora run ${path}`));
    await hosts.run("kill", "-KILL", coordinator!.pid);
    const ended = await run.ended;
    expect([ended.code, linesOf(ended).filter((line) => line.startsWith("scripts/"))]).toEqual([
      137,
      ["scripts/launch: signal 9 ended mlora run"],
    ]);
    await expectNothingLeft();
  });

  test.each([
    ["SIGTERM to it alone", "SIGTERM", 1],
    ["Ctrl-C, which all processes here get", "SIGINT", -1],
    ["the loss of the terminal", "SIGHUP", -1],
  ] as const)(
    "%s: every adapter is saved, and all ends",
    async (_, signal, group) => {
      const path = project([0], forever);
      const run = await launch("--listen", "10.77.0.1:4222", path, "host-a");
      await underWay(path);
      process.kill(group * run.pid, signal);
      const { code, err } = await run.ended;
      expect([code, err.match(/^error.*/gm)]).toEqual([1, [expect.stringContaining("stopped before the end")]]);
      expect(existsSync(join(outputOf(path), "a0", "adapter_model.safetensors"))).toBe(true);
      await expectNothingLeft();
    },
    LONG_MS,
  );
});
