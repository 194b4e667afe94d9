// A family of base models: how its config.json is read, which tensors its files have, and its decoder layer as a list of
// operations. Each has a file of its own, and all are in registry.ts.

import type { ModelSpec, Router } from "../base/spec.ts";
import type { ConfigReader } from "./config.ts";
import type { GgufForm } from "./gguf.ts";

/** Query heads, heads of keys and values, and the size of each. */
export type Heads = { readonly heads: number; readonly kvHeads: number; readonly headDim: number };

export type ExpertFiles = NonNullable<ModelSpec["experts"]>["files"];

/** Heads of linear attention. */
export type DeltaHeads = NonNullable<ModelSpec["delta"]>["heads"];

/** Heads of Mamba 2, and what limits their steps. */
export type MambaHeads = NonNullable<ModelSpec["mamba"]>["heads"];
export type MambaLimits = NonNullable<ModelSpec["mamba"]>["limits"];

/** Heads of attention over latents: how many, what each has, and how wide attention takes them. */
export type LatentHeads = NonNullable<ModelSpec["latent"]>["heads"] & { readonly heads: number; readonly headDim: number };

/** What is added to the weights of a norm; they are held with it, in f32. */
export type NormOffset = 0 | 1;
/** Weights of norms, by their path within the layer; null for none. */
export type HeadNorms = { readonly q: string | null; readonly k: string | null; readonly offset?: NormOffset };

/**
 * One of the two products of experts: from `in` features to those of its linears, the group's, next to each other. `files`:
 * each expert's linears are tensors [out, in] of their own, `${path}.${expert}.${linear}.weight`; or one tensor
 * `${path}.${linear}` has those of all, `rows` [E, out, in] or `columns` [E, in, out]. Biases are `${path}.${linear}_bias`
 * [E, out].
 */
export type ExpertProduct = {
  readonly group: string;
  readonly path: string;
  readonly linears: readonly string[];
  readonly files: ExpertFiles;
  readonly in: number;
  readonly out: readonly number[];
  readonly bias: boolean;
};

/**
 * silu(gate) up; with a clamp, of g = min(gate, limit) and u = up within -limit and limit, (u + 1) g sigmoid(alpha g). Gate is
 * the first half of the features, or, `interleaved`, every other. `squares`: the square of what is above 0, without a gate.
 */
export type ExpertActivation = {
  readonly squares?: true;
  readonly interleaved: boolean;
  readonly clamp: { readonly limit: number; readonly alpha: number } | null;
};

/** From one named value to another. */
type Step<K extends string, T = object> = { readonly op: K; readonly from: string; readonly to: string } & Readonly<T>;

/**
 * A step of a decoder layer. A layer begins with the value "x", the residual stream, and its last operation computes the next
 * layer's. Weights are named by their path within the layer.
 */
