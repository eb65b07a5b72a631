// How something of ours and its peers are measured: side by side in one run, in turns, so that all see the same machine.

import { setImmediate } from "node:timers/promises";
import { Bench } from "tinybench";
import { TokenringError } from "tokenring";
import { type Result, ratioOf } from "./result.ts";

/** What a user would take instead. */
export interface Peer {
  /** With versions, as results show it. */
  name: string;
  /** Does the comparison's work once. */
  call(): Promise<unknown>;
  close?(): Promise<void>;
}

/** One call of each side does the same work. */
export interface Comparison {
  name: string;
  unit: string;
  /**
   * Units that one call gets done, for a unit that is a rate ("tokens/s"). Null: nothing is timed, and each call
   * resolves to its value in the unit (peak memory, a share).
   */
  work: number | null;
  ours: () => Promise<unknown>;
  /** By the name that the result's name ends with; each opens to null where this machine lacks the peer. */
  peers: Readonly<Record<string, () => Promise<Peer | null>>>;
}

/** A comparison that holds something open. */
export interface Case extends Comparison {
  /** Frees what the case holds, once its peers are closed. */
  close(): Promise<void>;
}

/** How long a comparison is measured. */
export interface MeasureOptions {
  /** Turns that each side gets (default 7). */
  rounds?: number;
  /** A side's turn goes on until it took this long; at least one call (default 300). */
  turnMilliseconds?: number;
  /** Ends between two turns by throwing its reason. */
  signal?: AbortSignal;
  /** Told of a peer that failed; its result then has none. */
  onWarning?: (message: string) => void;
}

interface Side {
  label: string | null;
  peer: Peer;
  values: number[];
  failed: boolean;
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const half = (sorted.length - 1) / 2;
  return ((sorted[Math.floor(half)] as number) + (sorted[Math.ceil(half)] as number)) / 2;
}

/** Median, and median absolute deviation from it. */
export function summary(values: readonly number[]): { value: number; mad: number } {
  const value = median(values);
  return { value, mad: median(values.map((each) => Math.abs(each - value))) };
}

/**
 * Measures ours and each peer: one call each that warms up and does not count, then turns in alternation.
 * @returns one result for each peer, named "NAME, vs PEER"; one named NAME if the comparison has none
 * @throws what a call of ours throws; a failing peer only drops out
 */
export async function measure(comparison: Comparison, options: MeasureOptions = {}): Promise<Result[]> {
  const { rounds = 7, turnMilliseconds = 300, signal, onWarning } = options;
  const { name, unit, work } = comparison;
  const side = (label: string | null, peer: Peer): Side => ({ label, peer, values: [], failed: false });
  const ours = side(null, { name: "tokenring", call: comparison.ours });
  const sides = [ours];
  const attempt = async (of: Side, step: () => Promise<unknown>): Promise<void> => {
    await setImmediate(); // or calls that never wait would keep an abort from being seen
    signal?.throwIfAborted();
    try {
      await step();
    } catch (error) {
      if (of === ours) throw error;
      of.failed = true;
      onWarning?.(`${name}: ${of.peer.name} failed and is left out: ${(error as Error).message}`);
    }
  };
  const turn = async (of: Side): Promise<void> => {
    if (work === null) of.values.push(numberOf(name, await of.peer.call()));
    else of.values.push(...(await timeTurn(of.peer, turnMilliseconds)).map((ms) => (work * 1000) / ms));
  };
  try {
    for (const [label, open] of Object.entries(comparison.peers)) {
      const opening = side(label, { name: label, call: async () => undefined });
      await attempt(opening, async () => {
        const peer = await open();
        if (peer) sides.push(side(label, peer));
      });
    }
    for (const of of sides) await attempt(of, () => of.peer.call());
    for (let round = 0; round < rounds; round++) {
      for (const of of sides) if (!of.failed) await attempt(of, () => turn(of));
    }
  } finally {
    for (const { peer } of sides) await peer.close?.();
  }
  const mine = summary(ours.values);
  const labels = Object.keys(comparison.peers);
  if (labels.length === 0) return [{ name, unit, ...mine, peer: null, ratio: null }];
  return labels.map((label) => {
    const of = sides.find((each) => each.label === label && !each.failed);
    const peer = of ? { name: of.peer.name, ...summary(of.values) } : null;
    const ratio = peer ? ratioOf(unit, mine.value, peer.value) : null;
    return { name: `${name}, vs ${label}`, unit, ...mine, peer, ratio };
  });
}

function numberOf(name: string, value: unknown): number {
  if (typeof value === "number" && Number.isFinite(value)) return value;
  throw new TokenringError("ERR_TOKENRING_INTERNAL", `${name}: a call gave ${value} instead of a number`);
}

/** Milliseconds of each call of one turn. */
async function timeTurn({ name, call }: Peer, turnMilliseconds: number): Promise<number[]> {
  const bench = new Bench({
    time: turnMilliseconds,
    iterations: 1,
    warmup: false,
    retainSamples: true,
    throws: true,
  });
  const task = bench.add(name, call, { async: true }).getTask(name);
  await bench.run();
  const result = task?.result;
  if (result?.state === "completed") return [...(result.latency.samples ?? [])];
  throw new TokenringError("ERR_TOKENRING_INTERNAL", `the benchmark of ${name} ended as ${result?.state}`);
}
