// The live page without a run: its curves, what viewers are sent, its files, and what each key may ask.

import { describe, expect, test } from "bun:test";
import { pagePlace } from "../../src/serve/run-page.ts";
import { Board, type Viewer } from "../../src/web/board.ts";
import { bundlePage } from "../../src/web/bundle.ts";
import { Curve, type Point } from "../../src/web/curve.ts";
import type { RunState } from "../../src/web/wire.ts";
import { askPage, crowd, watch } from "../helpers/page.ts";

const STATE = { state: "training", stages: [] as const } as unknown as RunState;

describe("a curve", () => {
  test("has all steps while they fit, and then means of as many steps each", () => {
    for (const steps of [1, 63, 64, 65, 200, 1000]) {
      const curve = new Curve(64);
      const lossOf = (step: number) => 100 + step;
      for (let step = 1; step <= steps; step++) curve.add([step, lossOf(step), null, step % 2 ? 1 : null]);
      const { points, stride } = curve;
      expect(points.length).toBe(Math.ceil(steps / stride));
      expect(points.length).toBeLessThanOrEqual(64);
      expect(points.length).toBeGreaterThan(Math.min(steps, 64) / 2 - 1);
      for (const [i, [last, loss, gradNorm, rate]] of points.entries()) {
        expect(last).toBe(Math.min(steps, (i + 1) * stride));
        const first = i * stride + 1;
        expect(loss).toBeCloseTo((lossOf(first) + lossOf(last)) / 2, 2);
        expect(gradNorm).toBeNull();
        expect(rate).toBe(stride === 1 && last % 2 === 0 ? null : 1);
      }
    }
  });

  test("goes back where steps are made again", () => {
    const curve = new Curve(64);
    for (const step of [1, 2, 3, 4, 5, 3, 4]) curve.add([step, step === 3 ? 30 : step, 1, 1]);
    expect(curve.points.map(([step, loss]) => [step, loss])).toEqual([
      [1, 1],
      [2, 2],
      [3, 30],
      [4, 4],
    ]);
  });

  test("that is reduced has no other mean", () => {
    const curve = new Curve(256);
    for (let step = 1; step <= 256; step++) curve.add([step, step, step, step]);
    const { points, stride } = curve.reduced(20);
    expect([points.length, stride]).toEqual([16, 16]);
    expect(points.reduce((sum, [, loss]) => sum + loss!, 0) / 16).toBeCloseTo(128.5, 1);
    expect(curve.points.length).toBe(256);
  });
});

describe("a board", () => {
  const looking = (takes: () => boolean) => {
    const got: {
      readonly event: string;
      readonly data: { readonly adapters: readonly { readonly points: readonly Point[] }[] };
    }[] = [];
    const viewer: Viewer = {
      send: (event, data) => {
        if (!takes()) return false;
        got.push({ event, data } as (typeof got)[number]);
        return true;
      },
      close: () => got.push({ event: "closed", data: { adapters: [] } }),
    };
    return { got, viewer };
  };

  test("sends what has changed, however many steps there were, and everything to a viewer that missed something", () => {
    const board = new Board({ title: "t", run: () => STATE, refresh: () => undefined });
    let isReading = true;
    const [quick, slow] = [looking(() => true), looking(() => isReading)];
    for (const { viewer } of [quick, slow]) board.watch(viewer, []);
    isReading = false;
    for (let step = 1; step <= 5000; step++) board.step("a", [step, 1, 1, 1]);
    board.watch(looking(() => true).viewer, []); // has the others sent what changed
    isReading = true;
    board.step("a", [5001, 1, 1, 1]);
    board[Symbol.dispose]();
    expect(quick.got.map(({ event }) => event)).toEqual(["all", "change", "change", "change", "closed"]);
    expect(slow.got.map(({ event }) => event)).toEqual(["all", "all", "closed"]);
    const [{ points }] = quick.got[2]!.data.adapters as [{ readonly points: readonly Point[] }];
    expect(points.length).toBeLessThanOrEqual(32);
    expect(points.at(-1)![0]).toBe(5000);
    expect(slow.got[1]!.data.adapters[0]!.points.at(-1)![0]).toBe(5001);
  });

  test("sends nothing of an adapter that has not changed", () => {
    const board = new Board({ title: "t", run: () => STATE, refresh: (of) => of.set("a", { steps: 7 }) });
    const { got, viewer } = looking(() => true);
    board.watch(viewer, []);
    board.set("b", { steps: 3 });
    board[Symbol.dispose]();
    expect(got.map(({ data }) => data.adapters.length)).toEqual([1, 1, 0]);
  });
});

