import type { Launcher } from "./launcher.ts";
export function rowFamilies(_gpu: Launcher): any {
  return {};
}
