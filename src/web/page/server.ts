// What the page asks its server: events, read as they come, and requests. The key is in memory and, for this tab, in its
// session storage; it comes in the link's fragment, which no server sees and which goes from the address at once.

import type { All, Change } from "../wire.ts";

const STORED = "mlora-key";

export function takeKey(): string | null {
  const found = /[#&]key=([^&]+)/.exec(location.hash)?.[1];
  if (found !== undefined) {
    sessionStorage.setItem(STORED, decodeURIComponent(found));
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem(STORED);
}

export const keepKey = (key: string): void => sessionStorage.setItem(STORED, key);

/** What the server answers where it refuses. */
export class Refused extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

export class Server {
  constructor(private readonly key: string) {}

  /** Throws a Refused with the server's message. */
  async ask(path: string, body?: object, signal: AbortSignal | null = null): Promise<Response> {
    const headers: Record<string, string> = { authorization: `Bearer ${this.key}` };
    if (body) headers["content-type"] = "application/json";
    const response = await fetch(path, {
      ...{ headers, signal, cache: "no-store", method: body ? "POST" : "GET" },
      ...(body ? { body: JSON.stringify(body) } : {}),
    });
    if (response.ok) return response;
    const text = await response.json().then(
      (answer: { readonly error?: { readonly message?: string } }) => answer.error?.message,
      () => undefined,
    );
    throw new Refused(response.status, text ?? `the server answers ${response.status}`);
  }

  async json<T>(path: string, body?: object): Promise<T> {
    return (await (await this.ask(path, body)).json()) as T;
  }

  /** Reads the board's events until the connection ends. */
  async watch(got: (event: { readonly all: All } | { readonly change: Change }) => void, signal: AbortSignal): Promise<void> {
    for await (const { event, data } of eventsOf(await this.ask("/page/events", undefined, signal)))
      if (event === "all") got({ all: JSON.parse(data) as All });
      else if (event === "change") got({ change: JSON.parse(data) as Change });
  }
}

/** Server-sent events, as the standard has them, of a response that is still coming. */
export async function* eventsOf(response: Response): AsyncGenerator<{ readonly event: string; readonly data: string }> {
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop()!;
    for (const block of blocks) {
      const fields = block.split("\n").map((line) => /^(\w+): ?(.*)$/.exec(line));
      const of = (name: string) => fields.flatMap((field) => (field?.[1] === name ? [field[2]!] : []));
      const data = of("data");
      if (data.length > 0) yield { event: of("event")[0] ?? "message", data: data.join("\n") };
    }
  }
}
