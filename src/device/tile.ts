// Rows of a tile whose dot products are summed in the same order.

import { range } from "../base/shape.ts";
import type { Device } from "./device.ts";

/**
 * Places within a tile where a row's products are summed alike. OpenBLAS's kernels for Haswell and Zen have two ways, six rows
 * each in turn; its others have one (tests/cpu/cores.test.ts tries them). GPU kernels treat all rows of a tile alike.
 */
export const sameOrderPlaces = ({ kind, rowTile }: Pick<Device, "kind" | "rowTile">): readonly number[] =>
  range(rowTile).filter((place) => kind !== "cpu" || place % 12 < 6);
