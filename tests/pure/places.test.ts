// Where adapters act: patterns as PEFT reads them, their errors, and what is written for PEFT of layers that differ.

import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { compilePattern, PatternError } from "../../src/base/pattern.ts";
import { linearShape, modulesOf } from "../../src/families/linears.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { readPeftAdapter, writePeftAdapter } from "../../src/files/peft.ts";
import { rankAt, samePlaces, scaleAt } from "../../src/methods/placement.ts";
import { countModules, placeAdapter } from "../../src/plan/places.ts";
import { formatRecipe, parseRecipe } from "../../src/recipe/load.ts";
import { loadGolden } from "../helpers/golden.ts";
import { LINEARS } from "../helpers/tiny.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-places-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const spec = readModelSpec(loadGolden("places").model);
const recipe = (keys: string) =>
  parseRecipe(`model.path = "m"\nrun.output = "o"\n[[adapter]]\nname = "a"\ndata = "d"\n${keys}`, "/r.toml");
const place = (keys: string) => placeAdapter(recipe(keys).adapters[0]!, spec);

describe("patterns", () => {
  test("match whole paths, or their ends from a dot on", () => {
    expect(compilePattern("a|b", "whole").test("ab")).toBe(false);
    expect(compilePattern("q_proj", "end").test("model.layers.0.self_attn.q_proj")).toBe(true);
    expect(compilePattern("proj", "end").test("model.layers.0.self_attn.q_proj")).toBe(false);
  });

  test.each([
    "(?P<n>q)",
    "(?i)q",
    "(a)\\1",
    "a*+",
    "a{2}+",
    "(?>a)",
    "\\Aq",
    "q\\Z",
    "[]a]",
    "[^]",
    "a{,2}",
    "(?<n>q)",
    "\\p{L}",
    "(",
  ])("%s is refused", (pattern) => expect(() => compilePattern(pattern, "whole")).toThrow(PatternError));
});

