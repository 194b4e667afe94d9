// How rows are read where a recipe says nothing of it, for tests of the rows themselves.

import type { DatasetRecipe } from "../../src/data/dataset.ts";

export const PLAIN_RECIPE: DatasetRecipe = {
  name: "a",
  train: [],
  eval: [],
  evalSplit: 0,
  mostRows: null,
  format: "auto",
  columns: {},
  template: null,
  chatTemplate: true,
  chatVariables: {},
  thoughts: "as-template",
  system: null,
  trainOn: "completion",
  objective: { name: "sft" },
  maxLength: 1000,
  overlong: "truncate",
};
