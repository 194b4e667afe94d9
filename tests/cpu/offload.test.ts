// Streams between layers that wait in host memory: the order of their copies on a driver whose streams are late, and what plans
// say of them.

import { afterEach, describe, expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range, sizeOf } from "../../src/base/shape.ts";
import { firstRows } from "../../src/device/arena.ts";
import type { HostMemory, Tensor } from "../../src/device/device.ts";
import { hostBytes } from "../../src/device/shared.ts";
import { OFFLOADED_RING } from "../../src/engine/layers/buffers.ts";
import { OffloadedStreams, offloadedBytes, offloadedCount } from "../../src/engine/layers/offloaded-streams.ts";
import { hostMemoryModel } from "../../src/plan/memory-model.ts";
import { makePlan, type StageDevice } from "../../src/plan/plan.ts";
import { shapeOf } from "../../src/plan/shapes.ts";
import { recipeOf } from "../../src/session/benchmark/work.ts";
import { FakeGpu, World } from "../helpers/fake-cuda.ts";

let world: World | null = null;
afterEach(() => {
  world?.[Symbol.dispose]();
  world = null;
});

const [WIDTH, SAVED] = [64, 24];

/** A pass of `layers` layers: its streams, what they hold, and the kernels that make and read them. */
class FakePass {
  readonly faults: string[] = [];
  readonly #streams: OffloadedStreams;
  readonly #inputs: readonly Tensor[];
  /** What layers keep besides their input: a value of as many rows as the pass has, and what is always whole. */
  readonly #value: Tensor;
  readonly #saved: Tensor;

