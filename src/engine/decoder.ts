// A range of decoder layers of the Llama kind, forward and backward, written by hand over ops.
//
// The frozen weights have no gradient, so the backward pass is: what each adapter learns, and the gradient of the stream. It
// ends at the first layer's input, where nobody is left to learn.

import type { Group, ModelSpec } from "../base/spec.ts";
import { firstRows } from "../device/arena.ts";
import type { Device, Tensor } from "../device/device.ts";
import { attentionBackward, attentionDecode, attentionForward, cacheWrite } from "../ops/attention.ts";
import { embedForward } from "../ops/embed.ts";
import { rmsnormBackward, rmsnormForward } from "../ops/rmsnorm.ts";
import { ropeBackward, ropeForward } from "../ops/rope.ts";
import { swigluBackward, swigluForward } from "../ops/swiglu.ts";
import type { AdapterPool } from "./adapter-pool.ts";
import type { Batch } from "./batch.ts";
import type { Activations, ForwardWork, LayerActivations, Recomputation, Workspace } from "./buffers.ts";
import * as dora from "./dora.ts";
import type { Cached } from "./kv-cache.ts";
import * as lora from "./lora.ts";
import * as vera from "./vera.ts";
import type { LayerWeights, StageLayers, Weights } from "./weights.ts";

export type RopeTables = { readonly cos: Tensor; readonly sin: Tensor };

/** One layer's buffers, cut to the rows of a micro-batch. */
type Cut = Omit<LayerActivations, "s"> & {
  readonly s: Readonly<Record<Group, Tensor>>;
  readonly x: Tensor;
  readonly out: Tensor;
};

type LayerCached = Omit<Cached, "cache"> & { readonly cache: Tensor };

export class Decoder {
  constructor(
    readonly device: Device,
    readonly spec: ModelSpec,
    readonly layerRange: StageLayers,
    readonly weights: Weights,
    readonly pool: AdapterPool,
    readonly rope: RopeTables,
    readonly recomputation: Recomputation,
  ) {}

