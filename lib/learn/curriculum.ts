// Which instances are worth more rollouts, from what the policy did with them so far.
import { counts } from "../evaluate/episodes.ts";
import { Random } from "../random.ts";
import type { Instance } from "../tasks/types.ts";
import type { Group } from "./types.ts";

/** Solved episodes of counted episodes, by instance. Serialises to plain JSON. */
export class SolveRates {
  readonly #counts = new Map<string, { solved: number; episodes: number }>();

  /** What `toJSON` gave. */
  static fromJSON(data: Readonly<Record<string, { solved: number; episodes: number }>>): SolveRates {
    const rates = new SolveRates();
    for (const [id, { solved, episodes }] of Object.entries(data))
      rates.#counts.set(id, { solved, episodes });
    return rates;
  }

  /** Adds the episodes of `groups`; those that infrastructure broke do not count. */
  add(groups: readonly Group[]): void {
    for (const group of groups) {
      const id = group.instance.instance_id;
      const entry = this.#counts.get(id) ?? { solved: 0, episodes: 0 };
      for (const trajectory of group.trajectories.filter(counts)) {
        entry.episodes++;
        if (trajectory.verdict === "resolved") entry.solved++;
      }
      this.#counts.set(id, entry);
    }
  }

  /** Share of episodes that solved the instance; null when it was never tried. */
  rate(instanceId: string): number | null {
    const entry = this.#counts.get(instanceId);
    return entry === undefined || entry.episodes === 0 ? null : entry.solved / entry.episodes;
  }

  /** Counts by instance id, sorted. */
  toJSON(): Record<string, { solved: number; episodes: number }> {
    return Object.fromEntries([...this.#counts].sort(([a], [b]) => (a < b ? -1 : 1)));
  }
}

export interface RefineOptions {
  /** Instances whose rate is at or below this leave. Default 0: never solved. */
  above?: number;
  /** Instances whose rate is at or above this leave. Default 2/3, as the paper's second stage. */
  below?: number;
  /** What becomes of instances that were never tried. Default "drop": nothing says that they can be solved. */
  untried?: "keep" | "drop";
}

/** The instances with above < rate < below, in their order. */
export function refinePool(
  instances: readonly Instance[],
  rates: SolveRates,
  options: RefineOptions = {},
): Instance[] {
  const { above = 0, below = 2 / 3, untried = "drop" } = options;
  return instances.filter((instance) => {
    const rate = rates.rate(instance.instance_id);
    return rate === null ? untried === "keep" : rate > above && rate < below;
  });
}

/**
 * The instances of each iteration, without end: the pool is shuffled anew for every pass, each instance comes once
 * per pass and never twice in one iteration. Iteration i is the same however many were taken before it.
 */
export function* instanceSchedule(
  pool: readonly Instance[],
  perIteration: number,
  seed: number | bigint,
  name: string,
): Generator<Instance[], never, undefined> {
  const size = Math.min(perIteration, pool.length);
  let queue: Instance[] = [];
  for (let pass = 0; ; ) {
    if (queue.length < size) {
      // What is left of the old pass comes first; the new pass must not repeat it within this iteration.
      const left = new Set(queue);
      const next = Random.of(seed, name, pass++).shuffle(pool);
      const fresh = next.filter((instance) => !left.has(instance));
      const repeated = next.filter((instance) => left.has(instance));
      const room = size - queue.length;
      queue = [...queue, ...fresh.slice(0, room), ...repeated, ...fresh.slice(room)];
    }
    yield queue.slice(0, size);
    queue = queue.slice(size);
  }
}
