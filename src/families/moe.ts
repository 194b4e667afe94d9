// What families with experts share: their keys in config.json, and the layer's MLP as a mixture.

import type { ModelSpec, Router } from "../base/spec.ts";
import type { ConfigReader } from "./config.ts";
import type { ExpertActivation, ExpertProduct, Op, Operation } from "./definition.ts";

export type ExpertsSpec = NonNullable<ModelSpec["experts"]>;

/** The most experts that kernels choose from (ffi/native/route.c). */
const MOST_EXPERTS = 1024;

/** Softmax over all, and the weights of the chosen made one. */
export const NORMALISED: Router = { score: "softmax", normalise: true, eps: 0, groups: 1, keptGroups: 1, scaling: 1 };

/** `num_experts`, which transformers also calls num_local_experts, and `num_experts_per_tok`. */
export function readCounts(config: ConfigReader, fallback: { readonly count: number; readonly perToken: number }) {
  const { source } = config;
  const [one, other] = [source["num_local_experts"], source["num_experts"]];
  if (one != null && other != null && one !== other)
    throw config.wrong("num_experts", `is ${JSON.stringify(other)}, and num_local_experts is ${JSON.stringify(one)}`);
  const count = config.count(other == null ? "num_local_experts" : "num_experts", fallback.count);
  if (count > MOST_EXPERTS) throw config.wrong("num_experts", `is ${count}, expected ${MOST_EXPERTS} or fewer`);
  const perToken = config.count("num_experts_per_tok", fallback.perToken);
  if (perToken > count) throw config.wrong("num_experts_per_tok", `is ${perToken}, more than there are experts, ${count}`);
  return { count, perToken };
}

const SILU: ExpertActivation = { interleaved: false, clamp: null };

/** Softmax over all, SwiGLU as it is, no experts that all tokens pass. */
export const PLAIN_EXPERTS = {
  router: NORMALISED,
  shared: null,
  clamp: null,
  files: "each",
  isMxfp4: false,
} as const satisfies Partial<ExpertsSpec>;

type Layout = Pick<Op<"experts">, "routerPath"> & {
  /** Paths within a layer, as in files. */
  readonly up: Omit<ExpertProduct, "in" | "out">;
  readonly down: Omit<ExpertProduct, "in" | "out">;
};

/** The linears of an MLP of `width` features that all tokens pass, from "h2". */
export const sharedMlp = (
  hidden: number,
  width: number,
  [up, down]: readonly [up: string, down: string],
  { to, residual }: { readonly to: string; readonly residual: string | null },
): readonly Operation[] => [
  {
    ...{ op: "linears", from: "h2", to: "sharedGateUp", group: up },
    ...{ in: hidden, out: [width, width], bias: false, residual: null },
  },
  { op: "swiglu", from: "sharedGateUp", to: "sharedAct" },
  { op: "linears", from: "sharedAct", to, group: down, in: width, out: [hidden], bias: false, residual },
];

/** A layer whose MLP's three last operations, from "h2" to "out" with the residual "mid", are a mixture instead. */
export function mixed(
  operations: readonly Operation[],
  { hidden, experts }: Pick<ModelSpec, "hidden" | "experts">,
  { routerPath, up, down }: Layout,
  more: Partial<Op<"experts">> = {},
): readonly Operation[] {
  const { count, perToken, intermediate, router } = experts!;
  const halves = up.linears.length === 1 ? [2 * intermediate] : [intermediate, intermediate];
  const mixture: Operation = {
    ...{ op: "experts", from: "h2", to: "out", residual: "mid", count, perToken, router },
    ...{ routerPath, routerBias: false, correction: null, activation: SILU },
    up: { ...up, in: hidden, out: halves },
    down: { ...down, in: intermediate, out: [hidden] },
    ...more,
  };
  return [...operations.slice(0, -3), mixture];
}
