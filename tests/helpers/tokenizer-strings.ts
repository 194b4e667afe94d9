// Seeded strings on which tokenizers are compared: what rows of many makes hold, and what splits them at odd places.

const WORDS = [
  ...[
    "the",
    "Hello",
    "HELLO",
    "don't",
    "I'M",
    "they'VE",
    "we'll",
    "it's",
    "x'ſ",
    "camelCaseWord",
    "snake_case",
    "internationalization",
  ],
  ...["naïve", "Łódź", "Ærøskøbing", "Straße", "ÎÎ", "ǅungla", "İstanbul", "ﬁne", "Ⅷ", "½", "²", "①", "㎏", "ͅα", "ΣΑΣ", "ς"],
  ...[
    "Привет",
    "мир",
    "Ёлка",
    "Γειά",
    "σου",
    "שלום",
    "עִבְרִית",
    "مرحبا",
    "العَرَبِيَّة",
    "हिन्दी",
    "নমস্কার",
    "தமிழ்",
    "ไทยน้ำ",
    "ລາວ",
    "ခင်ဗျား",
  ],
  ...[
    "你好世界",
    "今天",
    "こんにちは",
    "カタカナ",
    "ｶﾞ",
    "안녕하세요",
    "ㅎㅏㄴ",
    "ｆｕｌｌ",
    "𠮷野家",
    "𝒳𝔜",
    "ᚠᚢ",
    "ⲁⲃ",
    "ꙮ",
    "አማርኛ",
    "ქართული",
    "Հայ",
  ],
];
const MARKS = [
  "e\u0301",
  "A\u030a",
  "q\u0323\u0307",
  "\u1e9b\u0323",
  "\u212b",
  "\u0344",
  "\u0958",
  "가\u11a8",
  "\u1100\u1161",
  "ก\u0e33",
  "\u2126",
  "\u0301",
];
const EMOJI = ["🙂", "👩‍👩‍👧‍👦", "🇨🇭", "👍🏽", "❤️", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "1️⃣", "🫠", "☺︎", "🧑‍🚀🧑🏿‍🚀"];
const SPACES = [
  " ",
  "  ",
  "   ",
  "\n",
  "\n\n",
  "\r\n",
  "\t",
  "\t\t",
  "    ",
  "\u00a0",
  "\u3000",
  "\u2003",
  "\u2028",
  "\u0085",
  "\ufeff",
  "\u200b",
  "\u180e",
  "\u202f",
  "\v",
  "\f",
  "\x1c",
  " \n ",
  "\n\t",
];
const CONTROLS = [
  "\0",
  "\x01",
  "\x1b[0m",
  "\x7f",
  "\x80",
  "\u200d",
  "\u200e",
  "\u202e",
  "\u2066",
  "\u00ad",
  "\ufffd",
  "\ufffd\ufffd",
  "\ufdd0",
  "\u{10ffff}",
  "\u{e0041}",
  "\ue000",
];
const POINTS = [
  ".",
  ",",
  "!?",
  "...",
  "…",
  "'",
  "''",
  '"',
  "“”",
  "--",
  "—",
  "()",
  "[",
  "]]",
  "{",
  "};",
  "/",
  "//",
  "\\",
  "\\n",
  "<",
  "</",
  "|",
  "<|",
  "|>",
  "#",
  "##",
  "_",
  "__",
  "$",
  "€",
  "%",
  "^",
  "`",
  "```",
  "~",
  "&",
  "*",
  "+=",
  "=>",
  "@",
  ":",
  "：",
  "，",
  "。",
  "「」",
  "¿",
  "§",
  "°",
  "±",
  "×",
];
const LINES = [
  "def f(x):\n    return {'a': [x ** 2, ~x]}  # see https://example.org/?q=1&r=%20",
  "for (int i = 0; i < n; ++i) {\n\t\tx[i] += 2 * y[i];\n}\n",
  '{"name": "x", "args": {"n": 1.0, "ok": null}}',
  "SELECT * FROM t WHERE a <> 'b' AND c >= 10;\r\n",
  '<div class="a">&nbsp;</div>\n\n\n',
  "| a | b |\n|---|---|\n| 1 | 2 |\n",
  "$\\frac{1}{2}\\sum_{i=0}^{n} x_i^2$",
  "- [x] item\n  * nested\n\n1. one\n",
];
const LOWER_ONE = ["▁", "▁▁", " ▁", "▁a", "Ġ", "Ċ", "<0x0A>", "##s", "</w>", "@@"];

/** A generator of numbers in [0, 1): mulberry32. */
export function seeded(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** `count` strings by a seed; `added` are texts of added tokens that some of them hold, whole, cut or inside words. */
export function stringsOf(seed: number, count: number, added: readonly string[]): string[] {
  const next = seeded(seed);
  const below = (n: number) => Math.floor(next() * n);
  const one = (list: readonly string[]): string => list[below(list.length)]!;
  const codePoint = (): string => {
    const at = below(4) === 0 ? below(0x110000) : below(3) === 0 ? below(0x20000) : below(0x3000);
    return at >= 0xd800 && at <= 0xdfff ? "\ufffd" : String.fromCodePoint(at);
  };
  const digits = (): string => Array.from({ length: 1 + below(below(8) === 0 ? 40 : 5) }, () => below(10)).join("");
  const token = (): string => {
    if (added.length === 0) return one(WORDS);
    const text = one(added);
    const how = below(6);
    if (how === 0) return text.slice(0, 1 + below(text.length));
    if (how === 1) return one(SPACES) + text + one(SPACES);
    if (how === 2) return one(WORDS) + text + one(WORDS);
    return text;
  };
  const parts: readonly (() => string)[] = [
    () => one(WORDS),
    () => ` ${one(WORDS)}`,
    () => `${one(WORDS)} ${one(WORDS)}`,
    () => one(SPACES),
    () => one(SPACES),
    () => one(POINTS),
    () => one(POINTS),
    () => one(MARKS),
    () => one(EMOJI),
    () => one(CONTROLS),
    () => one(LINES),
    () => one(LOWER_ONE),
    digits,
    () => (below(3) === 0 ? one(["٣٤", "०१२", "１２３", "𝟙𝟚", "Ⅳ", "½¾"]) : digits()),
    token,
    token,
    codePoint,
    codePoint,
  ];
  const string = (index: number): string => {
    if (index % 500 === 0) return "";
    const text = Array.from({ length: 1 + below(12) }, () => parts[below(parts.length)]!()).join("");
    return (index % 200 === 199 ? text.repeat(1 + below(40)) : text).toWellFormed();
  };
  return Array.from({ length: count }, (_, index) => string(index));
}

/** The texts of added tokens that `stringsOf` is given: enough of each make, and not hundreds of reserved ones. */
export function addedTexts(tokenizerJson: {
  readonly added_tokens?: readonly { content: string; special?: boolean }[];
}): string[] {
  const tokens = tokenizerJson.added_tokens ?? [];
  const [special, plain] = [tokens.filter(({ special }) => special), tokens.filter(({ special }) => !special)];
  return [...special.slice(0, 30), ...plain.slice(0, 30)].map(({ content }) => content);
}