test("the page's files need nothing else, hold no inline code, and take less than 300 kB", async () => {
  const files = Object.entries(await bundlePage()).map(([name, bytes]) => ({
    name,
    bytes,
    text: new TextDecoder().decode(bytes),
  }));
  expect(files.reduce((sum, { bytes }) => sum + bytes.length, 0)).toBeLessThan(300_000);
  for (const { text } of files) {
    expect(text.match(/https?:\/\/(?!www\.w3\.org\/)[\w.]+/g)).toBeNull();
    expect(text.match(/\b(innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function)/)).toBeNull();
  }
  const html = files.find(({ name }) => name === "index.html")!.text;
  expect(html).not.toMatch(/<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)/);
});

describe("the keys of a page", () => {
  test("a page is on loopback, or has TLS, or is insecure on purpose", () => {
    expect(pagePlace({ web: true }).listen).toEqual({ host: "127.0.0.1", port: 8765 });
    expect(pagePlace({ web: 9000 }).listen).toEqual({ host: "127.0.0.1", port: 9000 });
    expect(pagePlace({ web: "[::1]:9000" }).listen).toEqual({ host: "::1", port: 9000 });
    expect(pagePlace({ web: "0.0.0.0:9000", insecure: true }).listen.host).toBe("0.0.0.0");
    for (const web of ["0.0.0.0:9000", "10.0.0.1:80", "[::]:80", "example.org:1"])
      expect(() => pagePlace({ web })).toThrow("not this machine's loopback");
    expect(() => pagePlace({ web: "nothing" })).toThrow("expected host:port");
    expect(() => pagePlace({ web: true, webCertificate: "a.pem" })).toThrow("need each other");
  });

  test("without a key nothing but the files; a read-only link looks and changes nothing; other sites get nothing", async () => {
    const { page, asked } = crowd(3, 5);
    await using _page = page;
    const { origin } = new URL(page.url);
    const paths = ["/page/events", "/page/rows?adapter=sweep-0000", "/page/spans", "/page/link", "/page/models"];
    const control = { action: "pause", adapter: "sweep-0000" };
    const answer = { prompt: "2 + 2?", models: ["one"], max_tokens: 4 };
    for (const link of [`${origin}/#key=`, `${origin}/#key=wrong`]) {
      for (const path of paths) expect((await askPage(link, path)).status).toBe(401);
      expect((await askPage(link, "/page/control", control)).status).toBe(401);
      expect((await askPage(link, "/page/answer", answer)).status).toBe(401);
      for (const path of ["/", "/page/app.js", "/page/app.css"]) expect((await askPage(link, path)).status).toBe(200);
    }
    const statuses = await Promise.all(paths.map(async (path) => (await askPage(page.viewUrl, path)).status));
    expect(statuses).toEqual([200, 200, 200, 403, 403]);
    expect((await askPage(page.viewUrl, "/page/control", control)).status).toBe(403);
    expect((await askPage(page.viewUrl, "/page/answer", answer)).status).toBe(403);
    for (const headers of [
      { origin: "http://other.example" },
      { origin: "null" },
      { "sec-fetch-site": "cross-site" },
      { "sec-fetch-site": "same-site" },
    ]) {
      for (const path of paths) expect((await askPage(page.url, path, undefined, headers)).status).toBe(403);
      expect((await askPage(page.url, "/page/control", control, headers)).status).toBe(403);
    }
    expect(asked).toEqual([]);
    expect((await askPage(page.url, "/page/control", control, { origin })).status).toBe(200);
    expect(asked).toEqual([{ action: "pause", adapter: "sweep-0000" }]);
    for (const wrong of [{}, { action: "remove", adapter: "x" }, { ...control, more: 1 }, { action: "stop" }])
      expect((await askPage(page.url, "/page/control", wrong)).status).toBe(400);
    await using viewer = await watch(page.viewUrl);
    expect(viewer.all().abilities).toEqual(["rows", "spans"]);
    const { headers } = await askPage(page.url, "/");
    expect(headers.get("content-security-policy")).toMatch(/^default-src 'none'; script-src 'self'; style-src 'self'/);
    expect(headers.get("access-control-allow-origin")).toBeNull();
  });
});
