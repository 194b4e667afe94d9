// The parts of the server that need no model: bodies, texts as they come, training files, configs and keys.

import { Database as Sqlite } from "bun:sqlite";
import { afterAll, describe, expect, test } from "bun:test";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as v from "valibot";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { checked, piecesOf } from "../../src/serve/body.ts";
import { readConfig } from "../../src/serve/config.ts";
import { ApiError } from "../../src/serve/errors.ts";
import { Files } from "../../src/serve/files.ts";
import { hyperparametersFor } from "../../src/serve/job-recipe.ts";
import { csvOf } from "../../src/serve/job-run.ts";
import { openKeys } from "../../src/serve/keys.ts";
import { boundaryOf, readMultipart } from "../../src/serve/multipart.ts";
import { checkTrainingFile } from "../../src/serve/openai/training-file.ts";
import { Rates } from "../../src/serve/rates.ts";
import { pagePlace } from "../../src/serve/run-page.ts";
import { Database, TABLES } from "../../src/serve/store.ts";
import { TextStream } from "../../src/session/generation/text-stream.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-serve-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

test("a body is not held while it is read", async () => {
  const refs: WeakRef<Uint8Array>[] = [];
  let left = 400;
  const body = new ReadableStream<Uint8Array>({
    pull(controller) {
      if (left-- === 0) return controller.close();
      const piece = new Uint8Array(1 << 16).fill(left);
      refs.push(new WeakRef(piece));
      controller.enqueue(piece);
    },
  });
  const request = { headers: new Headers(), body } as unknown as Request;
  let alive = 0;
  for await (const _ of piecesOf(request, { bytes: 1 << 30, seconds: 60 })) {
    if (refs.length !== 390) continue;
    await Bun.sleep(0);
    Bun.gc(true);
    alive = refs.filter((ref) => ref.deref()).length;
  }
  expect(refs.length).toBe(400);
  expect(alive).toBeLessThan(100);
});

test("lines of a file are counted as it comes, blank ones left out", () => {
  using db = new Database(join(root, "lines"));
  const files = new Files(db, join(root, "lines"), { files: 9, disk_bytes: 1e6, file_bytes: 1e6 });
  const rng = new Rng(7);
  for (const text of ["a\n\n b\n \t\r\n\r\nc", "a", "", "\n\n", "x\r\ny\r\n"]) {
    const writing = files.begin("one");
    for (let at = 0; at < text.length; ) {
      const size = 1 + rng.below(4);
      writing.write(Buffer.from(text.slice(at, at + size)));
      at += size;
    }
    const { id, lines } = writing.keep({ filename: "a", purpose: "fine-tune", expires_at: null });
    expect(lines).toBe(text.split("\n").filter((line) => line.trim() !== "").length);
    expect(readFileSync(files.path(id), "utf8")).toBe(text);
    files.remove("one", id);
    expect(existsSync(files.path(id))).toBe(false);
  }
});

