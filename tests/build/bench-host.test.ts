// scripts/bench/host with real ones of all that it relies on: sshd, a network between hosts, dist/mlora copied to one.

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseRows } from "../../scripts/bench/history/rows.ts";
import { benchReport, versioned } from "../helpers/bench-program.ts";
import { until } from "../helpers/bus.ts";
import { Hosts, sshdPath } from "../helpers/hosts.ts";
import { needs } from "../helpers/needs.ts";

const ROOT = join(import.meta.dir, "..", "..");
const BUILT = join(ROOT, "dist", "mlora");
const SCRIPT = join(ROOT, "scripts", "bench", "host");
const CASE = "a few tokens on the processor";
const LONG_MS = 180_000;
const END_MS = 60_000;

const root = mkdtempSync(join(tmpdir(), "mlora-bench-host-"));
const temporary = join(root, "tmp");
mkdirSync(temporary);
afterAll(() => rmSync(root, { recursive: true, force: true }));

/** A program of a known speed: `mlora bench` in `bench` milliseconds a step, or what else it does. */
function program(name: string, bench: number | string): string {
  const made =
    typeof bench === "string"
      ? bench
      : `echo '${JSON.stringify(benchReport(bench, { device: "a processor", compute: "f32" }))}'`;
  const path = join(root, name);
  writeFileSync(path, versioned(made), { mode: 0o755 });
  return path;
}
const measured = (history: string) => parseRows(readFileSync(join(root, history), "utf8"));
const flags = (history: string, mlora: string) => ["--mlora", mlora, "--history", join(root, history)];
/** All that a measurement leaves in a home folder. */
const left = (home: string) => readdirSync(join(home, ".cache", "mlora", "bench"));

/** scripts/release's archive of a program. */
function packed(path: string): string {
  const dist = mkdtempSync(join(root, "dist-"));
  cpSync(path, join(dist, "mlora"));
  expect(Bun.spawnSync([join(ROOT, "scripts", "release"), dist]).exitCode).toBe(0);
  return join(dist, "mlora-1.2.3-linux-x64.tar.xz");
}

