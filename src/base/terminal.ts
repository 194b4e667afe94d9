// The door of all text that may reach a terminal. Names, paths, templates, rows and errors of others may hold control
// characters that move the cursor, set the window's title or turn the direction of text: they are shown as escapes and never
// sent.

// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const CONTROLS = /[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/g;
/** Colours, as src/cli/draw makes them. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: the escape is what is looked for
const COLOURS = /(\x1b\[[0-9;]*m)/;

const hex = (char: string, digits: number): string => char.charCodeAt(0).toString(16).padStart(digits, "0");

/** Control characters but the line break as their escapes: "\t", "\x1b", "\u202e". Idempotent. */
export const visible = (text: string): string =>
  text.replaceAll(CONTROLS, (char) => {
    if (char === "\t") return "\\t";
    if (char === "\r") return "\\r";
    return char < "\u0100" ? `\\x${hex(char, 2)}` : `\\u${hex(char, 4)}`;
  });

/** The same in one line, for cells and bars. */
export const visibleLine = (text: string): string => visible(text).replaceAll("\n", "\\n");

/** JSON of `value`, which equals JSON.stringify's to a reader and has no control character of any kind but line breaks. */
export const jsonText = (value: unknown, indent?: number): string =>
  JSON.stringify(value, null, indent).replaceAll(CONTROLS, (char) => `\\u${hex(char, 4)}`);

/** Writes to standard output. With `painted`, colours pass: what is foreign in the text must have been made visible before. */
export function writeStdout(text: string, { painted = false } = {}): void {
  const parts = painted ? text.split(COLOURS) : [text];
  process.stdout.write(parts.map((part, i) => (i % 2 === 1 ? part : visible(part))).join(""));
}

/** Writes generated text to standard output: visibly to a terminal, as it is to a file or a pipe. */
export const writeGenerated = (text: string): void => {
  process.stdout.write(process.stdout.isTTY ? visible(text) : text);
};

/** Writes to standard error. */
export const writeStderr = (text: string): void => {
  process.stderr.write(visible(text));
};
