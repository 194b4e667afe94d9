// Columns that lie by groups of unequal parts, sorted by part, and back: what Qwen3-Next's projections have of each key head.

import { I, native, P } from "../../ffi/native.ts";
import { sum } from "../base/shape.ts";
import type { Tensor } from "../device/device.ts";
import { cdiv, dim, op } from "./op.ts";

const c = native({ columns_regroup: { args: [P, P, I, I, I, I, I, I, I], returns: "void" } });

/** The widths of the four parts of a group, 0 for none. */
export type Parts = readonly [number, number, number, number];

type Regrouped = { readonly from: Tensor; readonly to: Tensor; readonly groups: number; readonly parts: Parts };

/**
 * `from` c[M, G sum(parts)] has the parts of each of G groups next to each other; `to`, of the same shape, has the first parts
 * of all groups, then the second ones, and so on. `isBack`: the other way round.
 */
export const regroup = op<Regrouped & { isBack: boolean }>(
  "columns_regroup",
  { from: "c M W", to: "c M W" },
  {
    known: ({ groups, parts }) => ({ W: groups * sum(parts) }),
    cpu: ({ from, to, groups, parts, isBack }) =>
      c.columns_regroup(from.ptr, to.ptr, dim(to, 0), groups, ...parts, isBack ? 1 : 0),
    cuda: ({ from, to, groups, parts: [a, b, c, d], isBack }, gpu) => {
      const unit = [a, b, c, d].every((part) => part % 8 === 0) ? 8 : 1;
      const kernel = gpu.kernel("columns_regroup", { UNIT: unit });
      const grid = [dim(to, 0), cdiv(dim(to, 1), kernel.constant("BLOCK"))] as const;
      gpu.launch(kernel, grid, { from_rows: from, to_rows: to, groups, a, b, c, d, back: isBack ? 1 : 0 });
    },
  },
);
