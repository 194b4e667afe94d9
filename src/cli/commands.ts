// Every command with its flags and examples, as data: the command line, its help, shell completion, man pages and the
// documentation site are all made from this table. It imports nothing, since each command reads it.

/** A flag as cac reads it, and what it does. */
export type Flag = readonly [flag: string, meaning: string];
export type Example = readonly [command: string, purpose: string];

export type CommandFacts = {
  /** The name and its arguments, as cac reads them. */
  readonly usage: string;
  readonly purpose: string;
  readonly flags?: readonly Flag[];
  /** Each runs as it is, given the files that it names. */
  readonly examples: readonly Example[];
};

const JSON_FLAG: Flag = ["--json", "For machines"];
const LINK: Flag = ["--link <link>", "auto, ipc, nccl, shm or nats: how activations go between stages"];
const HELD: Flag = [
  "--precision <precision>",
  "How the base is held: auto, bf16, prefer-bf16, fp32, int8, nf4, fp8 or nf4-fp8",
];
const SAMPLING: readonly Flag[] = [
  ["--temperature <number>", "0 takes the likeliest token; higher is more by chance (default: 0)"],
  ["--top-p <number>", "Only the likeliest tokens that have this probability together (default: 1)"],
  ["--top-k <number>", "Only that many of the likeliest tokens (default: 0, all)"],
];
const SERVER: readonly Flag[] = [
  ["--server <url>", "The address of mlora serve, as it prints it"],
  ["--key-file <file>", "A file with the key alone, which no other user may read (default: MLORA_SERVER_KEY)"],
  ["--insecure", "Send the key in clear text to another machine"],
];
/** What overrides a recipe. */
const OVERRIDES: readonly Flag[] = [
  ["--output <folder>", "Where results go, instead of the recipe's run.output"],
  ["--device <device>", "auto, cpu or cuda, instead of the recipe's run.device"],
  ["--seed <number>", "Instead of the recipe's run.seed"],
  ["--stages <stages>", "auto, a number, or the layers of each (10,12.5,9.5), instead of the recipe's run.stages"],
];

