// Advantages within one group of rollouts of the same instance (recipe eq. 2).
import { mean, standardDeviation } from "../evaluate/statistics.ts";

export interface AdvantageOptions {
  /** "std" divides by the group's standard deviation; "none" only centres (Dr. GRPO). Default "std". */
  normalise?: "std" | "none";
  /**
   * Degrees of freedom taken off in the standard deviation. Default 0, as numpy and TRL's async worker; 1 is what
   * torch.std, verl and NeMo-RL use. The paper does not say.
   */
  ddof?: 0 | 1;
  /** Added to the standard deviation. Default 1e-6. */
  delta?: number;
}

/** What is taken off a group's rewards, and what they are divided by then. */
export function groupScale(
  rewards: readonly number[],
  options: AdvantageOptions = {},
): { centre: number; scale: number } {
  const { normalise = "std", ddof = 0, delta = 1e-6 } = options;
  const scale = normalise === "none" ? 1 : standardDeviation(rewards, ddof) + delta;
  return { centre: mean(rewards), scale };
}

/** A_i = (R_i - mean) / (sigma + delta), one per rollout; all 0 where the rewards are equal. */
export function groupAdvantages(rewards: readonly number[], options: AdvantageOptions = {}): number[] {
  // Equal rewards are 0 by decree: rounding of the mean would otherwise be divided by delta.
  if (rewards.every((reward) => reward === rewards[0])) return rewards.map(() => 0);
  const { centre, scale } = groupScale(rewards, options);
  return rewards.map((reward) => (reward - centre) / scale);
}
