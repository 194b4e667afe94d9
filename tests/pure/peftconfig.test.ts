// Which keys of an adapter_config.json are read, and which values are refused by name.

import { describe, expect, test } from "bun:test";
import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { RequestError } from "../../src/base/errors.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import { readPeftAdapter } from "../../src/files/peft.ts";
import { checkPeftConfig } from "../../src/files/peftconfig.ts";

const plain = { peft_type: "LORA", r: 3, lora_alpha: 6 };

describe("adapter_config.json", () => {
  test("a key or value that would change the numbers is refused by name", () => {
    for (const [key, value] of [
      ["fan_in_fan_out", true],
      ["init_lora_weights", "pissa_niter_4"],
      ["init_lora_weights", "lora_ga"],
      ["init_lora_weights", "corda"],
      ["init_lora_weights", "loftq"],
      ["init_lora_weights", "unheard_of"],
      ["alora_invocation_tokens", [1, 2, 3]],
      ["layer_replication", [[0, 2]]],
      ["arrow_config", { top_k: 3 }],
      ["use_qalora", true],
      ["use_bdlora", { nblocks: 1 }],
      ["kasa_config", { beta: 1 }],
      ["monteclora_config", { samples: 2 }],
      ["use_dora", "true"],
      ["use_rslora", "yes"],
      ["use_something_new", true],
    ] as const) {
      const check = () => checkPeftConfig({ ...plain, [key]: value }, "c");
      expect(check).toThrow(RequestError);
      expect(check).toThrow(`${key} is ${JSON.stringify(value)}`);
    }
  });

  test("a key that leaves the numbers as they are is read", () => {
    for (const [key, value] of [
      ["init_lora_weights", false],
      ["init_lora_weights", "gaussian"],
      ["init_lora_weights", "orthogonal"],
      ["init_lora_weights", "eva"],
      ["velora_config", { rank: 2 }],
      ["exclude_modules", ["lm_head"]],
      ["peft_version", "0.21.2"],
      ["use_something_new", null],
    ] as const)
      expect(() => checkPeftConfig({ ...plain, [key]: value }, "c")).not.toThrow();
  });

  test("what is taken off the base model is reported, and refused where the weights are not at hand", () => {
    for (const init of ["pissa", "olora", "OLORA"]) {
      const config = { ...plain, init_lora_weights: init };
      expect(checkPeftConfig(config, "c").takenOff).toBe(init.toLowerCase() as "pissa");
      const folder = mkdtempSync(join(tmpdir(), "mlora-peft-"));
      writeFileSync(join(folder, "adapter_config.json"), JSON.stringify(config));
      expect(() => readPeftAdapter(folder, {} as ModelSpec)).toThrow(`init_lora_weights is "${init.toLowerCase()}"`);
    }
    expect(checkPeftConfig(plain, "c").takenOff).toBe(null);
  });

  test("an adapter with its tensors as a pickle says what is expected", () => {
    const folder = mkdtempSync(join(tmpdir(), "mlora-peft-"));
    writeFileSync(join(folder, "adapter_config.json"), JSON.stringify(plain));
    writeFileSync(join(folder, "adapter_model.bin"), "");
    expect(() => readPeftAdapter(folder, {} as ModelSpec)).toThrow("expected adapter_model.safetensors");
  });
});
