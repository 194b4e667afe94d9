// Tinker's messages field by field: tensors of one dimension and of two, sparse and dense, and the results of samples.

import { expect, test } from "bun:test";
import { fieldsOf, float32s, int32s, int64s, intIn, intsIn, Message, textIn, WireFault } from "../../src/base/protobuf.ts";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { ApiError } from "../../src/serve/errors.ts";
import {
  type DatumLogProbs,
  forwardBackwardResult,
  readForwardBackward,
  type SampleResult,
  sampleResult,
  type Tensor,
} from "../../src/serve/tinker/messages.ts";
import { DatumFault, denseOf, rowsOf } from "../../src/serve/tinker/rows.ts";

const longs = (values: readonly number[]) => new Uint8Array(BigInt64Array.from(values, BigInt).buffer);
const floats = (values: readonly number[]) => new Uint8Array(Float32Array.from(values).buffer);
const chunk = (tokens: readonly number[]) =>
  new Message().message(1, new Message().bytes(1, new Uint8Array(Int32Array.from(tokens).buffer)));

/** A request with one datum: chunks of tokens, and inputs as tensors that are written already. */
function request(chunks: readonly (readonly number[])[], inputs: Readonly<Record<string, Message>>): Uint8Array {
  const datum = new Message();
  for (const tokens of chunks) datum.message(1, chunk(tokens));
  for (const [name, of] of Object.entries(inputs)) datum.message(2, new Message().text(1, name).message(2, of));
  return new Message().text(1, "s").message(3, datum).text(4, "cross_entropy").done();
}
const targets = (values: readonly number[], shape: readonly number[]) =>
  new Message().bytes(1, longs(values)).int(3, 2).ints(4, shape);
const weights = (values: readonly number[], shape: readonly number[]) =>
  new Message().bytes(1, floats(values)).int(3, 1).ints(4, shape);
const datumOf = (bytes: Uint8Array) => readForwardBackward(bytes).data[0]!;
const inner = (message: Uint8Array, number: number) =>
  [...fieldsOf(message)].filter((field) => field.number === number).map((field) => field.value as Uint8Array);

test("a tensor without a shape is of one dimension, as long as its values", () => {
  for (const [shape, found] of [
    [[], [3]],
    [[3], [3]],
    [
      [3, 1],
      [3, 1],
    ],
  ] as const) {
    const bytes = request([[1, 2, 3]], { target_tokens: targets([2, 3, 9], shape), weights: weights([0, 1, 0.5], shape) });
    const { inputs, tokens } = datumOf(bytes);
    expect([...tokens]).toEqual([1, 2, 3]);
    expect(inputs.get("target_tokens")).toEqual({ dtype: "int64", shape: found, values: [2, 3, 9], sparse: null });
    expect(inputs.get("weights")!.shape).toEqual([...found]);
    const [{ rows, width }] = rowsOf(readForwardBackward(bytes).data, null) as [ReturnType<typeof rowsOf>[0]];
    expect(width).toBe(found.length === 2 ? 1 : null);
    expect(rows.map(({ ids, weights }) => [[...ids], [...weights!]])).toEqual([
      [
        [1, 2, 3, 9],
        [0, 0, 1, 0.5],
      ],
    ]);
  }
  expect(datumOf(request([[1], [2, 3]], { target_tokens: new Message().int(3, 2) })).inputs.get("target_tokens")).toEqual({
    ...{ dtype: "int64", shape: [0], values: [], sparse: null },
  });
  expect([...datumOf(request([[1], [], [2, 3]], {})).tokens]).toEqual([1, 2, 3]); // chunks follow each other
});

test("shapes that are not those of the tokens are refused by the datum", () => {
  const refused = (shape: readonly number[], values: readonly number[], weighted: readonly number[] = []) => {
    const inputs = { target_tokens: targets(values, shape), ...(weighted.length ? { weights: weights(weighted, [3]) } : {}) };
    try {
      rowsOf(readForwardBackward(request([[1, 2, 3]], inputs)).data, null);
    } catch (error) {
      if (error instanceof ApiError) return error.message;
      throw error;
    }
    return null;
  };
  expect(refused([3], [2, 3, 9])).toBeNull();
  expect(refused([2], [2, 3])).toContain("Datum 0: target_tokens have the shape [2], expected 3 rows");
  expect(refused([], [2, 3])).toContain("have the shape [2], expected 3 rows");
  expect(refused([3], [2, 3])).toContain("have 2 values, expected 3");
  expect(refused([1, 3], [2, 3, 9])).toContain("have the shape [1, 3]");
  expect(refused([3, 1, 1], [2, 3, 9])).toContain("have the shape [3, 1, 1]");
  expect(refused([3, 0], [])).toContain("have 0 columns");
  expect(refused([3, 1], [2, 3, 9], [1, 1, 1])).toContain("weights have another shape than target_tokens");
});

