// Requests of samples next to training: passes ahead of their tokens change none, whatever else the stage is given in between.

import { expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import type { GenerationBatch, NextTokens } from "../../src/schedule/micro-batch.ts";
import type { GenerationEngine } from "../../src/session/decoding/decoding.ts";
import { PassTurns } from "../../src/session/decoding/pass-turns.ts";
import { Sampler } from "../../src/session/decoding/sampler.ts";
import { Shares } from "../../src/session/decoding/shares.ts";

const [SLOTS, TILE] = [3, 4];
const turn = () => new Promise((resolve) => setImmediate(resolve));

/** A stage: does what it is sent, one after the other, and keeps what its last pass of generation chose. */
function stage() {
  const weights = new Int32Array(SLOTS).fill(1);
  const order: string[] = [];
  let [chosen, queue, waiting, most] = [new Int32Array(0), Promise.resolve() as Promise<unknown>, 0, 0];
  const send = <T>(name: string, work: () => T): Promise<T> => {
    const done = queue.then(async () => {
      await turn();
      order.push(name);
      return work();
    });
    queue = done;
    return done;
  };
  const choose = (pass: GenerationBatch): NextTokens => {
    const rows = [...pass.targetRows].filter((row) => row >= 0);
    const found = rows.map((row, i) => {
      const id = pass.ids[row]!;
      const before = id < 0 ? chosen[~id]! : id;
      const slot = pass.tileAdapter[Math.floor(row / TILE)]!;
      const weight = slot < 0 ? 0 : weights[slot]!;
      return (7 * before + weight + 3 * pass.positions[row]! + Math.floor(40 * pass.choices.uniform[i]!)) % 61;
    });
    chosen = Int32Array.from(found);
    const zeros = new Float32Array(rows.length);
    return { tokens: chosen.slice(), logProbs: zeros, drawnLogProbs: zeros, logits: [] };
  };
  const decode = async (pass: GenerationBatch): Promise<NextTokens> => {
    most = Math.max(most, ++waiting);
    const found = await send(pass.ids.some((id) => id < 0) ? "ahead" : "decode", () => choose(pass));
    await turn(); // the answer is on its way
    waiting--;
    return found;
  };
  const step = (slot: number) =>
    send("step", () => {
      weights[slot] = (5 * weights[slot]! + slot) % 97;
    });
  return { decode, step, train: () => send("train", () => undefined), order, most: () => most };
}

async function play(seed: number, follows: boolean, isFollowed: (adapter: number) => boolean = () => true) {
  const rng = new Rng(seed);
  const on = stage();
  const engine: GenerationEngine = {
    ...{
      tile: { rows: TILE, sameOrder: range(TILE), isApart: true },
      shortPositions: null,
      reading: "rows",
      tiledPrompt: null,
    },
    sizes: { rows: 200, slots: SLOTS, cache: { sequences: 7, capacity: 60, ...(seed % 2 ? { pages: 9 } : {}) } },
    ...{ follows, run: on.decode },
  };
  const turns = new PassTurns();
  const sampler = new Sampler(engine, turns, new Shares());
  const found: number[][][] = [];
  /** A loop of a client: samples of its adapter, then a step of it, as the primitives have them in turn. */
  const loop = async (adapter: number, calls: readonly (readonly (readonly [prompt: number[], limit: number])[])[]) => {
    for (const [call, sequences] of calls.entries()) {
      const tokens = sequences.map(() => [] as number[]);
      const wanted = sequences.map(([prompt, limit], i) => ({
        ...{
          adapter,
          prompt,
          limit,
          seed: 10 * call + i,
          sampling: { temperature: 0.7, topK: 0, topP: 1 },
          stops: new Set([5]),
        },
        ...{ owner: `${adapter}`, isFollowed: isFollowed(adapter) },
        got: ({ token }: { readonly token: number }) => void tokens[i]!.push(token),
      }));
      await sampler.run(wanted);
      found.push([[adapter, call], ...tokens]);
      if (adapter < 0) continue;
      {
        using _turn = await turns.take("training");
        await on.train();
      }
      await on.step(adapter);
    }
  };
  const callsOf = () =>
    range(6).map(() =>
      range(1 + rng.below(3)).map(() => [range(1 + rng.below(9)).map(() => rng.below(60)), 1 + rng.below(30)] as const),
    );
  const calls = [-1, 0, 1, 2].map((adapter) => [adapter, callsOf()] as const);
  const given = new AbortController();
  const gone = {
    ...{ adapter: 0, prompt: [3, 4], limit: 50, seed: 1, stops: new Set<number>(), isFollowed: isFollowed(0) },
    sampling: { temperature: 0.5, topK: 0, topP: 1 },
    got: () => {
      if (on.order.length > 30) given.abort();
    },
  };
  await Promise.all([
    expect(sampler.run([gone], given.signal)).rejects.toThrow(),
    ...calls.map(([adapter, of]) => loop(adapter, of)),
  ]);
  return { found: found.sort((a, b) => a[0]![0]! - b[0]![0]! || a[0]![1]! - b[0]![1]!), order: on.order, most: on.most() };
}

test("samples with passes ahead are those without, next to steps, training and requests that are cancelled", async () => {
  for (const seed of range(10)) {
    const [plain, ahead] = [await play(seed, false), await play(seed, true)];
    expect(ahead.found, `seed ${seed}`).toEqual(plain.found);
    expect(plain.order).not.toContain("ahead");
    expect(ahead.order).toContain("ahead");
    expect([plain.most, ahead.most]).toEqual([1, 2]);
  }
});

test("none goes ahead with a sequence that needs its token first", async () => {
  for (const seed of range(4)) {
    const [plain, some] = [await play(seed, false), await play(seed, true, (adapter) => adapter !== 1)];
    expect(some.found).toEqual(plain.found);
    expect((await play(seed, true, () => false)).order).not.toContain("ahead");
  }
});

test("nor where training has its turn", async () => {
  const turns = new PassTurns();
  expect(turns.isShared("generation")).toBe(false);
  const own = await turns.take("generation");
  expect(turns.isShared("generation")).toBe(false);
  const waiting = turns.take("training");
  expect(turns.isShared("generation")).toBe(true);
  own[Symbol.dispose]();
  (await waiting)[Symbol.dispose]();
  expect([turns.isShared("generation"), turns.isShared("training")]).toEqual([true, false]);
  (await turns.take("generation"))[Symbol.dispose]();
  expect(turns.isShared("generation")).toBe(false);
});
