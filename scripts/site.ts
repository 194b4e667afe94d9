// The documentation as a folder of plain HTML: README, CHANGELOG and docs/, the commands and the keys of recipes. Nothing is
// loaded from elsewhere, and there is no script in it.
//
//   bun scripts/site.ts [FOLDER]     dist/site, unless another is named

import { copyFileSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join, normalize, relative } from "node:path";
import { VERSION } from "../src/base/version.ts";
import { type CommandGrammar, GRAMMAR } from "../src/cli/grammar.ts";

const ROOT = join(import.meta.dir, "..");
/** Files that are pages, in the order of the menu. */
const FIRST = [
  "README.md",
  "commands.md",
  "docs/data.md",
  "docs/adapters.md",
  "docs/rewards.md",
  "docs/keys.md",
  "docs/runs.md",
  "docs/using.md",
  "docs/devices.md",
  "docs/models.md",
  "docs/serve.md",
  "docs/serve-keys.md",
];

const STYLE = `:root { color-scheme: light dark; --ink: #1f2328; --line: #d1d9e0; --paper: #fff; --soft: #f3f5f7; --link: #0969da }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --line: #3d444d; --paper: #0d1117; --soft: #171c23; --link: #4493f8 } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.6 system-ui, "Segoe UI", Helvetica, Arial, sans-serif }
nav { padding: 16px 24px; border-bottom: 1px solid var(--line) } nav a { margin-right: 14px; white-space: nowrap }
main { max-width: 1040px; margin: 0 auto; padding: 8px 24px 64px } a { color: var(--link) }
pre { overflow-x: auto; padding: 12px; background: var(--soft); border-radius: 6px } code { font-size: 13px; background: var(--soft); border-radius: 4px; padding: 1px 4px }
pre code { padding: 0 } table { display: block; overflow-x: auto; border-collapse: collapse } th, td { padding: 4px 10px; border: 1px solid var(--line); text-align: left; vertical-align: top }
h1, h2 { border-bottom: 1px solid var(--line); padding-bottom: 4px }`;

/** A page of all commands, from the table that the command line is made of. */
function commandsPage(commands: readonly CommandGrammar[]): string {
  const cell = (text: string) => text.replaceAll("|", "\\|").replaceAll("<", "&lt;");
  const one = ({ name, purpose, args, flags, examples }: CommandGrammar) => {
    const takes = args.map(({ metavar, isOptional }) => (isOptional ? `[${metavar}]` : `<${metavar}>`)).join(" ");
    return `## mlora ${name}

\`mlora ${`${name} ${takes}`.trim()}\`: ${cell(purpose)}.

| flag | meaning |
| --- | --- |
${flags.map(({ flag, metavar, meaning }) => `| \`${flag}${metavar ? ` <${metavar}>` : ""}\` | ${cell(meaning)} |`).join("\n")}

${examples.map(([command, does]) => `${cell(does)}:\n\n\`\`\`sh\n${command}\n\`\`\``).join("\n\n")}
`;
  };
  return `# Commands\n\n${commands.map(one).join("\n")}`;
}

/** The Markdown of each page by its path in the checkout. */
export function sourcesOf(): Map<string, string> {
  const under = (folder: string): string[] =>
    readdirSync(join(ROOT, folder), { withFileTypes: true }).flatMap((entry) =>
      entry.isDirectory() ? under(`${folder}/${entry.name}`) : entry.name.endsWith(".md") ? [`${folder}/${entry.name}`] : [],
    );
  const all = [...FIRST, ...under("docs").sort(), "CONTRIBUTING.md", "CHANGELOG.md", "tests/README.md"];
  const read = (path: string) => (path === "commands.md" ? commandsPage(GRAMMAR) : readFileSync(join(ROOT, path), "utf8"));
  return new Map([...new Set(all)].map((path) => [path, read(path)]));
}

/** "docs/keys.md" as "docs/keys.html"; README.md is the first page. */
const fileOf = (path: string): string => (path === "README.md" ? "index.html" : path.replace(/\.md$/, ".html"));
const titleOf = (path: string, text: string): string => /^# (.+)$/m.exec(text)?.[1]?.replaceAll("`", "") ?? path;

/** The HTML of all pages by their files. Links to what is no page become its name. */
export function sitePages(sources: ReadonlyMap<string, string>): Map<string, string> {
  const menu = (from: string) =>
    [...sources]
      .filter(([path]) => !path.startsWith("docs/measurements/"))
      .map(([path, text]) => `<a href="${relative(dirname(from), fileOf(path))}">${Bun.escapeHTML(titleOf(path, text))}</a>`)
      .join("\n");
  return new Map(
    [...sources].map(([path, text]) => {
      const file = fileOf(path);
      const body = Bun.markdown
        .html(text, { headings: { ids: true } })
        .replace(/<a href="([^"]*)"([^>]*)>([\s\S]*?)<\/a>/g, (link, href: string, rest: string, inner: string) => {
          if (/^(https?:|#)/.test(href)) return link;
          const [target, anchor] = href.split("#") as [string, string | undefined];
          const to = normalize(join(dirname(path), target));
          if (!sources.has(to)) return inner;
          const at = relative(dirname(file), fileOf(to));
          return `<a href="${at}${anchor === undefined ? "" : `#${anchor}`}"${rest}>${inner}</a>`;
        });
      const page = `<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>${Bun.escapeHTML(titleOf(path, text))} - mlora ${VERSION}</title><style>${STYLE}</style></head>
<body><nav>${menu(file)}</nav><main>${body}</main></body></html>
`;
      return [file, page];
    }),
  );
}

/** Files of the checkout that pages show, which lie in the site where they lie here. */
export const picturesOf = (sources: ReadonlyMap<string, string>): string[] =>
  [...sources].flatMap(([path, text]) =>
    [...text.matchAll(/!\[[^\]]*\]\(([^):]+)\)/g)].map(([, to]) => normalize(join(dirname(path), to!))),
  );

if (import.meta.main) {
  const folder = process.argv[2] ?? join(ROOT, "dist", "site");
  const sources = sourcesOf();
  const pages = sitePages(sources);
  for (const [file, page] of pages) {
    mkdirSync(dirname(join(folder, file)), { recursive: true });
    writeFileSync(join(folder, file), page);
  }
  for (const picture of picturesOf(sources)) {
    mkdirSync(dirname(join(folder, picture)), { recursive: true });
    copyFileSync(join(ROOT, picture), join(folder, picture));
  }
  console.log(`site: ${pages.size} pages in ${folder}`);
}