describe("multipart bodies", () => {
  const CONTENT = "a\r\n-x\r\n-- \r\r\n-\r\n--\n--x\n\u00fc\r\n";
  const BODY = Buffer.from(
    [
      "preamble\r\n--x\r\n",
      'Content-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--x  \r\n',
      `content-disposition: form-data; filename="a \\"b\\".jsonl"; name=file\r\nContent-Type: text/plain\r\n\r\n${CONTENT}\r\n--x\r\n`,
      'Content-Disposition: form-data; name="empty"\r\n\r\n\r\n--x--\r\nepilogue',
    ].join(""),
  );
  async function read(body: Uint8Array, sizes: () => number) {
    async function* pieces() {
      for (let at = 0; at < body.length; ) {
        const size = sizes();
        yield body.subarray(at, at + size);
        at += size;
      }
    }
    const files: { name: string | null; bytes: Buffer[] }[] = [];
    const fields = await readMultipart(pieces(), "x", ({ filename }) => {
      const file = { name: filename, bytes: [] as Buffer[] };
      files.push(file);
      return (piece) => void file.bytes.push(Buffer.from(piece));
    });
    return {
      fields: Object.fromEntries(fields),
      files: files.map(({ name, bytes }) => [name, Buffer.concat(bytes).toString()]),
    };
  }
  const whole = { fields: { purpose: "fine-tune", empty: "" }, files: [['a "b".jsonl', CONTENT]] };

  test("are read the same in whatever pieces they come", async () => {
    for (const size of [1, 2, 3, 5, 7, 64, 4096]) expect(await read(BODY, () => size)).toEqual(whole as never);
    const rng = new Rng(1);
    for (const _ of range(200)) expect(await read(BODY, () => 1 + rng.below(12))).toEqual(whole as never);
  });

  test("that are broken are refused, and nothing else happens", async () => {
    const rng = new Rng(2);
    let refused = 0;
    for (const _ of range(3000)) {
      const broken = Buffer.from(BODY);
      for (const _ of range(1 + rng.below(3))) broken[rng.below(broken.length)] = rng.below(256);
      const cut = rng.below(3) === 0 ? broken.subarray(0, rng.below(broken.length)) : broken;
      try {
        await read(cut, () => 1 + rng.below(40));
      } catch (error) {
        expect(error).toBeInstanceOf(ApiError);
        refused++;
      }
    }
    expect(refused).toBeGreaterThan(500);
    expect(() => boundaryOf("multipart/form-data")).toThrow(ApiError);
    expect(boundaryOf('multipart/form-data; charset=x; boundary="a b"')).toBe("a b");
  });
});

describe("the text of an answer", () => {
  const decode = (ids: readonly number[]) => new TextDecoder().decode(Uint8Array.from(ids));
  /** All pieces, as one byte a token comes. */
  function told(text: string, stops: readonly string[]): { readonly pieces: string[]; readonly isStopped: boolean } {
    const stream = new TextStream(decode, stops);
    const pieces: string[] = [];
    for (const id of Buffer.from(text)) {
      const { text: piece, isStopped } = stream.push(id);
      pieces.push(piece);
      if (isStopped) return { pieces, isStopped };
    }
    return { pieces: [...pieces, stream.end()], isStopped: false };
  }

  test("comes in whole characters, and ends before a stop text", () => {
    const text = "a\u00fc\u20ac\u{1f600} the end, or not";
    for (const piece of told(text, []).pieces) expect(piece).not.toContain("\ufffd");
    expect(told(text, []).pieces.join("")).toBe(text);
    expect(told(text, ["end, so", "zzz"]).pieces.join("")).toBe(text);
    expect(told(text, ["or", "end"])).toMatchObject({ isStopped: true });
    const rng = new Rng(3);
    for (const _ of range(500)) {
      const random = range(30)
        .map(() => "ab\u00fc"[rng.below(3)]!)
        .join("");
      const stops = range(1 + rng.below(3)).map(() => random.slice(rng.below(25)).slice(0, 1 + rng.below(4)) || "a");
      const { pieces } = told(random, stops);
      // Of the stop text that ends first.
      const end = range(31).find((end) => stops.some((stop) => random.slice(0, end).endsWith(stop)))!;
      const starts = stops.filter((stop) => random.slice(0, end).endsWith(stop)).map((stop) => end - stop.length);
      expect(pieces.join("")).toBe(random.slice(0, Math.min(...starts)));
    }
  });
});

