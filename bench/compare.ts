// How something of ours and its peer are timed: side by side in one run, in turns, so that both see the same machine.
import { Bench } from "tinybench";

/** One call of each does the same work. */
export interface Comparison {
  name: string;
  /** What `work` counts: "tokens/s" or the like; higher is better. */
  unit: string;
  /** Units that one call gets done. */
  work: number;
  ours: () => Promise<void>;
  /** What a user would take instead; null where this machine lacks it. */
  peer: { name: string; call: () => Promise<void> } | null;
}

export interface Result {
  name: string;
  unit: string;
  /** Median over all calls, and their median absolute deviation. */
  value: number;
  mad: number;
  peer: { name: string; value: number; mad: number } | null;
  /** Ours over the peer's; above 1 is faster. */
  ratio: number | null;
}

export interface Suite {
  name: string;
  open(): Promise<{ comparisons: Comparison[]; close(): Promise<void> }>;
}

export interface CompareOptions {
  /** Turns that each side gets. */
  rounds: number;
  /** Calls a turn. */
  calls: number;
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const half = (sorted.length - 1) / 2;
  return ((sorted[Math.floor(half)] as number) + (sorted[Math.ceil(half)] as number)) / 2;
}

function summary(rates: readonly number[]): { value: number; mad: number } {
  const value = median(rates);
  return { value, mad: median(rates.map((rate) => Math.abs(rate - value))) };
}

/** Times both sides of a comparison; the first call of each warms it up and does not count. */
export async function compare(comparison: Comparison, options: CompareOptions): Promise<Result> {
  const { name, unit, work, ours, peer } = comparison;
  const sides = [{ call: ours, rates: [] as number[] }];
  if (peer) sides.push({ call: peer.call, rates: [] });
  for (const { call } of sides) await call();
  for (let round = 0; round < options.rounds; round++) {
    for (const { call, rates } of sides) {
      const bench = new Bench({
        time: 0,
        iterations: options.calls,
        warmup: false,
        retainSamples: true,
        throws: true,
      });
      const task = bench.add(name, call, { async: true }).getTask(name);
      await bench.run();
      const result = task?.result;
      if (result?.state !== "completed") throw new Error(`${name}: the benchmark ended as ${result?.state}`);
      for (const milliseconds of result.latency.samples ?? []) rates.push((work * 1000) / milliseconds);
    }
  }
  const [mine, theirs] = sides.map(({ rates }) => summary(rates));
  return {
    name,
    unit,
    ...(mine as { value: number; mad: number }),
    peer: peer && theirs ? { name: peer.name, ...theirs } : null,
    ratio: theirs ? (mine as { value: number }).value / theirs.value : null,
  };
}
