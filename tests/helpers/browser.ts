// Chromium, as scripts/chromium finds or fetches it, by playwright-core.

import { join } from "node:path";
import { type Browser, chromium, type Page } from "playwright-core";

/** Opens a browser; disposing closes it. Files of the program itself only: no request leaves the page's own origin. */
export async function openBrowser(): Promise<Browser & AsyncDisposable> {
  const found = Bun.spawnSync([join(import.meta.dir, "..", "..", "scripts", "chromium")]);
  const executablePath = found.stdout.toString().trim();
  const sandbox = process.getuid!() === 0 ? ["--no-sandbox"] : [];
  return await chromium.launch({ executablePath, args: [...sandbox, "--disable-gpu"] });
}

export type Looking = { readonly page: Page; readonly faults: string[]; readonly foreign: string[] };

/** Shows a link. `faults`: what the page's console and its errors say; `foreign`: what it asked of others. */
export async function look(browser: Browser, link: string, more: Parameters<Browser["newContext"]>[0] = {}): Promise<Looking> {
  const context = await browser.newContext({ viewport: { width: 1440, height: 1000 }, reducedMotion: "reduce", ...more });
  const page = await context.newPage();
  const [faults, foreign]: [string[], string[]] = [[], []];
  page.on("console", (message) => {
    if (message.type() === "error" || message.type() === "warning") faults.push(message.text());
  });
  page.on("pageerror", (error) => faults.push(error.message));
  page.on("request", (request) => {
    if (new URL(request.url()).origin !== new URL(link).origin) foreign.push(request.url());
  });
  await page.goto(link);
  return { page, faults, foreign };
}
