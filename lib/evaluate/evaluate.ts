// How good a policy is: several independent runs over the same instances.
import type { Budget, Group, RolloutSource, Trajectory } from "../agent/types.ts";
import { TokenringError } from "../errors.ts";
import type { Instance } from "../tasks/types.ts";
import { type ConfidenceReport, type ConfidenceScore, confidenceReport } from "./confidence.ts";
import { counts, type EpisodeStatistics, episodeStatistics } from "./episodes.ts";
import { mean, passAtK, sem } from "./statistics.ts";

/** Plain data: what goes into metrics.jsonl and the report. Rates are in [0, 1]. */
export interface Evaluation extends EpisodeStatistics {
  /** Turns and context of an episode, where the source of rollouts tells. */
  budget?: Budget;
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
  /** Sets of instances that count in none of the numbers above, by their names. */
  apart?: Record<string, Evaluation>;
  /** What the very same draws come to at smaller budgets. */
  alsoAt?: Evaluation[];
  /** Abstention and best-of-n by confidence, where it was asked for. */
  confidence?: ConfidenceReport;
}

export interface EvaluateOptions {
  rollouts: RolloutSource;
  instances: readonly Instance[];
  /** Sets of instances to report by themselves (`TaskSet.apart`). */
  apart?: Readonly<Record<string, readonly Instance[]>>;
  /** Smaller budgets to judge the episodes at as well; each gives an evaluation of its own. */
  alsoAt?: readonly Budget[];
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
  /** How sure the policy was of an episode; gives `confidence`. */
  confidence?: ConfidenceScore;
}

/** The numbers of `groups` (one per instance, `runs` rollouts each). */
export function summariseEvaluation(
  groups: readonly Group[],
  options: Pick<EvaluateOptions, "ranTests" | "confidence"> & { runs: number; temperature: number },
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
    ...(options.confidence ? { confidence: confidenceReport(groups, options.confidence) } : {}),
  };
}

/**
 * Runs `runs` episodes on every instance. Returns plain numbers and the groups they come from, those of `apart` last:
 * `const { groups, ...evaluation } = await evaluate(...)`. Rejects with what the rollout source rejects with.
 */
export async function evaluate(options: EvaluateOptions): Promise<Evaluation & { groups: Group[] }> {
  const { rollouts, runs = 10, temperature = 1, purpose = "evaluate", iteration = 0 } = options;
  const { ranTests, confidence } = options;
  if (!Number.isInteger(runs) || runs < 1) {
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `evaluate: runs is ${runs}, give a whole number >= 1`,
    );
  }
  const sets = Object.entries(options.apart ?? {}).filter(([, instances]) => instances.length > 0);
  const budgets = options.alsoAt ?? [];
  const groups = await rollouts.collect({
    instances: [...options.instances, ...sets.flatMap(([, instances]) => instances)],
    rollouts: runs,
    purpose,
    iteration,
    temperature,
    ...(budgets.length > 0 ? { alsoAt: budgets } : {}),
    ...(options.signal ? { signal: options.signal } : {}),
    ...(options.onTrajectory ? { onTrajectory: options.onTrajectory } : {}),
  });
  const numbers = (at: readonly Group[], budget: Budget | undefined): Evaluation => {
    const sum = (from: number, count: number): Evaluation => ({
      ...(budget ? { budget: { maxTurns: budget.maxTurns, maxContext: budget.maxContext } } : {}),
      ...summariseEvaluation(at.slice(from, from + count), {
        runs,
        temperature,
        ...(ranTests ? { ranTests } : {}),
        ...(confidence ? { confidence } : {}),
      }),
    });
    let next = options.instances.length;
    const apart = sets.map(([name, instances]) => {
      next += instances.length;
      return [name, sum(next - instances.length, instances.length)] as const;
    });
    return {
      ...sum(0, options.instances.length),
      ...(apart.length > 0 ? { apart: Object.fromEntries(apart) } : {}),
    };
  };
  const alsoAt = budgets.map((budget, i) => numbers(groupsAt(groups, i), budget));
  return { ...numbers(groups, rollouts.limits), ...(alsoAt.length > 0 ? { alsoAt } : {}), groups };
}

/** The groups as they are at the smaller budget of this place in `alsoAt`. */
function groupsAt(groups: readonly Group[], place: number): Group[] {
  return groups.map((group) => ({
    ...group,
    trajectories: group.trajectories.map(({ id, alsoAt }) => {
      const trajectory = alsoAt?.[place]?.trajectory;
      if (trajectory) return trajectory;
      throw new TokenringError(
        "ERR_TOKENRING_INTERNAL",
        `evaluation: ${id} was not judged at smaller budget ${place}; this source of rollouts does not know alsoAt`,
      );
    }),
  }));
}
