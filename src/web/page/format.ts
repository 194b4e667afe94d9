// Numbers as people read them.

const DASH = "–";

export const count = (value: number): string => Math.round(value).toLocaleString("en-US");

/** Four significant digits. */
export function number(value: number | null): string {
  if (value === null || !Number.isFinite(value)) return DASH;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2);
  return size >= 1000 ? count(value) : value.toPrecision(4);
}

export const rate = (value: number | null): string => (value === null ? DASH : value < 100 ? value.toFixed(1) : count(value));

/** "2 h 5 min" */
export function duration(seconds: number | null): string {
  if (seconds === null || !Number.isFinite(seconds)) return DASH;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} min ${whole % 60} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function bytes(value: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let [size, at] = [value, 0];
  for (; size >= 1024 && at < units.length - 1; at++) size /= 1024;
  return `${size < 10 && at > 0 ? size.toFixed(2) : size < 100 && at > 0 ? size.toFixed(1) : Math.round(size)} ${units[at]}`;
}

export const clock = (ms: number): string => new Date(ms).toLocaleTimeString();
