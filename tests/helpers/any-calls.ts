// Random calls of the primitives: what each adapter's come to next to others, with fewer slots than adapters and on any number
// of stages, and alone on one.

import { expect } from "bun:test";
import { mkdtempSync } from "node:fs";
import { join } from "node:path";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { openLocalStages } from "../../src/cluster/local-stage.ts";
import { setupsOf } from "../../src/cluster/setup.ts";
import { planPrimitives } from "../../src/session/primitives/open.ts";
import { Primitives } from "../../src/session/primitives/primitives.ts";
import { CACHE, NAMES, type PrimitivesPlace, ROWS, tokens, weighted } from "./primitives.ts";
import { weightsOf } from "./primitives-suite.ts";

type Call = { readonly what: string; readonly make: (on: Primitives, name: string, folder: string) => Promise<unknown> };

const PROMPTS = [3, 9, 20].map(tokens);
const bytes = ({ loss, rows }: Awaited<ReturnType<Primitives["forward"]>>) => [
  loss,
  ...rows.map(({ logProbs }) => Buffer.from(logProbs.buffer, logProbs.byteOffset, logProbs.byteLength).toString("base64")),
];

/** As many calls of an adapter, of which none is refused, and a step at their end. */
function callsOf(rng: Rng, count: number): Call[] {
  let [hasGradient, isSaved] = [false, false];
  const rowsOf = () => {
    const from = rng.below(ROWS.length - 3);
    return ROWS.slice(from, from + 1 + rng.below(ROWS.length - from));
  };
  const train = (): Call => {
    const [rows, weight] = [rowsOf(), rng.uniform() / 8];
    hasGradient = true;
    const make = async (on: Primitives, name: string) =>
      bytes(
        await on.forwardBackward(
          name,
          weighted(rows, () => weight),
        ),
      );
    return { what: `forwardBackward of ${rows.length}`, make };
  };
  const step = (): Call => {
    const learningRate = 1e-3 * (1 + rng.below(20));
    hasGradient = false;
    return { what: "step", make: (on, name) => on.step(name, { learningRate }) };
  };
  const score = (): Call => {
    const rows = rowsOf();
    return { what: `forward of ${rows.length}`, make: async (on, name) => bytes(await on.forward(name, rows)) };
  };
  const sample = (): Call => {
    const [first, second] = [PROMPTS[rng.below(3)]!, PROMPTS[rng.below(3)]!];
    const options = { maxTokens: 6, n: 1 + rng.below(3), seed: rng.below(100), sampling: { temperature: 1.2 * rng.below(2) } };
    return { what: "sample", make: (on, name) => on.sample(name, [first, second], options) };
  };
  const keep = (): Call => {
    const isLoaded = isSaved;
    [isSaved, hasGradient] = [!isSaved, hasGradient && !isLoaded];
    if (isLoaded) return { what: "load", make: (on, name, folder) => on.load(name, folder) };
    return { what: "saveState", make: (on, name, folder) => on.saveState(name, folder) };
  };
  const discard = (): Call => {
    hasGradient = false;
    return { what: "discard", make: (on, name) => on.discard(name) };
  };
  const any = (): Call => {
    const draw = rng.below(10);
    if (draw < 2 && hasGradient) return step();
    if (draw < 5) return train();
    if (draw === 5 && hasGradient) return discard();
    return [score, sample, keep][draw % 3]!();
  };
  return [...range(count).map(any), train(), step()];
}

/** What the calls of an adapter come to, one after the other, and its weights then. */
async function madeBy(place: PrimitivesPlace, on: Primitives, name: string, calls: readonly Call[]): Promise<unknown[]> {
  const folder = join(mkdtempSync(join(place.root, "calls-")), "state");
  const made: unknown[] = [];
  for (const { make } of calls) made.push(await make(on, name, folder));
  return [...made, await weightsOf(place, on, name)];
}

/** Fails where what an adapter's calls come to depends on others, on slots or on stages; which they are, the seed decides. */
export async function anyCallsAgree(place: PrimitivesPlace, seed: number, mostStages: number): Promise<void> {
  const rng = new Rng(seed, 9);
  const names = NAMES.filter((name) => name !== "dpo" && rng.below(2) === 0).slice(0, 4);
  if (names.length === 0) names.push("tokens");
  const [stages, slots] = [1 + rng.below(mostStages), 1 + rng.below(names.length)];
  const recipe = place.recipe(names, { stages });
  const plan = planPrimitives({ ...recipe, run: { ...recipe.run, slots } }, CACHE);
  const bus = await openLocalStages(setupsOf(plan, { folder: place.model }));
  await using on = await Primitives.begin(bus, plan, bus, rng.below(2) === 0 ? {} : { idleMs: 0, turnMs: 0 });
  const calls = names.map(() => callsOf(rng, 7));
  const together = await Promise.all(names.map((name, i) => madeBy(place, on, name, calls[i]!)));
  for (const [i, name] of names.entries()) {
    await using alone = await place.open([name]);
    const want = await madeBy(place, alone, name, calls[i]!);
    const of = calls[i]!.map(({ what }) => what).join(", ");
    const at = `seed ${seed}: ${name} of ${names}, ${slots} slots, ${stages} stages: ${of}`;
    for (const [call, made] of want.entries()) expect(together[i]![call], `${at}; call ${call}`).toEqual(made);
  }
}
