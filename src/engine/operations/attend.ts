// Attention of a layer in a pass: over the keys of the pass, or over those that are kept.

import type { Op } from "../../families/definition.ts";
import { attentionForward, attentionSink } from "../../ops/attention.ts";
import { attentionDecode } from "../../ops/decode.ts";
import type { LayerPass } from "../layers/layer-pass.ts";

/** Attention over keys that are kept, in a pass that reads them, or over those of the pass. */
export function attend({ from, to, heads, scale, window, cap, sinks: path }: Op<"attention">, pass: LayerPass): void {
  const { device, cached, batch } = pass;
  const [sinks, bounds] = [path ? pass.factor(path) : null, batch.bounds];
  const args = { qkv: pass.value(from), bounds, out: pass.value(to), ...heads, scale, window: window ?? 0, cap: cap ?? 0 };
  if (cached?.from === "cache") {
    const { pages, tiles, areAllTiled, cache } = cached;
    attentionDecode(device, { ...args, sinks, pages, tiles, areAllTiled, cache: cache.kv });
    return;
  }
  const lse = pass.saved(to);
  attentionForward(device, { ...args, lse });
  if (sinks) attentionSink(device, { out: args.out, lse, sinks, bounds });
}
