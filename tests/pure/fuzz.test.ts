// 10,000 damaged recipes, messages, checkpoints and adapters: each is refused with a message of our own, or read for what it
// is. Seeded, so that a failure comes back.

import { afterAll, expect, test } from "bun:test";
import { cpSync, existsSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { stringify } from "smol-toml";
import * as v from "valibot";
import { MloraError, RequestError, RunError } from "../../src/base/errors.ts";
import { Rng } from "../../src/base/rng.ts";
import { VERSION } from "../../src/base/version.ts";
import { decode, encode } from "../../src/bus/codec.ts";
import { readAnswer, readAsk, writeAnswer, writeAsk } from "../../src/bus/exchange.ts";
import { replySchema, requestSchema } from "../../src/bus/messages.ts";
import { readPacket, writePacket } from "../../src/bus/packets.ts";
import { readCheckpoint, writeCheckpoint } from "../../src/files/checkpoint.ts";
import { readPeftAdapter, writePeftAdapter } from "../../src/files/peft.ts";
import { readRecord, writeRecord } from "../../src/files/record.ts";
import { layoutAdapter } from "../../src/methods/layout.ts";
import { BLOCKS } from "../../src/methods/optimizers.ts";
import { rankAt } from "../../src/methods/placement.ts";
import { formatRecipe, parseRecipe } from "../../src/recipe/load.ts";
import { pack } from "../../src/schedule/pack.ts";
import { mutateBytes, mutateValue, thrown } from "../helpers/mutate.ts";
import { unlike } from "../helpers/program.ts";
import { LINEARS, tinyFamilies } from "../helpers/tiny.ts";

const ROUNDS = 2500;
const root = mkdtempSync(join(tmpdir(), "mlora-fuzz-"));
afterAll(() => rmSync(root, { recursive: true }));
const shown = (bytes: Uint8Array | string) =>
  JSON.stringify(typeof bytes === "string" ? bytes : Buffer.from(bytes).toString("latin1"));

test("recipes", () => {
  const texts = [
    unlike([0, 1, 2, 3, 4, 5], "cpu", 'stages = 2\nslots = 4\ncheckpoint = { steps = 3, keep = 2 }\nrecomputation = "full"'),
    `[model]
path = "m"
[run]
output = "o"
[[adapter]]
name = "a"
data = "x.jsonl"
objective = { name = "dpo", beta = 0.2, reference = "base" }
[adapter.sweep]
rank = [1, 2]
learning_rate = [1e-3, 1e-4]
`,
  ];
  const table = {
    model: { path: "m" },
    run: { output: "o" },
    adapter: [{ name: "a", data: { train: "x" }, rank: 4, betas: [0.9, 0.99] }],
  };
  const rng = new Rng(1);
  let refused = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const text =
      round % 3 === 2 ? asToml(mutateValue(table, rng)) : mutateBytes(Buffer.from(texts[round % 3]!), rng).toString();
    if (text === null) continue;
    let read: ReturnType<typeof parseRecipe> | null = null;
    const error = thrown(
      () => `round ${round}, ${shown(text)}`,
      [RequestError],
      () => {
        read = parseRecipe(text, "/here/r.toml");
      },
    );
    if (error) {
      refused++;
      expect(error.message).toContain("/here/r.toml");
      continue;
    }
    // What was read is what it says: written out and read again it is the same, and its numbers are numbers.
    const { path: _, ...recipe } = read!;
    const { path: __, ...again } = parseRecipe(formatRecipe(read!), "/elsewhere/r.toml");
    expect(again, `round ${round}, ${shown(text)}`).toEqual(recipe);
    for (const { rank, alpha, dropout, optimizer } of recipe.adapters) {
      expect(rank >= 1 && rank <= 256 && Number.isInteger(rank) && alpha > 0 && dropout >= 0 && dropout < 1).toBe(true);
      const sound = (x: unknown) => x === null || typeof x === "string" || typeof x === "boolean" || Number.isFinite(x);
      expect(Object.values(optimizer).every(sound)).toBe(true);
    }
  }
  expect(refused).toBeGreaterThan(ROUNDS / 4); // else this damages nothing
  expect(refused).toBeLessThan(ROUNDS);
});

/** A table as TOML; null where TOML has no word for it. */
function asToml(value: unknown): string | null {
  try {
    return stringify(value);
  } catch {
    return null;
  }
}

