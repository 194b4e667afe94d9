// Which kind of link a pair of stages gets: a function of what both say of themselves, so that both come to the same.

import * as v from "valibot";
import { RequestError } from "../base/errors.ts";
import { natural, type Output } from "../base/schema.ts";
import { LINK_KINDS, type LinkKind, slotsSchema } from "./link.ts";

/** What an end announces of itself. */
export const offerSchema = v.strictObject({
  /** The kind that was asked for there. */
  wanted: v.picklist(["auto", ...LINK_KINDS]),
  /** Processes with the same text share memory: the machine as it was booted, the user, the space of process numbers. */
  host: v.string(),
  /** Element type of activations. */
  compute: v.picklist(["f32", "bf16"]),
  /** Its GPU, and those whose memory it can copy to; null on a cpu. */
  gpu: v.nullable(v.strictObject({ uuid: v.string(), reaches: v.array(v.string()) })),
  /** NCCL's version, as 2.28.3 is 22803; null where there is none, with the reason. */
  nccl: v.nullable(natural),
  ncclMissing: v.nullable(v.string()),
  /** Whether it has a connection to the bus that can carry tensors. */
  bus: v.boolean(),
  capacity: slotsSchema,
});
export type Offer = Output<typeof offerSchema>;

/** The kinds that should work, best first, and what speaks for each; and what speaks against the others. */
export type Choice = {
  readonly candidates: readonly { readonly kind: LinkKind; readonly why: string }[];
  readonly against: readonly { readonly kind: LinkKind; readonly why: string }[];
};

type Verdict = { readonly works: boolean; readonly why: string };
const yes = (why: string): Verdict => ({ works: true, why });
const no = (why: string): Verdict => ({ works: false, why });

/**
 * The choice for two ends: the same for both, whichever comes first. Throws a RequestError, `link.kind`, where a kind was asked
 * for that cannot work, or two different ones; `link.compute` where the ends compute in different types.
 */
export function choose(a: Offer, b: Offer): Choice {
  if (a.compute !== b.compute)
    throw new RequestError(
      "link.compute",
      `one stage computes in ${a.compute}, its neighbour in ${b.compute}: activations cannot go between them`,
      "give all stages devices of one kind, or set precision",
    );
  const wanted = [a.wanted, b.wanted].filter((kind) => kind !== "auto");
  if (wanted.length === 2 && wanted[0] !== wanted[1])
    throw new RequestError("link.kind", `one stage is set to use the link '${wanted[0]}', its neighbour '${wanted[1]}'`);
  const verdicts = LINK_KINDS.map((kind) => ({ kind, ...VERDICTS[kind](a, b) }));
  const candidates = verdicts.filter(({ works }) => works).map(({ kind, why }) => ({ kind, why }));
  const against = verdicts.filter(({ works }) => !works).map(({ kind, why }) => ({ kind, why }));
  const [forced] = wanted;
  if (forced === undefined && candidates.length > 0) return { candidates, against };
  const found = candidates.find(({ kind }) => kind === forced);
  if (found) return { candidates: [{ ...found, why: "it was asked for" }], against: [] };
  const reasons = against.filter(({ kind }) => forced === undefined || kind === forced);
  throw new RequestError(
    "link.kind",
    `${forced === undefined ? "no link between two stages works" : `the link '${forced}' cannot work`}: ${describe(reasons)}`,
    forced === undefined ? undefined : 'set link to "auto"',
  );
}

/** "ipc: one of them has no GPU; nccl: ..." */
export const describe = (reasons: Choice["against"]): string => reasons.map(({ kind, why }) => `${kind}: ${why}`).join("; ");

const VERDICTS: Readonly<Record<LinkKind, (a: Offer, b: Offer) => Verdict>> = {
  local: () => no("the stages are processes of their own"),
  ipc(a, b) {
    if (!a.gpu || !b.gpu) return no(withoutGpu(a, b));
    if (a.host !== b.host) return no(ELSEWHERE);
    if (a.gpu.uuid === b.gpu.uuid) return yes("both use one GPU");
    const reach = a.gpu.reaches.includes(b.gpu.uuid) && b.gpu.reaches.includes(a.gpu.uuid);
    return reach ? yes("their GPUs reach each other's memory") : no("their GPUs cannot reach each other's memory");
  },
  nccl(a, b) {
    if (!a.gpu || !b.gpu) return no(withoutGpu(a, b));
    if (a.gpu.uuid === b.gpu.uuid) return no("both use one GPU");
    if (a.nccl === null || b.nccl === null) return no(a.ncclMissing ?? b.ncclMissing ?? "NCCL is missing");
    if (a.nccl !== b.nccl) return no(`NCCL ${versionOf(a.nccl)} and ${versionOf(b.nccl)} do not go together`);
    const open = a.host === b.host ? "" : ", and it does not encrypt what it carries between them";
    return yes(`both have NCCL ${versionOf(a.nccl)}${open}`);
  },
  shm: (a, b) => (a.host === b.host ? yes("both run on one machine") : no(ELSEWHERE)),
  nats: (a, b) => (a.bus && b.bus ? yes("both are on the bus") : no("there is no bus between them")),
};

const ELSEWHERE = "they are on different machines, users or containers";
const withoutGpu = (a: Offer, b: Offer): string => (a.gpu || b.gpu ? "one of them has no GPU" : "they have no GPUs");

/** 22803 is 2.28.3. */
const versionOf = (code: number): string => `${Math.floor(code / 10_000)}.${Math.floor((code % 10_000) / 100)}.${code % 100}`;
