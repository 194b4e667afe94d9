// Rows of the history from reports of `mlora bench` and of the peer.

import * as v from "valibot";
import { median, type Row, rangeOf } from "./rows.ts";

const MIB = 2 ** 20;

const amount = v.pipe(v.number(), v.finite(), v.minValue(0));
const speed = v.pipe(amount, v.gtValue(0));

const report = v.object({
  ...{ shape: v.string(), device: v.string(), compute: v.string(), recomputation: v.string() },
  ...{ adapters: amount, rows: amount, length: amount, dropout: amount, ranks: v.array(amount) },
  ...{ ms: speed, device_bytes: amount, peak_rss_bytes: amount },
  targets: v.array(v.string()),
  stages: v.array(v.object({ layers: amount })),
});
export type Report = v.InferOutput<typeof report>;

const peerReport = v.object({ tokens_per_s: speed, torch: v.string(), transformers: v.string(), peft: v.string() });
export type PeerReport = v.InferOutput<typeof peerReport>;

/** Of one setting, a report a round. */
export type Measured = {
  readonly own: readonly Report[];
  readonly against: readonly Report[];
  readonly peer: readonly PeerReport[];
};

/** Throws a ValiError. */
export const parseReport = (found: unknown): Report => v.parse(report, found);

export function settingsOf(of: Report, said: readonly string[] = []): string {
  const { adapters, rows, length, ranks, dropout, targets, compute, recomputation, stages } = of;
  return [
    `${adapters} x ${rows} x ${length}`,
    `rank ${[...new Set(ranks)].join(" ")}`,
    targets.map((name) => name.replace("_proj", "")).join(" "),
    `dropout ${dropout}`,
    compute,
    recomputation,
    `layers ${stages.map(({ layers }) => layers).join(" ")}`,
    ...said,
  ].join(", ");
}

/** Tokens/s; unlike a report's own not rounded to a whole number. */
const speedOf = ({ adapters, rows, length, ms }: Report): number => (1000 * adapters * rows * length) / ms;

type About = Pick<Row, "date" | "commit" | "against" | "versions"> & { readonly said?: readonly string[] };

/** The row of one setting; each list is empty or has as many rounds as the first. */
export function rowOf({ own, against, peer }: Measured, about: About): Row {
  const speeds = own.map(speedOf);
  const largest = (key: "device_bytes" | "peak_rss_bytes") => Math.round(Math.max(...own.map((of) => of[key])) / MIB);
  const peers = peer.map((of) => of.tokens_per_s);
  const ratios = (others: readonly number[]) => others.map((other, i) => speeds[i]! / other);
  const [toBuild, toPeer] = [ratios(against.map(speedOf)), ratios(peers)];
  const short = (values: readonly number[]) => (values.length === 0 ? null : Number(median(values).toFixed(4)));
  const range = (values: readonly number[], digits: number) => (values.length === 0 ? "" : rangeOf(values, digits));
  const [{ torch, transformers, peft } = { torch: "", transformers: "", peft: "" }] = peer;
  return {
    date: about.date,
    commit: about.commit,
    machine: own[0]!.device,
    shape: own[0]!.shape,
    settings: settingsOf(own[0]!, about.said),
    rounds: own.length,
    tokens_per_s: Math.round(median(speeds)),
    range: rangeOf(speeds),
    device_mib: largest("device_bytes"),
    rss_mib: largest("peak_rss_bytes"),
    against: toBuild.length === 0 ? "" : about.against,
    ratio: short(toBuild),
    ratio_range: range(toBuild, 4),
    versions: about.versions,
    peer: toPeer.length === 0 ? "" : `PEFT ${peft}, transformers ${transformers}, torch ${torch}`,
    peer_tokens_per_s: toPeer.length === 0 ? null : Math.round(median(peers)),
    peer_ratio: short(toPeer),
    peer_range: range(toPeer, 4),
  };
}

const text = v.pipe(v.string(), v.maxLength(200));
const machine = v.object({
  machine: v.object({ system: text, python: text, driver: v.nullable(text) }),
  versions: v.object({ mlora: text, against: v.optional(text) }),
});
const measurement = v.variant("program", [
  v.object({ case: v.string(), round: v.number(), program: v.picklist(["mlora", "against"]), report }),
  v.object({ case: v.string(), round: v.number(), program: v.literal("peer"), report: peerReport }),
]);

/**
 * A row for each case of what rounds.py has printed; `as` says what the build before is, else its version does. Throws an Error
 * that names the line, or the case that has gaps.
 */
export function rowsOf(lines: string, about: Pick<Row, "date" | "commit">, as?: string): Row[] {
  const [head, ...rest] = lines.trimEnd().split("\n");
  const checked = <T extends v.GenericSchema>(schema: T, line: string, number: number): v.InferOutput<T> => {
    try {
      return v.parse(schema, JSON.parse(line));
    } catch (error) {
      throw new Error(`line ${number} of the measurement: ${error instanceof Error ? error.message : error}`);
    }
  };
  const { machine: where, versions } = checked(machine, head ?? "", 1);
  const found = rest.map((line, i) => checked(measurement, line, i + 2));
  if (found.length === 0) throw new Error("the measurement has no rounds");
  const said = [`mlora ${versions.mlora}`, ...(where.driver === null ? [] : [`driver ${where.driver}`]), where.system];
  return [...Map.groupBy(found, (of) => of.case)].map(([name, of]) => {
    const rounds = <T>(program: string) =>
      of
        .filter((one) => one.program === program)
        .toSorted((a, b) => a.round - b.round)
        .map((one) => one.report as T);
    const measured: Measured = {
      own: rounds<Report>("mlora"),
      against: rounds<Report>("against"),
      peer: rounds<PeerReport>("peer"),
    };
    for (const other of [measured.against, measured.peer])
      if (measured.own.length === 0 || (other.length > 0 && other.length !== measured.own.length))
        throw new Error(`${name}: the rounds of its programs are not the same number`);
    return rowOf(measured, { ...about, against: as ?? `mlora ${versions.against ?? ""}`, versions: said.join(", ") });
  });
}
