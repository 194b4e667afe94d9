// `mlora push`: an adapter goes to a hub, with a card.

import { jsonText, writeStderr, writeStdout } from "../base/terminal.ts";
import { formatBytes } from "../base/units.ts";
import { preparePush } from "../session/publishing/push-adapter.ts";

export type PushFlags = {
  readonly base?: unknown;
  readonly public?: boolean;
  readonly revision?: unknown;
  readonly dryRun?: boolean;
  readonly json?: boolean;
};

/** Pushes the adapter in `folder` to a repository, or shows what would be pushed. */
export async function push(folder: string, repo: string, flags: PushFlags): Promise<void> {
  const { base, public: isPublic = false, revision = "main", dryRun = false, json = false } = flags;
  const prepared = preparePush(folder, {
    repo,
    isPublic,
    base: base === undefined ? null : `${base}`,
    revision: `${revision}`,
  });
  const files = prepared.files.map(({ path, bytes }) => ({ path, bytes: bytes.size }));
  const to = `${prepared.endpoint}/${repo}`;
  if (dryRun) {
    const listed = files.map(({ path, bytes }) => `  ${path}, ${formatBytes(bytes)}`).join("\n");
    const text = `would push to ${to} (${isPublic ? "public" : "private"} if it is new):\n${listed}\n\n${prepared.card}`;
    return writeStdout(json ? `${jsonText({ repo, url: to, public: isPublic, files, card: prepared.card }, 2)}\n` : text);
  }
  for (const { path, bytes } of files) writeStderr(`pushing ${path}, ${formatBytes(bytes)}\n`);
  const { url, commit } = await prepared.push();
  writeStdout(json ? `${jsonText({ repo, url: to, commit, files }, 2)}\n` : `pushed to ${to}: ${url}\n`);
}
