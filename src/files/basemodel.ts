// The weights of a base model: safetensors of a Hugging Face folder, quantised or not, or a GGUF. All that the spec needs is
// checked before any weight is read.

import type { DType } from "../base/dtype.ts";
import { RequestError } from "../base/errors.ts";
import type { ModelSpec } from "../base/spec.ts";
import { familyOf } from "../families/registry.ts";
import { tensorShapes } from "../families/tensors.ts";
import { openGgufTensors } from "./gguf/tensors.ts";
import { modelPlace } from "./modelpath.ts";
import { openSafetensorsModel } from "./shards.ts";
import type { ModelTensor } from "./tensor.ts";

export type BaseModelFiles = Disposable & {
  /** As it was opened. */
  readonly spec: ModelSpec;
  /** Tensors of the files that the spec knows nothing of. */
  readonly unused: readonly string[];
  readonly tensor: (name: string) => ModelTensor & { readonly dtype: DType };
  /** Fills `into` with the tensor's values from byte `from` of them on, as `as`; left out, as their own type. */
  readonly read: (name: string, into: Uint8Array, from?: number, as?: DType) => void;
  /** What the files call it. */
  readonly stored: (name: string) => string;
};

const COMPUTED = ["f32", "f16", "bf16"] as const;
/** Whether weights may be of this type. */
export const isWeightType = (dtype: DType | null): dtype is (typeof COMPUTED)[number] =>
  (COMPUTED as readonly unknown[]).includes(dtype);

/** Opens the files of the model at `path`. A RequestError "model.weights" lists what is missing or has another shape. */
export function openBaseModel(path: string, spec: ModelSpec): BaseModelFiles {
  const files = openTensors(path);
  try {
    const { embedding, head } = familyOf(spec).tensors;
    // A head alone is the embedding, too.
    const find = (name: string) => files.find(name) ?? (spec.tiedEmbeddings && name === embedding ? files.find(head) : null);
    checkAll(path, spec, find);
    const used = new Set([...tensorShapes(spec).keys()].map((name) => find(name)!.actual));
    const tensor = (name: string) => find(name)!.tensor as ModelTensor & { readonly dtype: DType };
    return {
      spec,
      unused: files.names.filter((name) => !used.has(name)),
      tensor,
      read: (name, into, from = 0, as) => {
        const of = tensor(name);
        of.read(into, as ?? of.dtype, from);
      },
      stored: (name) => find(name)!.actual,
      [Symbol.dispose]: () => files[Symbol.dispose](),
    };
  } catch (error) {
    files[Symbol.dispose]();
    throw error;
  }
}

export type FoundTensor = { readonly actual: string; readonly tensor: ModelTensor };

/**
 * How files call what a text model calls `name`: some leave out the "model." in front, Nemotron-H's have "backbone." there, and
 * of a model with other parts versions of transformers differ.
 */
const callings = (name: string): string[] => {
  const bare = name.replace(/^model\./, "");
  return name === bare
    ? [name, `language_model.${bare}`]
    : [`model.language_model.${bare}`, `language_model.model.${bare}`, name, bare, `backbone.${bare}`];
};

/** A model's files as they are: tensors by the names that a text model's have. */
export function openTensors(path: string) {
  const { folder, gguf } = modelPlace(path);
  const files = gguf === null ? openSafetensorsModel(folder) : openGgufTensors(gguf);
  const find = (name: string): FoundTensor | null => {
    for (const actual of callings(name)) {
      const tensor = files.tensors.get(actual);
      if (tensor) return { actual, tensor };
    }
    return null;
  };
  return { names: [...files.tensors.keys()], find, [Symbol.dispose]: () => files[Symbol.dispose]() };
}

const SHOWN = 5;

function checkAll(path: string, spec: ModelSpec, find: (name: string) => FoundTensor | null): void {
  const faults: string[] = [];
  for (const [name, shape] of tensorShapes(spec)) {
    const tensor = find(name)?.tensor;
    if (!tensor) faults.push(`${name} is missing`);
    else if (tensor.fault !== null) faults.push(`${name} ${tensor.fault}`);
    else if (`${tensor.shape}` !== `${shape}`) faults.push(`${name} is [${tensor.shape}], wanted [${shape}]`);
    else if (!isWeightType(tensor.dtype)) faults.push(`${name} is ${tensor.type}, wanted F32, F16 or BF16`);
  }
  if (faults.length === 0) return;
  const more = faults.length > SHOWN ? `; and ${faults.length - SHOWN} more` : "";
  throw new RequestError(
    "model.weights",
    `${path}: the weights do not fit the model's configuration: ${faults.slice(0, SHOWN).join("; ")}${more}`,
    "all files must be of one model, and whole",
  );
}
