// Operations of a layer that a pass of rows (row-pass.ts) computes in the kernel of the linears before them: a token that is
// generated passes fewer kernels. The bits are those of one after the other.

import type { Op, Operation } from "../families/definition.ts";
import { otherOf, residualOf } from "../families/parts.ts";
import { fewRowsRope, fewRowsSwiglu, MOST_ROTATED } from "../ops/fewrows/fused.ts";
import { rowAdapters } from "./adapted-linear.ts";
import { attend } from "./attend.ts";
import type { LayerPass } from "./layer-pass.ts";

/** Computes the operation at `i` and some after it, and says how many: 0 where it is not such a one. */
export function fuse(operations: readonly Operation[], i: number, pass: LayerPass): number {
  const { rowAdapter } = pass.batch;
  const [first, second, third] = operations.slice(i, i + 3);
  if (!rowAdapter || first?.op !== "linears" || first.residual !== null || second?.from !== first.to) return 0;
  const reads = (of: Operation) => of.from === first.to || otherOf(of) === first.to || residualOf(of) === first.to;
  if (operations.slice(i + 2).some(reads)) return 0;
  if (second.op === "swiglu") {
    fewRowsSwiglu(pass.device, { ...productOf(first, pass), y: pass.value(first.to), h: pass.value(second.to) });
    return 2;
  }
  if (second.op !== "rope" || third?.op !== "attention" || third.from !== second.to) return 0;
  const { cached } = pass;
  if (cached?.from !== "cache" || !cached.isOwn || second.heads.headDim > MOST_ROTATED) return 0;
  if (operations.slice(i + 3).some((of) => of.from === second.to)) return 0;
  rotated(first, second, pass);
  attend(third, pass);
  return 3;
}

function productOf({ from, group }: Op<"linears">, pass: LayerPass) {
  const [adapters, { weight, bias }] = [pass.adapters(group), pass.linears(group)];
  const lora = adapters && rowAdapters(pass.device, adapters, pass.batch);
  return { x: pass.value(from), weight, bias, lora };
}

function rotated(linears: Op<"linears">, { to, heads, table, norms, eps }: Op<"rope">, pass: LayerPass): void {
  const { places, pages, cache } = pass.cached!;
  fewRowsRope(pass.device, {
    ...productOf(linears, pass),
    ...{ y: pass.value(linears.to), out: pass.value(to), places, pages, cache: cache.kv, positions: pass.batch.positions },
    ...pass.rope(table),
    qWeight: norms && pass.norm(norms.q, heads.headDim),
    kWeight: norms && pass.norm(norms.k, heads.headDim),
    eps,
    ...heads,
  });
}
