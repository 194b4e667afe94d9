// The documentation site: every link leads somewhere, nothing is loaded from elsewhere, and it has all commands and keys.

import { expect, test } from "bun:test";
import { dirname, join, normalize } from "node:path";
import { sitePages, sourcesOf } from "../../scripts/site.ts";
import { COMMAND_NAMES } from "../../src/cli/commands.ts";
import { GRAMMAR } from "../../src/cli/grammar.ts";
import { ADAPTER_KEYS } from "../../src/recipe/schema.ts";

const pages = sitePages(sourcesOf());

async function partsOf(page: string) {
  const [ids, links, tags] = [new Set<string>(), [] as string[], new Set<string>()];
  const rewriter = new HTMLRewriter().on("*", {
    element(element) {
      tags.add(element.tagName);
      const [id, href] = [element.getAttribute("id"), element.getAttribute("href")];
      if (id) ids.add(id);
      if (href !== null) links.push(href);
      for (const name of ["src", "srcset", "data"]) expect(element.getAttribute(name)).toBeNull();
    },
  });
  await rewriter.transform(new Response(page)).text();
  return { ids, links, tags };
}

test("every link leads to a page and a heading that are there; nothing is loaded", async () => {
  const parts = new Map(await Promise.all([...pages].map(async ([file, page]) => [file, await partsOf(page)] as const)));
  let followed = 0;
  for (const [file, { links, tags }] of parts) {
    for (const tag of ["script", "link", "img", "iframe"]) expect(tags.has(tag), `${file} has <${tag}>`).toBe(false);
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
