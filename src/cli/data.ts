// `mlora data RECIPE [ADAPTER]`: an adapter's rows as they will be trained, without training.

import { basename } from "node:path";
import { sum } from "../base/shape.ts";
import { jsonText, visible, writeStdout } from "../base/terminal.ts";
import { count, counted, percent, shortPath } from "../base/units.ts";
import { loadRecipe } from "../recipe/load.ts";
import {
  type DataDescription,
  describeData,
  noticeText,
  type RowDescription,
  type SequenceDescription,
} from "../session/preparation/data-description.ts";
import { drawHistogram } from "./draw/histogram.ts";
import { screenOf } from "./draw/screen.ts";
import { type Screen, wrapped } from "./draw/terminal.ts";
import { drawRuns, legend } from "./draw/tokens.ts";
import { wholeNumber } from "./flags.ts";
import { right, table } from "./table.ts";

export type DataFlags = {
  readonly row?: unknown;
  readonly eval?: boolean;
  readonly ids?: boolean;
  readonly json?: boolean;
};

export async function data(recipePath: string, adapter: string | undefined, flags: DataFlags): Promise<void> {
  const { ids = false, json = false, eval: isEval = false } = flags;
  const row = flags.row === undefined ? null : wholeNumber("row", flags.row, 1);
  const query = { adapter: adapter === undefined ? null : `${adapter}`, row, isEval };
  const described = await describeData(loadRecipe(recipePath), query);
  const screen = screenOf(process.stdout);
  const text = json
    ? jsonText(
        described.map(({ adapter: { name }, counts, rows }) => ({ adapter: name, ...counts, rows })),
        2,
      )
    : described
        .flatMap((of, i) => [
          ...(i > 0 ? [""] : []),
          ...summaryLines(of, screen),
          ...of.rows.flatMap((one, n) => ["", ...rowLines(one, row ?? n + 1, ids ? of.decode : null, screen)]),
          "",
          `  ${legend(screen.colour)}`,
        ])
        .join("\n");
  writeStdout(`${text}\n`, { painted: !json && screen.colour });
}

function summaryLines({ adapter, counts }: DataDescription, screen: Screen): string[] {
  if (counts === null) return [`${adapter.name}:`];
  const { lengths } = counts;
  const files = adapter.train.map((file) => basename(file)).join(", ");
  const heldOut = counts.eval_rows === 0 ? "" : `, ${count(counts.eval_rows)} held out`;
  return [
    `${adapter.name}: ${counted(counts.train_rows, "row")} of ${visible(files)}${heldOut}`,
    `  tokens   ${count(counts.tokens)}, ${count(counts.learned_tokens)} of them learned (${percent(counts.learned_tokens / counts.tokens)})`,
    `  lengths  ${count(lengths.shortest)} to ${count(lengths.longest)}, median ${count(lengths.median)}, 95 % at most ${count(lengths.p95)}; max_length ${count(adapter.maxLength)}`,
    ...drawHistogram(lengths.bins, screen.width - 11).map((line) => `           ${line}`),
    `  cut      ${counted(counts.truncated, "row")} to max_length`,
    `  dropped  ${counted(counts.dropped, "row")}`,
    ...counts.notices
      .filter(({ kind }) => kind !== "cut")
      .flatMap((notice) => wrapped(visible(noticeText(notice)), screen.width - 2).map((line) => `  ${line}`)),
  ];
}

/** With `decode` a line for each token, else the row's text. */
function rowLines(row: RowDescription, n: number, decode: DataDescription["decode"] | null, { colour }: Screen): string[] {
  const label = row.label === undefined ? "" : `, label ${row.label}`;
  if (row.fault !== null) return [`  row ${n}, ${visible(shortPath(row.place))}: ${visible(row.fault)}`];
  const notices = row.notices.map((notice) => `    ${visible(noticeText(notice))}`);
  const lines = row.sequences.flatMap((sequence) => {
    const { name, ids: all, weights, kept } = sequence;
    const learned = sum(weights.slice(0, kept));
    const cut = kept < all.length ? `, ${count(all.length - kept)} cut off` : "";
    const name_ = row.sequences.length > 1 ? ` ${name}` : "";
    const dropped = row.dropped ? "; dropped" : "";
    const head = `  row ${n}${name_}, ${visible(shortPath(row.place))}: ${counted(all.length, "token")}, ${count(learned)} learned${cut}${label}${dropped}`;
    return [head, ...(decode ? idLines(sequence, decode) : drawRuns(sequence.text, colour))];
  });
  return [...lines, ...notices];
}

/** A line for each token: its place, id, weight in the loss, and text. */
function idLines({ ids, weights, kept }: SequenceDescription, decode: DataDescription["decode"]): string[] {
  return table(
    [
      { title: "at", of: (i: number) => `${i}`, ...right },
      { title: "id", of: (i) => `${ids[i]}`, ...right },
      { title: "weight", of: (i) => (i >= kept ? "cut" : `${weights[i]}`), ...right },
      { title: "text", of: (i) => jsonText(decode([ids[i]!])) },
    ],
    [...ids.keys()],
  );
}
