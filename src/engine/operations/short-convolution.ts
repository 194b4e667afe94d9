// What the operation of LFM2's layers computes that has the place of attention in most of them (operations.ts).

import { invariant } from "../../base/errors.ts";
import { shortconvBackward, shortconvDecode, shortconvForward, shortconvKeep } from "../../ops/shortconv.ts";
import type { Behaviour } from "./operations.ts";

export const shortConvolution: Behaviour<"shortConvolution"> = {
  width: ({ channels }, width) => {
    invariant(3 * channels === width, `a short convolution of ${channels} features reads ${width}`);
    return channels;
  },
  isCheap: () => true,
  saved: null,
  inputGradient: "own",
  forward: ({ from, to, weight }, pass) => {
    const { device, cached, batch } = pass;
    const bcx = pass.value(from);
    const of = { bcx, weight: pass.factor(weight), y: pass.value(to) };
    if (!cached) return shortconvForward(device, { ...of, bounds: batch.bounds });
    const kept = { places: cached.places, window: cached.cache.linear!.window, capacity: cached.capacity };
    if (cached.from === "cache") return shortconvDecode(device, { ...of, ...kept });
    shortconvForward(device, { ...of, bounds: batch.bounds });
    shortconvKeep(device, { bcx, bounds: batch.bounds, ...kept });
  },
  backward: ({ from, to, weight }, pass) =>
    shortconvBackward(pass.device, {
      ...{ dy: pass.gradient(to)!, bcx: pass.value(from), weight: pass.factor(weight) },
      ...{ bounds: pass.batch.bounds, dbcx: pass.gradient(from)! },
    }),
};
