// The same rows, starting adapter and settings as TRL 1.16's trainers had: token ids, masks, losses and final weights are theirs.
// docs/compatibility.md says where they differ, and what to set for TRL's.

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { loadDataset } from "../../src/data/dataset.ts";
import { loadTokenizer } from "../../src/data/tokenizer.ts";
import { loadRecipe } from "../../src/recipe/load.ts";
import { readTensors } from "../helpers/golden.ts";
import { lines } from "../helpers/preferences.ts";
import { metrics, Workplace } from "../helpers/program.ts";
import { type TrlCase, trl, writeTrlModel } from "../helpers/trl.ts";

const place = new Workplace(1);
afterAll(() => place[Symbol.dispose]());
const all = Object.entries(trl.cases);
/** Where TRL learns what a template writes behind an answer's end mark. */
const BEHIND = "sft, chat pairs, line break behind";
const cases = all.filter(([name]) => name !== BEHIND);
const idOf = (name: string) => name.replaceAll(/[^a-z]+/g, "-");

let path = "";
beforeAll(async () => {
  writeTrlModel(place.root, cases[0]![1].template);
  const adapters = cases.map(
    ([name, { recipe }]) => `[[adapter]]
name = "${idOf(name)}"
from = "../start"
rank = 2
alpha = 4
targets = ["q_proj", "v_proj"]
data = "${idOf(name)}.jsonl"
${recipe}
batch_size = ${trl.batch_size}
steps = ${trl.steps}
learning_rate = ${trl.learning_rate}
scheduler = "constant"
warmup = 0
shuffle = false
`,
  );
  const files = Object.fromEntries(cases.map(([name, { data }]) => [`${idOf(name)}.jsonl`, lines(data)]));
  path = place.project(`[model]\npath = "../model"\n[run]\noutput = "out"\ndevice = "cpu"\n${adapters.join("")}`, files);
  const { code, err } = await place.mlora("run", path);
  expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
}, 180_000);

type Row = { readonly ids: ArrayLike<number>; readonly mask: ArrayLike<number> };

/** A row up to the last token that is learned. The first is never predicted. */
const trimmed = ({ ids, mask }: Row) => {
  const learned = Array.from(mask, (bit, i) => (i === 0 ? 0 : bit));
  const end = learned.lastIndexOf(1) + 1;
  return { ids: Array.from(ids).slice(0, end), mask: learned.slice(0, end) };
};

function tokensOf(recipePath: string, name: string, golden: TrlCase) {
  const recipe = loadRecipe(recipePath).adapters.find((adapter) => adapter.name === idOf(name))!;
  const { train } = loadDataset(recipe, loadTokenizer(join(recipePath, "../../model")), 1600);
  return train.map((row) => [row, ...(golden.rows[0]!.length > 1 ? [row.other!] : [])].map(trimmed));
}

describe.each(cases)("%s", (name, golden: TrlCase) => {
  test("has TRL's token ids and masks", () => {
    expect(tokensOf(path, name, golden)).toEqual(golden.rows.map((row) => row.map(trimmed)));
  });

  test("has TRL's losses", () => {
    const losses = metrics(join(path, "../out"), "step")
      .filter((line) => line["adapter"] === idOf(name))
      .map((line) => line["loss"] as number);
    expect(losses.length).toBe(trl.steps);
    for (const [i, loss] of losses.entries())
      expect(Math.abs(loss / golden.losses[i]! - 1), `step ${i + 1}: ${loss}, TRL ${golden.losses[i]}`).toBeLessThan(1e-5);
  });

  test("comes to TRL's weights", () => {
    const ours = readTensors(join(path, "../out", idOf(name), "adapter_model.safetensors"));
    for (const [key, bytes] of Object.entries(golden.final)) {
      const theirs = new Float32Array(new Uint8Array(Buffer.from(bytes, "base64")).buffer);
      const [off, size] = [0, 0].map((_, which) =>
        Math.hypot(...theirs.map((value, i) => (which === 0 ? value - ours(key)[i]! : value))),
      );
      expect(off! / size!, key).toBeLessThan(1e-4);
    }
  });
});

test("of prompt and completion in turns, TRL also learns what the template writes behind the end mark", () => {
  const golden = trl.cases[BEHIND]!;
  using other = new Workplace(1);
  writeTrlModel(other.root, golden.template);
  const text = `[model]\npath = "../model"\n[run]\noutput = "out"\n[[adapter]]\nname = "${idOf(BEHIND)}"\ndata = "rows.jsonl"\n`;
  const project = other.project(text, { "rows.jsonl": lines(golden.data) });
  const newline = loadTokenizer(other.model).encode("\n");
  const longer = tokensOf(project, BEHIND, golden).map((row) =>
    row.map(({ ids, mask }) => ({ ids: [...ids, ...newline], mask: [...mask, 1] })),
  );
  expect(longer).toEqual(golden.rows.map((row) => row.map(trimmed)));
});
