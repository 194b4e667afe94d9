// Sequences of adapters that change the head, several of them in a pass: each has its own adapter's head.

import { CpuDevice } from "../../src/device/cpu.ts";
import { RowDevice } from "../helpers/generation.ts";
import { ownHeads } from "../helpers/heads.ts";
import { tinyFamilies } from "../helpers/tiny.ts";

for (const [family, spec] of Object.entries(tinyFamilies)) {
  ownHeads(`${family}, by tile`, () => new CpuDevice(2), spec, true);
  ownHeads(`${family}, by row`, () => new RowDevice(2), spec, false); // a CPU multiplies as many rows as there are
}