test("a sparse tensor has the shape and the indices that it says", () => {
  const sparse = new Message()
    .message(
      2,
      new Message()
        .bytes(1, longs([7, 8]))
        .bytes(2, longs([0, 1, 1, 2]))
        .bytes(3, longs([1, 0])),
    )
    .int(3, 2)
    .ints(4, [3, 2]);
  const { inputs } = datumOf(request([[1, 2, 3]], { target_tokens: sparse }));
  expect(inputs.get("target_tokens")).toEqual({
    ...{ dtype: "int64", shape: [3, 2], values: [7, 8] },
    sparse: { rows: [0, 1, 1, 2], columns: [1, 0] },
  });
  const empty = new Message().message(2, new Message()).int(3, 1).ints(4, [1]);
  expect(datumOf(request([[1]], { weights: empty })).inputs.get("weights")).toEqual({
    ...{ dtype: "float32", shape: [1], values: new Float32Array(), sparse: { rows: [], columns: [] } },
  });
});

test("cells of a sparse tensor are where its indices are, and 0 elsewhere", () => {
  for (let seed = 0; seed < 50; seed++) {
    const rng = new Rng(seed, 0x59a5);
    const [length, width] = [1 + rng.below(6), 1 + rng.below(5)];
    const dense = range(length * width).map(() => (rng.below(3) === 0 ? 1 + rng.below(9) : 0));
    const [values, columns, rows]: [number[], number[], number[]] = [[], [], [0]];
    for (const [at, value] of dense.entries()) {
      if (value !== 0) [values[values.length], columns[columns.length]] = [value, at % width];
      if (at % width === width - 1) rows.push(values.length);
    }
    const found = denseOf(
      { dtype: "float32", shape: [length, width], values, sparse: { rows, columns } },
      "x",
      "float32",
      length,
    );
    expect([found.columns, found.width]).toEqual([width, width]);
    const cells = range(length).flatMap((row) => range(width).map((column) => found.column(column)[row]!));
    expect(cells, `seed ${seed}`).toEqual(dense);
  }
});

test.each([
  ["rows that go back", [0, 2, 1, 2], [0, 1]],
  ["rows that do not begin at 0", [1, 1, 2, 2], [0, 1]],
  ["rows that end before the values", [0, 1, 1, 1], [0, 1]],
  ["a row too few", [0, 1, 2], [0, 1]],
  ["a column too many", [0, 1, 1, 2], [0, 1, 1]],
  ["a column beyond the last", [0, 1, 1, 2], [0, 3]],
  ["a column below 0", [0, 1, 1, 2], [-1, 0]],
])("a sparse tensor is refused for %s", (_, rows, columns) => {
  const of = (sparse: NonNullable<Tensor["sparse"]>) => () =>
    denseOf({ dtype: "float32", shape: [3, 3], values: [5, 6], sparse }, "weights", "float32", 3);
  expect(of({ rows, columns })).toThrow(DatumFault);
  expect(of({ rows: [0, 1, 1, 2], columns: [0, 2] })().columns).toBe(3);
});

test("no tensor is made of more cells than a datum may have, nor of a datum without tokens", () => {
  const of = (shape: readonly number[], length: number) => () =>
    denseOf(
      { dtype: "float32", shape, values: [], sparse: { rows: range(length + 1).map(() => 0), columns: [] } },
      "x",
      "float32",
      length,
    );
  expect(of([2, 1 << 23], 2)().columns).toBe(1 << 23);
  expect(of([2, (1 << 23) + 1], 2)).toThrow("x have 8,388,609 columns");
  expect(of([0], 0)).toThrow("has no token");
  expect(() => rowsOf([], null)).toThrow("The request has no data.");
});

test("tensors of other types, and chunks that are no text, are refused by the datum", () => {
  for (const type of [0, 3])
    expect(() => datumOf(request([[1]], { weights: new Message().bytes(1, floats([1])).int(3, type) }))).toThrow(
      new WireFault(`datum 0 has a tensor of the type ${type}, expected 1 (float32) or 2 (int64)`),
    );
  for (const [number, what] of [
    [2, "an image"],
    [3, "sound"],
  ] as const) {
    const datum = new Message().message(1, new Message().message(number, new Message()));
    const bytes = new Message().message(3, new Message().message(1, chunk([1]))).message(3, datum);
    expect(() => readForwardBackward(bytes.done())).toThrow(new WireFault(`datum 1 has ${what}; only texts are served`));
  }
});

test("settings of the older field count where the newer has none", () => {
  const old = new Message().text(1, "beta").double(2, 0.5);
  const setting = (value: Message) => new Message().text(1, "beta").message(2, value);
  const read = (...fields: readonly (readonly [number, Message])[]) => {
    const message = new Message();
    for (const [number, field] of fields) message.message(number, field);
    return [...readForwardBackward(message.done()).config];
  };
  expect(read([5, old])).toEqual([["beta", 0.5]]);
  expect(read([5, old], [7, setting(new Message().double(1, 2))])).toEqual([["beta", 2]]);
  expect(read([7, setting(new Message().text(2, "x"))])).toEqual([["beta", "x"]]);
  expect(() => read([7, setting(new Message())])).toThrow("neither a number nor a text");
  expect(() => read([5, new Message().text(1, "beta")])).toThrow('has an entry "beta" without a value');
});

