// What each party is trusted with (docs/security.md): with the server, with files, and with what a child process runs.

import { expect, test } from "bun:test";
import { chownSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Address } from "../../src/bus/address.ts";
import { Answers, askControl, newRequestNumber, serveControl } from "../../src/bus/control.ts";
import { connect } from "../../src/bus/nats.ts";
import { connectSealed } from "../../src/bus/seal.ts";
import { startServer } from "../../src/cluster/server.ts";
import { KEY, until } from "../helpers/bus.ts";
import { needs } from "../helpers/needs.ts";
import { childrenOf, commandOf, longer, metrics, type Running, SUMS, unlike, Workplace } from "../helpers/program.ts";

/** A certificate that vouches for itself, and its key, in PEM; as scripts/launch makes them. */
function certificateFor(name: string) {
  const folder = mkdtempSync(join(tmpdir(), "mlora-certificate-"));
  try {
    const [key, cert] = [join(folder, "key.pem"), join(folder, "cert.pem")];
    const kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=a test"];
    const made = Bun.spawnSync([
      ...["openssl", "req", "-x509", ...kind, "-addext", `subjectAltName=${name}`],
      ...["-keyout", key, "-out", cert],
    ]);
    expect([made.exitCode, made.exitCode === 0 ? "" : `${made.stderr}`]).toEqual([0, ""]);
    return { cert: readFileSync(cert, "utf8"), key: readFileSync(key, "utf8") };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** The code of what `connect` throws; null where it connects, by TLS alone. */
async function refusal(address: Address): Promise<string | null> {
  try {
    await using connection = await connect(address, "test");
    expect(connection.encrypted).toBe(true);
    return null;
  } catch (error) {
    return (error as { code: string }).code;
  }
}

needs("nats")("a server that is not this run's", () => {
  test("is not trusted because it takes connections: without TLS where that was asked for, it is refused", async () => {
    await using server = await startServer();
    expect(await refusal({ ...server.address, tls: {} })).toBe("nats.tls");
  });

  needs("openssl")("with a certificate", () => {
    test.each([
      ["DNS:localhost", "localhost"],
      ["IP:127.0.0.1", "127.0.0.1"],
    ])("for %s is reached by that name, with its certificate", async (name, host) => {
      await using server = await startServer({ host, certificate: certificateFor(name) });
      const { servers, login } = server.address;
      expect(new URL(servers[0]!.replace("tls:", "http:")).hostname).toBe(host);
      expect(await refusal(server.address)).toBeNull();
      expect(await refusal({ servers, login, tls: { ca: certificateFor(name).cert } })).toBe("nats.tls");
      expect(await refusal({ servers, login, tls: null })).toBe("nats.tls"); // it has no other's word, either
    });

    test("for another name is refused", async () => {
      await using server = await startServer({ host: "localhost", certificate: certificateFor("DNS:elsewhere") });
      expect(await refusal(server.address)).toBe("nats.tls");
    });
  });
});

needs("nats")("a run that listens for others", () => {
  const secret = { MLORA_NATS_TOKEN: "t".repeat(32) };
  const listening = async (place: Workplace, listen: string, ...more: string[]) => {
    const path = place.project(unlike([2], "cpu"), SUMS);
    return place.start(["run", path, "--listen", listen, "--stages", "2", "--here", "2", ...more], secret).ended;
  };
  const aPort = (): number => {
    using server = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data: () => undefined } });
    return server.port;
  };

  test("without a certificate does so on this machine alone, or --insecure, which it says", async () => {
    using place = new Workplace(2);
    const refused = await listening(place, "0.0.0.0:4222");
    expect([refused.code, refused.err]).toEqual([2, expect.stringContaining("error[nats.certificate]: --listen 0.0.0.0:4222")]);
    const port = aPort();
    const open = await listening(place, `0.0.0.0:${port}`, "--insecure");
    const notice = `notice: the connection to 0.0.0.0:${port} is not encrypted`;
    expect([open.code, open.err]).toEqual([0, expect.stringContaining(notice)]);
    const local = await listening(place, `127.0.0.1:${aPort()}`);
    expect([local.code, local.err]).toEqual([0, expect.not.stringContaining("encrypted")]);
    const alone = await place.mlora("run", place.project(unlike([2], "cpu"), SUMS), "--insecure");
    expect([alone.code, alone.err]).toEqual([2, expect.stringContaining("--insecure goes with --listen")]);
  });
});

/** A run that lasts until it is ended, once it has made a step. */
async function lasting(place: Workplace, stages: number, environment: Record<string, string> = {}) {
  const path = place.project(longer(unlike([0, 1], "cpu", `stages = ${stages}`), 100_000), SUMS);
  const output = join(path, "..", "out");
  const run = place.start(["run", path], environment);
  const stepped = () => existsSync(join(output, "metrics.jsonl")) && metrics(output, "step").length > 0;
  await until("a step", 60_000, stepped);
  return { run, path, output };
}

async function end(run: Running): Promise<void> {
  run.kill("SIGKILL");
  await run.ended;
}

