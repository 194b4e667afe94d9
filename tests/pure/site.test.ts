// The documentation site: every link leads somewhere, nothing is loaded from elsewhere, and it has all commands and keys.

import { expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { picturesOf, sitePages, sourcesOf } from "../../scripts/site.ts";
import { COMMAND_NAMES } from "../../src/cli/commands.ts";
import { GRAMMAR } from "../../src/cli/grammar.ts";
import { ADAPTER_KEYS } from "../../src/recipe/schema.ts";

const sources = sourcesOf();
const pages = sitePages(sources);
const copied = picturesOf(sources);

async function partsOf(page: string) {
  const [ids, tags] = [new Set<string>(), new Set<string>()];
  const [links, pictures]: [string[], string[]] = [[], []];
  const rewriter = new HTMLRewriter().on("*", {
    element(element) {
      tags.add(element.tagName);
      const [id, href] = [element.getAttribute("id"), element.getAttribute("href")];
      if (id) ids.add(id);
      if (href !== null) links.push(href);
      for (const name of ["srcset", "data"]) expect(element.getAttribute(name)).toBeNull();
      const shown = element.getAttribute("src");
      if (shown !== null) pictures.push(shown);
    },
  });
  await rewriter.transform(new Response(page)).text();
  return { ids, links, pictures, tags };
}

test("every link leads to a page and a heading that are there; nothing is loaded", async () => {
  const parts = new Map(await Promise.all([...pages].map(async ([file, page]) => [file, await partsOf(page)] as const)));
  let followed = 0;
  for (const [file, { links, pictures, tags }] of parts) {
    for (const picture of pictures) {
      const at = normalize(join(dirname(file), picture));
      expect(copied, `${file}: ${picture}`).toContain(at);
      expect(existsSync(join(import.meta.dir, "..", "..", at)), at).toBe(true);
    }
    for (const tag of ["script", "link", "iframe"]) expect(tags.has(tag), `${file} has <${tag}>`).toBe(false);
    for (const link of links.filter((href) => !/^https?:/.test(href))) {
      const [path, anchor] = link.split("#") as [string, string | undefined];
      const to = path === "" ? file : normalize(join(dirname(file), path));
      expect(parts.has(to), `${file}: ${link}`).toBe(true);
      if (anchor !== undefined) expect(parts.get(to)!.ids.has(anchor), `${file}: ${link}`).toBe(true);
      followed++;
    }
  }
  expect(followed).toBeGreaterThan(pages.size * 5);
});

test("every command with its flags and every key of a recipe is in it", () => {
  const commands = pages.get("commands.html")!;
  for (const name of COMMAND_NAMES) expect(commands).toContain(`id="mlora-${name}"`);
  for (const { flags } of GRAMMAR) for (const { flag } of flags) expect(commands).toContain(`<code>${flag}`);
  const keys = pages.get("docs/keys.html")!;
  for (const key of ADAPTER_KEYS) expect(keys).toContain(`<code>${key}</code>`);
});
