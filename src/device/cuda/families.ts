// All kernels of the contract, as launches of compiled ones.

import { attentionFamily } from "./attention.ts";
import { doraFamily } from "./dora.ts";
import type { Implementations, Launcher } from "./launcher.ts";
import { linearFamily } from "./linear.ts";
import { packedFamily } from "./packed.ts";
import { rowFamilies } from "./rows.ts";
import { veraFamily } from "./vera.ts";

export const implementationsOf = (gpu: Launcher): Implementations => ({
  ...linearFamily(gpu),
  ...attentionFamily(gpu),
  ...packedFamily(gpu),
  ...rowFamilies(gpu),
  ...doraFamily(gpu),
  ...veraFamily(gpu),
});
