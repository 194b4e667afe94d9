// Generation of many sequences that are known from the start.

import type { Sampling } from "../../base/sample.ts";
import { Decoding, type Generation, type GenerationEngine, type NextToken } from "./decoding.ts";

export { engineOver, type Generation, type GenerationEngine } from "./decoding.ts";

export type GeneratedToken = NextToken & { readonly index: number };

/** Tokens as they come, of any of the sequences. */
export async function* generate(
  engine: GenerationEngine,
  wanted: readonly Generation[],
  sampling: Sampling,
  stops: ReadonlySet<number>,
): AsyncGenerator<GeneratedToken> {
  const decoding = new Decoding(engine);
  const found: GeneratedToken[] = [];
  for (const [index, of] of wanted.entries())
    decoding.add({ ...of, sampling, stops, got: (next) => void found.push({ index, ...next }) });
  while (!decoding.isIdle) {
    await decoding.pass();
    yield* found.splice(0);
  }
}