describe("a recipe's keys", () => {
  test("what is uniform has no table, however it is said", () => {
    for (const keys of ["", 'targets = ".*_proj"', 'layers = "0-1"', 'rank_pattern = { ".*" = 16 }'])
      expect(place(keys)).toEqual({ rank: 16, scale: 2, targets: LINEARS });
  });

  test("the first pattern counts; exclude wins; layers are the only ones", () => {
    const of = place('rank_pattern = { q_proj = 3, "0.*" = 5 }\nalpha_pattern = { q_proj = 9 }\nexclude = ["k_proj"]');
    expect([rankAt(of, 0, "q_proj"), rankAt(of, 0, "v_proj"), rankAt(of, 1, "v_proj"), rankAt(of, 1, "k_proj")]).toEqual([
      3, 5, 16, 0,
    ]);
    expect([scaleAt(of, 1, "q_proj"), scaleAt(of, 1, "v_proj")]).toEqual([3, 2]);
    expect(countModules(place("layers = [1]"), spec.layers)).toBe(LINEARS.length);
  });

  test.each([
    ['targets = "nothing"', "matches no linear layer as a whole"],
    ['exclude = ["lm_heads"]', "exclude 'lm_heads' matches no linear layer"],
    ['targets = ["q_proj", "lm_head"]\nmethod = "dora"', "a DoRA is not trained on lm_head"],
    ['targets = ["q_proj", "lm_head"]\ninit = "pissa"\nrank = 2', 'init = "pissa" is not for lm_head'],
    ['targets = ["embed_tokens"]\nlora_plus_ratio = 4', "lora_plus_ratio is 4 with model.embed_tokens"],
    ['targets = ["embed_tokens"]\nlayers = [1]', "layers leaves out model.embed_tokens"],
    ['targets = ["embed_tokens"]\ntrainable_tokens = [3]', "trainable_tokens trains single rows"],
    ["trainable_tokens = [3, 5, 3]", "trainable_tokens has token 3 twice"],
    ["trainable_tokens = [3, 9999999]", "has 9999999, and the base model's tables end with token"],
    ["trainable_tokens = { head = [3] }", "trainable_tokens names head"],
    ["layers = [9]", "layers has 9"],
    ['rank_pattern = { k_proj = 3 }\ntargets = ["q_proj"]', 'rank_pattern "k_proj" matches none of its modules'],
    ["alpha_pattern = { x = 3 }", 'alpha_pattern "x" matches none of its modules'],
    ['exclude = ".*"', "leave no linear layer"],
  ])("%s is an error", (keys, told) => expect(() => place(keys)).toThrow(told));

  test("an expression of all modules may have the output head taken out", () => {
    const of = place('targets = ".*(q_proj|lm_head)"\nexclude = ["lm_head"]');
    expect([of.targets, of.tables]).toEqual([["q_proj"], undefined]);
  });

  test("embedding and head are targets by name or expression, with ranks and alphas of their own", () => {
    const both = place('targets = ["q_proj", "embed_tokens", "lm_head"]\nrank = 4\nalpha = 8\nrank_pattern = { lm_head = 2 }');
    expect(both.tables).toEqual({ embedding: { rank: 4, scale: 2 }, head: { rank: 2, scale: 4 } });
    expect([both.rank, both.places]).toEqual([4, undefined]);
    expect(place('targets = "lm_head|.*q_proj"\nrank = 4\nalpha = 8').tables).toEqual({ head: { rank: 4, scale: 2 } });
    expect(place('targets = ["model.embed_tokens"]\nrank = 4\nalpha = 4\nlayers = [0]')).toEqual({
      ...{ rank: 1, scale: 0, targets: [] },
      tables: { embedding: { rank: 4, scale: 1 } },
    });
    expect(place('targets = "all-linear"').tables).toBeUndefined();
  });

  test("trained tokens are rows of the embedding, of both tables where they are tied, or of those that are named", () => {
    const tokens = { tokens: [3, 1] };
    const tied = { ...spec, tiedEmbeddings: true };
    const of = (keys: string, on = spec) => placeAdapter(recipe(keys).adapters[0]!, on).tables;
    expect(of("trainable_tokens = [3, 1]", { ...spec, tiedEmbeddings: false })).toEqual({ embedding: tokens });
    expect(of("trainable_tokens = [3, 1]", tied)).toEqual({ embedding: tokens, head: tokens });
    const named = "trainable_tokens = { embed_tokens = [3, 1], lm_head = [2] }";
    expect(of(named, { ...spec, tiedEmbeddings: false })).toEqual({ embedding: tokens, head: { tokens: [2] } });
    expect(() => of(named, tied)).toThrow("trainable_tokens names lm_head, which is the embedding in this model");
  });

  test("an expression of Python's alone is reported with its place", () => {
    expect(() => recipe('targets = "(?P<n>q)"')).toThrow("/r.toml:6:1");
    expect(() => recipe('rank_pattern = { "(?i)q" = 3 }')).toThrow("'(?i' means");
    expect(() => recipe('layers = "3-1"')).toThrow("the first layer before the last");
  });

  const [MOST, EVEN] = [
    "has to be 128 or less, for as much again is kept frozen, with the initialisation",
    'expected an even rank with the initialisation "orthogonal"',
  ];
  test.each([
    [
      "what is kept frozen beside it has no room",
      'init = "pissa"\nrank_pattern = { v_proj = 128, q_proj = 129 }',
      [`7:32: adapter[0].rank_pattern.q_proj is 129, and ${MOST} "pissa"`],
    ],
    [
      "nor has it where both are too large",
      'rank = 200\ninit = "olora"\n[adapter.rank_pattern]\n"0\\\\..*" = 3\n".*" = 250',
      [`6:1: adapter[0].rank is 200, and ${MOST} "olora"`, `10:1: adapter[0].rank_pattern..* is 250, and ${MOST} "olora"`],
    ],
    [
      "an odd rank has no halves",
      'init = "orthogonal"\nrank_pattern = { v_proj = 6,\n q_proj = 7 }',
      [`8:2: adapter[0].rank_pattern.q_proj is 7, ${EVEN}`],
    ],
    [
      "in a sweep, too",
      'init = "orthogonal"\nsweep.rank_pattern = [{ q_proj = 4 }, { q_proj = 5 }]',
      [`7:1: adapter[0].sweep.rank_pattern.q_proj is 5, ${EVEN}`],
    ],
    [
      "in [defaults], too, for the adapters that begin so",
      'init = "orthogonal"\n[[adapter]]\nname = "b"\ndata = "d"\n[defaults]\nrank = 3\nrank_pattern = { q_proj = 5 }',
      [`11:1: defaults.rank is 3, ${EVEN}`, `12:18: defaults.rank_pattern.q_proj is 5, ${EVEN}`],
    ],
  ])("a rank that its beginning cannot have is reported with its place: %s", (_, keys, told) => {
    const thrown = (() => {
      try {
        recipe(keys);
        return "";
      } catch (error) {
        return (error as Error).message;
      }
    })();
    expect(thrown.split("\n")).toEqual(told.map((line) => `/r.toml:${line}`));
  });

  test("ranks are free where the adapter begins otherwise than [defaults] say", () => {
    const others = 'from = "x"\n[[adapter]]\nname = "b"\ndata = "d"\nmethod = "vera"\n[defaults]\ninit = "orthogonal"\n';
    expect(recipe(`${others}rank = 3\nrank_pattern = { q_proj = 5 }`).adapters.map(({ init }) => init)).toEqual([
      "default",
      "default",
    ]);
  });

  test("written out, they load to the same", () => {
    const one = recipe('layers = "0-1"\nexclude = ["k_proj"]\nrank_pattern = { "a\\\\.b" = 3 }\nalpha_pattern = { c = 0.5 }');
    expect(parseRecipe(formatRecipe(one), "/r.toml")).toEqual(one);
  });
});

