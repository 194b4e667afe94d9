// What families with layers of Mamba 2 share: the layer's operations, and how heads are read.

import type { ModelSpec } from "../base/spec.ts";
import { counted } from "../base/units.ts";
import type { ConfigReader } from "./config.ts";
import type { MambaHeads, MambaLimits, Operation } from "./definition.ts";

export const TAPS = 4;

/** Refuses heads that do not share groups equally. */
export function checkHeads(config: ConfigReader, { heads, groups }: MambaHeads, key: string): void {
  if (heads % groups !== 0)
    throw config.wrong(key, `is ${groups}, which does not divide the ${counted(heads, "head")} of Mamba`);
}

/** What a number is that JSON has no word for: as transformers 5 writes it. */
const INFINITY = '{"__float__":"Infinity"}';

/** Limits of steps, `[least, most]`; left out: all steps are. */
export function readLimits(config: ConfigReader, key: string): MambaLimits {
  const given = config.source[key] ?? [0, null];
  const wrong = () => config.wrong(key, `is ${JSON.stringify(given)}, expected two numbers, the lower first`);
  if (!Array.isArray(given) || given.length !== 2) throw wrong();
  const [least, most] = given.map((limit) => (JSON.stringify(limit) === INFINITY ? null : limit)) as readonly unknown[];
  const isNumber = (value: unknown) => typeof value === "number" && value >= 0;
  if (!isNumber(least) || !(most === null || (isNumber(most) && (most as number) >= (least as number)))) throw wrong();
  return { least: least as number, most: most as number | null };
}

/** Features of a layer: of its heads, and of what the convolution mixes. */
function widthsOf({ heads, headDim, groups, stateDim }: MambaHeads) {
  const inner = heads * headDim;
  return { inner, mixed: inner + 2 * groups * stateDim };
}

const LINEARS = { op: "linears", residual: null } as const;

/** From the normed stream "h1" to `to`, the stream "x" with what the layer adds. */
export function mamba(
  spec: ModelSpec,
  path: string,
  { groups: [into, out], to }: { readonly groups: readonly [string, string]; readonly to: string },
): readonly Operation[] {
  const { heads, limits, convolutionBias, bias, normEps: eps } = spec.mamba!;
  const { hidden } = spec;
  const { inner, mixed } = widthsOf(heads);
  const width = inner + mixed + heads.heads;
  return [
    { ...LINEARS, from: "h1", to: "projected", group: into, in: hidden, out: [width], bias },
    {
      ...{ op: "convolution", from: "projected", to: "mixed", weight: `${path}.conv1d.weight` },
      ...{ bias: convolutionBias ? `${path}.conv1d.bias` : null, first: inner, channels: mixed, taps: TAPS },
    },
    {
      ...{ op: "stateSpace", from: "mixed", to: "read", heads, steps: "projected", limits },
      ...{ decay: `${path}.A_log`, bias: `${path}.dt_bias`, skip: `${path}.D` },
    },
    {
      ...{ op: "groupNorm", from: "read", to: "gated", gate: "projected", weight: `${path}.norm` },
      ...{ size: inner, groups: heads.groups, eps },
    },
    { ...LINEARS, from: "gated", to, group: out, in: inner, out: [hidden], bias, residual: "x" },
  ];
}
