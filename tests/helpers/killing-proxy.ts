// What stands between clients and a server, and kills the server at given requests: before one reaches it, or when its answer
// is there and has not left.

import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { type Started, startServer } from "./server.ts";

/** A request by the end of its path; `when`: whether the server has answered it. */
export type Moment = { readonly path: string; readonly when: "before" | "after" };

export class KillingProxy implements AsyncDisposable {
  readonly url: string;
  readonly #http = createServer((request, response) => void this.#pass(request, response));
  /** The server that is there, or that is being started. */
  #server: Promise<Started>;
  /** Those that are to come, in order. */
  moments: Moment[] = [];

  private constructor(
    server: Started,
    private readonly start: () => Promise<Started>,
  ) {
    this.#server = Promise.resolve(server);
    this.#http.listen(0, "127.0.0.1");
    this.url = `http://127.0.0.1:${(this.#http.address() as { readonly port: number }).port}`;
  }

  static async open(...[place, folder]: Parameters<typeof startServer>): Promise<KillingProxy> {
    const start = () => startServer(place, folder);
    return new KillingProxy(await start(), start);
  }

  get server(): Promise<Started> {
    return this.#server;
  }

  async #pass(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const pieces: Buffer[] = [];
    try {
      for await (const piece of request) pieces.push(piece);
      const [moment] = this.moments;
      const isMoment = moment !== undefined && request.url!.endsWith(`/${moment.path}`);
      if (isMoment) this.moments.shift();
      const server = await this.#server;
      if (isMoment && moment.when === "before") await this.#kill(server);
      const { host: _, connection: __, "content-length": ___, ...others } = request.headers;
      const headers = others as Record<string, string>;
      const { method } = request;
      const body = method === "GET" || method === "HEAD" ? null : Buffer.concat(pieces);
      const answer = await fetch(`${server.url}${request.url}`, { method: method!, headers, body });
      const bytes = Buffer.from(await answer.arrayBuffer());
      if (isMoment) await this.#kill(server);
      response.writeHead(answer.status, {
        "content-type": answer.headers.get("content-type") ?? "",
        "content-length": bytes.length,
      });
      response.end(bytes);
    } catch {
      request.socket.destroy(); // as the connection to a server that was killed
    }
  }

  /** Throws when it is done. */
  async #kill({ running }: Started): Promise<never> {
    const [promise, ended] = [this.start, running.ended];
    running.kill("SIGKILL");
    this.#server = ended.then(promise);
    this.#server.catch(() => undefined); // a request that waits for it fails
    await ended;
    throw new Error("the server is killed");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#http.close();
    this.#http.closeAllConnections();
  }
}
