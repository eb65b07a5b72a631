// What a set of episodes looked like, counted the same way in training and in evaluation.
import { ACTION, type Exit, type Trajectory } from "../agent/types.ts";

export interface EpisodeStatistics {
  /** Episodes that count; those that infrastructure broke are not among them. */
  episodes: number;
  solved: number;
  /** Means per episode. */
  turns: number;
  tokens: number;
  actionTokens: number;
  /** Episodes by how they ended. */
  exits: Record<Exit, number>;
  /** Share of turns whose action could not be read as exactly one command. */
  formatErrorRate: number;
  /** Share of episodes that ran tests, when the caller can tell. */
  testsRunRate?: number;
  /** Milliseconds summed over the episodes, which overlap in time. */
  sampleMs: number;
  toolMs: number;
  verifyMs: number;
}

/**
 * Whether a trajectory says anything about the policy. One that the sandbox or the verification broke leaves every
 * count: it is neither a success nor a failure.
 */
export function counts(trajectory: Pick<Trajectory, "exit" | "reason">): boolean {
  return trajectory.exit !== "infra_failed" && trajectory.reason !== "infra_failed";
}

/** Tokens of the trajectory that the policy produced. */
export function actionTokens(trajectory: Trajectory): number {
  let total = 0;
  for (const from of trajectory.provenance) if (from === ACTION) total++;
  return total;
}

/** Statistics of `trajectories`; the caller has left out those that do not count. */
export function episodeStatistics(
  trajectories: readonly Trajectory[],
  ranTests?: (trajectory: Trajectory) => boolean,
): EpisodeStatistics {
  const exits: Record<Exit, number> = {
    submitted: 0,
    turn_limit: 0,
    context_limit: 0,
    timeout: 0,
    infra_failed: 0,
  };
  let solved = 0;
  let turns = 0;
  let tokens = 0;
  let actions = 0;
  let formatErrors = 0;
  let tested = 0;
  let sampleMs = 0;
  let toolMs = 0;
  let verifyMs = 0;
  for (const trajectory of trajectories) {
    exits[trajectory.exit]++;
    if (trajectory.verdict === "resolved") solved++;
    turns += trajectory.turns.length;
    tokens += trajectory.tokens.length;
    actions += actionTokens(trajectory);
    verifyMs += trajectory.verifyMs;
    for (const turn of trajectory.turns) {
      if (turn.formatError !== null) formatErrors++;
      sampleMs += turn.sampleMs;
      toolMs += turn.toolMs;
    }
    if (ranTests?.(trajectory)) tested++;
  }
  const episodes = trajectories.length;
  const per = (total: number, count: number): number => (count === 0 ? 0 : total / count);
  return {
    episodes,
    solved,
    turns: per(turns, episodes),
    tokens: per(tokens, episodes),
    actionTokens: per(actions, episodes),
    exits,
    formatErrorRate: per(formatErrors, turns),
    ...(ranTests ? { testsRunRate: per(tested, episodes) } : {}),
    sampleMs,
    toolMs,
    verifyMs,
  };
}
