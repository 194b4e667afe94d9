// What each operation of a layer computes, forward and backward. The frozen weights have no gradient: backward is the gradient
// of the operation's input, and what the adapters of its linears learn.

import { invariant } from "../../base/errors.ts";
import { sum } from "../../base/shape.ts";
import { columnsFrom } from "../../device/arena.ts";
import type { Tensor } from "../../device/device.ts";
import type { Heads, Op, Operation } from "../../families/definition.ts";
import { addTo } from "../../ops/add.ts";
import { attentionBackward } from "../../ops/attention.ts";
import { cacheWrite } from "../../ops/decode.ts";
import { fewRowsNorm } from "../../ops/fewrows/fused.ts";
import { gateBackward, gateForward } from "../../ops/gate.ts";
import { gegluBackward, gegluForward } from "../../ops/geglu.ts";
import { headsGate, headsGateBackward } from "../../ops/heads.ts";
import type { DownInput } from "../../ops/lora.ts";
import { multiplyRows } from "../../ops/multiply.ts";
import { rmsnormBackward, rmsnormForward } from "../../ops/rmsnorm.ts";
import { ropeBackward, ropeForward } from "../../ops/rope.ts";
import { spansBackward, spansForward } from "../../ops/spans.ts";
import { squaredReluBackward, squaredReluForward } from "../../ops/squaredrelu.ts";
import { swigluBackward, swigluForward } from "../../ops/swiglu.ts";
import { copyColumns, valueNormBackward, valueNormForward } from "../../ops/values.ts";
import * as adapted from "../adapted/adapted-linear.ts";
import type { LayerPass } from "../layers/layer-pass.ts";
import { attend } from "./attend.ts";
import { expertsPassBackward, expertsPassForward } from "./experts.ts";
import { convolution, deltaRule, gatedNorm, gatedWidth, regrouped, tokenGate, ungated } from "./gated.ts";
import { columns, latentHeads, narrow } from "./latent.ts";
import { shortConvolution } from "./short-convolution.ts";
import { groupNorm, stateSpace } from "./state-space.ts";

type Kind = Operation["op"];

export type Behaviour<K extends Kind> = {
  /** Features of its output, from those of its input. */
  readonly width: (of: Op<K>, width: number) => number;
  /** Whether the output overwrites the input; left out: never. */
  readonly isInPlace?: (of: Op<K>) => boolean;
  /** Whether the values that it reads next to its input are of the right size. */
  readonly fits?: (of: Op<K>, width: number, ...others: readonly number[]) => boolean;
  /**
   * Where the gradients of those values go: memory of its own, to the gradient that others have of it, or over the value, as
   * where this is left out.
   */
  readonly otherGradient?: "own" | "added" | "over";
  /** Whether its output may be computed again in the backward pass: it is no product. Only what restores its input reads it. */
  readonly isCheap: (of: Op<K>) => boolean;
  /** The shape of the f32 tensor that it saves for its backward pass; null for none. */
  readonly saved: ((of: Op<K>, rows: number) => readonly number[]) | null;
  /** What the gradients of linears make its output of as they read it, where the device can; left out: nothing. */
  readonly madeOf?: (of: Op<K>, pass: LayerPass) => DownInput;
  /** Where the gradient of its input goes: memory of its own, over the gradient of its output, or over the input. */
  readonly inputGradient: "own" | "output" | "input";
  readonly forward: (of: Op<K>, pass: LayerPass) => void;
  readonly backward: (of: Op<K>, pass: LayerPass) => void;
};

