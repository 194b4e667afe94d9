// What the routers of a stage saw and chose in its last pass.

import { sizeOf } from "../../src/base/shape.ts";
import { Arena } from "../../src/device/arena.ts";
import type { Device, Tensor } from "../../src/device/device.ts";
import type { ExpertActivations } from "../../src/engine/operations/experts.ts";
import type { Stage } from "../../src/engine/stage.ts";
import { toF32 } from "../../src/files/convert.ts";

export type Choice = { readonly experts: readonly number[]; readonly logits: Float32Array };

/**
 * Gives each layer of a stage that only generates memory of its own for its router, where one otherwise takes the next one's.
 * `of` reads what each layer chose for a row of the last pass.
 */
export function watchRouters(device: Device, stage: Stage): Disposable & { of(row: number): Promise<readonly Choice[]> } {
  const arenas: Arena[] = [];
  const own = ({ dtype, shape }: Tensor): Tensor => {
    arenas.push(new Arena(device, 4 * sizeOf(shape) + 256, "a router that is watched"));
    return arenas.at(-1)!.tensor(dtype, ...shape);
  };
  const watched: ExpertActivations[] = [];
  for (const layer of stage["buffers"].passes[0]!.acts.layers) {
    const experts = new Map<string, ExpertActivations>();
    for (const [name, of] of layer.experts) {
      watched.push({ ...of, logits: own(of.logits), routes: { ...of.routes, experts: own(of.routes.experts) } });
      experts.set(name, watched.at(-1)!);
    }
    Object.assign(layer, { experts });
  }
  const rowOf = <T>(values: ArrayLike<T>, { shape }: Tensor, row: number): T[] =>
    Array.from({ length: shape[1]! }, (_, i) => values[row * shape[1]! + i]!);
  return {
    of: async (row) =>
      await Promise.all(
        watched.map(async ({ logits, routes }): Promise<Choice> => {
          const [seen, chosen] = [await device.read(logits), await device.read(routes.experts)];
          return {
            experts: rowOf(new Int32Array(chosen.buffer), routes.experts, row),
            logits: Float32Array.from(rowOf(toF32(seen, logits.dtype), logits, row)),
          };
        }),
      ),
    [Symbol.dispose]: () => {
      for (const arena of arenas) arena[Symbol.dispose]();
    },
  };
}
