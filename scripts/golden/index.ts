// What makes the golden files of tests/golden: each script with the packages that it was run with and the files that it writes.

export type Maker = {
  /** Under tests/golden; it writes next to itself. */
  readonly script: string;
  /** The files that it writes, as globs under tests/golden. */
  readonly makes: readonly string[];
  /** Packages of Python, pinned; those that they need in turn come along. */
  readonly packages: readonly string[];
  /** The version of Python, where it matters. */
  readonly python?: string;
  /**
   * How far a number may be from the one kept, relative to the largest of its tensor or list; null where bytes are compared.
   */
  readonly tolerance: number | null;
  /** A folder of the checkout that is its first argument, and the command that makes it. */
  readonly reads?: { readonly path: string; readonly from: string };
  /** What else it is called with. */
  readonly args?: readonly string[];
  /** It changes the files that are there, and needs them. */
  readonly updates?: true;
};

const TORCH = "torch==2.15.0";
const TRANSFORMERS = "transformers==5.24.0";
const PEFT = "peft==0.21.2";
const NUMPY = "numpy==2.4.6";
const TRL = "trl==1.16.0";
const JINJA = "jinja2==3.1.6";
const TOKENIZERS = "tokenizers==0.23.3";
const SMOLLM = { path: "models/SmolLM2-135M-Instruct", from: "scripts/model" };
/** The tokenizers that scripts/tokenizers.ts fetches or has; those of tokenizers/convert.py stay as they are. */
const PUBLIC = ["claude", "deepseek_v3", "gemini", "gemma3", "gptoss", "llama2", "llama3", "qwen3", "smollm2"].concat(
  ["llama2", "llama3", "qwen3", "smollm"].map((name) => `small-${name}`),
);
/** Sums of float32 over a few optimizer steps, in the order of another processor. */
const FLOAT32 = 1e-4;
const FLOAT64 = 1e-12;

