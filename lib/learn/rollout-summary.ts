// What was sampled in one go, in numbers.
import type { Trajectory } from "../agent/types.ts";
import { counts, type EpisodeStatistics, episodeStatistics } from "../evaluate/episodes.ts";
import type { Group } from "./types.ts";

/** Counts and means of a set of groups. */
export interface RolloutSummary extends EpisodeStatistics {
  /** Trajectories that infrastructure broke. */
  dropped: number;
  /** Instances that were solved at least once. */
  instancesSolved: number;
  instances: number;
  /** Tokens that the engine sampled (0 where trajectories were stored), and the milliseconds of wall time to the verdicts. */
  sampledTokens: number;
  rolloutMs: number;
}

/** The numbers of `groups`; `stored` if nothing was sampled for them. */
export function rolloutSummary(
  groups: readonly Group[],
  options: {
    rolloutMs: number;
    stored?: boolean;
    ranTests?: ((trajectory: Trajectory) => boolean) | undefined;
  },
): RolloutSummary {
  const counted = groups.map((group) => group.trajectories.filter(counts));
  const episodes = counted.flat();
  const sampled = groups.reduce((sum, group) => sum + group.trajectories.length + group.dropped.length, 0);
  const statistics = episodeStatistics(episodes, options.ranTests);
  return {
    ...statistics,
    dropped: sampled - episodes.length,
    instances: groups.length,
    instancesSolved: counted.filter((list) => list.some(({ verdict }) => verdict === "resolved")).length,
    sampledTokens: options.stored ? 0 : Math.round(statistics.actionTokens * statistics.episodes),
    rolloutMs: options.rolloutMs,
  };
}
