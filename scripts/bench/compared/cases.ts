// What scripts/bench/peers measures: a case is one setting, and how each program that has it is asked for it.

import { join } from "node:path";

export const PROGRAMS = ["mlora", "before", "PEFT", "Unsloth", "transformers"] as const;
export type Program = (typeof PROGRAMS)[number];
/** What they are called in tables. */
export const TITLES: Readonly<Record<Program, string>> = {
  mlora: "mlora",
  before: "the build before",
  PEFT: "PEFT, every layer compiled",
  Unsloth: "Unsloth",
  transformers: "transformers",
};

/** Of the last two less is better. */
export type Unit = "tokens/s" | "ms a token" | "s";
export const isLessBetter = (unit: Unit): boolean => unit !== "tokens/s";

type Flags = Readonly<Record<string, string | number>>;
type Peer = Exclude<Program, "mlora" | "before">;

/** What a value must be at least (at most, where less is better): times another program's, or another case's own; or itself. */
export type Asked = { readonly of?: Program; readonly ofCase?: string; readonly least: number };

export type Case = {
  readonly name: string;
  /** The setting in words. */
  readonly about: string;
  readonly on: "GPU" | "CPU";
  readonly unit: Unit;
  /** Of `mlora bench`; null: scripts/bench/start.ts. */
  readonly own: Flags | null;
  readonly peers: Partial<Readonly<Record<Peer, Flags>>>;
  /** Words that follow a peer's flags. */
  readonly extra?: Partial<Readonly<Record<Peer, readonly string[]>>>;
  readonly asked: readonly Asked[];
  /** GiB at most. */
  readonly most?: number;
};

const ROOT = join(import.meta.dir, "..", "..", "..");
const BASE: Flags = { shape: "llama2-7b", rows: 8, length: 512, rank: 16, targets: "qkvo", dropout: 0.05, device: "cuda" };
const GENERATED = { shape: "llama2-7b", targets: "qkvo", "prompt-tokens": 64, "new-tokens": 128, rounds: 2 };
const SMALL: Flags = { shape: "smollm2-135m", rows: 4, length: 64, rank: 16, targets: "all-linear", dropout: 0, device: "cpu" };
const IN_BF16: Flags = { ...SMALL, adapters: 1, precision: "bf16" };
const COMPILED = { PEFT: ["--compile"] };

/** Of training on a GPU: the base's flags with changes; Unsloth's fused path has no dropout, so it gets none. */
function training(
  name: string,
  about: string,
  changes: Flags,
  rest: Omit<Case, "name" | "about" | "on" | "unit" | "own">,
): Case {
  const own = { ...BASE, adapters: 1, recomputation: "none", ...changes };
  return { name, about, on: "GPU", unit: "tokens/s", own, ...rest };
}

const unsloth = (changes: Flags = {}): Flags => ({ ...BASE, dropout: 0, ...changes });
const to = (of: Program, least: number): Asked => ({ of, least });
const toOwn = (ofCase: string, least: number): Asked => ({ ofCase, least });

