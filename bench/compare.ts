// Two runs side by side: what became faster, what slower, and what lies within the noise of both.
import { biggerIsBetter, type Result, type Results } from "./result.ts";

/** What became of a result. */
export type Verdict = "faster" | "same" | "slower";

/** One result in two runs. Values are in `unit`. */
export interface Change {
  name: string;
  unit: string;
  before: { value: number; mad: number };
  after: { value: number; mad: number };
  /** How far the median moved, in the unit; above 0 is better, whatever the unit. */
  gain: number;
  /** What it has to move at least to count. */
  limit: number;
  verdict: Verdict;
}

/** Two runs side by side. */
export interface RunComparison {
  /** "slower" if any result is; else "faster" if any is. */
  verdict: Verdict | "not comparable";
  /** Why the runs cannot be compared, one line each; empty if they can. */
  reasons: string[];
  /** The results that both runs have, in the order of the first. */
  changes: Change[];
  /** Results that only the second run has. */
  added: string[];
}

/** What counts as a change. */
export interface CompareOptions {
  /** Part of the first run's value that a change must exceed to count (default 0.05). */
  threshold?: number;
}

/**
 * Compares two runs by their medians. A result is faster or slower if its median moved by more than `threshold` of
 * the first run's, and by more than twice the sum of both runs' median absolute deviations; else it is the same.
 * Runs of different machines, and runs of which the second lacks a result or has it in another unit, are not
 * comparable as a whole; what both have is compared all the same.
 */
export function compareResults(before: Results, after: Results, options: CompareOptions = {}): RunComparison {
  const threshold = options.threshold ?? 0.05;
  const reasons: string[] = [];
  for (const part of ["cpu", "gpu"] as const) {
    const [a, b] = [before.machine[part], after.machine[part]];
    if (a !== b) reasons.push(`other machine: ${part} was ${a ?? "none"}, is ${b ?? "none"}`);
  }
  const found = new Map(after.results.map((result) => [result.name, result]));
  const changes: Change[] = [];
  for (const a of before.results) {
    const b = found.get(a.name);
    found.delete(a.name);
    if (!b) reasons.push(`missing result: ${a.name}`);
    else if (a.unit !== b.unit) reasons.push(`other unit: ${a.name} was in ${a.unit}, is in ${b.unit}`);
    else changes.push(changeOf(a, b, threshold));
  }
  if (changes.length === 0 && reasons.length === 0) reasons.push("no results");
  const has = (verdict: Verdict): boolean => changes.some((change) => change.verdict === verdict);
  const verdict = has("slower") ? "slower" : has("faster") ? "faster" : "same";
  return {
    verdict: reasons.length > 0 ? "not comparable" : verdict,
    reasons,
    changes,
    added: [...found.keys()],
  };
}

function changeOf(a: Result, b: Result, threshold: number): Change {
  const gain = biggerIsBetter(a.unit) ? b.value - a.value : a.value - b.value;
  const limit = Math.max(threshold * Math.abs(a.value), 2 * (a.mad + b.mad));
  const verdict = Math.abs(gain) <= limit ? "same" : gain > 0 ? "faster" : "slower";
  const side = ({ value, mad }: Result): { value: number; mad: number } => ({ value, mad });
  return { name: a.name, unit: a.unit, before: side(a), after: side(b), gain, limit, verdict };
}