describe("scripts/bench/host on this machine", () => {
  const home = join(root, "home");
  const rounds = ["--", "--no-peers", "--rounds", "3", CASE];
  async function here(...args: readonly string[]) {
    const env = { PATH: process.env["PATH"]!, HOME: home, TMPDIR: temporary };
    const child = Bun.spawn([SCRIPT, ...args], { env, stdin: "ignore", stdout: "pipe", stderr: "pipe" });
    const [out, err, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
    expect(readdirSync(temporary)).toEqual([]);
    return { out, err, code };
  }

  test("adds a row to the history each time, and fails where the build is slower than before", async () => {
    const [before, fast, slow] = [program("before", 100), program("fast", 90), program("slow", 104)];
    expect(await here(...flags("h.csv", before), "local", ...rounds)).toMatchObject({ code: 0 });
    expect(await here(...flags("h.csv", packed(fast)), "--against", before, "local", ...rounds)).toMatchObject({ code: 0 });
    const comment = join(root, "comment.md");
    const worse = await here(...flags("h.csv", slow), "--against", before, "--comment", comment, "local", ...rounds);
    expect([worse.code, `${worse.err}${worse.out}`]).toEqual([1, expect.stringContaining("speed -3.8 % by the build before")]);
    expect(readFileSync(comment, "utf8")).toStartWith("### Benchmarks: 1 of 1 worse\n");
    expect(measured("h.csv").map((row) => [row.tokens_per_s, row.ratio])).toEqual([
      [80, null],
      [89, 1.1111],
      [77, 0.9615],
    ]);
    const lenient = await here(...flags("h.csv", slow), "--against", before, "--tolerance", "0.05", "local", ...rounds);
    expect(lenient.code).toBe(0);
    expect(left(home)).toEqual(["lock"]);
  });

  test("a build that fails leaves no row, and its words cannot steer a terminal or a CI service", async () => {
    const bad = program("bad", "printf '::error::x\\n\\033[2Jfull\\n' >&2; exit 3");
    const { code, err } = await here(...flags("none.csv", bad), "local", ...rounds);
    expect(code).toBe(1);
    expect(err).toMatch(/^local: rounds: it ended with 3: /m);
    expect(err).toMatch(/^local: \?\[2Jfull$/m);
    for (const line of err.trim().split("\n")) expect(line).toMatch(/^(local|bench\/host): |^ {2}/);
    expect([existsSync(join(root, "none.csv")), left(home)]).toEqual([false, ["lock"]]);
  });

  test.each([
    [["--mlroa", "x", "local"], "unknown option --mlroa"],
    [["--mlora", "none", "local"], "there is no file none"],
    [["--tolerance", "3", "local"], "--tolerance 3: expected a share, as 0.03"],
    [["--mlora", SCRIPT, "-oProxyCommand=x"], "unknown option -oProxyCommand=x"],
    [["--mlora", SCRIPT, "me@-oProxyCommand=x"], "me@-oProxyCommand=x: expected the name of a host"],
  ])("%p is refused: %s", async (args, message) => {
    const { code, err } = await here(...args);
    expect([code, err.split("\n")[0]]).toEqual([2, `bench/host: ${message}`]);
    if (message.endsWith("none")) expect(err).toContain("scripts/build makes dist/mlora");
  });
});

const missing = sshdPath() === null ? "sshd" : "namespaces";
needs(missing)("scripts/bench/host over ssh", () => {
  let hosts: Hosts;
  beforeAll(async () => {
    if (!existsSync(BUILT)) throw new Error("dist/mlora is not there: run scripts/build");
    hosts = await Hosts.start(join(root, "hosts"), { "host-a": "" });
  }, LONG_MS);
  afterAll(async () => {
    await hosts?.[Symbol.asyncDispose]();
  });
  const start = (...args: readonly string[]) => hosts.start([SCRIPT, ...args], { TMPDIR: temporary });
  const rounds = ["--", "--no-peers", "--rounds", "1", "--steps", "1", CASE];
  /** Of the host, and of what reaches it. */
  const running = async () =>
    (await hosts.processes()).filter(
      ({ command }) => /rounds\.py|bench\/run\.|^ssh /.test(command) && !command.includes("<defunct>"),
    );
  const expectNothingLeft = async () => {
    await until("the host is through", END_MS, async () => (await running()).length === 0);
    await until("the folder goes", END_MS, () => left(hosts.homeOf("host-a")).join() === "lock");
    expect(readdirSync(temporary)).toEqual([]);
  };
  const slow = (name: string, body: () => Promise<void>) => test(name, body, LONG_MS);

  slow("the build is measured there, and what was copied goes", async () => {
    const { code, err } = await (await start(...flags("ssh.csv", BUILT), "host-a", ...rounds)).ended;
    expect([code, err]).toEqual([0, expect.stringContaining(`host-a: rounds: ${CASE}, round 1 of 1: mlora\n`)]);
    expect(measured("ssh.csv")).toEqual([
      expect.objectContaining({
        shape: "smollm2-135m",
        rounds: 1,
        settings: expect.stringContaining("1 x 1 x 8, rank 4, q k v o"),
      }),
    ]);
    await expectNothingLeft();
  });

  slow("one at a time on a host; a connection that is lost ends what runs there, and a limit does", async () => {
    const endless = program("endless", "echo begun >&2; exec sleep 1000000");
    const first = await start(...flags("none.csv", endless), "host-a", ...rounds);
    await until("the first measures", END_MS, () => first.said().includes("round 1 of 1"));
    const second = await (await start(...flags("none.csv", endless), "host-a", ...rounds)).ended;
    expect([second.code, second.err]).toEqual([1, expect.stringContaining("host-a: another measurement runs on this host\n")]);
    expect(first.said()).not.toContain("bench/host: the measurement");
    const connection = (await hosts.processes()).find(({ command }) => command.startsWith("sshd: runs@notty"));
    expect(await hosts.run("kill", "-KILL", connection!.pid)).toMatchObject({ code: 0 });
    const lost = await first.ended;
    expect([lost.code, lost.err]).toEqual([1, expect.stringContaining("bench/host: ssh does not reach host-a, or lost it\n")]);
    await expectNothingLeft();

    const signalled = await start(...flags("none.csv", endless), "host-a", ...rounds);
    await until("it measures", END_MS, () => signalled.said().includes("round 1 of 1"));
    process.kill(signalled.pid, "SIGTERM");
    expect(await signalled.ended).toMatchObject({ code: 143 });
    await expectNothingLeft();

    const limited = await (await start("--limit", "1", ...flags("none.csv", endless), "host-a", ...rounds)).ended;
    expect([limited.code, limited.err]).toEqual([1, expect.stringContaining("host-a: it took more than 1 s on the host\n")]);
    await expectNothingLeft();
    expect(existsSync(join(root, "none.csv"))).toBe(false);
  });

  test.each([
    ["a key that the host does not know", "stranger", "Permission denied (publickey)."],
    ["a host with another key than before", "impostor", "Host key verification failed."],
  ])(
    "%s: nothing is copied",
    async (_, host, words) => {
      const { code, err } = await (await start(...flags("none.csv", BUILT), host, ...rounds)).ended;
      expect([code, err]).toEqual([1, expect.stringContaining(words)]);
      await expectNothingLeft();
    },
    LONG_MS,
  );

  slow("a host whose key was never seen is refused, also where the user's own settings would take it", async () => {
    writeFileSync(join(root, "no-hosts"), "");
    const { code, err } = await (
      await start("--known-hosts", join(root, "no-hosts"), ...flags("none.csv", BUILT), "host-a", ...rounds)
    ).ended;
    expect([code, err]).toEqual([1, expect.stringContaining("Host key verification failed.")]);
  });
});
