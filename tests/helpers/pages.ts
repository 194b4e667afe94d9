// Sequences whose keys lie in pages that they share, and prompts that are read in pieces: the same tokens and the same bits of
// their logits, however many pages there are and whatever else is generated.

import { expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import type { Device } from "../../src/device/device.ts";
import { keepsStates } from "../../src/engine/generation/kv-cache.ts";
import { PAGE } from "../../src/ops/decode.ts";
import { PIECE } from "../../src/schedule/decode.ts";
import { Decoding, type Generation, type NextToken } from "../../src/session/decoding/decoding.ts";
import { ADAPTERS, type TinyGenerator, tinyGenerator } from "./generation.ts";

type Answer = { readonly tokens: number[]; readonly logits: string[] };

/** What each is given, with all of its logits; and the largest number of passes between two tokens of a sequence. */
async function answersOf(generator: TinyGenerator, wanted: readonly Generation[], temperature = 0.8) {
  const decoding = new Decoding(generator);
  const answers = wanted.map((): Answer => ({ tokens: [], logits: [] }));
  const last = new Map<number, number>();
  let [passes, longest] = [0, 0];
  for (const [i, of] of wanted.entries())
    decoding.add({
      ...of,
      sampling: { temperature, topK: 0, topP: 0.95 },
      stops: new Set(),
      logits: true,
      got: ({ token, logits }: NextToken) => {
        answers[i]!.tokens.push(token);
        answers[i]!.logits.push(Buffer.from(new Uint8Array(logits!.slice().buffer)).toString("base64"));
        longest = Math.max(longest, passes - (last.get(i) ?? passes));
        last.set(i, passes);
      },
    });
  for (; !decoding.isIdle; passes++) expect(await decoding.pass()).not.toBeNull();
  return { answers, longest };
}

export function sharesPages(name: string, open: () => Device, spec: ModelSpec): void {
  const rng = new Rng(5);
  const promptOf = (length: number) => range(length).map(() => rng.below(spec.vocab));
  const slots = ADAPTERS.length;

  test(`${name}: as many pages as one sequence needs are enough for all, at the price of time alone`, async () => {
    const wanted = range(9).map((i): Generation => {
      return { adapter: (i % (slots + 1)) - 1, prompt: promptOf([3, 40, 17, 64, 1][i % 5]!), limit: 24 + 5 * (i % 3), seed: i };
    });
    using rich = await tinyGenerator(open(), spec, { sequences: 6 });
    const { answers } = await answersOf(rich, wanted);
    for (const pages of [128 / PAGE, 7, 11]) {
      using poor = await tinyGenerator(open(), spec, { sequences: 6, pages });
      expect((await answersOf(poor, wanted)).answers, `${pages} pages`).toEqual(answers);
    }
  });

  if (keepsStates(spec)) return; // reads prompts whole
  test(`${name}: a long prompt is read in pieces, with the same bits alone and among others, and holds none of these up`, async () => {
    const capacity = 2 * PIECE + 64;
    const long = range(2).map((i): Generation => ({ adapter: i, prompt: promptOf(PIECE + 200 * (i + 1)), limit: 3, seed: i }));
    const short = range(4).map((i): Generation => ({ adapter: i - 1, prompt: promptOf(5 + i), limit: 12, seed: i }));
    using generator = await tinyGenerator(open(), spec, { sequences: 6, capacity });
    const together = await answersOf(generator, [short[0]!, long[0]!, ...short.slice(1), long[1]!]);
    const alone: Answer[] = [];
    for (const of of [...short, ...long]) alone.push((await answersOf(generator, [of])).answers[0]!);
    const [a, b, c, d, e, f] = alone;
    expect(together.answers).toEqual([a!, e!, b!, c!, d!, f!]);
    expect(together.longest).toBeLessThanOrEqual(2); // a piece at most between two tokens
  });
}
