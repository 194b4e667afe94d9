// Writes docs/models.md: which base models are trained, and what each was compared with, from the registry of families and the
// versions in their golden files.
//
//   bun scripts/models.ts

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Definition } from "../src/families/definition.ts";
import { FAMILIES } from "../src/families/registry.ts";
import { WRAPPERS, type Wrapper } from "../src/families/wrappers.ts";

const ROOT = join(import.meta.dir, "..");

type Versions = { readonly transformers: string; readonly peft: string };

/** What a golden was made with. */
function versionsOf(golden: string): Versions {
  const path = join(ROOT, "tests", "golden", golden, "golden.json");
  const { made_with: versions } = JSON.parse(readFileSync(path, "utf8")) as { readonly made_with: Versions };
  return versions;
}

/** Names in config.json's `architectures`: the family's own, and those that have it as a part. */
function architecturesOf(family: string, { architectures }: Definition): readonly string[] {
  const wrappers = Object.entries<Wrapper>(WRAPPERS).filter(([, { towers }]) => Object.values(towers).includes(family));
  return [...architectures, ...wrappers.map(([name]) => name)];
}

const USUAL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

function rowOf(family: string, definition: Definition): string {
  const { models, golden, on } = definition.about;
  const names = architecturesOf(family, definition).map((name) => `\`${name}\``);
  const versions = golden === null ? null : versionsOf(golden);
  const compared = versions
    ? `transformers ${versions.transformers}, PEFT ${versions.peft} (\`tests/golden/${golden}\`), ${on}`
    : "by the tests of properties alone";
  const linears = Object.values(definition.groups)
    .flat()
    .map((path) => path.slice(path.lastIndexOf(".") + 1));
  const isUsual = USUAL.every((name) => linears.includes(name));
  const others = [...new Set(linears)].filter((name) => !isUsual || !USUAL.includes(name)).map((name) => `\`${name}\``);
  const listed = `${isUsual && others.length > 0 ? "also " : ""}${others.join(", ")}`;
  return `| ${models} | ${names.join(", ")} | ${listed} | ${compared} |`.replaceAll("|  |", "| |");
}

/** The names of the models that a GGUF is written of. */
const ggufFamilies = (): string =>
  Object.entries<Definition>(FAMILIES)
    .filter(([family, of]) => of.gguf && architecturesOf(family, of).length > 0)
    .map(([, of]) => of.about.models)
    .join(", ");

