// What is thrown as what clients are answered: what they did wrong in its words, what the server did wrong in none of its own,
// and in its log alone.

import { expect, test } from "bun:test";
import { RequestError, RunError } from "../../src/base/errors.ts";
import { ApiError, apiErrorOf, badRequest, errorResponse, failureText, isFatal, tooMany } from "../../src/serve/errors.ts";
import { Counters } from "../../src/serve/metrics.ts";
import { Router } from "../../src/serve/router.ts";

const GONE = "The model is gone: it was deleted meanwhile.";
const AGAIN = "The model is being opened again: try again soon.";
const FAILED = "The server failed at this request; its log says why.";

/** Thrown; the status and the text of the answer, its param and code; whether it is a fault of the server's. */
type Case = readonly [unknown, number, string, string | null, string | null, boolean];
const CASES: readonly Case[] = [
  [badRequest("No.", "n", "why"), 400, "No.", "n", "why", false],
  [new ApiError(500, "Ours, in words of our own."), 500, "Ours, in words of our own.", null, null, false],
  [new RequestError("data.row", "row 3 is wrong", "mend it"), 400, "row 3 is wrong; mend it", null, "data.row", false],
  [new RequestError("data.row", "row 3 is wrong"), 400, "row 3 is wrong", null, "data.row", false],
  [new RequestError("primitives.adapter", "no adapter 'key-of-another'"), 404, GONE, "model", "model_not_found", false],
  [new RunError("primitives.adapter", "secret"), 500, FAILED, null, null, true],
  ...["device.memory", "stage.ended", "bus.gone", "nats.closed", "link.lost"].map(
    (code): Case => [new RunError(code, "secret"), 503, AGAIN, null, null, true],
  ),
  ...["devices.memory", "my.stage.ended", "stage", "links.lost"].map(
    (code): Case => [new RunError(code, "secret"), 500, FAILED, null, null, true],
  ),
  [new RequestError("device.memory", "does not fit", "less"), 400, "does not fit; less", null, "device.memory", false],
  [new TypeError("secret"), 500, FAILED, null, null, true],
  [Object.assign(new Error("secret"), { code: "stage.ended" }), 500, FAILED, null, null, true],
  ["secret", 500, FAILED, null, null, true],
  [undefined, 500, FAILED, null, null, true],
];

test("what is thrown is answered by its kind, and what is not the client's is known as the server's", () => {
  for (const [thrown, status, message, param, code, isUnexpected] of CASES) {
    const found = apiErrorOf(thrown);
    const type = status >= 500 ? "server_error" : "invalid_request_error";
    const said = `${thrown}`;
    expect([found.isUnexpected, found.error.status, found.error.body], said).toEqual([
      isUnexpected,
      status,
      { error: { message, type, param, code } },
    ]);
    expect(JSON.stringify(found.error.body), said).not.toContain("secret");
  }
});

test("stages are lost by their own errors, of whatever class, and by no other", () => {
  for (const [thrown, , text] of CASES)
    expect(isFatal(thrown), `${thrown}`).toBe(text === AGAIN || text === "does not fit; less");
});

test("the text of a failed job has the way out, and names no adapter of another key", () => {
  expect(failureText(new RunError("run.disk", "the disk is full", "make room"))).toBe("the disk is full; make room");
  expect(failureText(new RunError("run.disk", "the disk is full"))).toBe("the disk is full");
  expect(failureText(new RequestError("primitives.adapter", "no adapter 'key-of-another'", "look"))).toBe(GONE);
  expect(failureText(new Error("plain"))).toBe("plain");
});

test("clients read when to ask again, and Tinker's the text as detail", async () => {
  const limited = errorResponse(tooMany("Too much."));
  expect([limited.status, limited.headers.get("retry-after"), await limited.json()]).toEqual([
    429,
    "1",
    { error: { message: "Too much.", type: "rate_limit_error", param: null, code: "rate_limit_exceeded" } },
  ]);
  expect(apiErrorOf(new RunError("stage.ended", "gone")).error.headers).toEqual({ "retry-after": "5" });
  expect(await errorResponse(badRequest("No."), true).json()).toMatchObject({ detail: "No.", error: { message: "No." } });
  expect(await errorResponse(badRequest("No.")).json()).not.toHaveProperty("detail");
});

test("faults of the server are reported and logged, each once; those of clients, and of one that has gone, are not", async () => {
  const failed: unknown[] = [];
  let thrown: unknown;
  const router = new Router(
    [
      {
        method: "GET",
        path: "/v1/thing",
        isOpen: true,
        summary: "",
        handler: () => {
          throw thrown;
        },
      },
    ],
    {
      keys: { accessOf: () => ({ tenant: "one", isViewer: false }) },
      counters: new Counters(),
      limits: { bytes: 1000, seconds: 1, requests: 10 },
      log: "none",
      failed: (error: unknown) => failed.push(error),
    } as unknown as ConstructorParameters<typeof Router>[1],
  );
  const logged: unknown[] = [];
  router.log = (event, more) => logged.push([event, more["error"]]);
  const ask = async (what: unknown, signal?: AbortSignal) => {
    thrown = what;
    return (await router.answer(new Request("http://127.0.0.1/v1/thing", signal ? { signal } : {}))).status;
  };
  const own = new TypeError("of the server");
  expect([await ask(own), await ask(new RunError("stage.ended", "gone")), await ask(badRequest("No."))]).toEqual([
    500, 503, 400,
  ]);
  expect(failed).toEqual([own, expect.objectContaining({ code: "stage.ended" })]);
  expect(logged).toEqual([
    ["error", "of the server"],
    ["error", "gone"],
  ]);
  const away = new AbortController();
  away.abort();
  await ask(own, away.signal);
  expect([failed.length, logged.length]).toEqual([2, 2]);
});