const norm: Behaviour<"norm"> = {
  width: ({ size }, width) => same(size, width),
  isCheap: ({ residual }) => residual === undefined,
  saved: (_, rows) => [rows],
  madeOf: ({ from, to, weight, size }, pass) => ({
    normOf: pass.value(from),
    rstd: pass.saved(to),
    weight: pass.norm(weight, size),
  }),
  inputGradient: "own",
  forward: ({ from, to, weight, size, eps, residual }, pass) =>
    (pass.batch.rowAdapter ? fewRowsNorm : rmsnormForward)(pass.device, {
      x: pass.value(from),
      weight: pass.norm(weight, size),
      residual: residual === undefined ? null : pass.value(residual),
      y: pass.value(to),
      rstd: pass.saved(to),
      eps,
    }),
  backward: (of, pass) => {
    const { from, to, weight, size } = of;
    const dx = pass.gradient(from);
    if (!dx) return;
    rmsnormBackward(pass.device, {
      dy: pass.gradient(to)!,
      x: pass.value(from),
      weight: pass.norm(weight, size),
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
  isCheap: () => false,
  saved: null,
  inputGradient: "own",
  forward: ({ from, to, group, residual }, pass) => {
    const made = pass.roundedOutput(from);
    adapted.forward(
      pass.device,
      pass.adapters(group),
      pass.batch,
      pass.linears(group),
      {
        ...(made ? { gateUp: pass.value(made.from) } : { x: pass.value(from) }),
        ...{ s: pass.low(group), y: pass.value(to), residual: residual === null ? null : pass.value(residual) },
      },
      { ...pass.work.z, ...pass.products(group) },
    );
  },
  backward: (of, pass) => {
    const { from, to, group } = of;
    const adapters = pass.adapters(group);
    const input = adapters ? pass.input(from, adapted.needsInput(pass.batch, adapters)) : { x: pass.value(from) };
    const dx = pass.gradient(from);
    const added = dx && pass.program.adding.has(of) ? pass.added(of.in) : null;
    const s = pass.low(group);
    const { ds, z } = pass.workspace;
    const made = pass.roundedGradient(to);
    adapted.backward(
      pass.device,
      adapters,
      pass.batch,
      pass.linears(group).weight,
      {
        ...(made ? { dh: pass.gradient(made.to)!, gateUp: pass.value(to) } : { dy: pass.gradient(to)! }),
        ...{ input, s, ds: { ...ds, shape: s.shape }, dx: added ?? dx },
      },
      { kept: pass.products(group), scratch: z },
    );
    if (added) addTo(pass.device, { x: added, y: dx! });
  },
};

const rope: Behaviour<"rope"> = {
  width: ({ heads }, width) => same((heads.heads + 2 * heads.kvHeads) * heads.headDim, width),
  isInPlace: ({ norms }) => norms === null,
  isCheap: () => false,
  saved: null,
  inputGradient: "output",
  forward: (of, pass) =>
    ropeForward(pass.device, { qkv: pass.value(of.from), out: pass.value(of.to), ...rotationOf(of, pass) }),
  backward: (of, pass) =>
    ropeBackward(pass.device, {
      ...{ dqkv: pass.gradient(of.to)!, qkv: of.norms && pass.value(of.from) },
      ...rotationOf(of, pass),
    }),
};

/** What heads are rotated by, and normalised before, in both directions. */
const rotationOf = ({ heads, table, norms, eps }: Op<"rope">, pass: LayerPass) => ({
  ...{ positions: pass.batch.positions, ...pass.rope(table), eps, ...heads },
  qWeight: norms && pass.norm(norms.q, heads.headDim),
  kWeight: norms && pass.norm(norms.k, heads.headDim),
});

const spans: Behaviour<"spans"> = {
  width: ({ sizes }, width) => {
    invariant(sum(sizes) <= width, `spans of ${sizes} features in ${width}`);
    return width;
  },
  isCheap: () => false,
  saved: (_, rows) => [2, rows],
  inputGradient: "output",
  forward: ({ from, to, weights, sizes, eps }, pass) => {
    const [first, second] = weights.map((weight, i) => pass.norm(weight, sizes[i]!));
    const io = { x: pass.value(from), y: pass.value(to), rstd: pass.saved(to) };
    spansForward(pass.device, { ...io, first: first!, second: second!, eps });
  },
  backward: ({ from, to, weights, sizes }, pass) => {
    const [first, second] = weights.map((weight, i) => pass.norm(weight, sizes[i]!));
    const io = { dy: pass.gradient(to)!, x: pass.value(from), rstd: pass.saved(to) };
    spansBackward(pass.device, { ...io, first: first!, second: second! });
  },
};

const gate: Behaviour<"gate"> = {
  width: (_, width) => width,
  fits: ({ heads }, width, other) => (heads ? other === gatedWidth(heads) : other === width),
  isCheap: () => true,
  saved: null,
  inputGradient: "output",
  forward: ({ from, to, gate, heads }, pass) => {
    const [x, y] = [pass.value(from), pass.value(to)];
    if (heads) headsGate(pass.device, { x, gated: pass.value(gate), y, ...heads });
    else gateForward(pass.device, { x, gate: pass.value(gate), y });
  },
  backward: ({ from, to, gate, heads }, pass) => {
    const io = { dy: pass.gradient(to)!, x: pass.value(from), dx: pass.gradient(from)! };
    if (heads) headsGateBackward(pass.device, { ...io, gated: pass.value(gate), ...heads });
    else gateBackward(pass.device, { ...io, gate: pass.value(gate), dgate: pass.gradient(gate)! });
  },
};

const attention: Behaviour<"attention"> = {
  width: ({ heads }) => heads.heads * heads.headDim,
  isCheap: () => false,
  saved: ({ heads }, rows) => [heads.heads, rows],
  inputGradient: "own",
  forward: (of, pass) => {
    const { cached } = pass;
    const { places, pages, cache } = cached ?? {};
    if (cached?.isOwn)
      cacheWrite(pass.device, { qkv: pass.value(of.from), places: places!, pages: pages!, cache: cache!.kv, ...of.heads });
    attend(of, pass);
  },
  backward: ({ from, to, heads, scale, window, cap }, pass) =>
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
      cap: cap ?? 0,
    }),
};

const swiglu: Behaviour<"swiglu"> = {
  width: (_, width) => width / 2,
  isCheap: () => true,
  saved: null,
  madeOf: ({ from }, pass) => ({ act: "swiglu", gateUp: pass.value(from) }),
  inputGradient: "input",
  forward: ({ from, to }, pass) => {
    if (!pass.roundedOutput(to)) swigluForward(pass.device, { gateUp: pass.value(from), h: pass.value(to) });
  },
  backward: ({ from, to }, pass) => {
    if (pass.roundedGradient(from)) return; // made by the product before it
    swigluBackward(pass.device, { dh: pass.gradient(to)!, gateUp: pass.value(from), dgateUp: pass.gradient(from)! });
  },
};

const squaredRelu: Behaviour<"squaredRelu"> = {
  width: (_, width) => width,
  isCheap: () => true,
  saved: null,
  inputGradient: "input",
  forward: ({ from, to }, pass) => squaredReluForward(pass.device, { x: pass.value(from), y: pass.value(to) }),
  backward: ({ from, to }, pass) =>
    squaredReluBackward(pass.device, { dy: pass.gradient(to)!, x: pass.value(from), dx: pass.gradient(from)! }),
};

const geglu: Behaviour<"geglu"> = {
  width: (_, width) => width / 2,
  isCheap: () => true,
  saved: null,
  madeOf: ({ from }, pass) => ({ act: "geglu", gateUp: pass.value(from) }),
  inputGradient: "input",
  forward: ({ from, to }, pass) => gegluForward(pass.device, { ...gateAndUp(pass.value(from)), h: pass.value(to) }),
  backward: ({ from, to }, pass) => {
    const { gate: dgate, up: dup } = gateAndUp(pass.gradient(from)!);
    gegluBackward(pass.device, { dh: pass.gradient(to)!, ...gateAndUp(pass.value(from)), dgate, dup });
  },
};

function gateAndUp(value: Tensor) {
  const width = value.shape[1]! / 2;
  return { gate: columnsFrom(value, 0, width), up: columnsFrom(value, width, width) };
}

/** The layer's own input has no gradient: it is of the embeddings alone. */
const perLayer: Behaviour<"perLayer"> = {
  width: ({ size }, width) => same(size, width),
  isCheap: () => true,
  saved: null,
  inputGradient: "input",
  forward: ({ from, to }, pass) =>
    gegluForward(pass.device, { gate: pass.value(from), up: pass.ownInput(), h: pass.value(to) }),
  backward: ({ from, to }, pass) =>
    gegluBackward(pass.device, {
      dh: pass.gradient(to)!,
      gate: pass.value(from),
      up: pass.ownInput(),
      ...{ dgate: pass.gradient(from)!, dup: null },
    }),
};

const valueNorm: Behaviour<"valueNorm"> = {
  width: ({ heads, isKey }, width) => {
    const { heads: q, kvHeads, headDim } = heads;
    same((q + (isKey ? 1 : 2) * kvHeads) * headDim, width);
    return (q + 2 * kvHeads) * headDim;
  },
  isCheap: () => false,
  saved: null,
  inputGradient: "own",
  forward: ({ from, to, heads, isKey, eps }, pass) =>
    valueNormForward(pass.device, { x: pass.value(from), y: pass.value(to), isKey, eps, ...heads }),
  backward: ({ from, to, heads, isKey, eps }, pass) =>
    valueNormBackward(pass.device, {
      dy: pass.gradient(to)!,
      x: pass.value(from),
      dx: pass.gradient(from)!,
      ...{ isKey, eps, ...heads },
    }),
};

/** Columns of k and v next to each other. */
const keysOf = (qkv: Tensor, { heads, kvHeads, headDim }: Heads): Tensor =>
  columnsFrom(qkv, heads * headDim, 2 * kvHeads * headDim);

const keepKv: Behaviour<"keepKv"> = {
  width: (_, width) => width,
  isInPlace: () => true,
  isCheap: () => false,
  saved: null,
  inputGradient: "output",
  forward: ({ from, heads }, pass) =>
    copyColumns(pass.device, { from: keysOf(pass.value(from), heads), to: pass.sharedKv(pass.program.layer), adds: false }),
  backward: ({ to, heads }, pass) =>
    copyColumns(pass.device, {
      from: pass.sharedGradient(pass.program.layer),
      to: keysOf(pass.gradient(to)!, heads),
      adds: true,
    }),
};

const sharedKv: Behaviour<"sharedKv"> = {
  width: ({ heads }, width) => same(heads.heads * heads.headDim, width) + 2 * heads.kvHeads * heads.headDim,
  isCheap: () => false,
  saved: null,
  inputGradient: "own",
  forward: ({ from, to, heads, source }, pass) => {
    const [q, out] = [pass.value(from), pass.value(to)];
    copyColumns(pass.device, { from: q, to: columnsFrom(out, 0, q.shape[1]!), adds: false });
    copyColumns(pass.device, { from: pass.sharedKv(source), to: keysOf(out, heads), adds: false });
  },
  backward: ({ from, to, heads, source }, pass) => {
    const [dq, d] = [pass.gradient(from)!, pass.gradient(to)!];
    copyColumns(pass.device, { from: columnsFrom(d, 0, dq.shape[1]!), to: dq, adds: false });
    copyColumns(pass.device, { from: keysOf(d, heads), to: pass.sharedGradient(source), adds: true });
  },
};

const scale: Behaviour<"scale"> = {
  width: (_, width) => width,
  isInPlace: () => true,
  isCheap: () => false,
  saved: null,
  inputGradient: "output",
  forward: ({ from, factor }, pass) => {
    const x = pass.value(from);
    multiplyRows(pass.device, { x, factor: pass.factor(factor), y: x });
  },
  backward: ({ to, factor }, pass) => {
    const d = pass.gradient(to)!;
    multiplyRows(pass.device, { x: d, factor: pass.factor(factor), y: d });
  },
};

const experts: Behaviour<"experts"> = {
  width: ({ up, down }, width) => {
    same(up.in, width);
    return sum(down.out);
  },
  isCheap: () => false,
  saved: null,
  inputGradient: "own",
  forward: expertsPassForward,
  backward: expertsPassBackward,
};

const BEHAVIOURS: { readonly [K in Kind]: Behaviour<K> } = {
  ...{ norm, spans, linears, rope, attention, gate, swiglu, squaredRelu, geglu, experts },
  ...{ valueNorm, keepKv, sharedKv, perLayer, scale },
  ...{ ungated, convolution, deltaRule, gatedNorm, tokenGate, shortConvolution, stateSpace, groupNorm, regroup: regrouped },
  ...{ columns, latentHeads, narrow },
};

/** The compiler knows each behaviour by its own operation; here any of them goes with an operation of its kind. */
export const behaviourOf = ({ op }: Operation) => BEHAVIOURS[op] as unknown as Behaviour<Kind>;

function same(expected: number, found: number): number {
  invariant(expected === found, `an operation of ${expected} features reads ${found}`);
  return found;
}