/** docs/models.md */
export function modelsPage(): string {
  const rows = Object.entries<Definition>(FAMILIES).filter(([family, of]) => architecturesOf(family, of).length > 0);
  return `# Base models

<!-- Written by scripts/models.ts: edit src/families, then run it. -->

A base model is known by the first name in \`architectures\` of its config.json; any other is refused by name. Of a model that also sees or hears, the part for text is trained:
\`mlora plan\` lists which tensors do not take part, merged models keep them, and adapters are named as PEFT names them in the whole model (\`model.language_model.layers...\`).

Compared are, on tiny random models in fp32 with what sets a family apart turned up: logits (1e-5), losses (1e-5) and weights (1e-4) of three unequal adapters over several optimizer
steps, greedy generation token for token, and the names of tensors and modules in PEFT's files. The tests of properties (gradients against finite differences, batch invariance bit for bit,
two stages, generation over what is kept) hold for every family.

| models | \`architectures\` | linears, where they are not the usual seven | compared with |
| --- | --- | --- | --- |
${rows.map(([family, of]) => rowOf(family, of)).join("\n")}

The usual seven are \`q_proj\`, \`k_proj\`, \`v_proj\`, \`o_proj\`, \`gate_proj\`, \`up_proj\` and \`down_proj\`. Linears that are one tensor in the files are one target. Muse-Glimmer has a second
\`gate_proj\`, of attention: \`self_attn.gate_proj\` and \`mlp.gate_proj\` name one of them. Qwen 3.5's \`q_proj\` holds the gates of its heads, too.
Of Granite 4's hybrids \`in_proj\` and \`out_proj\` are those of Mamba. All linears of Nemotron-H lie in \`mixer\`, and those of the experts that all tokens pass in \`shared_experts\`.
LFM2 has an \`out_proj\` in layers of both kinds, so that \`conv.out_proj\` and \`self_attn.out_proj\` name one of them.

## Mixtures of experts

Mixtral, Qwen 3, gpt-oss, Granite 3, GLM 4.5, Qwen3-VL, Qwen 3.5, Qwen3-Next, LFM2, Granite 4's hybrids, Nemotron 3 Nano, DeepSeek V2 and V3 and GLM-4.7-Flash. Routers and the gates of shared experts stay as they are: naming one as a target is refused, and the gradient that passes through their weights is part of the stream's.
The routers differ by numbers alone (softmax or sigmoid, normalised or not, groups, a correction, a factor), which each family reads from config.json. Of groups of experts those with the best two together are chosen from, or, with a softmax (DeepSeek V2), those with the best one. Of logits as large the lower expert comes first.
A plan for a GPU refuses Qwen 3.5's mixtures and Qwen3-Next, and experts that are more than 512 in a layer or 16 for a token.

Adapters act in attention and dense MLPs as in other models, and in experts where \`targets\` names their linears (\`gate_proj\`, \`up_proj\`, \`down_proj\`; \`w1\`, \`w2\`, \`w3\`; \`gate_up_proj\`). "all-linear" has none of
them: \`mlora plan\` counts the linears of each kind, and says so. With \`experts = "shared-outer"\`, the default, all experts share one A of gate and up and one B of down, and have the other factor each;
with "per-expert" each has both, and the rank is that of each. Only LoRA acts in experts, without dropout, as in PEFT.

Files follow the model's: a tensor for each expert's linear where the model's files have them so (\`experts.3.gate_proj.lora_A\`, a shared factor repeated), which vLLM and PEFT read; PEFT's nested \`target_parameters\` where
one tensor has all experts (gpt-oss, Granite 3, Qwen3-VL). Both are read back, and PEFT's fused layout also for models whose files have each expert apart. PEFT 0.21 with transformers 5.24 takes names of dense MLPs
(\`gate_proj\`) for those of experts in a model that has both, and drops the dense ones. It does not know the experts of LFM2 and
Nemotron: adapters in them have the per-expert names, which it does not find; merge these.
Of per-expert names it takes the config's own rank and alpha, without rsLoRA (\`findings/peft-experts-patterns.sh\`): so these are the experts' where they have one, and adapters whose experts differ in alpha or rank are to be merged.

vLLM 0.33's own loader, run on exports of Qwen 3, Mixtral, GLM 4.5 and gpt-oss (shared or not, one rank or several), comes to the same products for every expert within 4e-6. It stops at an adapter that acts in some linears of a
layer's experts and not in the others, so name all of them, and by its source it refuses adapters in Granite 3's experts.

gpt-oss in mxfp4 is read, and its experts are kept so, unless \`precision\` is "bf16" or "fp32". An adapter is not merged into mxfp4 files: take the bf16 ones. metrics.jsonl has \`busiest_expert\`, the share of an adapter's rows
that the busiest expert of a layer got, in the mean over layers (1 / experts where all get as many); \`mlora bench\` reports it, too.

## Rotary embeddings

\`default\`, \`linear\`, \`llama3\`, \`yarn\`, \`longrope\`, \`proportional\`, and \`mrope\`, which for text is \`default\`; one for all layers or, in families that have it, by kind of layer; layers without one;
heads rotated in part. Others are refused by name.

LongRoPE has factors for short and for long sequences, and transformers chooses by the longest row of each batch. Here all rows of an adapter have the same: long where its \`max_length\` is above
\`original_max_position_embeddings\`. A generated sequence has the long ones where its prompt and the tokens that may follow are more; transformers begins a sequence with the short ones and reads it
again with the long ones when it passes that length.

## Latent attention (MLA)

DeepSeek V2 and V3, GLM-4.7-Flash, Youtu-LLM and MiniCPM3 make keys and values of one narrow latent of each token, and most of them queries of another. Adapters act on the linears as the files have them:
\`q_a_proj\` and \`q_b_proj\`, or \`q_proj\` where there is no latent of queries, \`kv_a_proj_with_mqa\`, \`kv_b_proj\` and \`o_proj\`. The products are computed as they are written, in training and in generation, so that what is kept of
a generated token are keys and values of each head, not its latent: \`mlora plan\` counts them. Heads of q, k and v are held as wide as the widest of them, and above 64 features as the next power of two (DeepSeek's 192 and 128 as 256),
for which kernels exist; the rest is zeros, which no score sees. Layers that predict further tokens are not trained. Adapters in attention and in experts have been read back by PEFT 0.21.2; vLLM has not been tried on these models.

## Mamba

Layers of Mamba 2 are computed token by token on CPUs, and in chunks of 64 tokens on GPUs, whose states go from chunk to chunk in fp32: in bf16 for heads of up to 128 features and
states of up to 256, in fp32 for up to 32 of both; adapters act on \`in_proj\` and \`out_proj\`, the rest stays as it is. Of
Nemotron-H PEFT refuses adapters on \`out_proj\`, so that "all-linear" leaves it out here, and its name is refused. Steps of time are within the config's limits wherever a token is read.
transformers 5.24 forgets the limits where it generates over a cache (\`findings/transformers-mamba-step-limits.sh\`), so that models that have some generate otherwise there than they were trained.

## GGUF

\`mlora export --gguf\` writes ${ggufFamilies()}; mixtures of experts and all others are refused by name, and can be merged into a folder.
Tested with llama.cpp itself (llama-cpp-python 0.3.36, \`scripts/nightly/gguf.ts\`): tiny Llama, Mistral, Qwen 2, Qwen 3, Granite 3 and OLMo 2 come to PEFT's logits, merged, and as base with the adapter's own GGUF; bases of SmolLM3, OLMo 3, Phi-3 and Gemma 3 to the loss here (Gemma 2 and Phi-3's long factors have not been read there); SmolLM2-135M-Instruct to
the tokens of transformers; \`q8_0\` and \`q4_k_m\` to the bytes of \`llama-quantize\`.

What llama.cpp computes otherwise is refused (layers without a rope other than every fourth of SmolLM3, biases that it does not read, a scale of attention that is not Gemma's own) or is a notice: it has no sliding
windows in Mistral, Qwen and Phi-3, and chooses LongRoPE's factors by its context, not by the text. A tokenizer is known by how it cuts words (Llama 3, Qwen 2 and 3.5, SmolLM, GPT-2 and GPT-4o, Tekken, and
SentencePiece's of Llama 2, Mistral, Phi-3 and Gemma); another is refused. Of a base that is a GGUF the tokenizer is copied.
llama.cpp does not bring texts into NFC, as Qwen's tokenizers do: type accents as one character there. A token that ends answers in a chat, and is not the end-of-text token, is written as the end of a turn.

The adapter alone is in f32, LoRA of any scale, ranks and layers, VeRA as the LoRA that it is; DoRA and adapters of embedding or head are merged only.

## Not supported

Other mixtures of experts, experts of projected features (Nemotron 3 Super), Mamba 1, linear attention other than the gated delta rule and Mamba 2, chunked and sparse attention, latent attention in hybrids (Kimi Linear), encoders of images and sound.
`;
}

if (import.meta.main) writeFileSync(join(ROOT, "docs", "models.md"), modelsPage());
