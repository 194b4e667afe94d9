// One row after another as training reads it, with what is cut and why a row is dropped or refused: for people who look at
// their data.

import { checkDataFile, type DataFile, rowsOf } from "./data-file.ts";
import type { DatasetRecipe } from "./dataset.ts";
import { DROPS } from "./file-rows.ts";
import { checkIds, fitRow } from "./fit-row.ts";
import { placeOf, RowFault } from "./jsonl.ts";
import { type Notice, NoticeBook } from "./notices.ts";
import { rowReader, tokenizerOf } from "./row-reader.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** A sequence of a row before it is cut: the first `kept` tokens are trained on; mask[i] = 1 where token i is learned. */
export type InspectedSequence = {
  readonly name: string;
  readonly ids: readonly number[];
  readonly mask: readonly number[];
  readonly kept: number;
};

export type InspectedRow = {
  /** "rows.jsonl:3". */
  readonly place: string;
  /** None where the row cannot be read. */
  readonly sequences: readonly InspectedSequence[];
  readonly label?: boolean;
  /** What is left out of it, or told of it. */
  readonly notices: readonly Notice[];
  /** Whether training leaves the row out, and why it cannot use it. */
  readonly dropped: boolean;
  readonly fault: string | null;
};

/** What the sequences of a row are called, by the objective. */
const NAMES: Readonly<Record<string, readonly [string, string]>> = {
  sft: ["row", ""],
  kto: ["completion", ""],
  cit: ["prompt", "paraphrase"],
  grpo: ["prompt", ""],
};

/**
 * The rows of these files in order, those that training drops and those at fault among them. Throws a RequestError for an
 * unreadable file.
 */
export function* inspectRows(
  files: readonly DataFile[],
  recipe: DatasetRecipe,
  tokenizer: Tokenizer,
  vocab: number,
): Generator<InspectedRow> {
  const read = rowReader(recipe, tokenizerOf(recipe, tokenizer));
  const names = NAMES[recipe.objective.name] ?? ["chosen", "rejected"];
  for (const file of files) {
    checkDataFile(file);
    for (const row of rowsOf(file)) {
      const place = placeOf(row.source);
      try {
        if ("fault" in row) throw new RowFault(row.fault);
        const book = new NoticeBook();
        const rows = read(row.fields, row.source, book);
        const sequences = rows.flatMap(({ own, other }, n) =>
          (other ? [own, other] : [own]).map(({ ids, mask }, i) => {
            checkIds(ids, vocab);
            const name = rows.length > 1 ? `turn ${n + 1}` : names[i]!;
            return { name, ids, mask, kept: Math.min(ids.length, recipe.maxLength) };
          }),
        );
        const kept = rows.filter((one) => fitRow(one, row.source, recipe, book).sample !== null);
        const label = rows[0]?.label;
        yield {
          place,
          sequences,
          ...(label === undefined ? {} : { label }),
          notices: book.notices,
          dropped: kept.length === 0 && book.notices.some(({ kind }) => DROPS.includes(kind)),
          fault: null,
        };
      } catch (error) {
        if (!(error instanceof RowFault)) throw error;
        yield { place, sequences: [], notices: [], dropped: false, fault: error.message };
      }
    }
  }
}