export const MAKERS: Readonly<Record<string, Maker>> = {
  answers: { script: "answers/make.py", makes: ["answers/trl.json"], packages: [TRL, TRANSFORMERS], tolerance: null },
  base: {
    script: "base/make.py",
    makes: ["base/cases.json", "base/logits.safetensors"],
    packages: [TORCH, TRANSFORMERS],
    tolerance: FLOAT32,
  },
  cit: {
    script: "cit/make.py",
    makes: ["cit/losses.json", "cit/*/adapter_config.json", "cit/*/adapter_model.safetensors", "cit/*/run.json"],
    packages: [TORCH, "transformers==5.23.0", PEFT, NUMPY],
    tolerance: FLOAT32,
  },
  formats: {
    script: "formats/make.py",
    makes: ["formats/*.json", "formats/*/*"],
    packages: [TORCH, TRANSFORMERS, "bitsandbytes==0.50.2", "gguf==0.19.0", "accelerate==1.15.0", NUMPY],
    tolerance: FLOAT32,
  },
  gemma: {
    script: "gemma/make.py",
    makes: ["gemma/*/golden.json", "gemma/*/generated.json", "gemma/*/logits.safetensors", "gemma/*/model/*", "gemma/*/*/*/*"],
    packages: [TORCH, TRANSFORMERS, PEFT, NUMPY],
    tolerance: FLOAT32,
  },
  graders: {
    script: "graders/make.py",
    makes: ["graders/graders.json"],
    packages: ["rapidfuzz==3.14.6", "rouge-score==0.1.2"],
    tolerance: FLOAT64,
  },
  grpo: {
    script: "grpo/make.py",
    makes: ["grpo/grpo.json"],
    packages: [TORCH, TRANSFORMERS, TRL, PEFT],
    tolerance: FLOAT64,
  },
  gguf: {
    script: "gguf/make.py",
    makes: ["gguf/blocks.json"],
    packages: ["llama-cpp-python==0.3.36", "gguf==0.19.0", NUMPY],
    tolerance: null,
  },
  hub: {
    script: "hub/make.py",
    makes: ["hub/*.json"],
    packages: ["huggingface_hub==2.4.0", "datasets==5.2.0"],
    tolerance: null,
  },
  push: { script: "push/make.py", makes: ["push/sent.json"], packages: ["huggingface_hub==2.4.0"], tolerance: null },
  families: {
    script: "families/make.py",
    makes: ["families/*/golden.json", "families/*/numbers.safetensors"],
    packages: [TORCH, TRANSFORMERS, PEFT, NUMPY],
    tolerance: FLOAT32,
  },
  generate: {
    script: "generate/make.py",
    makes: ["generate/greedy.json"],
    packages: [TORCH, "transformers==5.23.0", PEFT, NUMPY],
    tolerance: 1e-3, // the margins, of logits; tokens are whole numbers
    reads: SMOLLM,
  },
  jinja: {
    script: "jinja/make.py",
    makes: [
      "jinja/templates.json.gz",
      "jinja/conversations.jsonl",
      "jinja/renderings.json",
      "jinja/snippets.json",
      "jinja/snippet-variables.json",
    ],
    packages: [TRANSFORMERS, TRL, JINJA],
    tolerance: null,
  },
  nf4: { script: "nf4/make.py", makes: ["nf4/nf4.json"], packages: [TORCH, "bitsandbytes==0.50.2", NUMPY], tolerance: null },
  optimizers: {
    script: "optimizers/make.py",
    makes: ["optimizers/steps.json"],
    packages: [TORCH, NUMPY],
    tolerance: FLOAT32,
  },
  "optimizers-8bit": {
    script: "optimizers/make_8bit.py",
    makes: ["optimizers/adamw-8bit.json"],
    packages: [TORCH, "bitsandbytes==0.50.2", NUMPY],
    tolerance: FLOAT32,
  },
  peft: {
    script: "peft/make.py",
    makes: [
      "peft/*/golden.json",
      "peft/*/logits.safetensors",
      "peft/*/model/*",
      "peft/*/*/gradients.safetensors",
      "peft/*/*/*/*",
    ],
    packages: [TORCH, "transformers==5.23.0", PEFT, NUMPY],
    tolerance: FLOAT32,
  },
  strings: {
    script: "tokenizers/make_strings.py",
    makes: ["tokenizers/strings.json"],
    packages: [TRANSFORMERS, TOKENIZERS],
    tolerance: null,
    updates: true, // those that are not named stay
    reads: { path: "out/tokenizers", from: "bun scripts/tokenizers.ts out/tokenizers" },
    args: PUBLIC,
  },
  tables: {
    script: "tables/make.py",
    makes: ["tables/cases.json", "tables/*/*.json", "tables/*/*.safetensors"],
    packages: [TORCH, TRANSFORMERS, PEFT, NUMPY],
    tolerance: FLOAT32,
  },
  trainedTables: {
    script: "trained-tables/make.py",
    makes: ["trained-tables/golden.json", "trained-tables/*/*/*/*", "trained-tables/*/model/*"],
    packages: [TORCH, TRANSFORMERS, PEFT, NUMPY],
    tolerance: FLOAT32,
  },
  tokenizers: {
    script: "make_tokenizer.py",
    makes: ["tokenizers/cases/*.json", "tokenizers/*/tokenizer.json", "tokenizers/*/tokenizer_config.json"],
    packages: ["transformers==5.23.0", TOKENIZERS, JINJA],
    python: "3.11", // its documentation is what the tokenizers are trained on
    tolerance: null,
    updates: true,
    reads: SMOLLM,
  },
  config: { script: "config/make.py", makes: ["config/defaults.json"], packages: [TRANSFORMERS], tolerance: null },
  "tokenizers-random": {
    script: "tokenizers/make_random.py",
    makes: ["tokenizers/random.json"],
    packages: [TOKENIZERS],
    tolerance: null,
  },
  "tokenizers-configs": {
    script: "tokenizers/make_configs.py",
    makes: ["tokenizers/configs.json"],
    packages: [TRANSFORMERS, TOKENIZERS],
    tolerance: null,
  },
  sources: { script: "sources/make.py", makes: ["sources/*"], packages: ["pyarrow==26.0.1", "pandas==3.1.1"], tolerance: null },
  tracking: {
    script: "tracking/make.py",
    makes: ["tracking/events.json"],
    packages: ["tensorboard==2.21.0"],
    tolerance: null,
  },
  trl: { script: "trl/make.py", makes: ["trl/losses.json"], packages: [TORCH, "trl==0.15.2"], tolerance: FLOAT64 },
  trl116: {
    script: "trl116/make.py",
    makes: ["trl116/golden.json", "trl116/qwen3.jinja", "trl116/*.safetensors", "trl116/model/*", "trl116/initial/*"],
    packages: [TORCH, TRANSFORMERS, PEFT, TRL],
    tolerance: FLOAT32,
  },
  unicode: {
    script: "tokenizers/make_unicode.py",
    makes: ["tokenizers/unicode.json"],
    packages: [TOKENIZERS],
    tolerance: null,
  },
  wandb: { script: "wandb/make.py", makes: ["wandb/records.json"], packages: ["wandb==0.31.0"], tolerance: null },
};

/** Files that are written by hand, come from a model's family as they are, or have the time in them. */
export const INPUTS: readonly string[] = ["trl116/template.jinja", "tokenizers/*/*.jinja", "wandb/offline.json"];
/** Scripts of tests/golden that make nothing that is kept, and what makers import. */
export const HELPERS: readonly string[] = [
  "families/latents.py",
  "families/models.py",
  "jinja/conversations.py",
  "jinja/snippets.py",
  "peft/check_export.py",
  "peft/float64.py",
  "peft/models.py",
  "tokenizers/convert.py",
];