  /**
   * Runs the layers on a micro-batch; `acts.inputs[0]` holds the input unless this is the first stage. Returns the stream. With `cached`
   * keys and values are kept, and `batch.bounds` are rows of the cache where these are what is seen.
   */
  forward(batch: Batch, acts: Activations, work: ForwardWork, cached: Cached | null = null): Tensor {
    const { device, weights, layerRange } = this;
    this.refresh();
    if (layerRange.first)
      embedForward(device, { ids: batch.ids, table: weights.embedding!, x: firstRows(acts.inputs[0]!, batch.rows) });
    weights.layers.forEach((layer, i) => {
      this.#forwardLayer(
        layer,
        layerRange.from + i,
        batch,
        this.#cut(acts, i, batch.rows),
        work,
        true,
        cached && { ...cached, cache: cached.cache[i]! },
      );
    });
    return firstRows(acts.inputs[weights.layers.length]!, batch.rows);
  }

  /** Computes what follows from parameters that have changed since the last pass. */
  refresh(): void {
    const layers = this.weights.layers.map(({ linears }, i) => [this.layerRange.from + i, linears] as const);
    vera.refresh(this.device, this.pool);
    dora.refresh(this.device, this.pool, layers);
  }

  /**
   * Turns the gradient of the stream in `work.grad` into that of the input, adding to the adapters' gradients on the way. On the
   * first stage the gradient of the embedding is left out.
   */
  backward(batch: Batch, acts: Activations, work: Workspace): void {
    const { weights, layerRange } = this;
    for (let i = weights.layers.length - 1; i >= 0; i--) {
      const cut = this.#cut(acts, i, batch.rows);
      const layer = weights.layers[i]!;
      if (this.recomputation === "full") this.#forwardLayer(layer, layerRange.from + i, batch, cut, work, false);
      this.#backwardLayer(layer, layerRange.from + i, batch, cut, work, !(layerRange.first && i === 0));
    }
  }

  #cut(acts: Activations, i: number, rows: number): Cut {
    const layer = acts.layers[i]!;
    const of = (t: Tensor) => firstRows(t, rows);
    const { s, z } = layer;
    const cut = (t: Tensor | null) => t && of(t);
    return {
      x: of(acts.inputs[i]!),
      out: of(acts.inputs[i + 1]!),
      rstd1: of(layer.rstd1),
      qkv: of(layer.qkv),
      rotated: of(layer.rotated),
      attention: of(layer.attention),
      lse: { ...layer.lse, shape: [this.spec.heads, rows] },
      mid: of(layer.mid),
      rstd2: of(layer.rstd2),
      gateUp: of(layer.gateUp),
      s: { qkv: of(s.qkv), o: of(s.o), gateUp: of(s.gateUp), down: of(s.down) },
      z: { qkv: cut(z.qkv), o: cut(z.o), gateUp: cut(z.gateUp), down: cut(z.down) },
      h1: of(layer.h1),
      h2: of(layer.h2),
      act: of(layer.act),
    };
  }

  #heads() {
    const { heads, kvHeads, headDim } = this.spec;
    return { heads, kvHeads, headDim };
  }

  #attentionScale(layer: number) {
    return { scale: 1 / Math.sqrt(this.spec.headDim), window: this.spec.windows[layer] ?? 0 };
  }

  /** s of a group has as many columns as the group has linears, each of the padded rank. */
  #forwardLayer(
    w: LayerWeights,
    layer: number,
    batch: Batch,
    a: Cut,
    work: ForwardWork,
    output = true,
    cached: LayerCached | null = null,
  ): void {
    const { device, spec, pool } = this;
    const eps = spec.normEps;
    const linear = (group: Group, x: Tensor, y: Tensor, residual: Tensor | null) =>
      lora.forward(
        device,
        pool.site(layer, group),
        batch,
        w.linears[group],
        { x, s: a.s[group], y, residual },
        a.z[group] ?? work.z,
      );

    rmsnormForward(device, { x: a.x, weight: w.inputNorm, y: a.h1, rstd: a.rstd1, eps });
    linear("qkv", a.h1, a.qkv, null);
    const { positions } = batch;
    const norms = { qWeight: w.qNorm, kWeight: w.kNorm, eps };
    ropeForward(device, { qkv: a.qkv, out: a.rotated, positions, ...this.rope, ...norms, ...this.#heads() });
    const { rotated: qkv, attention: out, lse } = a;
    const attention = { qkv, bounds: batch.bounds, out, ...this.#heads(), ...this.#attentionScale(layer) };
    if (cached) cacheWrite(device, { qkv, places: cached.places, cache: cached.cache, ...this.#heads() });
    if (cached?.from === "cache") attentionDecode(device, { ...attention, cache: cached.cache });
    else attentionForward(device, { ...attention, lse });
    linear("o", a.attention, a.mid, a.x);
    rmsnormForward(device, { x: a.mid, weight: w.postNorm, y: a.h2, rstd: a.rstd2, eps });
    linear("gateUp", a.h2, a.gateUp, null);
    swigluForward(device, { gateUp: a.gateUp, h: a.act });
    if (output) linear("down", a.act, a.out, a.mid);
    else this.#downProductOnly(layer, batch, a); // recomputing: the output is not needed, s is
  }

  #downProductOnly(layer: number, batch: Batch, a: Cut): void {
    const site = this.pool.site(layer, "down");
    if (site) lora.down(this.device, site, batch, a.act, a.s.down);
  }

  #backwardLayer(w: LayerWeights, layer: number, batch: Batch, a: Cut, work: Workspace, needInput: boolean): void {
    const { device, spec, pool } = this;
    const { rows } = batch;
    const eps = spec.normEps;
    const of = (t: Tensor) => firstRows(t, rows);
    const grad = of(work.grad);
    const gradH = of(work.gradH);
    const linear = (group: Group, x: Tensor, dy: Tensor, dx: Tensor | null) => {
      const s = a.s[group];
      const ds = { ...work.ds, shape: s.shape };
      lora.backward(
        device,
        pool.site(layer, group),
        batch,
        w.linears[group].weight,
        { x, s, ds, dy, dx },
        {
          kept: a.z[group],
          scratch: work.z,
        },
      );
    };
    // What adapters read is kept, or computed again; full has just run the layer.
    const wanted = (group: Group) => pool.site(layer, group) !== null;
    const again = (group: Group) => this.recomputation === "selective" && wanted(group);

    const gradAct = of(work.gradAct);
    if (again("down")) swigluForward(device, { gateUp: a.gateUp, h: a.act });
    linear("down", a.act, grad, gradAct);
    swigluBackward(device, { dh: gradAct, gateUp: a.gateUp, dgateUp: a.gateUp });
    if (again("gateUp")) rmsnormForward(device, { x: a.mid, weight: w.postNorm, y: a.h2, rstd: a.rstd2, eps });
    linear("gateUp", a.h2, a.gateUp, gradH);
    rmsnormBackward(device, { dy: gradH, x: a.mid, weight: w.postNorm, rstd: a.rstd2, residual: grad, dx: grad });

    const gradAttention = of(work.gradAttention);
    const gradQkv = of(work.gradQkv);
    linear("o", a.attention, grad, gradAttention);
    attentionBackward(device, {
      qkv: a.rotated,
      bounds: batch.bounds,
      out: a.attention,
      lse: a.lse,
      dout: gradAttention,
      delta: { ...work.delta, shape: [spec.heads, rows] },
      dqkv: gradQkv,
      ...this.#heads(),
      ...this.#attentionScale(layer),
    });
    const norms = { qWeight: w.qNorm, kWeight: w.kNorm, eps };
    const qkv = spec.qkNorm ? a.qkv : null;
    ropeBackward(device, { dqkv: gradQkv, qkv, positions: batch.positions, ...this.rope, ...norms, ...this.#heads() });
    if (this.recomputation !== "none" && wanted("qkv"))
      rmsnormForward(device, { x: a.x, weight: w.inputNorm, y: a.h1, rstd: a.rstd1, eps });
    linear("qkv", a.h1, gradQkv, needInput ? gradH : null);
    if (needInput) rmsnormBackward(device, { dy: gradH, x: a.x, weight: w.inputNorm, rstd: a.rstd1, residual: grad, dx: grad });
  }
}
