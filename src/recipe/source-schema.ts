// What a recipe may name as rows: files, addresses and data sets of a hub, one or several.

import * as v from "valibot";
import { expected, positive, rowsPlace, table, text, whole } from "../base/check.ts";
import type { Output } from "../base/schema.ts";
import { REPO } from "../base/source-name.ts";

const MANY = 1e9;
export const repo = v.pipe(text, v.regex(REPO, expected('a name on the hub, as "org/name"')));
const share = { weight: v.exactOptional(positive()), rows: v.exactOptional(whole(1, MANY)) };
const file = table({ path: rowsPlace, ...share });
const dataset = table({
  dataset: repo,
  ...share,
  revision: v.exactOptional(text),
  config: v.exactOptional(text),
  split: v.exactOptional(text),
});
/** A file of rows, or a data set of a hub; its weight among others, and the number of its first rows that are used. */
const source = v.union(
  [rowsPlace, file, dataset],
  expected("a file, { path, weight, rows } or { dataset, revision, config, split }"),
);
export type SourceTable = Output<typeof source>;
export const paths = v.union(
  [source, v.pipe(v.array(source), v.minLength(1, "is empty, expected at least one file"))],
  expected("a file or a list of files"),
);
