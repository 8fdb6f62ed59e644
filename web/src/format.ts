/** Numbers as people read them. */

const NUMBER = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** Return an area in m², ha or km², with three digits. */
export function formatArea(m2: number): string {
  if (m2 < 10_000) return `${NUMBER.format(m2)} m²`;
  if (m2 < 10_000_000) return `${NUMBER.format(m2 / 10_000)} ha`;
  return `${NUMBER.format(m2 / 1_000_000)} km²`;
}

/** Return an area in m², or in pixels where there is no CRS. */
export function formatSize(value: number, unit: "m2" | "px"): string {
  return unit === "px" ? `${formatCount(value)} pixels` : formatArea(value);
}

export function formatCount(count: number): string {
  return WHOLE.format(count);
}

export function formatValue(value: number | null): string {
  if (value === null) return "no data";
  return Number.isInteger(value) ? WHOLE.format(value) : new Intl.NumberFormat("en", { maximumSignificantDigits: 4 }).format(value);
}

/** Return how long something takes yet: "8 s", "3 min", "1 h 20 min". */
export function formatSeconds(seconds: number): string {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const rest = minutes % 60;
  return rest === 0 ? `${minutes / 60} h` : `${Math.floor(minutes / 60)} h ${rest} min`;
}

export function formatBytes(bytes: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = bytes < 1 ? 0 : Math.min(Math.floor(Math.log10(bytes) / 3), units.length - 1);
  return `${NUMBER.format(bytes / 1000 ** power)} ${units[power] ?? "B"}`;
}

/** Return a position in degrees with about a metre's digits, as "61.12345° N, 24.12345° E". */
export function formatPosition(lng: number, lat: number): string {
  const degrees = (value: number, letters: [string, string]) => `${Math.abs(value).toFixed(5)}° ${letters[value < 0 ? 1 : 0]}`;
  return `${degrees(lat, ["N", "S"])}, ${degrees(lng, ["E", "W"])}`;
}

/** Return an estimate with its 95 % confidence interval. */
export function formatScore(value: number, low: number | null, high: number | null): string {
  const interval = low === null || high === null ? "" : ` (95 % CI ${low.toFixed(2)} to ${high.toFixed(2)})`;
  return value.toFixed(2) + interval;
}
