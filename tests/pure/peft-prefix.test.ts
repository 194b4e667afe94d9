// Adapters of models that are built otherwise around the same layers, as those that see, too.

import { afterAll, expect, test } from "bun:test";
import { cpSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { readModelSpec } from "../../src/files/config.ts";
import { readPeftAdapter } from "../../src/files/peft.ts";
import { openSafetensors, type TensorData, writeSafetensors } from "../../src/files/safetensors.ts";
import { loadGolden } from "../helpers/golden.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-prefix-"));
afterAll(() => rmSync(root, { recursive: true }));

const { model, adapters } = loadGolden("llama");
const OURS = "base_model.model.model.layers.";

/** A golden's adapter whose tensors are called otherwise. */
function renamed(prefix: string): string {
  const folder = mkdtempSync(join(root, "adapter-"));
  cpSync(adapters[0]!.final, folder, { recursive: true });
  const path = join(folder, "adapter_model.safetensors");
  const tensors: TensorData[] = [];
  {
    using file = openSafetensors(path);
    for (const [name, { shape, bytes }] of file.tensors) {
      const data = new Float32Array(bytes / 4);
      file.readInto(name, new Uint8Array(data.buffer));
      tensors.push({ name: name.replace(OURS, prefix), dtype: "f32", shape, data });
    }
  }
  writeSafetensors(path, tensors);
  return folder;
}

test("its own name is read", () => {
  expect(readPeftAdapter(renamed(OURS), readModelSpec(model)).rank).toBe(adapters[0]!.recipe.rank);
});

test.each(["model.language_model.layers.", "language_model.model.layers.", "layers.", "backbone.layers."])(
  "layers that are called %s are told, with what is expected",
  (layers) => {
    const folder = renamed(`base_model.model.${layers}`);
    expect(() => readPeftAdapter(folder, readModelSpec(model))).toThrow(
      expect.objectContaining({
        code: "peft.tensors",
        message:
          `${join(folder, "adapter_model.safetensors")} does not fit the base model: its tensors' names begin with ` +
          `'base_model.model.${layers}', expected '${OURS}'`,
        hint: expect.stringContaining("if they are this model's, rename the adapter's tensors"),
      }),
    );
  },
);
