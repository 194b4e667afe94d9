// Recipes: what holds by default, what is refused and where, and that nothing but a RequestError ever comes out.

import { describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { RequestError } from "../../src/base/errors.ts";
import { Rng } from "../../src/base/rng.ts";
import { formatRecipe, loadRecipe } from "../../src/recipe/load.ts";
import { nearest } from "../../src/recipe/suggest.ts";
import { adapter, HEAD, parse, refused } from "../helpers/recipe-text.ts";

describe("a good recipe", () => {
  test("has every value, from the adapter, else [defaults], else the program", () => {
    const text = `${HEAD}[defaults]\nrank = 4\nalpha = 8\nepochs = 3\n${adapter("rank = 6\nsteps = 10")}`;
    const [a] = parse(text).adapters;
    expect([a!.rank, a!.alpha, a!.epochs, a!.steps, a!.batchSize]).toEqual([6, 8, null, 10, 4]);
    expect(a!.train).toEqual(["/here/a.jsonl"]);
    expect([a!.evalSplit, a!.eval, a!.trainOn, a!.optimizer.maxGradNorm]).toEqual([0, [], "completion", 1]);
  });

  test("flags go before it", () => {
    const recipe = parse(HEAD + adapter(), { output: "/elsewhere", device: "cpu", seed: "7" });
    expect([recipe.run.output, recipe.run.device, recipe.run.seed]).toEqual(["/elsewhere", "cpu", 7]);
    const other = parse(HEAD + adapter(), { seed: 8 });
    expect(other.adapters[0]!.seed).not.toBe(recipe.adapters[0]!.seed);
  });

  test("a sweep makes every combination once, the last key fastest", () => {
    const sweep = 'sweep = { rank = [1, 2], learning_rate = [1e-4, 0.02], targets = ["all-linear", ["q_proj"]] }';
    const { adapters } = parse(HEAD + adapter(sweep));
    expect(adapters.map(({ rank, optimizer, targets }) => `${rank} ${optimizer.learningRate} ${targets}`)).toEqual(
      [1, 2].flatMap((rank) =>
        [1e-4, 0.02].flatMap((lr) => ["all-linear", "q_proj"].map((targets) => `${rank} ${lr} ${targets}`)),
      ),
    );
    expect(new Set(adapters.map(({ name }) => name)).size).toBe(8);
    expect(adapters[0]!.name).toBe("a-rank1-lr1e-4-targetsall-linear");
    const extremes = parse(HEAD + adapter("sweep.learning_rate = [1e-30, 1e30]")).adapters;
    expect(extremes.map(({ name }) => name)).toEqual(["a-lr1e-30", "a-lr1e30"]);
  });

  test("evaluations of [defaults] are for the adapters that have rows for them", () => {
    const text = `${HEAD}[defaults]\neval_every = 5\n${adapter()}[[adapter]]\nname = "b"\ndata = { train = "b.jsonl", split = 0.1 }\n`;
    const recipe = parse(text);
    expect(recipe.adapters.map(({ evalEvery }) => evalEvery)).toEqual([null, 5]);
    expect(parse(formatRecipe(recipe))).toEqual(recipe);
  });

  test("is the README's", () => {
    const readme = readFileSync(join(import.meta.dir, "..", "..", "README.md"), "utf8");
    const [whole] = [...readme.matchAll(/^```toml\n(.*?)^```/gms)]
      .map(([, text]) => text!)
      .filter((text) => /^\[model\]/m.test(text));
    expect(parse(whole!).adapters.map(({ rank, optimizer }) => [rank, optimizer.learningRate])).toEqual([
      [8, 5e-4],
      [8, 1e-3],
      [16, 5e-4],
      [16, 1e-3],
    ]);
  });

  test("a sweep over tables numbers them", () => {
    const sweep =
      'sweep = { objective = ["sft", { name = "dpo", beta = 0.5 }], data = ["b.jsonl", { train = "c.jsonl", split = 0.5 }] }';
    const { adapters } = parse(`${HEAD}[[adapter]]\nname = "a"\n${sweep}`);
    expect(adapters.map(({ name, train, objective }) => [name, train[0], objective.name])).toEqual([
      ["a-objectivesft-datab-jsonl", "/here/b.jsonl", "sft"],
      ["a-objectivesft-data2", "/here/c.jsonl", "sft"],
      ["a-objective2-datab-jsonl", "/here/b.jsonl", "dpo"],
      ["a-objective2-data2", "/here/c.jsonl", "dpo"],
    ]);
  });

  test("written out, it loads again to the same", () => {
    const rich = `${HEAD}seed = 3\ntokens_per_microbatch = 512\n[defaults]\nmax_grad_norm = false\n${adapter(
      'format = "template"\ntemplate = { prompt = "{{ q }}\\n", completion = """{{ "a" }}""" }\nsystem = "Be brief."\nbetas = [0.8, 0.95]\nwarmup = 10',
    )}[[adapter]]\nname = "b"\ndata = { train = ["x.jsonl", "y.jsonl"], split = 0.1 }\nsweep = { dropout = [0, 0.1] }\nfrom = "old"\n`;
    const recipe = parse(rich);
    expect(parse(formatRecipe(recipe))).toEqual(recipe);
  });
});

describe("a fault is reported with its place", () => {
  const cases: readonly (readonly [string, string, string])[] = [
    ["unknown key", HEAD + adapter("rnak = 3"), "8:1: adapter[0].rnak is an unknown key; did you mean 'rank'?"],
    ["unknown section", `${HEAD}[defalts]\nrank = 1\n${adapter()}`, "5:1: defalts is an unknown key; did you mean 'defaults'?"],
    [
      "unknown key of data",
      `${HEAD}[[adapter]]\nname = "a"\ndata = { train = "x", evl = "y" }`,
      "7:23: adapter[0].data.evl is an unknown key; did you mean 'eval'?",
    ],
    [
      "unknown key of a table that may be another form",
      `${HEAD}checkpoint = { stpes = 3 }\n${adapter()}`,
      "5:16: run.checkpoint.stpes is an unknown key; did you mean 'steps'?",
    ],
    [
      "unknown key of a table in a sweep",
      HEAD + adapter("").replace('data = "a.jsonl"', 'sweep.data = ["b", { train = "x", splitt = 0.5 }]'),
      "7:35: adapter[0].sweep.data[1].splitt is an unknown key; did you mean 'split'?",
    ],
    [
      "unknown key of an objective in a sweep",
      HEAD + adapter('sweep.objective = ["sft", { name = "kto", zeta = 1 }]'),
      "8:43: adapter[0].sweep.objective[1].zeta is an unknown key; did you mean 'beta'?",
    ],
    [
      "an item of a list that may be another form",
      HEAD + adapter("").replace('data = "a.jsonl"', 'data = [{ path = "a", weight = nan }]'),
      "7:23: adapter[0].data[0].weight is NaN, expected a number above 0",
    ],
    [
      "a stage that is no number",
      `${HEAD}stages = [nan]\n${adapter()}`,
      "5:11: run.stages[0] is NaN, expected a number of layers",
    ],
    ["no stages", `${HEAD}stages = []\n${adapter()}`, "5:1: run.stages is empty, expected at least one value"],
    ["missing section", `[run]\noutput = "o"\n${adapter()}`, "1:1: model is missing"],
    ["missing key", `[model]\n[run]\noutput = "o"\n${adapter()}`, "1:1: model.path is missing"],
    [
      "two models",
      `[model]\npath = "m"\nname = "a/b"\n[run]\noutput = "o"\n${adapter()}`,
      "3:1: model.name is given next to path",
    ],
    [
      "no name",
      `[model]\npath = "m"\nrevision = "v1"\n[run]\noutput = "o"\n${adapter()}`,
      "3:1: model.revision is that of a name",
    ],
    [
      "a name's form",
      `[model]\nname = "b"\n[run]\noutput = "o"\n${adapter()}`,
      '2:1: model.name is "b", expected a name on the hub, as "org/name"',
    ],
    [
      "a data set's key",
      `${HEAD}[[adapter]]\nname = "a"\ndata = { dataset = "a/b", spilt = "x" }`,
      "7:27: adapter[0].data.spilt is an unknown key; did you mean 'split'?",
    ],
    ["no adapter", HEAD, "1:1: adapter is missing"],
    ["no data", `${HEAD}[[adapter]]\nname = "a"`, "5:1: adapter[0].data is missing: it names the files of rows"],
    ["rank 0", HEAD + adapter("rank = 0"), "8:1: adapter[0].rank is 0, expected a whole number from 1 to 256"],
    [
      "rank in defaults",
      `${HEAD}[defaults]\nrank = 1.5\n${adapter()}`,
      "6:1: defaults.rank is 1.5, expected a whole number from 1 to 256",
    ],
    ["not a number", HEAD + adapter("learning_rate = nan"), "8:1: adapter[0].learning_rate is NaN, expected a number above 0"],
    ["infinite", HEAD + adapter("alpha = inf"), "8:1: adapter[0].alpha is Infinity, expected a number above 0"],
    ["dropout 1", HEAD + adapter("dropout = 1.0"), "8:1: adapter[0].dropout is 1, expected a number from 0 to below 1"],
    ["text for a number", HEAD + adapter('rank = "8"'), '8:1: adapter[0].rank is "8", expected a whole number from 1 to 256'],
    [
      "both lengths",
      HEAD + adapter("epochs = 1\nsteps = 2"),
      "9:1: adapter[0].steps and epochs exclude each other; leave one out",
    ],
    [
      "bad sweep value",
      HEAD + adapter("sweep = { rank = [1, 0.5] }"),
      "8:22: adapter[0].sweep.rank[1] is 0.5, expected a whole number from 1 to 256",
    ],
    [
      "LoRA+ of DoRA",
      HEAD + adapter('method = "dora"\nlora_plus_ratio = 16'),
      '9:1: adapter[0].lora_plus_ratio is for the method "lora"; leave it out with "dora"',
    ],
    ["method", HEAD + adapter('method = "loha"'), '8:1: adapter[0].method is "loha", expected "lora" or "dora" or "vera"'],
    [
      "template without format",
      HEAD + adapter('template = { prompt = "a", completion = "b" }'),
      '8:1: adapter[0].template is given, but format is not "template"',
    ],
    [
      "betas of SGD",
      HEAD + adapter('optimizer = "sgd"\nbetas = [0.9, 0.99]'),
      "9:1: adapter[0].betas is for adamw; leave it out",
    ],
    [
      "momentum of AdamW with 8 bits",
      HEAD + adapter('optimizer = "adamw-8bit"\nmomentum = 0.9'),
      "9:1: adapter[0].momentum is for sgd; leave it out with the optimizer adamw-8bit",
    ],
    ["momentum of AdamW", HEAD + adapter("momentum = 0.9"), "8:1: adapter[0].momentum is for sgd; leave it out"],
    [
      "nothing to tell apart",
      HEAD + adapter('objective = "cit"\nbatch_size = 1'),
      "9:1: adapter[0].batch_size is 1: cit contrasts the rows of a micro-batch, so it needs 2 or more",
    ],
    [
      "nesterov without momentum",
      HEAD + adapter('optimizer = "sgd"\nnesterov = true'),
      "9:1: adapter[0].nesterov looks ahead by the momentum: give momentum",
    ],
    [
      "a key of PEFT's",
      HEAD + adapter("lora_alpha = 32"),
      "8:1: adapter[0].lora_alpha is an unknown key; did you mean 'alpha'?",
    ],
    [
      "a key of another objective",
      HEAD + adapter('objective = { name = "dpo", gamma = 1 }'),
      "8:29: adapter[0].objective.gamma is an unknown key; known are name, loss, beta, label_smoothing, reference",
    ],
    [
      "an unknown objective",
      HEAD + adapter('objective = { name = "ppo" }'),
      '8:15: adapter[0].objective.name is "ppo", expected "sft" or "dpo" or "cpo" or "simpo" or "orpo" or "kto" or "cit" or "apo_zero"',
    ],
    [
      "an objective without a name",
      HEAD + adapter("sweep.objective = [{ beta = 1 }]"),
      '8:20: adapter[0].sweep.objective[0].name is missing, expected "sft" or "dpo" or "cpo" or "simpo" or "orpo" or "kto" or "cit" or "apo_zero"',
    ],
    ["one beta", HEAD + adapter("betas = [0.9]"), "8:1: adapter[0].betas[1] is missing, expected a number from 0 to below 1"],
    [
      "evaluations of nothing",
      HEAD + adapter("eval_every = 5"),
      "8:1: adapter[0].eval_every needs held-out rows: give data.eval or data.split",
    ],
    ...(
      [
        ["dpo", "hinge"],
        ["dpo", "ipo"],
        ["cpo", "hinge"],
      ] as const
    ).map(
      ([name, loss]) =>
        [
          `smoothed labels of ${name}'s ${loss}`,
          HEAD + adapter(`objective = { name = "${name}", loss = "${loss}", label_smoothing = 0.1 }`),
          `8:1: adapter[0].objective has label_smoothing, which loss "${loss}" does not know; leave one out`,
        ] as const,
    ),
    [
      "evaluations of what answers prompts",
      HEAD + adapter('objective = { name = "grpo", reward = { command = ["r"] } }\nmax_length = 1024\neval_every = 5'),
      "10:1: adapter[0].eval_every needs held-out rows, which grpo does not answer yet; leave it out",
    ],
    [
      "the folder of checkpoints",
      `${HEAD}[[adapter]]\nname = "Checkpoints"\ndata = "d"`,
      "6:1: adapter[0].name 'Checkpoints' is where a run keeps its checkpoints; give it another",
    ],
    [
      "output on the model",
      `[model]\npath = "m"\n[run]\noutput = "m"\n${adapter()}`,
      "4:1: run.output is the base model's own folder; choose another",
    ],
  ];
  for (const [what, text, line] of cases)
    test(what, () => {
      const { code, lines } = refused(text);
      expect(code).toBe("recipe.invalid");
      expect(lines[0]!.startsWith(`/here/r.toml:${line}`), lines[0]!).toBe(true);
      expect(lines.length).toBe(1);
    });

  for (const name of ["", ".", "..", "../x", "a/b", "a.b", "-a", "a b", "é", "x".repeat(65), "metrics.jsonl"])
    test(`the name ${JSON.stringify(name)}, which is no folder's`, () => {
      const { lines } = refused(`${HEAD}[[adapter]]\nname = ${JSON.stringify(name)}\ndata = "d"`);
      expect(lines[0]).toStartWith("/here/r.toml:6:1: adapter[0].name names a folder");
    });

  test("two adapters of one name, also in another case", () => {
    const { lines } = refused(`${HEAD}${adapter()}[[adapter]]\nname = "A"\ndata = "b"`);
    expect(lines).toEqual(["/here/r.toml:10:1: adapter[1].name 'A' is the name of two adapters; each needs its own"]);
  });

  test("all faults at once, in the order of the lines", () => {
    const { lines } = refused(`[model]\npath = 3\n[run]\noutput = "o"\nseed = -1\n${adapter("rank = 0\nfoo = 1")}`);
    expect(lines.map((line) => line.split(":")[1])).toEqual(["2", "5", "9", "10"]);
  });

  test("a table where a value belongs", () => {
    expect(refused(HEAD + adapter("rank = { a = 1 }")).lines[0]).toEndWith(
      "adapter[0].rank is a table, expected a whole number from 1 to 256",
    );
  });

  test("TOML that does not parse", () => {
    const { code, lines } = refused("[model\npath = 1");
    expect(code).toBe("recipe.syntax");
    expect(lines[0]).toMatch(/^\/here\/r\.toml:1:\d+: not TOML/);
  });

  test("paths that a shell would have changed", () => {
    const all = `[model]
path = "~/models/m"
[run]
output = "~/out"
[[adapter]]
name = "a"
data = { train = ["~/a.jsonl", { path = "~/b.jsonl" }], eval = "~" }
chat_template = "~/t.jinja"
objective = { name = "dpo", reference = "~/reference" }
`;
    const { lines } = refused(all);
    const told = lines.filter((line) => line.includes("begins with '~', which a shell replaces")).join("\n");
    for (const key of ["model.path", "run.output", "data", "chat_template"]) expect(told).toContain(key);
    expect(refused(HEAD + adapter('from = "~/adapter"')).lines[0]).toContain("from begins with '~'");
    expect(refused(HEAD + adapter(), { output: "~/out" }).lines[0]).toBe("--output ~/out: the shell has left the '~' as it is");
    expect(parse(`${HEAD}${adapter()}`, { output: "~out" }).run.output).toEndWith("/~out"); // a name like any other
  });

  for (const address of ["s3://bucket/a", "file:///a", "gs+x://b", "HTTPS://host/a", "hf://org/name"])
    test(`${address} where a path is expected, which would make or look for folders of its name`, () => {
      const all = `[model]
path = "${address}"
[run]
output = "${address}"
[[adapter]]
name = "a"
data = { train = ["${address}", { path = "${address}" }], eval = "${address}" }
chat_template = "${address}"
objective = { name = "dpo", reference = "${address}" }
`;
      const { lines } = refused(all);
      const told = lines.filter((line) => line.includes(`"${address}", expected`));
      const isHub = address.startsWith("hf:");
      const isRead = isHub || /^https:/i.test(address);
      expect(told.some((line) => line.includes("model.path is "))).toBe(!isHub);
      expect(told.some((line) => line.includes("adapter[0].data"))).toBe(!isRead);
      for (const key of ["run.output is ", "adapter[0].chat_template", "reference"])
        expect([key, told.filter((line) => line.includes(key)).length]).toEqual([key, 1]);
      expect(refused(HEAD + adapter(`from = "${address}"`)).lines[0]).toContain(
        "expected a path of this machine, not an address",
      );
      expect(refused(HEAD + adapter(), { output: address }).lines[0]).toBe(`--output ${address} is an address`);
    });

  test("a path with a colon is a path", () => {
    for (const path of ["./s3://a", "a:b", "c:/a", "1x://a", "://a"])
      expect(parse(HEAD + adapter(`from = "${path}"`)).adapters[0]!.initialAdapter).toStartWith("/here/");
  });

  test("bad flags", () => {
    expect(refused(HEAD + adapter(), { device: "tpu" }).lines[0]).toContain("--device tpu");
    expect(refused(HEAD + adapter(), { seed: "x" }).lines[0]).toContain("--seed x");
  });

  test("sweeps that are too many", () => {
    const many = `[${Array.from({ length: 40 }, (_, i) => i + 1)}]`;
    const { lines } = refused(HEAD + adapter(`sweep = { rank = ${many}, steps = ${many} }`));
    expect(lines[0]).toContain("make 1,600 adapters");
  });
});

test("optimizers may be swept; what [defaults] say of another one is not for them", () => {
  const text = `${HEAD}[defaults]\nbetas = [0.8, 0.9]\nmomentum = 0.7\n${adapter('sweep = { optimizer = ["adamw", "sgd", "adamw-8bit"] }')}`;
  const { adapters } = parse(text);
  expect(adapters.map(({ optimizer }) => optimizer)).toEqual([
    { name: "adamw", learningRate: 2e-4, weightDecay: 0, maxGradNorm: 1, beta1: 0.8, beta2: 0.9, eps: 1e-8 },
    { name: "sgd", learningRate: 2e-4, weightDecay: 0, maxGradNorm: 1, momentum: 0.7, nesterov: false },
    { name: "adamw-8bit", learningRate: 2e-4, weightDecay: 0, maxGradNorm: 1, beta1: 0.8, beta2: 0.9, eps: 1e-8 },
  ]);
  expect(parse(formatRecipe(parse(text))).adapters).toEqual(adapters);
});

test("files that are no recipes are refused by name", () => {
  const folder = mkdtempSync(join(tmpdir(), "mlora-recipe-"));
  const binary = join(folder, "binary.toml");
  writeFileSync(binary, Uint8Array.from([0xff, 0xfe, 0x00]));
  for (const [path, why] of [
    [join(folder, "absent.toml"), "no such file"],
    [folder, "is not a file"],
    [binary, "is not UTF-8 text"],
  ] as const)
    expect(() => loadRecipe(path)).toThrow(`${path}: ${why}`);
  rmSync(folder, { recursive: true });
});

test("suggests what is near and nothing that is not", () => {
  expect(nearest("learning_rtae", ["learning_rate", "rank"])).toBe("learning_rate");
  expect(nearest("banana", ["learning_rate", "rank"])).toBeNull();
});

test("mutations never crash or hang", () => {
  const rng = new Rng(5);
  const good = `${HEAD}[defaults]\nrank = 4 # comment\n${adapter('system = """x\ny"""\nbetas = [0.9, 0.99]')}[[adapter]]\nname = 'b'\ndata = { train = ["x", "y"], split = 0.1 }\nsweep = { dropout = [0, 0.1] }\n`;
  const glyphs = ["[", "]", "{", "}", '"', "'", "=", ".", ",", "#", "\n", "\\", "0", "-", "é", "\0", '"""', "[["];
  for (let i = 0; i < 600; i++) {
    const at = rng.below(good.length);
    const glyph = glyphs[rng.below(glyphs.length)]!;
    const kind = rng.below(3);
    const text = kind === 0 ? good.slice(0, at) : good.slice(0, at) + glyph + good.slice(at + (kind === 1 ? 1 : 0));
    try {
      parse(text);
    } catch (error) {
      expect(error, text).toBeInstanceOf(RequestError);
    }
  }
});