export const CASES: readonly Case[] = [
  training(
    "q, k, v, o",
    "Llama-2-7B, 8 x 512, rank 16, dropout 0.05",
    {},
    {
      peers: { PEFT: BASE, Unsloth: unsloth() },
      extra: COMPILED,
      asked: [to("before", 1.08), to("Unsloth", 1.27)],
    },
  ),
  training(
    "all linears",
    "Llama-2-7B, 8 x 512, rank 16, no dropout",
    { targets: "all-linear", dropout: 0 },
    {
      peers: { PEFT: { ...BASE, targets: "all-linear", dropout: 0 }, Unsloth: unsloth({ targets: "all-linear" }) },
      extra: COMPILED,
      asked: [to("before", 1.11), to("Unsloth", 1.36)],
      most: 28,
    },
  ),
  training(
    "fp8",
    "Llama-2-7B, q, k, v, o over an fp8 base",
    { precision: "fp8" },
    {
      peers: {},
      asked: [to("before", 1.12), toOwn("q, k, v, o", 1.6)],
    },
  ),
  training(
    "nf4",
    "Llama-2-7B, q, k, v, o over an nf4 base",
    { precision: "nf4" },
    {
      peers: { Unsloth: unsloth({ precision: "nf4" }) },
      asked: [to("Unsloth", 1.15), toOwn("q, k, v, o", 0.93)],
    },
  ),
  training(
    "int8",
    "Llama-2-7B, q, k, v, o over an int8 base",
    { precision: "int8" },
    {
      peers: {},
      asked: [toOwn("q, k, v, o", 0.93)],
    },
  ),
  training(
    "full recomputation",
    "Llama-2-7B, q, k, v, o, layers computed again, their inputs on the host",
    { recomputation: "offload" },
    {
      peers: { PEFT: BASE, Unsloth: unsloth({ recomputation: "offload" }) },
      extra: { PEFT: ["--checkpointing"] },
      asked: [to("Unsloth", 1.28)],
      most: 13.6,
    },
  ),
  ...[32_768, 131_072].map((length) => {
    const changes = { shape: "llama3-8b", rows: 1, length, recomputation: "auto" };
    const most = length === 32_768 ? { most: 40 } : {};
    const about = `Llama-3-8B, one row of ${length.toLocaleString("en")}`;
    return training(`a row of ${length}`, about, changes, { peers: {}, asked: [], ...most });
  }),
  ...([64, 256] as const).map((sequences): Case => {
    const drawn = sequences === 256 ? { temperature: 0.8, "top-p": 0.95 } : {};
    const both = { ...GENERATED, sequences, ...drawn };
    return {
      name: `${sequences} sequences`,
      about: `Llama-2-7B generates ${sequences} x 128 tokens, 8 adapters (transformers: none)`,
      ...{ on: "GPU", unit: "tokens/s" },
      own: { ...both, adapters: 8, device: "cuda" },
      peers: { transformers: { ...both, adapters: 0 } },
      asked: sequences === 64 ? [to("transformers", 4), { least: 5600 }] : [{ least: 12_000 }],
    };
  }),
  {
    name: "one sequence",
    about: "SmolLM2-135M generates 256 tokens, 1 adapter",
    ...{ on: "GPU", unit: "ms a token" },
    own: {
      ...GENERATED,
      shape: "smollm2-135m",
      targets: "all-linear",
      "new-tokens": 256,
      sequences: 1,
      adapters: 1,
      device: "cuda",
    },
    peers: {},
    asked: [{ least: 1.5 }],
  },
  {
    name: "start",
    about: "Llama-2-7B, from the command to the first step",
    ...{ on: "GPU", unit: "s", own: null, peers: {}, asked: [{ least: 4 }] },
  },
  ...[1, 4].map((adapters): Case => {
    const own = { ...SMALL, adapters };
    const about = `SmolLM2-135M, all linears, 4 x 64 tokens, ${adapters === 1 ? "1 adapter" : `${adapters} adapters`}`;
    const name = `CPU, ${adapters} ${adapters === 1 ? "adapter" : "adapters"}`;
    return { name, about, on: "CPU", unit: "tokens/s", own, peers: { PEFT: own }, asked: [to("PEFT", 2)] };
  }),
  {
    name: "CPU, bf16",
    about: "SmolLM2-135M, all linears, 4 x 64 tokens, 1 adapter, base in bf16",
    ...{ on: "CPU", unit: "tokens/s", asked: [] },
    own: IN_BF16,
    peers: { PEFT: IN_BF16 },
  },
];

/** How programs are called here. */
export type Tools = {
  readonly mlora: readonly string[];
  /** Null where there is none. */
  readonly before: readonly string[] | null;
  readonly python: readonly string[];
  /** That steps are measured for at least. */
  readonly seconds: number;
};

const SCRIPTS: Readonly<Record<Peer, string>> = {
  PEFT: "peer.py",
  Unsloth: "peer_unsloth.py",
  transformers: "peer_generate.py",
};

const words = (flags: Flags): string[] => Object.entries(flags).flatMap(([key, value]) => [`--${key}`, `${value}`]);

/** What measures a case with a program; null where the program does not have it. */
export function commandOf(of: Case, program: Program, tools: Tools): readonly string[] | null {
  const script = (name: string) => join(ROOT, "scripts", "bench", name);
  const generates = of.own !== null && "sequences" in of.own;
  const during = generates ? [] : ["--seconds", `${tools.seconds}`];
  if (program === "mlora" || program === "before") {
    const build = program === "mlora" ? tools.mlora : tools.before;
    if (build === null) return null;
    if (of.own === null)
      return [process.execPath, script("start.ts"), "--mlora", build.join(" "), "--device", "cuda", "--json"];
    return [...build, "bench", ...(generates ? ["--generate"] : []), ...words(of.own), ...during, "--json"];
  }
  const flags = of.peers[program];
  if (!flags) return null;
  return [...tools.python, "-B", script(SCRIPTS[program]), ...words(flags), ...during, ...(of.extra?.[program] ?? [])];
}
