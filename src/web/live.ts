// Parts of what a page shows that are alike for a run and for a server: rows by their tokens, spans, memory.

import type { Plan } from "../plan/plan.ts";
import type { LatestRows } from "../session/control/controls.ts";
import type { TextModel } from "../session/generation/text-model.ts";
import { runsOfRow } from "../session/preparation/data-description.ts";
import type { LiveSpan } from "../session/tracing/live-spans.ts";
import type { RowsAnswer, SpansAnswer, StageFacts } from "./wire.ts";

/** Sequences that are shown of a micro-batch, and tokens of each. */
const [MOST_SEQUENCES, MOST_TOKENS] = [8, 2048];
/** Spans that are sent of each stage: more than a screen has room for. */
const MOST_SPANS = 1500;

export function rowsAnswer(latest: LatestRows | null, { decode }: Pick<TextModel, "decode">): RowsAnswer {
  if (latest === null) return null;
  const sequences = latest.rows.flatMap((row) => runsOfRow(row, decode, MOST_TOKENS)).slice(0, MOST_SEQUENCES);
  const rows = sequences.map((runs) => runs.map(({ role, text }) => ({ isLearned: role === "learned", text })));
  return { step: latest.step, rows };
}

/** `labelOf`: what an adapter is called for whoever asks; null where it is another's. */
export function spansAnswer(stages: readonly (readonly LiveSpan[])[], labelOf: (name: string) => string | null): SpansAnswer {
  const names: string[] = [];
  const at = new Map<string, number>();
  const indexOf = (name: string): number => {
    const label = labelOf(name) ?? "another key's";
    const known = at.get(label);
    if (known !== undefined) return known;
    at.set(label, names.length);
    return names.push(label) - 1;
  };
  const placed = stages.map((spans) =>
    spans.slice(-MOST_SPANS).map(({ kind, start, end, adapters }) => {
      return { kind, start: tenth(start), end: tenth(end), adapters: [...new Set(adapters.map(indexOf))] };
    }),
  );
  return { names, stages: placed };
}

const tenth = (ms: number): number => Math.round(10 * ms) / 10;

export const stageFacts = ({ stages }: Plan): StageFacts[] =>
  stages.map(({ layerRange: { from, to }, memory, device }, stage) => ({
    name: `stage ${stage}: layers ${from} to ${to - 1} on ${device.name}${device.host && ` (${device.host})`}`,
    memory: { ...memory },
    free: Number.isFinite(device.freeBytes) ? device.freeBytes : null,
  }));
