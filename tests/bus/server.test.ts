// The private nats-server: what may reach it, where its token is, and that nothing of it is left.

import { afterAll, afterEach, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect } from "../../src/bus/nats.ts";
import { startServer } from "../../src/cluster/server.ts";
import { isAlive, script, until } from "../helpers/bus.ts";
import { needs } from "../helpers/needs.ts";
import { childrenOf } from "../helpers/program.ts";

const folders = (): string[] => readdirSync(tmpdir()).filter((name) => name.startsWith("mlora-nats-"));

needs("nats")("a server of our own", () => {
  const before = process.env["TMPDIR"];
  beforeAll(() => {
    process.env["TMPDIR"] = mkdtempSync(join(tmpdir(), "mlora-test-")); // so that no other run's folder is in the way
  });
  afterAll(() => {
    rmSync(tmpdir(), { recursive: true });
    if (before === undefined) delete process.env["TMPDIR"];
    else process.env["TMPDIR"] = before;
  });
  afterEach(() => expect(folders()).toEqual([]));

  test("its file is for this user alone, and is gone when the server is there", async () => {
    const starting = startServer(); // the file is written before this returns
    const [folder] = folders();
    const file = join(tmpdir(), folder!, "server.conf");
    const token = /token: "(.+?)"/.exec(readFileSync(file, "utf8"))![1];
    expect(statSync(file).mode & 0o777).toBe(0o600);
    expect(statSync(join(tmpdir(), folder!)).mode & 0o777).toBe(0o700);
    await using server = await starting;
    expect(server.address.login).toEqual({ token: token! });
    expect(folders()).toEqual([]);
  });

  test("one that is killed while it starts has ended, as one that is killed later has: a run starts it again", async () => {
    const others = childrenOf(process.pid);
    const starting = startServer();
    const [server] = childrenOf(process.pid).filter((pid) => !others.includes(pid)); // it may not have its command line yet
    process.kill(server!, "SIGKILL");
    expect(await starting.catch((error) => [error.code, error.message])).toEqual([
      "nats.ended",
      "nats-server was killed by SIGKILL",
    ]);
  });

  test("its token is long, another each time, and neither among its arguments nor in its environment nor in what it says", async () => {
    const servers = await Promise.all([startServer(), startServer()]);
    const tokens = servers.map(({ address }) => (address.login as { token: string }).token);
    expect(tokens[0]).not.toBe(tokens[1]!);
    for (const [i, server] of servers.entries()) {
      expect(tokens[i]!).toMatch(/^[a-z2-9]{32}$/);
      expect(readFileSync(`/proc/${server.pid}/cmdline`, "utf8")).toContain("nats-server");
      for (const file of ["cmdline", "environ"])
        expect(readFileSync(`/proc/${server.pid}/${file}`, "utf8")).not.toContain(tokens[i]!);
      await (await connect(server.address, "test"))[Symbol.asyncDispose]();
      await server[Symbol.asyncDispose]();
      const { stderr } = await server.ended;
      expect(stderr).toContain("Listening for client connections");
      expect(stderr).not.toContain(tokens[i]!);
    }
  });

  test("listens on this machine's own address only", async () => {
    await using server = await startServer();
    const port = Number(new URL(server.address.servers[0]!).port).toString(16).toUpperCase().padStart(4, "0");
    const listening = ["tcp", "tcp6"].flatMap((file) =>
      readFileSync(`/proc/${server.pid}/net/${file}`, "utf8")
        .split("\n")
        .map((line) => line.trim().split(/\s+/))
        .filter(([, local, , state]) => local?.endsWith(`:${port}`) && state === "0A")
        .map(([, local]) => local),
    );
    expect(listening).toEqual([`0100007F:${port}`]);
  });

  test("is gone, and waited for, when it is disposed", async () => {
    const server = await startServer();
    expect(await isAlive(server.pid)).toBe(true);
    await server[Symbol.asyncDispose]();
    expect(await isAlive(server.pid)).toBe(false);
    await server[Symbol.asyncDispose](); // again does nothing
  });

  test("dies with a coordinator that is killed, and leaves no file", async () => {
    await using coordinator = script({ name: "coordinator", input: { run: "r", stages: 0 } });
    const { pid } = JSON.parse(await coordinator.line());
    expect(await isAlive(pid)).toBe(true);
    coordinator.kill("SIGKILL");
    await until("the server ends", 60_000, async () => !(await isAlive(pid)));
  });

  test("a Ctrl-C at the terminal does not reach it: the coordinator ends it in its own time", async () => {
    await using coordinator = script({ name: "coordinator", input: { run: "r", stages: 0 } });
    const { pid } = JSON.parse(await coordinator.line());
    process.kill(-coordinator.pid, "SIGINT"); // as a terminal does, to the whole group
    expect(await coordinator.line()).toBe("interrupted");
    await Bun.sleep(200);
    expect(await isAlive(pid)).toBe(true);
  });

  test("a port that is taken is an error with the server's own words", async () => {
    await using server = await startServer();
    const port = Number(new URL(server.address.servers[0]!).port);
    const error = await startServer({ port }).catch((error) => error);
    expect(error).toMatchObject({ code: "nats.start", exit: 1 });
    expect(error.message).toContain("address already in use");
  });
});
