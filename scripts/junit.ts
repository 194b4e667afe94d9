// What `bun test` writes with --reporter=junit, read back.

export type TestResult = {
  readonly file: string;
  /** Names of the describes around it, or "". */
  readonly suite: string;
  readonly name: string;
  readonly state: "passed" | "failed" | "skipped";
};
export type Report = { readonly tests: readonly TestResult[] };

const TESTCASE = /<testcase ([^>]*?)(?:\/>|>([\s\S]*?)<\/testcase>)/g;

export function readReport(xml: string): Report {
  const tests = [...xml.matchAll(TESTCASE)].map(([, attributes = "", body = ""]): TestResult => {
    const of = (key: string) => decoded(new RegExp(`(?:^| )${key}="([^"]*)"`).exec(attributes)?.[1] ?? "");
    const state =
      body.includes("<failure") || body.includes("<error") ? "failed" : body.includes("<skipped") ? "skipped" : "passed";
    return { file: of("file"), suite: of("classname"), name: of("name"), state };
  });
  return { tests };
}

const ENTITIES: Readonly<Record<string, string>> = { lt: "<", gt: ">", quot: '"', apos: "'", amp: "&" };

const decoded = (text: string): string =>
  text.replace(/&(?:#(\d+)|(\w+));/g, (whole, code, name) =>
    code ? String.fromCodePoint(Number(code)) : (ENTITIES[name] ?? whole),
  );
