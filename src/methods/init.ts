// The first values of an adapter's factors (engine/pool/random-init.ts, engine/pool/svd-init.ts), by PEFT's names.

import * as v from "valibot";
import { expected } from "../base/check.ts";

export const INITS = ["default", "gaussian", "orthogonal", "pissa", "olora"] as const;
/** pissa_niter_4: PiSSA by four rounds of a randomised decomposition instead of an exact one. */
export type Init = (typeof INITS)[number] | `pissa_niter_${number}`;

/** Rounds of the randomised decomposition, null where the name is another. */
export function roundsOf(init: string): number | null {
  const [, rounds] = /^pissa_niter_([0-9]{1,2})$/.exec(init) ?? [];
  return rounds === undefined ? null : Number(rounds);
}

const names = expected(`${INITS.map((name) => `"${name}"`).join(" or ")} or "pissa_niter_4"`);
/** The key of a recipe. */
export const initSchema = v.union(
  [v.picklist(INITS), v.pipe(v.string(), v.regex(/^pissa_niter_[0-9]{1,2}$/, names))],
  names,
) as unknown as v.GenericSchema<Init>;

export const isInit = (text: string): text is Init => (INITS as readonly string[]).includes(text) || roundsOf(text) !== null;

/**
 * Whether the factors begin as a part of the weight, W = (W - scale B0 A0) + scale B A. PEFT changes the weight; here all
 * adapters share it, so the adapter keeps A0 and -B0 next to A and B, frozen: it has twice the rank, and adds nothing at
 * the beginning.
 */
export const isSvdInit = (init: Init): boolean => init === "olora" || init.startsWith("pissa");