describe("training files", () => {
  const check = (text: string, method: "supervised" | "dpo" = "supervised", least = 1) => {
    const path = join(root, "rows.jsonl");
    writeFileSync(path, text);
    return checkTrainingFile(path, method, least, "training_file");
  };
  const turn = (role: string, content: string) => ({ role, content });
  const row = JSON.stringify({ messages: [turn("user", "x"), turn("assistant", "y")] });

  test("are refused by line", async () => {
    expect(await check(`${row}\n\n${row}`)).toBe(2);
    await expect(check(row, "supervised", 10)).rejects.toThrow("has 1 row, expected 10 or more");
    const faults: readonly (readonly [string, string])[] = [
      ["{", "line 2: is not JSON"],
      ["[]", "line 2: is not a JSON object"],
      ["{}", "line 2: has no 'messages'"],
      [
        JSON.stringify({ messages: [turn("user", "x")] }),
        "line 2: ends in 'messages' with a message that is not the assistant's",
      ],
      [JSON.stringify({ ...JSON.parse(row), functions: [] }), "line 2: has 'functions'"],
      [JSON.stringify({ messages: [{ role: "assistant", function_call: {} }] }), "old form of a function call in messages[0]"],
    ];
    for (const [bad, message] of faults) await expect(check(`${row}\n${bad}\n${row}\n`)).rejects.toThrow(message);
    await expect(check(`${row}\n${"{\n".repeat(9)}`)).rejects.toThrow("line 6: is not JSON; later lines were not checked");
    writeFileSync(join(root, "bytes.jsonl"), Buffer.from([0x7b, 0xff, 0x7d]));
    await expect(checkTrainingFile(join(root, "bytes.jsonl"), "dpo", 1, "training_file")).rejects.toThrow(
      "line 1: is not UTF-8 text",
    );
    const pair = {
      input: { messages: [turn("user", "x")] },
      preferred_output: [turn("assistant", "y")],
      non_preferred_output: [turn("assistant", "z")],
    };
    expect(await check(JSON.stringify(pair), "dpo")).toBe(1);
    await expect(check(JSON.stringify(pair))).rejects.toThrow("train it with method dpo");
    for (const key of Object.keys(pair))
      await expect(check(JSON.stringify({ ...pair, [key]: undefined }), "dpo")).rejects.toThrow(key);
  });

  test("decide what is not given", () => {
    expect(hyperparametersFor(10, {})).toEqual({ n_epochs: 10, batch_size: 1, learning_rate_multiplier: 1 });
    expect(hyperparametersFor(5000, { n_epochs: "auto" })).toEqual({
      n_epochs: 3,
      batch_size: 10,
      learning_rate_multiplier: 1,
    });
    expect(hyperparametersFor(1e6, { batch_size: 7 })).toEqual({ n_epochs: 1, batch_size: 7, learning_rate_multiplier: 1 });
  });

  test("leave a table of metrics", () => {
    const step = { step: 1, train_loss: 2, train_mean_token_accuracy: 0.5 };
    expect(csvOf([step])).toBe("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n1,2,0.5,,\n");
    expect(csvOf([{ ...step, full_valid_loss: 3 }]).split("\n")[0]).toEndWith(",full_valid_mean_token_accuracy");
  });
});

test("tokens of a minute come back as it passes, and those that were not needed at once", () => {
  let time = 0;
  const rates = new Rates(600, () => time);
  const giveBack = rates.take("a", 500);
  expect(() => rates.take("a", 200)).toThrow("try again in 10 s");
  expect(() => rates.take("a", 201)).toThrow("try again in 11 s");
  rates.take("b", 600); // another key's
  giveBack(450);
  rates.take("a", 550);
  expect(() => rates.take("a", 1)).toThrow(ApiError);
  time = 1000;
  rates.take("a", 10);
  time = 1e6;
  expect(() => rates.take("a", 601)).toThrow("this key has 600 a minute");
  rates.take("a", 600);
  expect(() => rates.take("a", 1)).toThrow(ApiError);
  new Rates(null).take("a", 1e9);
});

