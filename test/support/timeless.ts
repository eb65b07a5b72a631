/** Plain data without what differs between two runs of one seed by contract: times and memory. */
export function timeless(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(timeless);
  if (value === null || typeof value !== "object" || ArrayBuffer.isView(value)) return value;
  const kept = Object.entries(value).filter(
    ([key]) => key !== "at" && key !== "seconds" && key !== "peakRssMiB" && !key.endsWith("Ms"),
  );
  return Object.fromEntries(kept.map(([key, entry]) => [key, timeless(entry)]));
}
