// Sizes in words: what messages and tables print.

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