describe("configs and keys", () => {
  const config = (text: string, flags: object = {}) => {
    const path = join(root, "serve.toml");
    writeFileSync(path, text);
    return readConfig("/models/org/name", { config: path, ...flags });
  };

  test("are checked by key, and have defaults", () => {
    expect(config("")).toMatchObject({
      name: "org/name",
      folder: join(root, "mlora-server"),
      listen: { host: "127.0.0.1", port: 8000 },
    });
    const named = ["/base", "/my models/base", "/"].map((folder) => readConfig(folder, { folder: "/f" }).name);
    expect(named).toEqual(["base", "base", "model"]);
    expect(() => config("[capacity]\nslot = 3")).toThrow("capacity.slot is an unknown key; did you mean 'slots'?");
    expect(() => config("[capacity]\nrank = 0")).toThrow("capacity.rank is 0, expected");
    expect(() => config("[serve")).toThrow(/serve\.toml:1:/);
    expect(() => config("", { listen: "0.0.0.0:80" })).toThrow("keys would travel in clear text");
    expect(config("", { listen: "0.0.0.0:80", insecure: true }).listen).toEqual({ host: "0.0.0.0", port: 80 });
    expect(config("", { listen: "[::1]:80" }).listen.host).toBe("::1");
    expect(() => config("", { listen: "nowhere" })).toThrow("expected host:port");
    expect(() => config('[server]\ncertificate = "x"')).toThrow("need each other");
    expect(() => config("", { listen: "h:99999" })).toThrow('--listen is "h:99999", expected host:port');
    const pem = {
      webCertificate: join(import.meta.dir, "serve.test.ts"),
      webCertificateKey: join(import.meta.dir, "serve.test.ts"),
    };
    expect(() => pagePlace({ web: true, ...pem })).toThrow("serve.test.ts: holds no certificate in PEM");
    expect(() => pagePlace({ web: true, webCertificate: "x" })).toThrow("--web-certificate and --web-certificate-key need");
    expect(() => pagePlace({ web: "h:99999" })).toThrow('--web is "h:99999", expected host:port');
  });

  test("keys are read from a file that no other user reads, and never shown in errors", () => {
    using db = new Database(join(root, "state"));
    const file = join(root, "keys.txt");
    const open = (text: string, mode = 0o600) => {
      writeFileSync(file, text);
      chmodSync(file, mode);
      return openKeys(db, file);
    };
    const [one, two] = ["k".repeat(20), "l".repeat(20)];
    const { accessOf, made, weightOf } = open(`a ${one}\n# none\nb ${two} 2.5`);
    expect([weightOf("a"), weightOf("b")]).toEqual([1, 2.5]);
    expect(made).toBeNull();
    expect(accessOf(new Headers({ authorization: `bearer ${two}` }))).toEqual({ tenant: "b", isViewer: false });
    expect(() => accessOf(new Headers({ authorization: two }))).toThrow(ApiError);
    expect(() => open(`a ${one}`, 0o644)).toThrow("other users of this machine may read it");
    for (const [text, message] of [
      [`a ${one}\nb`, ":2: has no key"],
      [`a ${one} 0`, ":1: expected a name"],
      [`a ${one}\nb ${one}`, ":2: has a name or a key of an earlier line"],
      ["a short", ":1: the key has 5 characters"],
      ["# a", "has no key"],
    ] as const)
      try {
        open(text);
        throw new Error("it was taken");
      } catch (error) {
        expect((error as Error).message).toContain(message);
        expect((error as Error).message).not.toContain(one);
      }
  });

  test("a first key is made once, and kept as a hash", () => {
    const folder = join(root, "made");
    using db = new Database(folder);
    const { made, accessOf } = openKeys(db, undefined);
    expect(made).toStartWith("tml-");
    expect(openKeys(db, undefined).made).toBeNull();
    expect(accessOf(new Headers({ "x-api-key": made! }))).toEqual({ tenant: "default", isViewer: false });
    expect(JSON.stringify(db.all("SELECT * FROM keys"))).not.toContain(made!);
    expect(() => new Database(folder)).toThrow("another server has");
  });

  test("the number of a row that is gone is not given again, also in the folder of an earlier server", () => {
    const folder = join(root, "numbered");
    mkdirSync(folder);
    const model = (name: string) => [name, "a", 1, `/${name}`, "base", 0] as const;
    const insert = "INSERT INTO models (name, tenant, created_at, folder, parent, is_loaded) VALUES (?, ?, ?, ?, ?, ?)";
    const seqs = (db: Database) => db.all<{ seq: number }>("SELECT seq FROM models ORDER BY seq").map(({ seq }) => seq);
    const old = new Sqlite(join(folder, "state.sqlite"), { create: true });
    for (const tables of TABLES.slice(0, 2)) old.run(tables);
    for (const name of ["one", "two"]) old.query(insert).run(...model(name));
    old.run("PRAGMA user_version = 2");
    old.close();
    using db = new Database(folder);
    expect(seqs(db)).toEqual([1, 2]);
    db.run("DELETE FROM models WHERE name = 'two'");
    db.run(insert, ...model("three"));
    expect(seqs(db)).toEqual([1, 3]);
    const checkpoint = (name: string) =>
      db.run(
        "INSERT INTO tinker_checkpoints (model, kind, name, tenant, created_at, folder, bytes, is_public, asked) VALUES ('m', 'k', ?, 'a', 1, '/f', 1, 0, '{}')",
        name,
      );
    for (const name of ["one", "two"]) checkpoint(name);
    db.run("DELETE FROM tinker_checkpoints WHERE name = 'two'");
    checkpoint("three");
    expect(db.all("SELECT seq FROM tinker_checkpoints ORDER BY seq")).toEqual([{ seq: 1 }, { seq: 3 }]);
  });
});

