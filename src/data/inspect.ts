// One row after another as training reads it, with what is cut and why a row is dropped or refused: for people who look at their data.

import type { DatasetRecipe } from "./dataset.ts";
import { checkIds, fit, rowReader } from "./dataset.ts";
import { checkDataFile, placeOf, RowFault, rowsOf } from "./jsonl.ts";
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
  /** Why training leaves the row out, or cannot use it. */
  readonly dropped: string | null;
  readonly fault: string | null;
};

/** What the sequences of a row are called, by the objective. */
const NAMES: Readonly<Record<string, readonly [string, string]>> = {
  sft: ["row", ""],
  kto: ["completion", ""],
  cit: ["prompt", "paraphrase"],
};

/** The rows of these files in order, those that training drops and those at fault among them. Throws a RequestError for an unreadable file. */
export function* inspectRows(
  files: readonly string[],
  recipe: DatasetRecipe,
  tokenizer: Tokenizer,
  vocab: number,
): Generator<InspectedRow> {
  const { format, template, system, chatTemplate, objective, maxLength, overlong } = recipe;
  const toRow = rowReader({ format, template, system, asChat: chatTemplate && tokenizer.hasChatTemplate }, recipe, tokenizer);
  const names = NAMES[objective.name] ?? ["chosen", "rejected"];
  for (const file of files) {
    checkDataFile(file);
    for (const row of rowsOf(file)) {
      const place = placeOf(row.source);
      try {
        if ("fault" in row) throw new RowFault(row.fault);
        const { own, other, label } = toRow(row.fields);
        const sequences = (other ? [own, other] : [own]).map((sequence, i) => {
          checkIds(sequence.ids, vocab);
          return { name: names[i]!, ...sequence, kept: Math.min(sequence.ids.length, maxLength) };
        });
        const lost = sequences.find((sequence) => fit(sequence, recipe).sequence === null);
        const tooLong = lost && overlong === "drop" && lost.ids.length > maxLength;
        const dropped =
          lost === undefined
            ? null
            : tooLong
              ? `${lost.ids.length} tokens are more than max_length ${maxLength}`
              : `nothing to learn within max_length ${maxLength}`;
        yield { place, sequences, ...(label === undefined ? {} : { label }), dropped, fault: null };
      } catch (error) {
        if (!(error instanceof RowFault)) throw error;
        yield { place, sequences: [], dropped: null, fault: error.message };
      }
    }
  }
}
