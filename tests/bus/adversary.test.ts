// Another user of a shared NATS server, which may publish and subscribe on all of mlora's subjects, during a run of its owner:
// it reads nothing, changes nothing and ends nothing, whatever it records, repeats, cuts or forges. (It may flood the server:
// docs/security.md.)

import { afterAll, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { assetPath } from "../../src/base/assets.ts";
import { VERSION } from "../../src/base/version.ts";
import { writeAnswer, writeAsk } from "../../src/bus/exchange.ts";
import { type Connection, connect } from "../../src/bus/nats.ts";
import { writePacket } from "../../src/bus/packets.ts";
import { newRunKey, seal } from "../../src/bus/seal.ts";
import { askOnce } from "../helpers/ask.ts";
import { REPORT, until } from "../helpers/bus.ts";
import { needs } from "../helpers/needs.ts";
import { leftOf, longer, metrics, SUMS, unlike, Workplace } from "../helpers/program.ts";

const place = new Workplace(4);
const folder = mkdtempSync(join(tmpdir(), "mlora-adversary-"));
afterAll(() => {
  place[Symbol.dispose]();
  rmSync(folder, { recursive: true, force: true });
});
const HERE = { MLORA_CACHE: join(place.root, "cache") };

/** A server with the users `owner` and `guest`, which may do the same on mlora.>. */
async function sharedServer() {
  const rights = 'permissions: { publish: "mlora.>", subscribe: "mlora.>" }';
  const users = ["owner", "guest"].map((name) => `{ user: ${name}, password: ${name}pw, ${rights} }`);
  const config = join(folder, "server.conf");
  writeFileSync(
    config,
    `listen: "127.0.0.1:-1"\nports_file_dir: ${JSON.stringify(folder)}\nmax_payload: 8388608\nauthorization { users = [${users.join(", ")}] }\n`,
  );
  const child = Bun.spawn([assetPath("nats-server"), "--config", config], { stdout: "ignore", stderr: "ignore" });
  const ports = () => readdirSync(folder).find((name) => name.endsWith(".ports"));
  await until("the server listens", 60_000, () => ports() !== undefined && statSync(join(folder, ports()!)).size > 0);
  const [url] = (await Bun.file(join(folder, ports()!)).json()).nats as [string];
  return {
    url,
    [Symbol.asyncDispose]: async () => {
      child.kill("SIGKILL");
      await child.exited;
    },
  };
}

type Heard = { readonly subject: string; readonly bytes: Uint8Array };
/** How many of the messages heard, the latest, are tried again. */
const AGAIN = 2_000;

/** All that a guest may try with messages it has heard: the same once more, in another order, cut, changed, and to others. */
function repeats(heard: readonly Heard[]): Heard[] {
  const changed = ({ subject, bytes }: Heard): Heard => {
    const other = bytes.slice();
    other[other.length - 20]! ^= 1;
    return { subject, bytes: other };
  };
  const elsewhere = ({ subject, bytes }: Heard): Heard => {
    const swapped = subject.replace(/(?<=stage\.)[01]$/, (stage) => `${1 - Number(stage)}`);
    return { bytes, subject: swapped === subject ? "mlora.tonight.coordinator" : swapped };
  };
  const cut = ({ subject, bytes }: Heard): Heard => ({ subject, bytes: bytes.subarray(0, -1) });
  return [...heard, ...heard.toReversed(), ...heard.map(cut), ...heard.map(changed), ...heard.map(elsewhere)];
}

/** Each kind of message in the name of each session for each, and requests to the run. */
function* forgeries(sessions: readonly string[], recipe: string): Generator<Heard> {
  const packet = (subject: string, from: string, content: Parameters<typeof writePacket>[2]): Heard => ({
    subject: `mlora.tonight.${subject}`,
    bytes: writePacket("tonight", from, content),
  });
  for (const from of sessions)
    for (const to of sessions) {
      for (const subject of ["coordinator", "stage.0", "stage.1"]) {
        yield packet(subject, from, { kind: "bye", to, reason: "said the guest" });
        yield packet(subject, from, { kind: "chunk", to, number: 0, size: 1, bytes: new Uint8Array(1) });
        yield packet(subject, from, { kind: "ack", to, next: 2 ** 40, probe: 2 ** 40 });
      }
      yield packet(`beat.${from}`, from, { kind: "beat" });
      yield packet(`answer.${to}`, from, { kind: "answer", bytes: writeAnswer(0, "done") });
      yield packet(`welcome.${to}`, from, { kind: "refusal", code: "guest", message: "go away" });
    }
  const joins = { version: VERSION, host: "h", pid: 1, stage: 1, coordinator: null, report: REPORT };
  yield packet("hello", "g".repeat(20), { kind: "hello", ...joins });
  for (const request of [
    { type: "stop", adapter: null },
    { type: "pause", adapter: "a0" },
    { type: "fork", adapter: "a0", name: "b", changes: {} },
    { type: "add", text: recipe, path: "/r.toml" },
  ])
    yield packet("control", "g".repeat(20), {
      ...{ kind: "ask", version: VERSION, number: "n".repeat(20), bytes: writeAsk(0, request) },
    });
}

/** Messages that were refused, as a run says. */
const refusedBy = (err: string): number =>
  [...err.matchAll(/^notice: (a|\d+) messages? (?:was|were) dropped, without this run's seal/gm)]
    .map(([, count]) => (count === "a" ? 1 : Number(count)))
    .reduce((a, b) => a + b, 0);

needs("nats")("another user of the server", () => {
  test("reads nothing, changes nothing and ends nothing", async () => {
    await using server = await sharedServer();
    const secret = "hunter2-in-a-row";
    const text = longer(unlike([0, 3], "cpu"), 30);
    const rows = `${SUMS["rows.jsonl"]}${JSON.stringify({ prompt: "my password?", completion: secret })}\n`;
    const [alone, path] = [place.project(text, { "rows.jsonl": rows }), place.project(text, { "rows.jsonl": rows })];
    const out = (recipe: string) => join(recipe, "..", "out");
    // known elsewhere, so that what is asked of the only run here is not asked of this one
    const undisturbed = place.start(["run", alone], { MLORA_CACHE: join(place.root, "alone") }).ended;

    await using guest = await connect(
      { servers: [server.url], login: { user: "guest", password: "guestpw" }, tls: null },
      "guest",
    );
    const heard: Heard[] = [];
    const listening = guest.subscribe("mlora.>", (bytes, subject) => void heard.push({ subject, bytes: bytes.slice() }));
    await guest.flush();
    const args = ["run", path, "--stages", "2", "--here", "2", "--nats", server.url, "--run", "tonight", "--link", "nats"];
    const run = place.start(args, { ...HERE, MLORA_NATS_USER: "owner", MLORA_NATS_PASSWORD: "ownerpw" });
    await until("steps", 60_000, () => existsSync(join(out(path), "metrics.jsonl")) && metrics(out(path), "step").length > 4);

    // The owner asks something, too: what it asks and is answered is heard with all else. One adapter waits from here on, so
    // that the run is not at its end before the guest has tried all.
    expect(await askOnce(place, { type: "pause", adapter: "a3" })).toContain("a3: paused");
    const notes = join(folder, "notes");
    writeFileSync(notes, `["${secret}"]\n`, { mode: 0o600 });
    const spy = text.replaceAll('"rows.jsonl"', JSON.stringify(notes)).replaceAll('name = "a', 'name = "spy');
    writeFileSync(join(path, "..", "more.toml"), spy);
    const asked = await place.start(["add", "tonight", join(path, "..", "more.toml")], HERE).ended;
    expect([asked.code, asked.err]).toEqual([2, expect.stringContaining(`${notes}:1`)]);
    expect(asked.err).not.toContain(secret); // nor does the answer that travelled
    listening[Symbol.dispose]();
    const sessions = new Set(heard.map(({ subject }) => /\.(?:beat|welcome|answer)\.(\w+)$/.exec(subject)?.[1]));
    const known = [...sessions].filter((session) => session !== undefined);
    expect(known.length).toBeGreaterThanOrEqual(3); // names it hears, so that what it forges is addressed right
    expect(heard.length).toBeGreaterThan(100);
    let toCoordinator = 0;
    const say = (by: Connection, { subject, bytes }: Heard) => {
      by.publish(subject, bytes);
      if (/^mlora\.tonight\.(coordinator|hello|control)$/.test(subject)) toCoordinator++;
    };
    // without a seal, and with one of its own
    for (const forged of forgeries(known, spy)) for (const forger of [guest, seal(guest, newRunKey())]) say(forger, forged);
    for (const repeated of repeats(heard.slice(-AGAIN))) say(guest, repeated);
    await guest.flush();
    const resumed = await place.start(["resume", "tonight", "a3"], HERE).ended;
    expect([resumed.code, resumed.err]).toEqual([0, ""]);

    const { code, err } = await run.ended;
    expect([code, err.match(/^error.*/m)]).toEqual([0, null]);
    expect((await undisturbed).code).toBe(0);
    for (const name of ["a0", "a3"]) expect(leftOf(out(path), name)).toEqual(leftOf(out(alone), name));
    expect(readdirSync(out(path)).sort()).toEqual(
      [...readdirSync(out(alone)), "checkpoints", "paused.json"].sort(), // of the owner's pause; no adapter came
    );
    expect(refusedBy(err)).toBeGreaterThanOrEqual(toCoordinator);
    expect(err.match(/^notice: .*dropped/gm)!.length).toBeLessThan(20); // by rate, not by message
    const all = Buffer.concat(heard.map(({ bytes }) => bytes)).toString("latin1");
    for (const word of [secret, "rows.jsonl", "learning_rate", "my password"]) expect(all.includes(word), word).toBe(false);
  });
});
