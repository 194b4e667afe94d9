// What `wandb sync` asks W&B's server for, as its version 0.31.0 does: the run is made, rows of history come as lines with
// their place in a file, other files are put at addresses that the server names.

/** What has been sent of a run. */
export type SentRun = {
  readonly variables: Readonly<Record<string, unknown>>;
  readonly lines: string[];
  exitCode: number | null;
};

type Content = { readonly offset: number; readonly content: readonly string[] };

export function wandbServer() {
  const runs = new Map<string, SentRun>();
  const answer = (query: string, variables: Readonly<Record<string, unknown>>, origin: string): object | null => {
    if (query.includes("mutation UpsertBucket")) {
      const name = `${variables["name"]}`;
      if (!runs.has(name)) runs.set(name, { variables, lines: [], exitCode: null });
      const entity = { id: "entity", name: "me" };
      const project = { id: "project", name: variables["project"], entity };
      const bucket = { id: "bucket", name, displayName: variables["displayName"], config: "{}", project, historyLineCount: 0 };
      return { upsertBucket: { bucket: { ...bucket, description: null, sweepName: null }, inserted: true } };
    }
    if (!query.includes("mutation CreateRunFiles")) return null;
    const files = (variables["files"] as readonly string[]).map((name) => ({ name, uploadUrl: `${origin}/put/${name}` }));
    return { createRunFiles: { runID: "bucket", uploadHeaders: [], files } };
  };
  const server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    fetch: async (request) => {
      const { pathname, origin } = new URL(request.url);
      const bytes = new Uint8Array(await request.arrayBuffer());
      const text = () =>
        new TextDecoder().decode(request.headers.get("content-encoding") === "gzip" ? Bun.gunzipSync(bytes) : bytes);
      if (pathname === "/graphql") {
        const { query, variables } = JSON.parse(text());
        const data = answer(query, variables, origin);
        return data ? Response.json({ data }) : Response.json({ errors: [{ message: "not known" }] }, { status: 400 });
      }
      const [, run] = /\/([^/]+)\/file_stream$/.exec(pathname) ?? [];
      if (run !== undefined) {
        const { files = {}, exitcode } = JSON.parse(text()) as { files?: Record<string, Content>; exitcode?: number };
        const sent = runs.get(run)!;
        const history = files["wandb-history.jsonl"];
        if (history) sent.lines.splice(history.offset, history.content.length, ...history.content);
        if (exitcode !== undefined) sent.exitCode = exitcode;
      }
      return Response.json({});
    },
  });
  return { url: server.url.origin, runs, [Symbol.dispose]: () => void server.stop(true) };
}
