// Prompts that are to be continued, as training would have tokenised them, and the answers that they should get where these are
// known.

import { RequestError } from "../base/errors.ts";
import { renamed } from "./columns.ts";
import { checkDataFile, type DataFile, rowsOf } from "./data-file.ts";
import { checkIds } from "./fit-row.ts";
import { type Example, exampleReader, type FormatOptions, promptExample, type SettledForm } from "./format.ts";
import { type Fields, placeOf, RowFault } from "./jsonl.ts";
import { promptIds, tokenise } from "./tokenise.ts";
import type { Tokenizer } from "./tokenizer.ts";

export type Prompt = { readonly ids: readonly number[]; readonly expected: readonly number[] | null };

/** A row of a file; `adapter` names the adapter that answers. */
export type PromptRow = Prompt & { readonly adapter: string | null; readonly place: string };

/** How prompts are read, as an adapter's rows are: with the tokenizer that has its chat template. */
export type Reading = { readonly options: FormatOptions; readonly tokenizer: Tokenizer };

/** Faults of a file that are reported before the rest is left unread. */
const SHOWN = 5;
const ANSWER = "-"; // stands where there is none yet
const ANSWER_TEMPLATE = `{{ completion | default("${ANSWER}") }}`; // a template has to name a field

/** The last answer of a row, and all before it. */
export function splitAnswer({ ids, mask }: { readonly ids: ArrayLike<number>; readonly mask: ArrayLike<number> }): Prompt {
  let to = mask.length;
  while (to > 0 && mask[to - 1] !== 1) to--;
  let from = to;
  while (from > 0 && mask[from - 1] === 1) from--;
  const all = Array.from(ids);
  return to === 0 ? { ids: all, expected: null } : { ids: all.slice(0, from), expected: all.slice(from, to) };
}

/** A prompt by itself: a user's turn where there is a chat template and it is wanted, else plain text. */
export function promptOf(text: string, { options, tokenizer }: Reading): Prompt {
  return unanswered(promptExample(text, ANSWER, options), tokenizer);
}

/** A row that is to be answered may lack the answer. */
const isAnswer = (field: string): boolean => ["completion", "output"].includes(field);

/** Reads rows in any form that training reads; they may lack the answer. Throws a RowFault. */
export function promptReader({ options, tokenizer }: Reading, settled?: SettledForm): (fields: Fields) => Prompt {
  const read = exampleReader(options, settled);
  const { template } = options;
  const open =
    options.format === "template" &&
    template &&
    exampleReader({ ...options, template: { ...template, completion: ANSWER_TEMPLATE } });
  return (row) => {
    const fields = renamed(row, options.columns, isAnswer);
    // its completion's fields may be what is asked for
    if (open && !fits(read, fields)) return unanswered(open(fields), tokenizer);
    const completed = withAnswer(fields);
    const example = read(completed);
    if (completed !== fields || example.kind === "text") return unanswered(example, tokenizer);
    return splitAnswer(tokenise(example, tokenizer, "completion"));
  };
}

function fits(read: (fields: Fields) => Example, fields: Fields): boolean {
  try {
    read(fields);
    return true;
  } catch (error) {
    if (error instanceof RowFault) return false;
    throw error;
  }
}

/** The same fields where there is an answer among them, else with one that stands for it. */
function withAnswer(fields: Fields): Fields {
  for (const field of ["messages", "conversations"]) {
    const turns = fields[field];
    if (!Array.isArray(turns) || turns.length === 0) continue;
    const { role, from } = (turns.at(-1) ?? {}) as { role?: unknown; from?: unknown };
    if (role === "assistant" || from === "assistant" || from === "gpt" || from === "function_call") return fields;
    return { ...fields, [field]: [...turns, { role: "assistant", content: ANSWER }] };
  }
  if ("prompt" in fields && !("completion" in fields)) {
    const completion = Array.isArray(fields["prompt"]) ? [{ role: "assistant", content: ANSWER }] : ANSWER;
    return { ...fields, completion };
  }
  if ("instruction" in fields && !("output" in fields)) return { ...fields, output: ANSWER };
  return fields;
}

function unanswered(example: Example, tokenizer: Tokenizer): Prompt {
  const before = example.kind === "chat" ? { ...example, messages: example.messages.slice(0, -1) } : example;
  return { ids: promptIds(before, tokenizer), expected: null };
}

/**
 * Reads a file of prompts; a row's "adapter" names the one that answers, `readingOf` says how that adapter's rows are read. A
 * RequestError, `data.row`, names the lines that cannot be used.
 */
export function readPrompts(
  file: DataFile,
  readingOf: (adapter: string | null) => Reading,
  vocab: number,
): readonly PromptRow[] {
  checkDataFile(file);
  const readers = new Map<string | null, (fields: Fields) => Prompt>();
  const rows: PromptRow[] = [];
  const faults: string[] = [];
  for (const row of rowsOf(file)) {
    const place = placeOf(row.source);
    try {
      if ("fault" in row) throw new RowFault(row.fault);
      const { adapter = null, ...fields } = row.fields;
      if (adapter !== null && typeof adapter !== "string") throw new RowFault("has no text in 'adapter'");
      if (!readers.has(adapter)) readers.set(adapter, promptReader(readingOf(adapter)));
      const prompt = readers.get(adapter)!(fields);
      checkIds(prompt.ids, vocab);
      rows.push({ ...prompt, adapter, place });
    } catch (error) {
      if (!(error instanceof RowFault)) throw error;
      faults.push(`${place}: ${error.message}`);
      if (faults.length === SHOWN) break;
    }
  }
  if (faults.length > 0) throw new RequestError("data.row", faults.join("\n"), "fix or remove the rows listed");
  if (rows.length === 0) throw new RequestError("data.file", `${file.name}: has no rows`);
  return rows;
}
