// Texts and numbers as XML takes them.

/** Also what XML has no place for, as a question mark. */
export const xml = (text: string): string =>
  Bun.escapeHTML(text.replace(/[^\t\n\r\x20-\ud7ff\ue000-\ufffd\u{10000}-\u{10ffff}]/gu, "?"));

/** To a hundredth of a pixel. */
export const px = (value: number): string => `${hundredth(value)}`;
export const hundredth = (value: number): number => Math.round(100 * value) / 100;
