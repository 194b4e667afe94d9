// What each operation of a layer computes, forward and backward. The frozen weights have no gradient: backward is the gradient
// of the operation's input, and what the adapters of its linears learn.

import { invariant } from "../base/errors.ts";
import { sum } from "../base/shape.ts";
import type { Op, Operation } from "../families/definition.ts";
import { attentionBackward, attentionForward } from "../ops/attention.ts";
import { attentionDecode, cacheWrite } from "../ops/decode.ts";
import { rmsnormBackward, rmsnormForward } from "../ops/rmsnorm.ts";
import { ropeBackward, ropeForward } from "../ops/rope.ts";
import { swigluBackward, swigluForward } from "../ops/swiglu.ts";
import * as adapted from "./adapted-linear.ts";
import type { LayerPass } from "./layer-pass.ts";

type Kind = Operation["op"];

type Behaviour<K extends Kind> = {
  /** Features of its output, from those of its input. */
  readonly width: (of: Op<K>, width: number) => number;
  /** Whether the output overwrites the input; left out: never. */
  readonly isInPlace?: (of: Op<K>) => boolean;
  /** Whether its output may be computed again in the backward pass: it is no product of matrices. Only linears read it. */
  readonly isCheap: boolean;
  /** The shape of the f32 tensor that it saves for its backward pass; null for none. */
  readonly saved: ((of: Op<K>, rows: number) => readonly number[]) | null;
  /** Where the gradient of its input goes: memory of its own, over the gradient of its output, or over the input. */
  readonly inputGradient: "own" | "output" | "input";
  readonly forward: (of: Op<K>, pass: LayerPass) => void;
  readonly backward: (of: Op<K>, pass: LayerPass) => void;
};

const norm: Behaviour<"norm"> = {
  width: ({ size }, width) => same(size, width),
  isCheap: true,
  saved: (_, rows) => [rows],
  inputGradient: "own",
  forward: ({ from, to, weight, eps }, pass) =>
    rmsnormForward(pass.device, {
      x: pass.value(from),
      weight: pass.norm(weight),
      y: pass.value(to),
      rstd: pass.saved(to),
      eps,
    }),
  backward: (of, pass) => {
    const { from, to, weight } = of;
    const dx = pass.gradient(from);
    if (!dx) return;
    rmsnormBackward(pass.device, {
      dy: pass.gradient(to)!,
      x: pass.value(from),
      weight: pass.norm(weight),
      rstd: pass.saved(to),
      residual: pass.program.adding.has(of) ? dx : null,
      dx,
    });
  },
};

const linears: Behaviour<"linears"> = {
  width: ({ in: expected, out }, width) => {
    same(expected, width);
    return sum(out);
  },
  isCheap: false,
  saved: null,
  inputGradient: "own",
  forward: ({ from, to, group, residual }, pass) =>
    adapted.forward(
      pass.device,
      pass.adapters(group),
      pass.batch,
      pass.linears(group),
      { x: pass.value(from), s: pass.low(group), y: pass.value(to), residual: residual === null ? null : pass.value(residual) },
      { ...pass.work.z, ...pass.products(group) },
    ),
  backward: ({ from, to, group }, pass) => {
    const adapters = pass.adapters(group);
    if (adapters) pass.restore(from);
    const s = pass.low(group);
    const { ds, z } = pass.workspace;
    adapted.backward(
      pass.device,
      adapters,
      pass.batch,
      pass.linears(group).weight,
      { x: pass.value(from), s, ds: { ...ds, shape: s.shape }, dy: pass.gradient(to)!, dx: pass.gradient(from) },
      { kept: pass.products(group), scratch: z },
    );
  },
};

const rope: Behaviour<"rope"> = {
  width: ({ heads }, width) => same((heads.heads + 2 * heads.kvHeads) * heads.headDim, width),
  isInPlace: ({ norms }) => norms === null,
  isCheap: false,
  saved: null,
  inputGradient: "output",
  forward: ({ from, to, heads, table, norms, eps }, pass) =>
    ropeForward(pass.device, {
      qkv: pass.value(from),
      out: pass.value(to),
      positions: pass.batch.positions,
      ...pass.rope(table),
      qWeight: norms && pass.norm(norms.q),
      kWeight: norms && pass.norm(norms.k),
      eps,
      ...heads,
    }),
  backward: ({ from, to, heads, table, norms, eps }, pass) =>
    ropeBackward(pass.device, {
      dqkv: pass.gradient(to)!,
      qkv: norms && pass.value(from),
      positions: pass.batch.positions,
      ...pass.rope(table),
      qWeight: norms && pass.norm(norms.q),
      kWeight: norms && pass.norm(norms.k),
      eps,
      ...heads,
    }),
};

const attention: Behaviour<"attention"> = {
  width: ({ heads }) => heads.heads * heads.headDim,
  isCheap: false,
  saved: ({ heads }, rows) => [heads.heads, rows],
  inputGradient: "own",
  forward: ({ from, to, heads, scale, window }, pass) => {
    const { device, cached, batch } = pass;
    const qkv = pass.value(from);
    const args = { qkv, bounds: batch.bounds, out: pass.value(to), ...heads, scale, window: window ?? 0 };
    if (cached) cacheWrite(device, { qkv, places: cached.places, cache: cached.cache, ...heads });
    if (cached?.from === "cache") attentionDecode(device, { ...args, cache: cached.cache });
    else attentionForward(device, { ...args, lse: pass.saved(to) });
  },
  backward: ({ from, to, heads, scale, window }, pass) =>
    attentionBackward(pass.device, {
      qkv: pass.value(from),
      bounds: pass.batch.bounds,
      out: pass.value(to),
      lse: pass.saved(to),
      dout: pass.gradient(to)!,
      delta: { ...pass.workspace.delta, shape: [heads.heads, pass.batch.rows] },
      dqkv: pass.gradient(from)!,
      ...heads,
      scale,
      window: window ?? 0,
    }),
};

const swiglu: Behaviour<"swiglu"> = {
  width: (_, width) => width / 2,
  isCheap: true,
  saved: null,
  inputGradient: "input",
  forward: ({ from, to }, pass) => swigluForward(pass.device, { gateUp: pass.value(from), h: pass.value(to) }),
  backward: ({ from, to }, pass) =>
    swigluBackward(pass.device, { dh: pass.gradient(to)!, gateUp: pass.value(from), dgateUp: pass.gradient(from)! }),
};

const BEHAVIOURS: { readonly [K in Kind]: Behaviour<K> } = { norm, linears, rope, attention, swiglu };

/** The compiler knows each behaviour by its own operation; here any of them goes with an operation of its kind. */
export const behaviourOf = ({ op }: Operation) => BEHAVIOURS[op] as unknown as Behaviour<Kind>;

function same(expected: number, found: number): number {
  invariant(expected === found, `an operation of ${expected} features reads ${found}`);
  return found;
}