  constructor(
    private readonly gpu: FakeGpu,
    fake: World,
    private readonly layers: number,
    private readonly kept: ReadonlySet<number>,
    rows: number,
  ) {
    const ring = range(OFFLOADED_RING).map(() => gpu.tensor(rows * WIDTH)(1).ptr);
    this.#inputs = range(layers + 1).map((i) => ({ ptr: ring[i % OFFLOADED_RING]!, dtype: "u8", shape: [rows, WIDTH] }));
    const region = gpu.tensor(rows * WIDTH + SAVED)(rows * WIDTH + SAVED);
    this.#value = { ...region, shape: [rows, WIDTH] };
    this.#saved = { ...region, ptr: region.ptr + rows * WIDTH, shape: [SAVED] };
    const elsewhere = gpu.tensor(10)(10);
    const [values, saved] = [
      new Map([
        ["qkv", this.#value],
        ["h", elsewhere],
      ]),
      new Map([["norm", this.#saved]]),
    ];
    const layer = { values, saved, transient: new Set<string>(), low: new Map(), experts: new Map(), products: new Map() };
    const size = offloadedCount(layers) * rows * WIDTH + kept.size * region.shape[0]!;
    const host = { address: fake.allocate(size + 1), size } as HostMemory;
    const acts = { inputs: this.#inputs, layers: range(layers).map(() => layer), region };
    this.#streams = new OffloadedStreams(gpu, host, acts, kept);
  }

  /** Writes a value all over a tensor, as a kernel does. */
  #write({ ptr, shape }: Tensor, value: number): void {
    this.gpu.kernel(() => hostBytes(ptr, sizeOf(shape)).fill(value));
  }

  #read({ ptr, shape }: Tensor, value: number, what: string): void {
    this.gpu.kernel(() => {
      if (hostBytes(ptr, sizeOf(shape)).some((byte) => byte !== value)) this.faults.push(what);
    });
  }

  #input = (i: number, rows: number): Tensor => firstRows(this.#inputs[i]!, rows);
  #own = (rows: number) => [firstRows(this.#value, rows), this.#saved];

  forward(rows: number, first: number): void {
    this.#write(this.#input(0, rows), first);
    for (const i of range(this.layers)) {
      this.#streams.beforeForward(i, rows);
      this.#read(this.#input(i, rows), (first + i) % 251, `stream ${i} forward`);
      if (this.kept.has(i)) {
        for (const own of this.#own(rows)) this.#write(own, (first + 7 * i) % 251);
        this.#streams.afterInput(i, rows);
      }
      this.#write(this.#input(i + 1, rows), (first + i + 1) % 251);
    }
  }

  backward(rows: number, first: number): void {
    this.#read(this.#input(this.layers, rows), (first + this.layers) % 251, "the stream of the head");
    for (const i of range(this.layers).reverse()) {
      this.#streams.beforeBackward(i, rows);
      this.#read(this.#input(i, rows), (first + i) % 251, `stream ${i} backward`);
      this.#write(this.#input(i + 1, rows), 255); // what a layer computes again may be put where its output was
      if (this.kept.has(i))
        for (const own of this.#own(rows)) {
          this.#read(own, (first + 7 * i) % 251, `what layer ${i} keeps`);
          this.#write(own, 254); // its gradient
        }
      this.#read(this.#input(i, rows), (first + i) % 251, `stream ${i} at the end of its backward`);
      this.#streams.afterBackward(i, rows);
    }
  }
}

test("every layer finds its input in the backward pass, whatever is late", () => {
  for (const seed of range(120)) {
    world = new World(seed);
    const rng = new Rng(seed, 3);
    const gpu = new FakeGpu(world, 1);
    const layers = rng.below(9) + 1;
    const kept = new Set(range(layers).filter(() => rng.below(3) === 0));
    const passes = range(1 + rng.below(3)).map(() => new FakePass(gpu, world!, layers, kept, 6));
    for (const _ of range(3)) {
      const rows = passes.map(() => 1 + rng.below(6));
      const firsts = passes.map(() => rng.below(200));
      for (const [p, pass] of passes.entries()) pass.forward(rows[p]!, firsts[p]!);
      world.async(rng.below(200));
      for (const [p, pass] of passes.entries()) pass.backward(rows[p]!, firsts[p]!);
    }
    world.finish();
    expect(
      passes.flatMap(({ faults }) => faults),
      `seed ${seed}`,
    ).toEqual([]);
    world[Symbol.dispose]();
  }
});

const GIB = 2 ** 30;
const gpu: StageDevice = {
  ...{ kind: "cuda", name: "a GPU", compute: "bf16", rowTile: 128, threads: 0, ordinal: 0, count: 1, note: null, host: "" },
  ...{ totalBytes: 80 * GIB, freeBytes: 78 * GIB, hostFreeBytes: 64 * GIB },
};
const cpu: StageDevice = { ...gpu, kind: "cpu", name: "a CPU", compute: "f32", rowTile: 24, threads: 2 };

function planOf(changes: {
  readonly device?: StageDevice;
  readonly length?: number;
  readonly rows?: number;
  readonly stages?: number;
  readonly recomputation?: "full" | "offload";
  readonly host?: number;
}) {
  const { device = gpu, length = 512, rows = 8, stages = 1, recomputation = "offload", host = gpu.hostFreeBytes! } = changes;
  const spec = { ...shapeOf("llama2-7b"), maxPositions: length };
  const recipe = recipeOf({ rows, length, targets: "qkvo", recomputation, stages }, { shape: "llama2-7b", spec }, 3);
  const data = [{ train: range(rows).map(() => ({ length, longest: length, targets: length })), eval: [] }];
  const devices = range(stages).map((ordinal) => ({ ...device, ordinal, hostFreeBytes: host }));
  return makePlan(recipe, spec, data as never, devices);
}
const bytesOf = (plan: ReturnType<typeof planOf>) => Object.values(plan.stages[0]!.memory).reduce((a, b) => a + b, 0);

describe("a plan", () => {
  test("has a few streams on the device and the others in host memory, by the rows of a pass", () => {
    const [full, offload] = [planOf({ recomputation: "full" }), planOf({})];
    const stream = 4096 * 4096 * 2;
    const { sizes, memory } = offload.stages[0]!;
    const input = memory.activations - OFFLOADED_RING * stream; // queries, keys and values, what the norm saves, and s
    expect(input).toBe(4096 * 3 * 4096 * 2 + 4096 * 4 + 4096 * 3 * 16 * 2);
    expect(bytesOf(full) - bytesOf(offload)).toBeGreaterThan(27 * stream);
    const streams = 2 * 32 + 1 - OFFLOADED_RING; // of halves of layers
    expect(sizes.hostInputs).toBeGreaterThan(8);
    expect(sizes.hostInputs).toBeLessThan(32);
    const { b0, b1, b2, meanError } = hostMemoryModel(offload);
    expect(b1 / ((streams * stream + sizes.hostInputs! * input) / 4096)).toBeCloseTo(1, 3);
    expect(Math.abs(b0)).toBeLessThan(stream);
    expect(Math.abs(b2)).toBeLessThan(1e-3);
    expect(meanError).toBeLessThan(1e-6);
    expect(offloadedBytes(64, 4096, 4096, "bf16")).toBe(streams * stream);
  });

  test("refuses what host memory has no room for, of all stages of a machine together, and says what would do", () => {
    const needed = (2 * 32 + 1 - OFFLOADED_RING) * 32_768 * 4096 * 2;
    const enough = Math.ceil(needed / 0.9) + 1;
    const long = { rows: 1, length: 32_768 };
    const least = planOf({ ...long, host: enough }).stages[0]!.sizes;
    expect([least.recomputation, least.hostInputs]).toEqual(["offload", undefined]);
    expect(planOf({ ...long, host: 3 * enough }).stages[0]!.sizes.hostInputs).toBeGreaterThan(8);
    expect(() => planOf({ ...long, host: enough - GIB })).toThrow(
      /15\.50 GiB of host memory for streams between layers.*max_length|host/,
    );
    expect(() => planOf({ rows: 8, host: 2 * GIB })).toThrow(/tokens_per_microbatch|streams between layers/);
    const two = planOf({ stages: 2 }).stages;
    const both = two.reduce((all, { sizes, layerRange }) => {
      return all + sizes.inFlight * offloadedBytes(2 * (layerRange.to - layerRange.from), sizes.rows, 4096, "bf16");
    }, 0);
    expect(planOf({ stages: 2, host: Math.ceil(both / 0.9) + 1 }).stages[0]!.sizes.rows).toBe(two[0]!.sizes.rows);
  });

  test("means full recomputation on a CPU, whose memory is the host's", () => {
    const [full, offload] = [planOf({ device: cpu, recomputation: "full" }), planOf({ device: cpu })];
    expect(offload.stages[0]!.sizes).toEqual(full.stages[0]!.sizes);
  });
});
