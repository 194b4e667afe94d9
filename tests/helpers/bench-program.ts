// A program in the place of mlora that measures nothing: what scripts/bench/host is tested with.

/** The report of `mlora bench --json` of one adapter in that many milliseconds a step. */
export const benchReport = (ms: number, about: { readonly device: string; readonly compute: string }) => ({
  ...{ shape: "tiny", ...about, recomputation: "none", targets: ["q_proj"], ms, adapters: 1, rows: 1, length: 8 },
  ...{ dropout: 0, ranks: [4], stages: [{ layers: 1 }], device_bytes: 1e6, peak_rss_bytes: 1e6 },
});

/** A shell program whose version is 1.2.3, and which does that otherwise. */
export const versioned = (does: string) => `#!/bin/sh\n[ "$1" = --version ] && echo mlora 1.2.3 && exit\n${does}\n`;
