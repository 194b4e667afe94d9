import type { Launcher } from "./launcher.ts";
export function attentionFamily(_gpu: Launcher): any {
  return {};
}
