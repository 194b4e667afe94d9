// A fixed day in the forms that Python's strftime has, in the C locale at midnight.

import { asText } from "./args.ts";
import { TemplateError } from "./lexer.ts";
import { Func } from "./values.ts";

const MONTHS = [
  "January",
  "February",
  "March",
  "April",
  "May",
  "June",
  "July",
  "August",
  "September",
  "October",
  "November",
  "December",
];
const DAYS = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const DAY = 86_400_000;

/** `strftime_now` for one day, which `used` hears of. */
export const strftimeNow = (day: Date, used: () => void): Func =>
  new Func("strftime_now", (args) => {
    used();
    return strftime(day, asText("strftime_now", args[0]));
  });

/** A day such as "26 Jul 2024", "July 26, 2024" or "2024-07-26"; null where it is written otherwise. */
export function parseDay(text: string): Date | null {
  const iso = /^(\d{4})-(\d{1,2})-(\d{1,2})$/.exec(text.trim());
  const words = /^(\d{1,2}) ([A-Za-z]{3,9})\.?,? (\d{4})$/.exec(text.trim());
  const english = /^([A-Za-z]{3,9})\.? (\d{1,2}),? (\d{4})$/.exec(text.trim());
  const [year, month, day] = iso
    ? [iso[1], Number(iso[2]) - 1, iso[3]]
    : words
      ? [words[3], monthOf(words[2]!), words[1]]
      : [english?.[3], monthOf(english?.[1] ?? ""), english?.[2]];
  const date = new Date(Date.UTC(Number(year), Number(month), Number(day)));
  return date.getUTCMonth() === month && date.getUTCDate() === Number(day) ? date : null;
}

const monthOf = (name: string): number =>
  MONTHS.findIndex(
    (month) =>
      name.length >= 3 &&
      (month.toLowerCase() === name.toLowerCase() || month.slice(0, 3).toLowerCase() === name.toLowerCase()),
  );

export function strftime(date: Date, format: string): string {
  const [year, month, day, weekday] = [date.getUTCFullYear(), date.getUTCMonth(), date.getUTCDate(), date.getUTCDay()];
  const ofYear = Math.floor((date.getTime() - Date.UTC(year, 0, 1)) / DAY) + 1;
  const two = (value: number) => String(value).padStart(2, "0");
  const thursday = new Date(date.getTime() + (3 - ((weekday + 6) % 7)) * DAY);
  const isoWeek = Math.floor((thursday.getTime() - Date.UTC(thursday.getUTCFullYear(), 0, 1)) / DAY / 7) + 1;
  const forms: Readonly<Record<string, string>> = {
    "%": "%",
    n: "\n",
    t: "\t",
    Z: "",
    z: "",
    Y: String(year).padStart(4, "0"),
    y: two(year % 100),
    C: two(Math.floor(year / 100)),
    G: String(thursday.getUTCFullYear()),
    m: two(month + 1),
    B: MONTHS[month]!,
    b: MONTHS[month]!.slice(0, 3),
    h: MONTHS[month]!.slice(0, 3),
    d: two(day),
    e: String(day).padStart(2, " "),
    j: String(ofYear).padStart(3, "0"),
    A: DAYS[weekday]!,
    a: DAYS[weekday]!.slice(0, 3),
    w: String(weekday),
    u: String(weekday || 7),
    U: two(Math.floor((ofYear + 6 - weekday) / 7)),
    W: two(Math.floor((ofYear + 6 - ((weekday + 6) % 7)) / 7)),
    V: two(isoWeek),
    H: "00",
    I: "12",
    M: "00",
    S: "00",
    f: "000000",
    p: "AM",
    P: "am",
    k: " 0",
    l: "12",
    F: `${year}-${two(month + 1)}-${two(day)}`,
    D: `${two(month + 1)}/${two(day)}/${two(year % 100)}`,
    x: `${two(month + 1)}/${two(day)}/${two(year % 100)}`,
    T: "00:00:00",
    X: "00:00:00",
    R: "00:00",
    r: "12:00:00 AM",
    c: `${DAYS[weekday]!.slice(0, 3)} ${MONTHS[month]!.slice(0, 3)} ${String(day).padStart(2, " ")} 00:00:00 ${year}`,
  };
  return format.replace(/%([-_0^]?)([\s\S]|$)/g, (whole, flag: string, code: string) => {
    const form = Object.hasOwn(forms, code) ? forms[code]! : null;
    if (form === null) throw new TemplateError(`strftime_now: the code '${whole}' is not supported`);
    if (flag === "-") return form.replace(/^[0 ]+(?=.)/, "");
    return flag === "^" ? form.toUpperCase() : form;
  });
}
