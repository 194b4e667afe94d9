// Operations of a layer that a pass of rows (row-pass.ts) computes in the kernel of the linears before them: a token that is
// generated passes fewer kernels. The bits are those of one after the other.

import type { Op, Operation } from "../../families/definition.ts";
import { INPUT, othersOf, residualOf } from "../../families/parts.ts";
import { fewRowsNormed, fewRowsRope, fewRowsSwiglu, MOST_NORMED, MOST_ROTATED } from "../../ops/fewrows/fused.ts";
import { rowAdapters } from "../adapted/adapted-linear.ts";
import { attend } from "../operations/attend.ts";
import type { LayerPass } from "./layer-pass.ts";

/** Computes the operation at `i` and some after it, and says how many: 0 where it is not such a one. */
export function fuse(operations: readonly Operation[], i: number, pass: LayerPass): number {
  const { rowAdapter } = pass.batch;
  const [first, second, third] = operations.slice(i, i + 3);
  if (!rowAdapter || first?.op !== "linears" || second?.from !== first.to) return 0;
  if (second.op === "norm") return normed(first, pass, second, pass) ? 2 : 0;
  if (first.residual !== null) return 0;
  const reads = (of: Operation) => [of.from, ...othersOf(of), residualOf(of)].includes(first.to);
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

/**
 * Computes the operation at `i`, the last of its layer, with the norm that the next layer begins with, and says whether it is
 * such a one.
 */
export function fuseWithNext(operations: readonly Operation[], i: number, pass: LayerPass, next: LayerPass | null): boolean {
  const [last, first] = [operations[i]!, next?.program.operations[0]];
  if (!pass.batch.rowAdapter || !next || i + 1 < operations.length || last.op !== "linears") return false;
  if (last.to !== pass.program.output || first?.op !== "norm" || first.from !== INPUT) return false;
  return normed(last, pass, first, next);
}

/** Linears whose sum is normalised in the same kernel, where it is one that the kernel takes. */
function normed(linears: Op<"linears">, pass: LayerPass, norm: Op<"norm">, after: LayerPass): boolean {
  const { out, residual } = linears;
  if (norm.residual !== undefined || norm.size > MOST_NORMED || out.length > 1 || out[0] !== norm.size) return false;
  fewRowsNormed(pass.device, {
    ...{ ...productOf(linears, pass), residual: residual === null ? null : pass.value(residual), y: pass.value(linears.to) },
    ...{ norm: after.norm(norm.weight, norm.size), h: after.value(norm.to), rstd: after.saved(norm.to), eps: norm.eps },
  });
  return true;
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
