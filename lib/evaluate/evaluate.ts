// How good a policy is: several independent runs over the same instances.
import type { Group, RolloutSource, Trajectory } from "../agent/types.ts";
import { TokenringError } from "../errors.ts";
import type { Instance } from "../tasks/types.ts";
import { counts, type EpisodeStatistics, episodeStatistics } from "./episodes.ts";
import { mean, passAtK, sem } from "./statistics.ts";

/** Plain data: what goes into metrics.jsonl and the report. Rates are in [0, 1]. */
export interface Evaluation extends EpisodeStatistics {
  instances: number;
  runs: number;
  temperature: number;
  /** Mean over runs of the share of instances solved. */
  pass1: number;
  /** Standard error of `pass1` over runs (ddof 1); null with fewer than two runs. */
  sem: number | null;
  /** Share of instances solved, run by run. */
  runRates: number[];
  /** Pass@k by k, for those of 1, 5, 10 that the runs allow. */
  passK: Record<string, number>;
  /** Episodes that infrastructure broke; they count nowhere else. */
  dropped: number;
  perInstance: Record<string, { solved: number; episodes: number }>;
  /** By `instance.meta.kind`, where instances have one. */
  byKind: Record<string, { pass1: number; instances: number; episodes: number }>;
}

export interface EvaluateOptions {
  rollouts: RolloutSource;
  instances: readonly Instance[];
  /** Episodes per instance; run m is made of the m-th episode of every instance. Default 10. */
  runs?: number;
  /** Default 1: the policy's own distribution. */
  temperature?: number;
  /** Names the random stream, with `iteration`; give both so that two evaluations of a job draw differently. */
  purpose?: string;
  iteration?: number;
  signal?: AbortSignal;
  onTrajectory?: (trajectory: Trajectory) => void;
  /** Whether an episode ran the tests; gives `testsRunRate`. */
  ranTests?: (trajectory: Trajectory) => boolean;
}

/** The numbers of `groups` (one per instance, `runs` rollouts each). */
export function summariseEvaluation(
  groups: readonly Group[],
  options: { runs: number; temperature: number; ranTests?: (trajectory: Trajectory) => boolean },
): Evaluation {
  const { runs, temperature } = options;
  const solvedInRun = new Array<number>(runs).fill(0);
  const episodesInRun = new Array<number>(runs).fill(0);
  const perInstance: Evaluation["perInstance"] = {};
  const kinds = new Map<string, { rates: number[]; episodes: number }>();
  const all: Trajectory[] = [];
  let dropped = 0;
  for (const group of groups) {
    const counted = group.trajectories.filter(counts);
    dropped += group.dropped.length + group.trajectories.length - counted.length;
    let solved = 0;
    for (const trajectory of counted) {
      const run = trajectory.rollout;
      if (run < 0 || run >= runs) {
        throw new TokenringError(
          "ERR_TOKENRING_INTERNAL",
          `evaluation: ${trajectory.id} says it is rollout ${run} of ${runs}; rollouts are numbered from 0`,
        );
      }
      const resolved = trajectory.verdict === "resolved" ? 1 : 0;
      solved += resolved;
      solvedInRun[run] = (solvedInRun[run] as number) + resolved;
      episodesInRun[run] = (episodesInRun[run] as number) + 1;
      all.push(trajectory);
    }
    perInstance[group.instance.instance_id] = { solved, episodes: counted.length };
    const kind = group.instance.meta?.kind;
    if (typeof kind === "string" && counted.length > 0) {
      const entry = kinds.get(kind) ?? { rates: [], episodes: 0 };
      entry.rates.push(solved / counted.length);
      entry.episodes += counted.length;
      kinds.set(kind, entry);
    }
  }

  const runRates = solvedInRun.flatMap((solved, run) => {
    const episodes = episodesInRun[run] as number;
    return episodes === 0 ? [] : [solved / episodes];
  });
  const passK: Record<string, number> = {};
  for (const k of [1, 5, 10]) {
    // An instance that lost episodes may have fewer than k left; it says nothing about Pass@k then.
    const able = Object.values(perInstance).filter((entry) => entry.episodes >= k);
    if (k <= runs && able.length > 0) {
      passK[k] = mean(able.map((entry) => passAtK(entry.episodes, entry.solved, k)));
    }
  }
  const byKind: Evaluation["byKind"] = {};
  for (const [kind, entry] of [...kinds].sort(([a], [b]) => (a < b ? -1 : 1))) {
    byKind[kind] = { pass1: mean(entry.rates), instances: entry.rates.length, episodes: entry.episodes };
  }
  return {
    ...episodeStatistics(all, options.ranTests),
    instances: groups.length,
    runs,
    temperature,
    pass1: mean(runRates),
    sem: sem(runRates),
    runRates,
    passK,
    dropped,
    perInstance,
    byKind,
  };
}

/**
 * Runs `runs` episodes on every instance. Returns plain numbers and the groups they come from:
 * `const { groups, ...evaluation } = await evaluate(...)`. Rejects with what the rollout source rejects with.
 */
export async function evaluate(options: EvaluateOptions): Promise<Evaluation & { groups: Group[] }> {
  const { runs = 10, temperature = 1, purpose = "evaluate", iteration = 0 } = options;
  if (!Number.isInteger(runs) || runs < 1) {
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `evaluate: runs is ${runs}, give a whole number >= 1`,
    );
  }
  const groups = await options.rollouts.collect({
    instances: options.instances,
    rollouts: runs,
    purpose,
    iteration,
    temperature,
    ...(options.signal ? { signal: options.signal } : {}),
    ...(options.onTrajectory ? { onTrajectory: options.onTrajectory } : {}),
  });
  const summary = summariseEvaluation(groups, {
    runs,
    temperature,
    ...(options.ranTests ? { ranTests: options.ranTests } : {}),
  });
  return { ...summary, groups };
}
