// What an episode leaves behind: the token stream exactly as the policy saw and produced it.
import type { Instance } from "../tasks/types.ts";
import type { Verdict } from "../verify/types.ts";

/** Where a token came from; the loss mask is made of this and of nothing else. */
export const PROMPT = 0;
/** Provenance of a token that the environment showed after the prompt: it carries no loss. */
export const OBSERVATION = 1;
/** Provenance of a token that the policy sampled: it alone carries loss. */
export const ACTION = 2;

/** How an episode ended; retry reads this, reward reads the verdict. */
export type Exit = "submitted" | "turn_limit" | "context_limit" | "timeout" | "infra_failed";

/** Why no command could be read from a turn: none was in a block of its own, or several were. */
export type FormatError = "no_command" | "multiple_commands";

/** One turn of an episode: what the policy said, what it ran, and what it was shown in reply. */
export interface Turn {
  /** Tokens [start, end) of the trajectory are this turn's action. */
  start: number;
  end: number;
  /** Text of the action: reasoning and command. */
  text: string;
  command: string | null;
  formatError: FormatError | null;
  /** What the agent was shown in reply; empty after the last turn. */
  observation: string;
  finish: "stop" | "length";
  /** Version of the weights that sampled the turn. */
  version: number;
  /** Milliseconds spent sampling (waiting for the engine included) and in the sandbox. */
  sampleMs: number;
  toolMs: number;
}

/** One judged episode: the token stream as the policy saw and produced it, its turns, how it ended and the verdict. */
export interface Trajectory {
  id: string;
  instanceId: string;
  /** Which of the group's rollouts this is. */
  rollout: number;
  tokens: Int32Array;
  /** PROMPT, OBSERVATION or ACTION, one a token. */
  provenance: Uint8Array;
  /** Behaviour logprobs, one a token; 0 where the provenance is not ACTION. */
  logprobs: Float32Array;
  turns: Turn[];
  exit: Exit;
  verdict: Verdict;
  /** Why the verdict is what it is (verify's reason), null when resolved. */
  reason: string | null;
  /** Shares of the FAIL_TO_PASS and PASS_TO_PASS tests that passed, in [0, 1]; absent where nobody counted. */
  tests?: { failToPass: number; passToPass: number };
  /** Unified diff that was judged. */
  patch: string;
  /** Milliseconds of verification. */
  verifyMs: number;
  /** What the same draws come to at the smaller budgets that `collect` was asked for, in that order. */
  alsoAt?: readonly { budget: Budget; trajectory: Trajectory }[];
}

/**
 * A trajectory before it is judged. `cause` is the sandbox's error when the exit is infra_failed, else null. Of
 * `alsoAt`, null is what has to be run by itself: the smaller context ends inside an action and changes its command.
 */
export type Episode = Omit<Trajectory, "verdict" | "reason" | "tests" | "verifyMs" | "alsoAt"> & {
  cause: unknown;
  alsoAt?: readonly { budget: Budget; episode: Episode | null }[];
};

/** What the agent may spend in one episode. */
export interface EpisodeLimits {
  maxTurns: number;
  /** Tokens of the whole stream. */
  maxContext: number;
  /** Tokens of one action. */
  maxActionTokens: number;
  /** Wall time of the episode; the net under the others. */
  episodeMs: number;
  /** Characters of one observation; the middle is cut and the cut is said. */
  observationChars: number;
  /** Judge the working tree of an episode that ended at a limit without `submit`. */
  autoSubmit: boolean;
}

/** What the stages of a job, and evaluations of one policy, differ in. The agent is not told of it. */
export type Budget = Pick<EpisodeLimits, "maxTurns" | "maxContext">;

/** One instance and its G rollouts. Trajectories that left the group (infra_failed) are in `dropped`. */
export interface Group {
  instance: Instance;
  trajectories: Trajectory[];
  dropped: Trajectory[];
  /** Rollouts beyond G that were not needed, or ran out of time when others did not. */
  spared?: number;
}

/** Where rollouts begin instead of at the prompt: after the first `turns` turns of a trajectory that had more. */
export interface Prefix {
  trajectory: Trajectory;
  turns: number;
}

/** How learning and evaluation get trajectories. `iteration` and the run's seed decide every draw. */
export interface RolloutSource {
  /** What an episode may spend, where the source has limits. */
  readonly limits?: EpisodeLimits;
  collect(request: {
    instances: readonly Instance[];
    rollouts: number;
    /** Names the random stream, with `iteration`. */
    purpose: string;
    iteration: number;
    temperature: number;
    /**
     * Rollouts beyond `rollouts`, for the places of those that break or run out of time. Default 0. The group keeps by
     * number, not by who finished first; but late ones give way, which favours short episodes.
     */
    spare?: number;
    /** Wall milliseconds of a group, from its first episode on; who still runs then ends as one out of time does. */
    groupMs?: number;
    /** Smaller budgets at which every episode is judged as well; see `Trajectory.alsoAt`. */
    alsoAt?: readonly Budget[];
    /** One an instance: its rollouts go on from there, in a sandbox in which the prefix's commands were run again. */
    prefixes?: readonly Prefix[];
    /** With `prefixes`: no turn is sampled, the working tree is judged as the prefix left it. */
    judgeOnly?: boolean;
    signal?: AbortSignal;
    onTrajectory?: (trajectory: Trajectory) => void;
    /** Told of every turn once it is over; a rollout whose sandbox broke begins again at `index` 0. */
    onTurn?: (turn: Turn, at: { instanceId: string; rollout: number; index: number }) => void;
  }): Promise<Group[]>;
}