test("log-probabilities are records of neighbours of one width, of one dimension without it", () => {
  const of = (width: number | null, ...values: number[]): DatumLogProbs => ({ logProbs: Float32Array.from(values), width });
  const bytes = forwardBackwardResult([of(null, -1), of(2, -2, -3), of(2, -4, -5), of(3, 1, 2, 3), of(null, -6, -7)], {
    "loss:sum": 1.5,
    "n:mean": 2,
  });
  const records = inner(bytes, 2).map((record) => {
    const tensor = inner(inner(record, 2)[0]!, 2)[0]!;
    const rows = [...fieldsOf(record)].find(({ number }) => number === 3)!;
    return [
      [...float32s(inner(tensor, 1)[0]!)],
      int64s(inner(tensor, 2)[0]!),
      [...fieldsOf(tensor)].filter(({ number }) => number === 4).flatMap(intsIn),
      intIn(rows),
    ];
  });
  expect(records).toEqual([
    [[-1], [0, 4], [], 1],
    [[-2, -3, -4, -5], [0, 8, 16], [2], 2],
    [[1, 2, 3], [0, 12], [3], 1],
    [[-6, -7], [0, 8], [], 1],
  ]);
  const names = inner(bytes, 3).map((metric) => textIn([...fieldsOf(metric)][0]!));
  expect(names).toEqual(["loss:sum", "n:mean"]);
  expect(inner(forwardBackwardResult([], {}), 2)).toEqual([]);
});

test("samples have their ends, and rows of the likeliest tokens that are filled", () => {
  const top = { width: 2, rows: [[[5, -0.5] as const, [6, -1] as const], [[7, -2] as const], []] };
  const tensor = (shape: readonly number[], sparse: Tensor["sparse"]): Tensor => ({
    ...{ dtype: "float32", shape, values: [-1, -2], sparse },
  });
  const sampled = (more: Partial<SampleResult>): Uint8Array =>
    sampleResult({
      sequences: [
        { tokens: [3, 4], logProbs: [-1, -2], end: "stop", top },
        { tokens: [9], logProbs: [-3], end: "length", top: null },
      ],
      ...{ prompt: null, promptTop: null, targets: null, ...more },
    });
  const [first, second] = inner(sampled({}), 1) as [Uint8Array, Uint8Array];
  const ends = [first, second].map((of) => [...fieldsOf(of)].filter(({ number }) => number === 1).map(intIn));
  expect(ends).toEqual([[], [1]]); // 0 is the default, and left out
  expect([first, second].map((of) => [[...int32s(inner(of, 2)[0]!)], [...float32s(inner(of, 3)[0]!)]])).toEqual([
    [
      [3, 4],
      [-1, -2],
    ],
    [[9], [-3]],
  ]);
  const topOf = (message: Uint8Array) => ({
    ids: [...int32s(inner(message, 1)[0]!)],
    logProbs: [...float32s(inner(message, 2)[0]!)],
    sizes: [3, 4].map((number) => intIn([...fieldsOf(message)].find((field) => field.number === number)!)),
  });
  const filled = { ids: [5, 6, 7, 0, 0, 0], logProbs: [-0.5, -1, -2, -99_999, -99_999, -99_999], sizes: [2, 3] };
  expect([inner(first, 4).map(topOf), inner(second, 4)]).toEqual([[filled], []]);

  expect([2, 3, 5].map((number) => inner(sampled({}), number).length)).toEqual([0, 0, 0]);
  const whole = sampled({ prompt: Float32Array.of(Number.NaN, -4), promptTop: top, targets: tensor([2], null) });
  expect([...float32s(inner(whole, 2)[0]!)]).toEqual([Number.NaN, -4]);
  expect(inner(whole, 3).map(topOf)).toEqual([filled]);
  const targetsOf = (bytes: Uint8Array) => {
    const [message] = inner(bytes, 5) as [Uint8Array];
    const shape = [...fieldsOf(message)].filter(({ number }) => number === 4).flatMap(intsIn);
    return { shape, dense: inner(message, 1).map((of) => [...float32s(of)]), sparse: inner(message, 2) };
  };
  expect(targetsOf(whole)).toEqual({ shape: [2], dense: [[-1, -2]], sparse: [] });
  const { dense, shape, sparse } = targetsOf(sampled({ targets: tensor([2, 3], { rows: [0, 1, 2], columns: [2, 0] }) }));
  expect([dense, shape]).toEqual([[], [2, 3]]);
  expect([1, 2, 3].map((number) => [...inner(sparse[0]!, number)[0]!])).toEqual(
    [floats([-1, -2]), longs([0, 1, 2]), longs([2, 0])].map((of) => [...of]),
  );
});