test("messages", () => {
  const tokens = { ids: Int32Array.of(1, 2, 3), mask: Uint8Array.of(0, 1, 1) };
  const objective = { name: "dpo", loss: "ipo", beta: 0.1, labelSmoothing: 0, reference: { folder: "/x" } } as const;
  const preference = { objective, totals: { rows: 1, tokens: 2 }, references: [[-1, -2] as const] };
  const segment = {
    adapter: 0,
    samples: [{ ...tokens, other: tokens }],
    seed: 1,
    step: 2,
    dropout: 0.1,
    firstRow: 0,
    weight: 1,
    preference,
  };
  const batch = pack([segment], 2, 4);
  const requests = [
    { type: "forward", pass: 3, batch },
    {
      type: "step",
      steps: [
        { adapter: 0, t: 1, learningRate: 1e-3, ratio: 1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weightDecay: 0, coefficient: 1 },
      ],
    },
    { type: "admit", slot: 0, adapter: { rank: 4, scale: 2, targets: ["q_proj"], seed: 3, init: "default" } },
    { type: "write", slot: 1, blocks: { params: new Float32Array(6), m: new Float32Array(6), v: new Float32Array(6) } },
  ] as const;
  const replies = {
    backward: [{ loss: 1, correct: 0 }],
    squares: [new Float32Array(3)],
    clock: { now: 1, takenBytes: 3 },
  } as const;
  const packets = [
    writePacket("run", "aaaaaaaaaaaa", {
      kind: "chunk",
      to: "bbbbbbbbbbbb",
      number: 1,
      size: null,
      bytes: writeAsk(7, requests[1]),
    }),
    writePacket("run", "aaaaaaaaaaaa", { kind: "welcome", host: "h", pid: 3, stage: 0, stages: 2, sealed: true }),
    writePacket("run", "aaaaaaaaaaaa", {
      kind: "ask",
      version: VERSION,
      number: "cccccccccccc",
      bytes: writeAsk(0, { type: "status" }),
    }),
  ];
  for (const request of requests) expect(v.safeParse(requestSchema(request.type)!, request).success).toBe(true);
  const rng = new Rng(2);
  let refused = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const what = () => `round ${round}`;
    if (round % 3 === 0) {
      // Bytes: a packet is refused and named, never thrown at whoever receives it.
      const bytes = mutateBytes(packets[round % packets.length]!, rng, packets[(round + 1) % packets.length]!);
      const reasons: string[] = [];
      thrown(what, [], () => {
        if (!readPacket(bytes, "mlora.run.stage.0", "run", (why) => reasons.push(why))) expect(reasons.length).toBe(1);
      });
      refused += reasons.length;
    } else if (round % 3 === 1) {
      const bytes = mutateBytes(round % 2 ? writeAsk(3, requests[round % 4]!) : writeAnswer(3, replies.backward), rng);
      if (thrown(what, [Error], () => void (round % 2 ? readAsk(bytes) : readAnswer(bytes)))) refused++;
    } else {
      // Values: what passes is of the shape that its type says; it goes through the wire and passes again.
      const request = requests[round % requests.length]!;
      const schema = round % 2 ? requestSchema(request.type)! : replySchema("clock");
      const value = mutateValue(round % 2 ? request : replies.clock, rng);
      thrown(what, [], () => {
        const parsed = v.safeParse(schema, value);
        if (!parsed.success) refused++;
        else expect(v.safeParse(schema, decode(encode(parsed.output))).success).toBe(true);
      });
    }
  }
  expect(refused).toBeGreaterThan(ROUNDS / 4);
});

const spec = tinyFamilies["llama"]!;

test("checkpoints: what differs from what was written is never taken", () => {
  const part = { from: 0, to: spec.layers };
  const targets = ["q_proj", "v_proj", "o_proj"] as const;
  const layout = layoutAdapter(spec, part, { rank: 3, targets });
  const rng = new Rng(3);
  const block = () => Float32Array.from({ length: layout.size }, () => rng.normal());
  const blocks = { params: block(), m: block(), v: block() };
  const progress = {
    adapter: "a",
    step: 12,
    tokens: 3400,
    seconds: 1.5,
    firstLoss: 2.5,
    lastLoss: 1.25,
    before: { loss: 2.25, exact: 1, rows: 4 },
    best: null,
    made: { settings: '{"rank":4}', data: "d", model: "m" },
  };
  const good = join(root, "checkpoints");
  const snapshot = { spec, rank: 3, targets, stages: [{ layerRange: part, blocks }] };
  writeCheckpoint(good, progress, snapshot, 3);
  writeCheckpoint(
    good,
    { ...progress, step: 13 },
    { ...snapshot, stages: [{ layerRange: part, blocks: { ...blocks, m: block() } }] },
    3,
  );
  const contentOf = (folder: string) => {
    const { progress: found, factors } = readCheckpoint(folder);
    return JSON.stringify([found, BLOCKS.map((what) => factors(what).map(({ values, ...at }) => [at, [...values]]))]);
  };
  const [first, second] = ["step-000000012", "step-000000013"].map((name) => join(good, name)) as [string, string];
  const truths = [contentOf(first), contentOf(second)];
  const files = ["state.safetensors", "checkpoint.json"];
  const bytes = [first, second].map((folder) => files.map((name) => readFileSync(join(folder, name))));
  const damaged = join(root, "damaged");
  const [one, two] = ["step-000000012", "step-000000013"].map((name) => join(damaged, name)) as [string, string];
  cpSync(good, damaged, { recursive: true });
  let refused = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const which = rng.below(2);
    const name = files[which]!;
    const how = rng.below(12);
    if (how === 0) rmSync(join(one, name));
    else if (how === 1)
      writeFileSync(join(one, name), bytes[1]![which]!); // another step's
    else if (how === 2) {
      rmSync(one, { recursive: true });
      renameSync(two, one); // another step's, whole
    } else writeFileSync(join(one, name), mutateBytes(bytes[0]![which]!, rng, bytes[1]![which]!));
    let read = "";
    const error = thrown(
      () => `round ${round}`,
      [RunError],
      () => {
        read = contentOf(one);
      },
    );
    if (error) refused++;
    else expect(read, `round ${round}`).toBe(truths[0]!);
    for (const [i, folder] of [one, two].entries()) {
      if (!existsSync(folder)) cpSync(join(good, i === 0 ? "step-000000012" : "step-000000013"), folder, { recursive: true });
      for (const [k, file] of files.entries()) writeFileSync(join(folder, file), bytes[i]![k]!);
    }
  }
  expect(refused).toBeGreaterThan(ROUNDS / 2);
});