test("what is written for PEFT reads back to the same places and values, and a config that disagrees is refused", () => {
  const folder = mkdtempSync(join(root, "adapter-"));
  const of = place(
    'targets = ".*(0.self_attn.q|1.mlp.up)_proj"\nrank_pattern = { q_proj = 3 }\nalpha_pattern = { up_proj = 0.3 }\nrslora = true',
  );
  const factors = modulesOf(spec).flatMap(({ layer, linear }) => {
    const rank = rankAt(of, layer, linear);
    const { in: width, out } = linearShape(spec, linear);
    const values = (size: number) => Float32Array.from({ length: size }, (_, i) => i);
    if (rank === 0) return [];
    return [
      { layer, linear, factor: "A" as const, values: values(rank * width) },
      { layer, linear, factor: "B" as const, values: values(rank * out) },
    ];
  });
  writePeftAdapter(folder, spec, { ...of, alpha: 32, dropout: 0, rslora: true, baseModel: "b" }, factors);
  const read = readPeftAdapter(folder, spec);
  expect(samePlaces(read, of, spec.layers)).toBe(true);
  for (const { layer, linear, factor, values } of factors) expect(read.tensor(layer, linear, factor)).toEqual(values);
  const path = join(folder, "adapter_config.json");
  const config = JSON.parse(readFileSync(path, "utf8"));
  writeFileSync(path, JSON.stringify({ ...config, target_modules: ["q_proj"], layers_to_transform: [0] }));
  expect(() => readPeftAdapter(folder, spec)).toThrow(
    'it has factors of model.layers.1.mlp.up_proj, which target_modules ["q_proj"], layers_to_transform [0] leaves out',
  );
  writeFileSync(path, JSON.stringify({ ...config, target_modules: ["q_proj", "up_proj"] }));
  expect(() => readPeftAdapter(folder, spec)).toThrow("model.layers.1.self_attn.q_proj.lora_A.weight is missing");
});
