// All suites, and a run of some of them.
import { TokenringError } from "tokenring";
import { describeMachine, MOST_THREADS } from "./machine.ts";
import { type Case, type MeasureOptions, measure } from "./measure.ts";
import type { Result, Results } from "./result.ts";
import { episode } from "./suites/episode.ts";
import { layer } from "./suites/layer.ts";
import { loadSuite } from "./suites/load.ts";
import { loss } from "./suites/loss.ts";
import { napi } from "./suites/napi.ts";
import { ranks } from "./suites/ranks.ts";
import { report } from "./suites/report.ts";
import { sample } from "./suites/sample.ts";
import { sandbox } from "./suites/sandbox.ts";
import { train } from "./suites/train.ts";

/** Comparisons that belong together. */
export interface Suite {
  name: string;
  /** What it times, in one line. */
  about: string;
  /** Each opens one case with so many threads a side; they are opened and measured one after the other. */
  cases: readonly ((threads: number) => Promise<Case>)[];
}

/** In the order in which they run. */
export const SUITES: readonly Suite[] = [
  train,
  layer,
  loss,
  sample,
  napi,
  sandbox,
  episode,
  loadSuite,
  report,
  ranks,
];

/** How `runSuites` runs, and whom it tells. */
export interface RunOptions extends MeasureOptions {
  /** Of every side that computes a model (default: all cores). */
  threads?: number;
  /** Told of each result as it is there. */
  onResult?: (result: Result) => void;
}

/**
 * Runs the named suites, or all of them.
 * @throws ERR_TOKENRING_INVALID_ARGUMENT for a name that no suite has
 */
export async function runSuites(
  names: readonly string[] = [],
  { onResult, threads = MOST_THREADS, ...options }: RunOptions = {},
): Promise<Results> {
  const unknown = names.find((name) => !SUITES.some((suite) => suite.name === name));
  if (unknown !== undefined) {
    const known = SUITES.map(({ name }) => name).join(", ");
    throw new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", `there is no suite "${unknown}": ${known}`);
  }
  const chosen = SUITES.filter(({ name }) => names.length === 0 || names.includes(name));
  const results: Result[] = [];
  for (const { cases } of chosen) {
    for (const open of cases) {
      options.signal?.throwIfAborted();
      const opened = await open(threads);
      try {
        for (const result of await measure(opened, options)) {
          results.push(result);
          onResult?.(result);
        }
      } finally {
        await opened.close();
      }
    }
  }
  const date = new Date().toISOString();
  return { schema: 1, machine: describeMachine(threads), date, node: process.version, results };
}
