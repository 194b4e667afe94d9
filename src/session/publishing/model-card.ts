// The README.md of an adapter on a hub: what it is, how it is used, and how it was trained.

import { count, counted } from "../../base/units.ts";
import { VERSION } from "../../base/version.ts";
import type { Outcome } from "../../files/record.ts";

/** What a card says; null for what is not known. */
export type Card = {
  readonly name: string;
  readonly repo: string;
  /** The base model's name on the hub. */
  readonly base: string;
  readonly license: string | null;
  readonly method: string;
  /** How it came out, and the keys of its recipe. */
  readonly outcome: Pick<Outcome, "before" | "after" | "steps" | "tokens"> | null;
  readonly settings: Readonly<Record<string, unknown>> | null;
  /** Names of data sets on the hub, and of files. */
  readonly data: readonly string[];
  readonly datasets: readonly string[];
  /** Of an adapter that is written as more than was trained. */
  readonly more: string | null;
};

/** A text in YAML, which reads JSON's. */
const text = (value: string): string => JSON.stringify(value);
const list = (key: string, values: readonly string[]): readonly string[] =>
  values.length === 0 ? [] : [`${key}:`, ...values.map((value) => `- ${text(value)}`)];

/** The card in Markdown, with the front matter that the hub reads. */
export function cardText(card: Card): string {
  const { base, license, datasets, method } = card;
  const front = [
    `base_model: ${text(base)}`,
    "base_model_relation: adapter",
    "library_name: peft",
    "pipeline_tag: text-generation",
    ...(license === null ? [] : [`license: ${text(license)}`]),
    ...list("datasets", datasets),
    ...list("tags", [`base_model:adapter:${base}`, method, "mlora"]),
    ...resultsOf(card),
  ];
  return `---\n${front.join("\n")}\n---\n${bodyOf(card)}`;
}

/** Results on held-out rows, as the hub's model-index. */
function resultsOf({ name, outcome, data }: Card): readonly string[] {
  const after = outcome?.after;
  if (!after) return [];
  const metric = (kind: string, value: number, called: string) => [
    `    - type: ${kind}`,
    `      value: ${value}`,
    `      name: ${text(called)}`,
  ];
  return [
    ...["model-index:", `- name: ${text(name)}`, "  results:"],
    ...["  - task:", "      type: text-generation", "    dataset:", "      type: custom"],
    `      name: ${text(`${counted(after.rows, "held-out row")}${data.length === 0 ? "" : ` next to ${data[0]}`}`)}`,
    "    metrics:",
    ...metric("loss", after.loss, "loss"),
    ...metric("exact_match", after.rows === 0 ? 0 : after.exact / after.rows, "exact match"),
  ];
}

function bodyOf({ name, repo, base, outcome, settings, data, more }: Card): string {
  const system = settings?.["system"];
  const turns = [
    ...(typeof system === "string" ? [{ role: "system", content: system }] : []),
    { role: "user", content: "..." },
  ];
  return `
# ${name}

An adapter of [${base}](https://huggingface.co/${base}), trained with mlora ${VERSION}.
${outcome === null ? "" : resultTable(outcome)}
## How to use

\`\`\`python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(${text(base)})
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(${text(base)}), ${text(repo)})
chat = ${JSON.stringify(turns)}
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0, inputs["input_ids"].shape[1]:]))
\`\`\`
${settings === null ? "" : trainingOf(settings, data)}${more === null ? "" : `\n## How it is written\n\n${more.trim()}\n`}`;
}

function resultTable({ before, after, steps, tokens }: NonNullable<Card["outcome"]>): string {
  const of = (value: typeof before) => (value === null ? "" : `${Number(value.loss.toPrecision(4))}`);
  const exact = (value: typeof before) => (value === null ? "" : `${count(value.exact)} of ${count(value.rows)}`);
  const held = [
    "| on held-out rows | before | after |",
    "| --- | ---: | ---: |",
    `| loss | ${of(before)} | ${of(after)} |`,
    `| exact match | ${exact(before)} | ${exact(after)} |`,
  ];
  return `\n${after === null ? "" : `${held.join("\n")}\n\n`}Trained for ${counted(steps, "step")} on ${counted(tokens, "token")}.\n`;
}

function trainingOf(settings: NonNullable<Card["settings"]>, data: readonly string[]): string {
  const shown = (value: unknown) =>
    (typeof value === "string" ? value : JSON.stringify(value)).replaceAll("|", "\\|").replaceAll("\n", " ");
  const rows = Object.entries(settings).map(([key, value]) => `| ${key} | ${shown(value)} |`);
  return `
## How it was trained

${data.length === 0 ? "" : `On ${data.map((name) => `\`${name}\``).join(", ")}, with these keys of mlora's recipe:`}

| key | value |
| --- | --- |
${rows.join("\n")}
`;
}
