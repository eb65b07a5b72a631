// The episode's reward: the tests' verdict, less a penalty for taking many turns (recipe eq. 3-4).
import { TokenringError } from "../errors.ts";

export interface RewardOptions {
  /** Turns at which the penalty reaches -1. */
  maxTurns: number;
  /** Turns up to which there is no penalty. */
  lengthThreshold: number;
  /** Default true. */
  lengthPenalty?: boolean;
}

/**
 * R_final = R + R_length with R in {0, 1} and R_length = (L_thr - |tau|) / (T_max - L_thr) from L_thr turns on, in
 * [-1, 0]. |tau| counts turns, not tokens: a success in the last possible turn scores 0, a failure there -1.
 */
export function finalReward(resolved: boolean, turns: number, options: RewardOptions): number {
  const { maxTurns, lengthThreshold, lengthPenalty = true } = options;
  const outcome = resolved ? 1 : 0;
  if (!lengthPenalty) return outcome;
  if (!(lengthThreshold < maxTurns)) {
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `reward: lengthThreshold (${lengthThreshold}) must be below maxTurns (${maxTurns}); lower it or set lengthPenalty to false`,
    );
  }
  if (turns <= lengthThreshold) return outcome;
  return outcome + Math.max(-1, (lengthThreshold - turns) / (maxTurns - lengthThreshold));
}
