// The page's files, made by Bun's own bundler from src/web/page: for scripts/build, which embeds them, and for a checkout,
// where they are made when they are asked for.

import { join } from "node:path";
import { RunError } from "../base/errors.ts";

const FOLDER = join(import.meta.dir, "page");

export const PAGE_FILES = ["index.html", "app.js", "app.css", "icon.svg"] as const;
export type PageFile = (typeof PAGE_FILES)[number];

/** Throws a RunError where they cannot be bundled. */
export async function bundlePage(): Promise<Record<PageFile, Uint8Array>> {
  const script = await bundled("app.ts");
  const style = await bundled("app.css");
  const bytes = async (name: string) => new Uint8Array(await Bun.file(join(FOLDER, name)).arrayBuffer());
  return { "index.html": await bytes("index.html"), "icon.svg": await bytes("icon.svg"), "app.js": script, "app.css": style };
}

async function bundled(name: string): Promise<Uint8Array> {
  const { outputs, logs, success } = await Bun.build({
    entrypoints: [join(FOLDER, name)],
    target: "browser",
    minify: true,
    throw: false,
  });
  if (!success || !outputs[0]) throw new RunError("web.bundle", `${name} cannot be bundled: ${logs.join("; ")}`);
  return new Uint8Array(await outputs[0].arrayBuffer());
}