test("adapters and records of runs", () => {
  const folder = join(root, "adapter");
  const adapter = { rank: 3, alpha: 6, dropout: 0.1, targets: LINEARS, rslora: false, baseModel: "m" };
  const rng = new Rng(4);
  const factors = Array.from({ length: spec.layers }, (_, layer) =>
    LINEARS.flatMap((linear) =>
      (["A", "B"] as const).map((factor) => {
        const { in: width, out } = shapeOf(linear);
        return {
          layer,
          linear,
          factor,
          values: Float32Array.from({ length: 3 * (factor === "A" ? width : out) }, () => rng.normal()),
        };
      }),
    ),
  ).flat();
  writePeftAdapter(folder, spec, adapter, factors);
  const outcome = {
    name: "a",
    status: "done" as const,
    message: null,
    steps: 3,
    tokens: 40,
    seconds: 1,
    before: null,
    after: { loss: 1, exact: 2, rows: 3 },
    firstLoss: 2,
    lastLoss: 1,
    folder: "/out/a",
    made: { settings: "{}", data: "d", model: "m" },
  };
  writeRecord(folder, [outcome, { ...outcome, name: "b", status: "failed", message: "no" }]);
  const names = ["adapter_model.safetensors", "adapter_config.json", "run.json"];
  const good = names.map((name) => readFileSync(join(folder, name)));
  let refused = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const which = round % 3;
    const path = join(folder, names[which]!);
    const json = which > 0 && rng.below(2) === 0;
    // Of the tensors the header is damaged: values have no checksum in PEFT's format, and any finite ones are an adapter.
    const head = good[which]!.subarray(0, which === 0 ? 3000 : undefined);
    const bad = json
      ? Buffer.from(JSON.stringify(mutateValue(JSON.parse(good[which]!.toString()), rng)) ?? "")
      : Buffer.concat([mutateBytes(head, rng), good[which]!.subarray(head.length)]);
    writeFileSync(path, bad);
    const error = thrown(
      () => `round ${round}, ${names[which]}, ${shown(bad.subarray(0, 3000))}`,
      [MloraError],
      () => {
        if (which === 2) {
          for (const [name, of] of readRecord(folder))
            expect([typeof name, Number.isInteger(of.steps)]).toEqual(["string", true]);
          return;
        }
        const read = readPeftAdapter(folder, spec);
        expect(Number.isInteger(read.rank) && read.alpha > 0 && Number.isFinite(read.alpha) && read.dropout >= 0).toBe(true);
        for (const linear of read.targets)
          for (const factor of ["A", "B"] as const) {
            const { in: width, out } = shapeOf(linear);
            const values = read.tensor(0, linear, factor);
            expect(values?.length ?? 0).toBe(rankAt(read, 0, linear) * (factor === "A" ? width : out));
            expect(values.every(Number.isFinite)).toBe(true);
          }
      },
    );
    if (error) {
      refused++;
      expect(error.message).toContain(folder);
    }
    writeFileSync(path, good[which]!);
  }
  expect(refused).toBeGreaterThan(ROUNDS / 4);
});

function shapeOf(linear: (typeof LINEARS)[number]) {
  const query = spec.heads * spec.headDim;
  const key = spec.kvHeads * spec.headDim;
  const shapes = {
    q_proj: [spec.hidden, query],
    k_proj: [spec.hidden, key],
    v_proj: [spec.hidden, key],
    o_proj: [query, spec.hidden],
    gate_proj: [spec.hidden, spec.intermediate],
    up_proj: [spec.hidden, spec.intermediate],
    down_proj: [spec.intermediate, spec.hidden],
  } as const;
  const [width, out] = shapes[linear as keyof typeof shapes];
  return { in: width, out };
}