test("a body with a wrong key is refused in OpenAI's words, with at most the beginning of what was sent", () => {
  const schema = v.object({ model: v.string(), rows: v.array(v.object({ role: v.picklist(["user"], "is no role") })) });
  const faultOf = (body: unknown, by: v.GenericSchema = schema) => {
    try {
      return checked(by, body);
    } catch (error) {
      const { message, param, code } = (error as ApiError).body.error;
      return { message, param, code };
    }
  };
  const missing = { message: "Missing required parameter: 'model'.", param: "model", code: "missing_required_parameter" };
  for (const body of [{}, [], { rows: [] }]) expect(faultOf(body)).toEqual(missing);
  expect(faultOf({ model: "x", rows: [{}] })).toEqual({
    message: "Missing required parameter: 'rows.0.role'.",
    param: "rows.0.role",
    code: "missing_required_parameter",
  });
  expect(faultOf({ model: 3, rows: [] })).toEqual({
    message: "Invalid type for 'model': expected string, but got 3 instead.",
    param: "model",
    code: "invalid_type",
  });
  const strict = v.strictObject({
    model: v.string(),
    metadata: v.optional(v.record(v.pipe(v.string(), v.maxLength(4, "is long")), v.string())),
  });
  expect(faultOf({ model: "x", modle: "y" }, strict)).toEqual({
    message: "Unknown parameter: 'modle'.",
    param: "modle",
    code: "unknown_parameter",
  });
  expect(faultOf({ modle: "y" }, strict)).toEqual(missing);
  expect(faultOf({ model: "x", metadata: { tagged: "a" } }, strict)).toMatchObject({
    message: "'metadata.tagged' is long.",
    param: "metadata.tagged",
  });
  expect(faultOf({ model: "x", rows: [7] })).toMatchObject({
    message: "Invalid type for 'rows.0': expected object, but got 7 instead.",
  });
  const { message } = faultOf({ model: "x", rows: "secret ".repeat(1000) }) as { message: string };
  expect(message).toMatch(/^Invalid type for 'rows': expected array, but got "secret .{40,60}\.\.\. instead\.$/);
  expect(faultOf({ model: "x", rows: [{ role: "robot" }] })).toMatchObject({ message: "'rows.0.role' is no role." });
  expect(faultOf(null)).toMatchObject({ param: null });
});