needs("nats")("a request", () => {
  test("is done once, on whatever server it is asked again; the sender learns at once that its connection is lost", async () => {
    const [answers, number, begun] = [new Answers(), newRequestNumber(), Promise.withResolvers<void>()];
    const finish = Promise.withResolvers<string>();
    let done = 0;
    const handle = () => {
      done++;
      begun.resolve();
      return finish.promise;
    };
    const asked = { type: "fork", adapter: "a", name: "b", changes: {} } as const;
    const refused: string[] = [];
    /** Asks on a server of its own, until the answer or `during` has come. */
    const ask = async (during: (kill: () => Promise<void>) => Promise<void>): Promise<string> => {
      await using server = await startServer();
      await using theirs = await connectSealed(server.address, "run", KEY);
      await using ours = await connectSealed(server.address, "control", KEY);
      using _ = serveControl(theirs, "tonight", handle, (text) => void refused.push(text), answers);
      await theirs.flush();
      // Caught at once: it may be lost while the server still ends.
      const answer = askControl(ours, "tonight", asked, 60_000, number).catch((error) => error.code);
      await during(async () => server[Symbol.asyncDispose]());
      return await answer;
    };
    const begin = performance.now();
    const lost = await ask(async (kill) => {
      await begun.promise;
      await kill();
    });
    expect(lost).toBe("control.lost");
    expect(performance.now() - begin).toBeLessThan(30_000); // and not after its minute
    finish.resolve("b: continues from a");
    for (let i = 0; i < 2; i++) expect(await ask(async () => undefined)).toBe("b: continues from a");
    expect([done, refused]).toEqual([1, []]);
  });
});

needs("nats")("a run under way", () => {
  needs("root")("as root", () => {
    test("reads nothing for an added adapter that its user could not read otherwise", async () => {
      using place = new Workplace(2);
      const { run, path, output } = await lasting(place, 1);
      const project = join(path, "..");
      const other = 12_345;
      writeFileSync(join(project, "closed.jsonl"), SUMS["rows.jsonl"], { mode: 0o600 });
      mkdirSync(join(project, "home"), { mode: 0o700 });
      writeFileSync(join(project, "home", "open.jsonl"), SUMS["rows.jsonl"], { mode: 0o644 });
      writeFileSync(join(project, "shared.jsonl"), SUMS["rows.jsonl"], { mode: 0o644 });
      for (const name of ["closed.jsonl", "home", join("home", "open.jsonl"), "shared.jsonl"])
        chownSync(join(project, name), other, other);
      const add = (file: string) => {
        const recipe = join(project, "more.toml");
        writeFileSync(recipe, unlike([4], "cpu").replace('"rows.jsonl"', JSON.stringify(file)));
        return place.mlora("add", output, recipe);
      };
      for (const [file, whose] of [
        ["closed.jsonl", "closed.jsonl"],
        ["home/open.jsonl", "home"],
      ] as const) {
        const { code, err } = await add(file);
        expect([code, err]).toEqual([2, expect.stringMatching(/^error\[data\.owner\]: adapter 'a4': /)]);
        expect(err).toContain(`${join(project, whose)} belongs to another user`);
      }
      expect((await add("shared.jsonl")).code).toBe(0);
      await end(run);
    });
  });

  test("has children that run nothing else, whatever its environment asks for", async () => {
    using place = new Workplace(2);
    const [preload, mark] = [join(place.root, "preload.ts"), join(place.root, "mark")];
    writeFileSync(
      preload,
      `require("node:fs").appendFileSync(${JSON.stringify(mark)}, process.argv.slice(2).join(" ") + "\\n");`,
    );
    const asked = {
      BUN_OPTIONS: `--preload ${preload}`,
      NODE_OPTIONS: "--no-warnings",
      LD_BIND_NOW: "1",
      MALLOC_ARENA_MAX: "1",
    };
    const { run, path } = await lasting(place, 2, asked);
    const children = childrenOf(run.pid);
    expect(children.map(commandOf).filter((command) => /nats-server|stage --orders/.test(command)).length).toBe(3);
    for (const pid of children) {
      const names = readFileSync(`/proc/${pid}/environ`, "utf8")
        .split("\0")
        .map((entry) => entry.split("=")[0]!);
      expect(names.filter((name) => name in asked)).toEqual([]);
    }
    await end(run);
    expect(readFileSync(mark, "utf8")).toBe(`run ${path}\n`); // it took effect, in the process that was started with it
  });

  test.each(["asked", "answered"])(
    "answers a question whose server is gone before it was %s, from its next server",
    async (when) => {
      using place = new Workplace(2);
      const { run, output } = await lasting(place, 2);
      const server = childrenOf(run.pid).find((pid) => commandOf(pid).includes("nats-server"))!;
      const connections = () => readdirSync(`/proc/${server}/fd`).length;
      const before = connections();
      const said = join(place.root, "said");
      run.kill("SIGSTOP"); // it computes
      if (when === "asked") process.kill(server, "SIGKILL");
      const pause = place.start(["pause", output, "a1"], {}, ["sh", "-c", `exec "$0" "$@" 2>${said}`]);
      const notice = /^notice: .*; it is asked again where it answers next\n$/;
      if (when === "asked")
        await until("the server is missed", 60_000, () => existsSync(said) && notice.test(readFileSync(said, "utf8")));
      else {
        await until("it is asked", 60_000, () => connections() > before);
        process.kill(server, "SIGKILL");
      }
      run.kill("SIGCONT");
      const { code, out } = await pause.ended;
      expect([code, out, readFileSync(said, "utf8")]).toEqual([0, "a1: paused until resumed\n", expect.stringMatching(notice)]);
      const state = async (): Promise<string> => {
        const [listed] = JSON.parse((await place.mlora("ps", "--json")).out);
        return listed.adapters.find(({ name }: { name: string }) => name === "a1")?.state;
      };
      await until("a1 is paused", 60_000, async () => (await state()) === "paused");
      await end(run);
    },
    180_000,
  );
});