export type Operation =
  /**
   * RMSNorm of a value of `size` features, times its weight, none with null, or, with an offset, 1 + its weight. `residual` is
   * a value to add to the result.
   */
  | Step<"norm", { weight: string | null; size: number; eps: number; offset?: NormOffset; residual?: string }>
  /**
   * Linears that read one input of `in` features, as one product; their outputs, of `out` features, lie next to each other.
   * `residual` is a value to add to them.
   */
  | Step<"linears", { group: string; in: number; out: readonly number[]; bias: boolean; residual: string | null }>
  /**
   * Rotary embedding of q and k by the rope `table` of the spec, null for none; `norms`: RMSNorms of each head of q and of k
   * before it.
   */
  | Step<"rope", { heads: Heads; table: number | null; norms: HeadNorms | null; eps: number }>
  /**
   * Causal attention; `window`: the number of latest tokens that a token sees, itself included, null for all; scores s become
   * cap tanh(s / cap) where there is a cap; `sinks`: the path of another logit for each head, without a value.
   */
  | Step<"attention", { heads: Heads; scale: number; window: number | null; cap?: number | null; sinks?: string | null }>
  /**
   * The sum over `perToken` of `count` experts, chosen and weighted by the router, a linear (at this path) with a bias or none;
   * `correction`: the path of a number for each expert that is added for choosing alone. `residual` is a value to add.
   */
  | Step<
      "experts",
      {
        count: number;
        perToken: number;
        router: Router;
        routerPath: string;
        routerBias: boolean;
        correction: string | null;
        up: ExpertProduct;
        activation: ExpertActivation;
        down: ExpertProduct;
        residual: string | null;
      }
    >
  /** RMSNorms of the first columns of a value and of those after them, of these sizes; the others stay as they are. */
  | Step<"spans", { weights: readonly [string, string]; sizes: readonly [number, number]; eps: number }>
  /** Columns of a value, of which other operations read others. */
  | Step<"columns", { first: number; size: number }>
  /**
   * To q, k and v as attention reads them, from what heads have of the latent of keys and values: of each its plain features of
   * k, then v. `queries` is a value with, of each head, its plain and its rotated features; the last columns of `shared` are
   * the rotated features of k that all heads share (ops/latent.ts).
   */
  | Step<"latentHeads", { queries: string; shared: string; heads: LatentHeads }>
  /** The first `size` of the `width` features of each of `heads` heads. */
  | Step<"narrow", { heads: number; width: number; size: number }>
  /** A value times the sigmoid of another of its size; with `heads`, of the gates that follow each head of q in another. */
  | Step<"gate", { gate: string; heads?: Heads }>
  /**
   * A value times the sigmoid of a number of each token, the product of another value of its size with a vector; `residual` is
   * a value to add.
   */
  | Step<"tokenGate", { gate: string; weight: string; size: number; residual: string }>
  /** Features that lie by `groups`, each of four parts of these widths (0 for none), sorted by part. */
  | Step<"regroup", { groups: number; parts: readonly [number, number, number, number] }>
  /** q, k and v, of a value in which a gate follows each head of q. */
  | Step<"ungated", { heads: Heads }>
  /**
   * silu of the causal convolution of each of `channels` features, from the column `first` on, by its own `taps` weights, with
   * a bias of each where there is one.
   */
  | Step<"convolution", { weight: string; bias: string | null; first: number; channels: number; taps: number }>
  /**
   * Of a value of three parts of `channels` features: the first times the third, convolved causally, each feature by its own
   * `taps` weights, times the second.
   */
  | Step<"shortConvolution", { weight: string; channels: number; taps: number }>
  /** The gated delta rule of q, k and v; `gates` is a value with b and a of each head, `decay` and `bias` are vectors. */
  | Step<"deltaRule", { heads: DeltaHeads; gates: string; decay: string; bias: string }>
  /**
   * The recurrence of Mamba 2 of a value of x, B and C; the last features of `steps`, a value, are dt of each head, `decay`,
   * `bias` and `skip` are vectors, and steps are within `limits` (ops/statespace.ts).
   */
  | Step<"stateSpace", { heads: MambaHeads; steps: string; decay: string; bias: string; skip: string; limits: MambaLimits }>
  /**
   * RMSNorm of each of `groups` equal parts of a value times the silu of the first features of another, times a weight of each
   * of its `size` features.
   */
  | Step<"groupNorm", { gate: string; weight: string; size: number; groups: number; eps: number }>
  /** RMSNorm of each head of `size` features, times the silu of the last features of another value. */
  | Step<"gatedNorm", { gate: string; weight: string; size: number; eps: number }>
  /** The square of what is above 0. */
  | Step<"squaredRelu">
  /** silu(gate) * up of a value that holds gate and up next to each other. */
  | Step<"swiglu">
  /** The same with gelu, by its tanh approximation. */
  | Step<"geglu">
  /**
   * To q, k and v, where each head of v is normalised without a weight; `isKey`: from q and k alone, of which k is v, too.
   */
  | Step<"valueNorm", { heads: Heads; isKey: boolean; eps: number }>
  /** Keeps k and v for later layers, and adds the gradients that come from these. */
  | Step<"keepKv", { heads: Heads }>
  /** To q, k and v, from q and what layer `source` kept. */
  | Step<"sharedKv", { heads: Heads; source: number }>
  /** gelu(gate) * the layer's own input, of `size` features; the model has `layers` of them. */
  | Step<"perLayer", { size: number; layers: number }>
  /** Times a number of the model's files, by its path within the layer. */
  | Step<"scale", { factor: string }>;

/** One kind of operation. */
export type Op<K extends Operation["op"]> = Extract<Operation, { readonly op: K }>;

export const isLinears = (operation: Operation): operation is Op<"linears"> => operation.op === "linears";

export const isExperts = (operation: Operation): operation is Op<"experts"> => operation.op === "experts";

/** Paths within a layer, as PEFT names them: the last component is what an adapter targets. */
export type Groups = Readonly<Record<string, readonly string[]>>;

export type Definition = {
  /** The names in config.json's `architectures` that it stands for. */
  readonly architectures: readonly string[];
  /** Where several families have an architecture: whether a config is this one's, unless it is an earlier one's. */
  readonly isFor?: (config: ConfigReader) => boolean;
  /**
   * For docs/models.md: released models, the folder of tests/golden that compares the family with transformers and PEFT, null
   * where there is none, and when that was done.
   */
  readonly about: { readonly models: string; readonly golden: string | null; readonly on: string };
  /** Reads config.json; defaults are those of transformers' configuration class. Refuses what the layer does not compute. */
  readonly read: (config: ConfigReader) => Omit<ModelSpec, "family">;
  /** The linears that adapters may target. A group has the same linears in all families that have it. */
  readonly groups: Groups;
  readonly layer: (spec: ModelSpec, layer: number) => readonly Operation[];
  /** Names in the files; layers lie in `${layers}.${index}`. */
  readonly tensors: {
    readonly embedding: string;
    readonly layers: string;
    readonly norm: string;
    readonly head: string;
    /** Of the layers' own inputs, in families that have them: an embedding, a projection of the stream's, and its norm. */
    readonly own?: { readonly table: string; readonly projection: string; readonly norm: string };
  };
  /** How llama.cpp has it; left out: no GGUF is written of it. */
  readonly gguf?: GgufForm;
  /** Linears, by their paths within a layer, that PEFT refuses adapters on in models of this type. */
  readonly unadapted?: readonly string[];
  /** Of the norm after the last layer. */
  readonly finalNormOffset?: NormOffset;
  /** How files of some versions have the weights of experts: their shapes tell (files/modelfacts.ts). */
  readonly otherFiles?: ExpertFiles;
  /** embeddingScale is multiplied by as it is; left out: rounded to the type of the weights first. */
  readonly isScaleExact?: true;
  /**
   * The tokenizer's class for models of this `model_type`, as transformers' AutoTokenizer chooses it: `class` where
   * tokenizer_config.json names none, or whatever it names if `isFixed`. Null takes tokenizer.json unchanged.
   */
  readonly tokenizer: { readonly class: string | null; readonly isFixed: boolean };
};
