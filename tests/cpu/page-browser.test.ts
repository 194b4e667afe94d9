// The live page in Chromium: what a person sees and can do, by mouse and by keyboard, with few adapters and with a thousand.

import { afterAll, beforeAll, expect, test } from "bun:test";
import type { Browser, Page } from "playwright-core";
import { look, openBrowser } from "../helpers/browser.ts";
import { needs } from "../helpers/needs.ts";
import { crowd } from "../helpers/page.ts";

const names = (page: Page) => page.locator("#adapters tbody tr:not(.space):not([hidden]) td.name").allTextContents();
const sort = (page: Page, column: string) =>
  page.getByRole("columnheader").getByRole("button", { name: column, exact: true }).click();
const rowOf = (page: Page, name: string) => page.locator(`#adapters tr[data-name="${name}"]`);
const elements = (page: Page) => page.evaluate("document.querySelectorAll('*').length") as Promise<number>;
const drawn = async (page: Page, what: "points" | "draws") => Number(await page.locator(".plot").getAttribute(`data-${what}`));

needs("chromium")("the live page in Chromium", () => {
  let browser: Browser;
  beforeAll(async () => {
    browser = await openBrowser();
  });
  afterAll(() => browser?.close());

  test("adapters are sorted, filtered, pinned, paused, resumed, stopped and forked, by mouse", async () => {
    const { page: site, asked } = crowd(30, 40);
    await using _site = site;
    const { page, faults, foreign } = await look(browser, site.url);
    await rowOf(page, "sweep-0000").waitFor();
    expect(new URL(page.url()).hash).toBe(""); // the key does not stay in the address
    await sort(page, "Adapter");
    await becomes(async () => (await names(page)).slice(0, 3), ["sweep-0000", "sweep-0001", "sweep-0002"]);
    await sort(page, "Adapter");
    await becomes(async () => (await names(page)).slice(0, 2), ["sweep-0029", "sweep-0028"]);
    await becomes(() => page.locator("th[aria-sort=descending]").textContent(), "Adapter");
    await page.getByLabel("Filter by name").fill("sweep-001");
    await becomes(
      () => names(page),
      Array.from({ length: 10 }, (_, i) => `sweep-00${19 - i}`),
    );
    await page.getByLabel("State").selectOption("paused");
    await becomes(() => names(page), ["sweep-0019"]);
    await rowOf(page, "sweep-0019").locator("td.name").click();
    await becomes(() => page.locator("#details h2").textContent(), "sweep-0019");
    await page.locator("#details").getByRole("button", { name: "Resume" }).click();
    await page.getByText("sweep-0019: resume", { exact: true }).waitFor();
    await page.getByLabel("State").selectOption("all");
    await page.getByLabel("Filter by name").fill("");
    await sort(page, "Adapter");
    await rowOf(page, "sweep-0003").getByRole("checkbox").check();
    await becomes(
      () =>
        page
          .locator(".legend li")
          .allTextContents()
          .then((of) => of.length),
      2,
    ); // it, and what is selected
    await rowOf(page, "sweep-0001").locator("td.name").click();
    await page.locator("#details").getByRole("button", { name: "Pause" }).click();
    await page.getByText("sweep-0001: pause", { exact: true }).waitFor();
    await page.locator("#details").getByRole("button", { name: "Fork" }).click();
    await page.getByLabel("Name of the copy").fill("copy");
    await page.getByLabel("What it has otherwise").fill("learning_rate = 1e-4");
    await page.getByRole("dialog").getByRole("button", { name: "Fork" }).click();
    await page.getByText("sweep-0001: fork", { exact: true }).waitFor();
    await page.locator("#details").getByRole("button", { name: "Stop" }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Cancel" }).click();
    await page.locator("#details").getByRole("button", { name: "Stop" }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Stop" }).click();
    await page.getByText("sweep-0001: stop", { exact: true }).waitFor();
    await page.getByRole("button", { name: "Pause all" }).click();
    await page.getByText("null: pause", { exact: true }).waitFor();
    const adapter = "sweep-0001";
    expect(asked).toEqual([
      { action: "resume", adapter: "sweep-0019" },
      { action: "pause", adapter },
      { action: "fork", adapter, name: "copy", set: "learning_rate = 1e-4" },
      { action: "stop", adapter },
      { action: "pause", adapter: null },
    ]);
    expect([faults, foreign]).toEqual([[], []]);
  });

  test("a page without an adapter says so, and shows the first that comes", async () => {
    const { page: site, board } = crowd(0, 0);
    await using _site = site;
    const { page, faults } = await look(browser, site.url);
    await becomes(() => page.locator("#details h2").textContent(), "No adapter yet");
    board.step("late", [1, 2, 1, 1]);
    await becomes(() => page.locator("#details h2").textContent(), "late");
    await becomes(() => page.locator("#details").getByRole("button", { name: "Pause" }).isVisible(), true);
    expect(faults).toEqual([]);
  });

  test("adapters are tried side by side", async () => {
    const { page: site } = crowd(3, 5);
    await using _site = site;
    const { page, faults } = await look(browser, site.url);
    await page.getByRole("checkbox", { name: "two" }).uncheck();
    await page.getByLabel("Prompt").fill("<b>2 + 2?</b>");
    await page.getByRole("button", { name: "Ask" }).click();
    await becomes(
      () => page.locator(".answers article").allTextContents(),
      ["basebase: <b>2 + 2?</b>", "oneone: <b>2 + 2?</b>"],
    );
    expect(faults).toEqual([]);
  });

  test("the keyboard does what the mouse does", async () => {
    const { page: site, asked } = crowd(100, 5);
    await using _site = site;
    const { page } = await look(browser, site.url);
    await rowOf(page, "sweep-0000").waitFor({ state: "attached" });
    const header = page.getByRole("columnheader").getByRole("button", { name: "Adapter", exact: true });
    await header.focus();
    await page.keyboard.press("Enter");
    await page.locator("#adapters .scroll").focus();
    await page.keyboard.press("Home");
    for (let i = 0; i < 3; i++) await page.keyboard.press("ArrowDown");
    await page.keyboard.press("Enter");
    await becomes(() => page.locator("#details h2").textContent(), "sweep-0003");
    await page.keyboard.press("Space");
    await becomes(() => rowOf(page, "sweep-0003").getByRole("checkbox").isChecked(), true);
    await page.keyboard.press("End");
    await page.keyboard.press("Enter");
    await becomes(() => page.locator("#details h2").textContent(), "sweep-0099");
    await becomes(() => rowOf(page, "sweep-0099").isVisible(), true);
    await page.locator("#details").getByRole("button", { name: "Stop" }).focus();
    await page.keyboard.press("Enter");
    await page.getByRole("dialog").waitFor();
    await page.keyboard.press("Escape");
    await becomes(() => page.evaluate("document.activeElement.textContent"), "Stop"); // the focus comes back
    expect(asked).toEqual([]);
    // Each control has a name, and Tab reaches all of them.
    const unnamed =
      "[...document.querySelectorAll('button, input, select, textarea')].filter((of) => !of.textContent.trim() && !of.labels?.length && !of.ariaLabel).length";
    expect(await page.evaluate(unnamed)).toBe(0);
  });

  test("texts of data and names are texts", async () => {
    const title = `<img src=x onerror="document.title='bad'"><script>document.title='bad'</script>`;
    const { page: site, board } = crowd(2, 5, title);
    await using _site = site;
    board.notice("<i>a</i>", title, true);
    board.set("sweep-0000", { label: title, note: title });
    const { page, faults } = await look(browser, site.url);
    await page.getByRole("heading", { name: title }).first().waitFor();
    expect(await page.title()).toContain(title);
    expect(await page.locator("main img, main script, main i i, #notices i").count()).toBe(0);
    expect(faults).toEqual([]);
  });

  test("a thousand adapters take as many elements and points as thirty, within bounds", async () => {
    const sizes: { readonly elements: number; readonly points: number }[] = [];
    for (const adapters of [30, 1000]) {
      const { page: site, advance } = crowd(adapters, 200);
      await using _site = site;
      const { page, faults } = await look(browser, site.url);
      await rowOf(page, "sweep-0000").waitFor({ state: "attached" });
      await becomes(() => page.locator("#adapters table").getAttribute("aria-rowcount"), `${adapters + 1}`);
      const before = await drawn(page, "draws");
      for (let i = 0; i < 50; i++) advance(); // all at once: one change
      await becomes(async () => (await page.locator("#details dd").first().textContent())?.startsWith("250"), true);
      expect((await drawn(page, "draws")) - before).toBeLessThan(25); // not one for each of them, nor for each step
      await sort(page, "Adapter");
      await becomes(async () => (await names(page))[0], "sweep-0000");
      await page.getByLabel("Filter by name").fill(`${adapters - 1}`);
      await becomes(() => names(page), [`sweep-${`${adapters - 1}`.padStart(4, "0")}`]);
      await page.getByLabel("Filter by name").fill("");
      await becomes(async () => (await names(page)).length > 5, true);
      sizes.push({ elements: await elements(page), points: await drawn(page, "points") });
      expect(faults).toEqual([]);
    }
    const [few, many] = sizes as [(typeof sizes)[number], (typeof sizes)[number]];
    expect(many.elements / few.elements).toBeLessThan(1.3);
    expect(many.points).toBeLessThanOrEqual(50_000);
    expect(many.points).toBeGreaterThan(8000); // all of them are there
  });

  test("a read-only link has no controls, a wrong key is asked for again, and a phone has room for all", async () => {
    const { page: site, board } = crowd(12, 20);
    await using _site = site;
    const { page } = await look(browser, site.viewUrl, {
      viewport: { width: 360, height: 740 },
      colorScheme: "dark",
      isMobile: true,
    });
    await rowOf(page, "sweep-0000").waitFor({ state: "attached" });
    await becomes(() => page.getByRole("button", { name: "Pause", exact: true }).count(), 0);
    for (const name of ["Pause", "Pause all", "Stop", "Fork", "Read-only link", "Ask"])
      expect(await page.getByRole("button", { name, exact: true }).count()).toBe(0);
    expect(await page.evaluate("document.documentElement.scrollWidth")).toBe(360);
    expect(await page.evaluate("getComputedStyle(document.body).backgroundColor")).toBe("rgb(13, 17, 23)");
    await page.getByRole("button", { name: "light" }).click();
    await becomes(() => page.evaluate("getComputedStyle(document.body).backgroundColor"), "rgb(244, 245, 248)");
    const { origin } = new URL(site.url);
    const signing = await look(browser, `${origin}/#key=wrong`);
    await signing.page.getByText("Incorrect API key provided.").waitFor();
    await signing.page.getByLabel("Key of this server").fill(site.url.split("#key=")[1]!);
    await signing.page.keyboard.press("Enter");
    await rowOf(signing.page, "sweep-0000").waitFor({ state: "attached" });
    board.set("sweep-0000", { state: "failed", note: "its loss is NaN" });
    await becomes(() => rowOf(signing.page, "sweep-0000").locator(".pill").textContent(), "failed");
  });

  test("colours of texts have the contrast that WCAG AA asks for, in light and dark", async () => {
    const { page: site, board } = crowd(12, 20);
    await using _site = site;
    board.set("sweep-0001", { state: "failed" });
    board.set("sweep-0002", { state: "done" });
    board.notice("sweep-0001", "its loss is NaN", true);
    for (const colorScheme of ["light", "dark"] as const) {
      const { page } = await look(browser, site.url, { colorScheme });
      await page.locator("mark").first().waitFor();
      await becomes(
        () =>
          page
            .locator(".pill[data-state=failed]")
            .count()
            .then((n) => n > 0),
        true,
      );
      expect(await page.evaluate(POOR_CONTRAST)).toEqual([]);
    }
  });
});

/** Polls, with a deadline, until a value is as expected. */
async function becomes(read: () => Promise<unknown>, wanted: unknown): Promise<void> {
  let value = await read();
  for (const end = performance.now() + 30_000; !Bun.deepEquals(value, wanted) && performance.now() < end; value = await read())
    await Bun.sleep(30);
  expect(value).toEqual(wanted);
}

/** Elements with text of their own whose colour is too near to what is below it: 4.5 to 1 at least. */
const POOR_CONTRAST = `(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const light = ([r, g, b]) => {
    const part = (value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const poor = new Set();
  for (const element of document.querySelectorAll("body *")) {
    const isText = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim() !== "");
    if (!isText || element.closest("[hidden], .unseen, .skip, noscript, option, :disabled") || !element.getClientRects().length) continue;
    let under = element;
    while (under && rgba(getComputedStyle(under).backgroundColor)[3] < 1) under = under.parentElement;
    const [a, b] = [light(rgba(getComputedStyle(element).color)), light(rgba(getComputedStyle(under ?? document.body).backgroundColor))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.add(element.tagName + "." + element.className + " " + ratio.toFixed(2));
  }
  return [...poor];
})()`;
