// A row's tokens within what the model knows and the recipe takes.

import { rolloutsOf, rowKindOf } from "../objectives/registry.ts";
import type { DatasetRecipe } from "./dataset.ts";
import { RowFault, type Source } from "./jsonl.ts";
import type { NoticeBook, NoticeKind } from "./notices.ts";
import type { Sample, Sequence } from "./rows.ts";
import type { TokenRow } from "./tokenise.ts";

/**
 * A row's sequences: of preferences the better answer and the other, else `other` is null. Of prompts also the columns of the
 * row as JSON.
 */
export type TokenisedRow = {
  readonly own: TokenRow;
  readonly other: TokenRow | null;
  readonly label?: boolean;
  readonly columns?: string;
};

export const sequencesOf = ({ own, other }: TokenisedRow): readonly TokenRow[] => (other ? [own, other] : [own]);

/** Of prompts, the tokens that may follow one. */
export const newTokens = (objective: DatasetRecipe["objective"]): number[] => {
  const rollouts = rolloutsOf(objective);
  return rollouts ? [rollouts.maxNewTokens] : [];
};

/** A row within max_length; no sample where it is dropped. */
export function fitRow(row: TokenisedRow, source: Source, recipe: DatasetRecipe, book: NoticeBook) {
  const none = { sample: null, cut: false };
  if (row.columns !== undefined) {
    const { ids, mask } = row.own;
    const [follow = 0] = newTokens(recipe.objective);
    if (ids.length + follow <= recipe.maxLength && ids.length > 0)
      return { sample: { ids: Int32Array.from(ids), mask: Uint8Array.from(mask), source, columns: row.columns }, cut: false };
    book.add(ids.length > 0 ? "too long" : "nothing to learn", source, "");
    return none;
  }
  const fitted = sequencesOf(row).map((sequence) => fit(sequence, recipe));
  const dropped = fitted.find(({ dropped }) => dropped !== null)?.dropped;
  if (dropped) {
    book.add(dropped, source, "");
    return none;
  }
  const [own, other] = fitted.map(({ sequence }) => sequence!);
  if (other && rowKindOf(recipe.objective) === "paired" && isSame(own!, other)) {
    book.add("same answers", source, "");
    return none;
  }
  const cut = fitted.some(({ truncated }) => truncated);
  if (cut) book.add("cut", source, "");
  const sample: Sample = {
    ...own!,
    ...(other ? { other } : {}),
    ...(row.label === undefined ? {} : { label: row.label }),
    source,
  };
  return { sample, cut };
}

const isSame = (one: Sequence, other: Sequence): boolean =>
  one.ids.length === other.ids.length && one.ids.every((id, i) => id === other.ids[i]);

/** Throws a RowFault for a token that the model has not. */
export function checkIds(ids: readonly number[], vocab: number): void {
  const wrong = ids.find((id) => !(Number.isInteger(id) && id >= 0 && id < vocab));
  if (wrong !== undefined)
    throw new RowFault(`has the token ${wrong}; the model knows ${vocab} (the tokenizer is another model's)`);
}

/** The sequence within max_length, or why there is none. */
function fit(
  { ids, mask }: Pick<TokenRow, "ids" | "mask">,
  { maxLength, overlong }: Pick<DatasetRecipe, "maxLength" | "overlong">,
) {
  const long = ids.length > maxLength;
  const kept = long ? maxLength : ids.length;
  const dropped: NoticeKind | null =
    long && overlong === "drop" ? "too long" : mask.slice(1, kept).includes(1) ? null : "nothing to learn";
  if (dropped) return { sequence: null, truncated: false, dropped };
  const sequence: Sequence = { ids: new Int32Array(ids.slice(0, kept)), mask: new Uint8Array(mask.slice(0, kept)) };
  return { sequence, truncated: long, dropped };
}
