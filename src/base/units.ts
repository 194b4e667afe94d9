// Numbers, sizes and times as messages and tables print them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** "1.50 GiB". */
export function formatBytes(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 ? value : value.toFixed(2)} ${UNITS[unit]}`;
}

/** 12345 as "12,345". */
export const count = (n: number): string => Math.round(n).toLocaleString("en-US");

/** Seconds as "4.2 s", "3 min 05 s" or "2 h 07 min". */
export function duration(seconds: number): string {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  const two = (n: number) => `${n}`.padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
}