export const COMMANDS = {
  run: {
    usage: "run <recipe>",
    purpose: "Train every adapter of a recipe",
    flags: [
      ...OVERRIDES,
      ["--trace <file>", "Write what every stage did when, and one step's kernels, in Chrome's trace format"],
      ["--resume", "Continue the run in the output folder, or fail; without it, continue where there is one"],
      ["--keep-open", "When all adapters have ended, wait for more (mlora add) until the run is stopped"],
      LINK,
      ["--nats <url>", "A NATS server that stages on other machines reach"],
      ["--listen <host:port>", "Instead: where the run's own server listens for them"],
      ["--run <id>", "With --nats or --listen: the run's id, instead of a random one"],
      ["--here <number>", "With --nats or --listen: stages that are started on this machine (default: 0)"],
      ["--web [host:port]", "Show the run on a live page for browsers, at 127.0.0.1:8765 or the address that follows"],
      ["--web-certificate <file>", "With --web: a TLS certificate, for https"],
      ["--web-certificate-key <file>", "With --web: the file of its key"],
      ["--insecure", "With --listen or --web: let other machines in without a certificate (MLORA_NATS_CERT, MLORA_NATS_KEY)"],
    ],
    examples: [
      ["mlora run recipe.toml", "Train, or continue where the run was interrupted"],
      ["mlora run recipe.toml --output out/again --seed 7", "The same with another seed, in a folder of its own"],
      ["mlora run recipe.toml --web", "With a live page, whose link is printed"],
      ["mlora run recipe.toml --stages 2 --trace trace.json", "In a pipeline of two stages, with a trace for ui.perfetto.dev"],
    ],
  },
  plan: {
    usage: "plan <recipe>",
    purpose: "Say what a run would do, without doing it",
    flags: [
      ...OVERRIDES,
      ["--svg <file>", "Draw the schedule: which stage does what, for which adapter, when"],
      ["--measure", "Train for some seconds, keeping nothing, to say how long the run will take on this device"],
      ["--price <number>", "Money for an hour of this machine, for what the run will cost"],
      JSON_FLAG,
    ],
    examples: [
      ["mlora plan recipe.toml", "Rows, steps, tokens, memory and time"],
      ["mlora plan recipe.toml --measure --price 2.50", "Time and cost, from seconds of real steps"],
      ["mlora plan recipe.toml --stages 4 --svg plan.svg", "The schedule of four stages, as a picture"],
    ],
  },
  init: {
    usage: "init <model> <data>",
    purpose: "Write a recipe for a base model and a file of rows, with a comment for each key",
    flags: [["--output <file>", "The recipe (default: recipe.toml); recipe.schema.json is written next to it, for editors"]],
    examples: [
      ["mlora init models/SmolLM2-135M-Instruct rows.jsonl", "Write recipe.toml, which runs as it is"],
      ["mlora init models/SmolLM2-135M-Instruct rows.jsonl --output support.toml", "The same under another name"],
    ],
  },
  data: {
    usage: "data <recipe> [adapter]",
    purpose: "Show rows as they will be trained: what is learned, cut and dropped",
    flags: [
      ["--row <number>", "This row of the files, from 1, instead of counts and the first rows"],
      ["--eval", "Rows of the evaluation files"],
      ["--ids", "A line for each token, with its id and its weight in the loss"],
      JSON_FLAG,
    ],
    examples: [
      ["mlora data recipe.toml", "Counts of all adapters, and their first rows"],
      ["mlora data recipe.toml tickets --row 7 --ids", "The tokens of one row"],
    ],
  },
  report: {
    usage: "report <folder>",
    purpose: "Write a run as one HTML file: table, curves, settings and schedule",
    flags: [["--output <file>", "The file (default: report.html in the run's folder)"]],
    examples: [["mlora report out/support", "Write out/support/report.html, also of a run that is under way"]],
  },
  sync: {
    usage: "sync <folder>",
    purpose: "Send to MLflow what of a run its server does not have",
    examples: [["mlora sync out/support", "After a run without a network, or without MLFLOW_TRACKING_URI"]],
  },
  schema: {
    usage: "schema",
    purpose: "Print what a recipe may say as a JSON schema, for editors",
    examples: [["mlora schema >recipe.schema.json", "For the line #:schema ./recipe.schema.json at the top of a recipe"]],
  },
  ps: {
    usage: "ps",
    purpose: "List the runs under way on this machine, with their adapters",
    flags: [JSON_FLAG],
    examples: [["mlora ps", "State, step, loss, tokens/s and the time that is left"]],
  },
  stop: {
    usage: "stop <run> [adapter]",
    purpose: "End a run, or one of its adapters; what was trained is saved",
    examples: [
      ["mlora stop out/support", "End the run in this folder"],
      ["mlora stop 4f1c tickets", "End one adapter of the run whose id begins with 4f1c"],
    ],
  },
  pause: {
    usage: "pause <run> [adapter]",
    purpose: "Take a run's adapters off the stages, or one of them, until they are resumed",
    examples: [["mlora pause out/support tickets", "Take one adapter off the device"]],
  },
  resume: {
    usage: "resume <run> [adapter]",
    purpose: "Resume paused adapters",
    examples: [["mlora resume out/support", "Resume all of a run"]],
  },
  add: {
    usage: "add <run> <recipe>",
    purpose: "Have the adapters of another recipe for the same base model join a run",
    examples: [["mlora add out/support more.toml", "They train next to those that are there"]],
  },
  fork: {
    usage: "fork <run> <adapter> <name>",
    purpose: "Train a copy of an adapter next to it, with other hyper-parameters",
    flags: [["--set <keys>", 'What the copy has otherwise, as in a recipe: "learning_rate = 1e-4, steps = 500"']],
    examples: [
      ['mlora fork out/support tickets slower --set "learning_rate = 1e-4"', "Continue from here at a lower learning rate"],
    ],
  },
  stage: {
    usage: "stage",
    purpose: "Run one pipeline stage for a remote coordinator",
    flags: [
      ["--nats <url>", "The NATS server that the coordinator prints"],
      ["--run <id>", "The run's id, as the coordinator prints it"],
      ["--key <file>", "The file with the run's key, copied from where the coordinator prints (default: MLORA_RUN_KEY)"],
      ["--stage <number>", "Which stage, from 0 (default: one that is free)"],
      ["--device <device>", "auto, cpu or cuda"],
      ["--precision <precision>", "auto, bf16, prefer-bf16, fp32, int8, nf4, fp8 or nf4-fp8, as the recipe has it"],
      ["--gpu <number>", "Which of several GPUs (default: 0)"],
      ["--model <folder>", "Where the base model lies on this machine, if not where the coordinator has it"],
      ["--orders", "Take server, run and key from standard input, and what else a coordinator gives"],
    ],
    examples: [["mlora stage --nats tls://10.0.0.1:4222 --run tonight", "On each machine of the run"]],
  },
  export: {
    usage: "export <adapter>",
    purpose: "Merge an adapter's folder into its base model: a model for programs without adapters",
    flags: [
      ["--base <folder>", "The base model, where the adapter's own config does not say where it is now"],
      ["--output <folder>", "Where the merged model goes: a folder that is new or empty; with --gguf a new file"],
      ["--all", "Every adapter of the run in this folder that has ended, each into a folder or file of its name in --output"],
      ["--gguf <type>", "A GGUF instead: f32, f16, bf16, q8_0 or q4_k_m; adapter for the adapter alone"],
      ["--dtype <dtype>", "bf16 or fp32 (default: bf16)"],
      ["--shard <size>", "The largest size of a file of weights (default: 5GB)"],
      JSON_FLAG,
    ],
    examples: [
      ["mlora export out/support/tickets --output models/tickets", "A Hugging Face folder in bf16"],
      ["mlora export out/support/tickets --gguf q4_k_m --output tickets.gguf", "One file for llama.cpp and Ollama"],
    ],
  },
  push: {
    usage: "push <adapter> <repo>",
    purpose: "Put an adapter on a hub, private if it is new, with a card",
    flags: [
      ["--base <text>", "The base model's name there, where the adapter's own config has a folder"],
      ["--public", "A repository that is made for it is public"],
      ["--revision <text>", "The branch (default: main)"],
      ["--dry-run", "Show what would be pushed, and the card"],
      JSON_FLAG,
    ],
    examples: [
      [
        "mlora push out/support/tickets me/tickets --base HuggingFaceTB/SmolLM2-135M-Instruct --dry-run",
        "Show what would go there",
      ],
    ],
  },
  generate: {
    usage: "generate [base]",
    purpose: "Continue prompts with adapters, many at once; [base] is a base model's folder or a recipe",
    flags: [
      ["--adapter <folder>", "An adapter's folder, or its name in the recipe; repeat for several; 'base' for none"],
      ["--prompt <text>", "What is to be continued or answered"],
      [
        "--prompts <file>",
        'rows as for training; a row\'s "adapter" names the adapter that answers, else all do; answers are compared',
      ],
      ["--system <text>", "The system message, instead of the recipe's"],
      ["--raw", "Without the model's chat template"],
      ["--max-new-tokens <number>", "Most new tokens (default: 128)"],
      ...SAMPLING,
      ["--seed <number>", "The same seed gives the same text (default: 0)"],
      ["--device <device>", "auto, cpu or cuda"],
      HELD,
      ["--json", "For machines: a line for each answer"],
    ],
    examples: [
      ['mlora generate --adapter out/support/tickets --adapter base --prompt "Where is my order?"', "Both answer"],
      ["mlora generate recipe.toml", "Every adapter answers its own evaluation rows; exact matches are counted"],
    ],
  },
  serve: {
    usage: "serve <model>",
    purpose: "Serve a base model: fine-tuning jobs and answers, as OpenAI's clients ask for them",
    flags: [
      ["--config <file>", "What the server is, as TOML (docs/serve.md)"],
      ["--folder <folder>", "Where files, jobs and adapters are kept (default: mlora-server)"],
      ["--listen <host:port>", "Where clients reach it (default: 127.0.0.1:8000)"],
      ["--name <name>", "What clients call the model (default: the last two parts of its folder)"],
      ["--keys <file>", "A line for each key: a name and the key (default: one is made and shown once)"],
      ["--insecure", "Let other machines in without a certificate"],
    ],
    examples: [["mlora serve models/SmolLM2-135M-Instruct", "At http://127.0.0.1:8000/v1; prints a key at its first start"]],
  },
  submit: {
    usage: "submit <recipe>",
    purpose: "Have a server train the adapters of a recipe, a job each, to the bytes of mlora run",
    flags: [...SERVER, ["--watch", "Print what happens until all have ended"]],
    examples: [
      ["mlora submit recipe.toml --server http://127.0.0.1:8000 --key-file key --watch", "Send rows and recipe, and wait"],
    ],
  },
  jobs: {
    usage: "jobs [action] [job]",
    purpose: "List a server's jobs, or watch, pause, resume or cancel one, or fetch its adapter",
    flags: [...SERVER, ["--output <folder>", "With fetch: where the adapter goes (default: a folder of its name)"], JSON_FLAG],
    examples: [
      ["mlora jobs --server http://127.0.0.1:8000 --key-file key", "List them"],
      ["mlora jobs fetch tickets --server http://127.0.0.1:8000 --key-file key", "The adapter of a job that has succeeded"],
    ],
  },
  doctor: {
    usage: "doctor",
    purpose: "Say what this machine has and lacks",
    flags: [JSON_FLAG],
    examples: [["mlora doctor", "Native code, GPUs, kernels and the messages between processes"]],
  },
  bench: {
    usage: "bench",
    purpose: "Measure how fast this machine trains a model of a known shape, or generates with it",
    flags: [
      ["--shape <shape>", "The base model's shape (default: smollm2-135m)"],
      ["--device <device>", "auto, cpu or cuda"],
      ["--adapters <number>", "Adapters that train together (default: 1)"],
      ["--rows <number>", "Rows in an adapter's batch (default: 4)"],
      ["--length <number>", "Tokens in a row (default: 64)"],
      ["--method <method>", "PEFT method, as in a recipe (default: lora)"],
      ["--rank <rank>", "Rank of the adapters, or of each in turn: 4,64 (default: 16)"],
      ["--dropout <number>", "Dropout of the adapters (default: 0)"],
      ["--targets <targets>", "all-linear or qkvo (default: all-linear)"],
      ["--experts <sharing>", "shared-outer or per-expert: factors of adapters in experts (default: shared-outer)"],
      ["--steps <number>", "Steps to measure (default: 10)"],
      ["--warm-up <number>", "Steps before those that are measured (default: 2)"],
      ["--steps-only", "Time no step kernel by kernel, which takes one more"],
      ["--seconds <seconds>", "Measure at least so long: 20 or more where a GPU's power limits it"],
      ["--recomputation <recomputation>", "auto, none, selective, full or offload"],
      ["--tokens <number>", "Most tokens in a pass"],
      ["--stages <stages>", "Stages of a pipeline, a process each: a number, or the layers of each (default: 1)"],
      LINK,
      HELD,
      ["--trace <file>", "Write one step's kernels in Chrome's trace format"],
      ["--checkpoint <seconds>", "Keep every adapter so often, in a temporary folder, to see what it costs"],
      ["--generate", "Generate instead of training: the flags from here on, next to shape, adapters, rank, targets and device"],
      ["--sequences <number>", "Sequences, of each adapter in turn; --adapters 0 takes the base model alone (default: 8)"],
      ["--prompt-tokens <number>", "Tokens of each prompt (default: 64)"],
      ["--new-tokens <number>", "New tokens of each sequence (default: 128)"],
      ["--rounds <number>", "Times that all are generated; the median counts (default: 1)"],
      ...SAMPLING,
      JSON_FLAG,
    ],
    examples: [
      ["mlora bench", "One adapter on SmolLM2-135M's shape"],
      ["mlora bench --generate --adapters 4", "Eight sequences of four adapters on it"],
      ["mlora bench --shape llama2-7b --rows 8 --length 512 --adapters 4", "Four adapters on a 7B, on a GPU"],
    ],
  },
  completion: {
    usage: "completion <shell>",
    purpose: "Print what makes bash, zsh or fish complete commands, flags and files",
    examples: [
      ["source <(mlora completion bash)", "In ~/.bashrc"],
      ["mlora completion zsh >~/.zsh/_mlora", "In a folder of zsh's fpath"],
      ["mlora completion fish >~/.config/fish/completions/mlora.fish", "For fish"],
    ],
  },
  man: {
    usage: "man [command]",
    purpose: "Print a man page: of mlora, of one command, or (recipe) of the keys of a recipe",
    flags: [["--output <folder>", "Write all of them there instead: man1/mlora.1, man1/mlora-run.1, man5/mlora-recipe.5, ..."]],
    examples: [
      ["mlora man run | man -l -", "Read one"],
      ["mlora man --output ~/.local/share/man", "Install them all, for man mlora-run"],
    ],
  },
  help: {
    usage: "help [command]",
    purpose: "Say what a command does and takes",
    examples: [["mlora help run", "The same as mlora run --help"]],
  },
} as const satisfies Readonly<Record<string, CommandFacts>>;

export type CommandName = keyof typeof COMMANDS;
export const COMMAND_NAMES = Object.keys(COMMANDS) as CommandName[];
export const factsOf = (name: CommandName): CommandFacts => COMMANDS[name];

/** Of a command, the flag that may be given several times. */
export const REPEATED: Readonly<Record<string, string>> = { generate: "adapter" };
