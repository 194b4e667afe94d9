// Rows that a test writes, the data set that becomes of them, and what is said of it.

import { afterAll } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Dataset, type DatasetRecipe, loadDataset, type Sample } from "../../src/data/dataset.ts";
import type { NoticeKind } from "../../src/data/notices.ts";
import type { Tokenizer } from "../../src/data/tokenizer.ts";
import { PLAIN_RECIPE } from "./dataset.ts";
import { goldenTokenizer } from "./golden-tokenizers.ts";

/** Reads rows by way of files in a folder of the test's own, which it removes in the end. */
export function rowFiles(name: string) {
  const work = mkdtempSync(join(tmpdir(), `mlora-${name}-`));
  afterAll(() => rmSync(work, { recursive: true }));
  let files = 0;
  const fileOf = (text: string, file = `${files++}.jsonl`): string => {
    const path = join(work, file);
    writeFileSync(path, text);
    return path;
  };
  const load = (rows: string, more: Partial<DatasetRecipe> = {}, tokenizer: Tokenizer = qwen): Dataset =>
    loadDataset({ ...PLAIN_RECIPE, train: [fileOf(rows)], ...more }, tokenizer, 100_000);
  return { fileOf, load };
}

export const lines = (...rows: readonly object[]): string => rows.map((row) => `${JSON.stringify(row)}\n`).join("");

export const qwen = goldenTokenizer("qwen3");
export const smollm = goldenTokenizer("smollm");
export const llama = goldenTokenizer("llama3");

export const DPO = { objective: { name: "dpo", loss: "sigmoid", beta: 0.1, labelSmoothing: 0, reference: "start" } } as const;

export const textOf = ({ ids }: Pick<Sample, "ids">, tokenizer = qwen): string => tokenizer.decode([...ids]);
export const learnedOf = ({ ids, mask }: Pick<Sample, "ids" | "mask">, tokenizer = qwen): string =>
  tokenizer.decode([...ids].filter((_, i) => mask[i] === 1));
export const told = ({ notices }: Dataset, kind: NoticeKind) => notices.find((notice) => notice.kind === kind) ?? null;

export const user = (content: string) => ({ role: "user", content });
export const assistant = (content: string, more: object = {}) => ({ role: "assistant", content, ...more });
