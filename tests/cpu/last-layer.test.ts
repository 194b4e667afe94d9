// What the last layer computes, on the cpu device: see the helper.

import { CpuDevice } from "../../src/device/cpu.ts";
import { keepsLastLayer } from "../helpers/last-layer.ts";
import { sparseFamilies, tinyFamilies } from "../helpers/tiny.ts";

const all = { ...tinyFamilies, ...sparseFamilies };
for (const family of ["llama", "gemma3", "gemma4", "mixtral", "qwen3_5", "granite_h"])
  keepsLastLayer(family, () => new CpuDevice(2), all[family]!, { layers: all[family]!.layers });
