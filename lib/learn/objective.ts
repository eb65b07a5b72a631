// What a stage of reinforcement learning minimises, as options by the names of docs/losses.md, and which of them
// contradict each other.
import { GSPO_CLIP } from "../ops/policy-loss.ts";
import type { Objective, PolicyLoss } from "../policy/types.ts";
import type { Aggregation } from "./weights.ts";

/** What a stage of reinforcement learning minimises (docs/losses.md). */
export interface ObjectiveOptions {
  /** "ppo_clip". */
  objective: Exclude<Objective, "nll">;
  /** eps_low: 0.2, for gspo 3e-4. */
  clipLow: number;
  /** eps_high: 0.3, for gspo 4e-4. */
  clipHigh: number;
  /** Bound of the loss where the advantage is negative, ppo_clip only: 0 = off. */
  dualClip: number;
  /** Weight of KL(policy || reference), which needs a reference: 0 = off. */
  klCoef: number;
  /** Weight of the entropy bonus: 0 = off. */
  entropyCoef: number;
  /** "sample_mean" for gspo, else "token_mean". */
  aggregation: Aggregation;
  /**
   * Whose logprobs the ratio is taken against: those that the engine sampled with, or the trainer's own, recomputed
   * by a forward pass before the first step of the iteration: "engine".
   */
  oldLogprobs: "engine" | "trainer";
  /** Cap of the token-level truncated importance weight trainer / engine; needs oldLogprobs "trainer": 0 = off. */
  tisCap: number;
  /** Of sampling and of the loss: 1. */
  temperature: number;
}

type ByObjective = Pick<ObjectiveOptions, "clipLow" | "clipHigh" | "aggregation">;

/** arXiv 2508.03501, Table 3, stage 1; a job's stage gives its own clipHigh. */
const OF_TOKENS: ByObjective = { clipLow: 0.2, clipHigh: 0.3, aggregation: "token_mean" };
/** GSPO's ratio belongs to the sequence, and so do its mean and its clip range (arXiv 2507.18071, section 5.1). */
const OF_SEQUENCES: ByObjective = { ...GSPO_CLIP, aggregation: "sample_mean" };

/** The options with what depends on the objective filled in where it is left out. */
export function withObjectiveDefaults<T extends Pick<ObjectiveOptions, "objective">>(
  given: T & { [K in keyof ByObjective]?: ByObjective[K] | undefined },
): Omit<T, keyof ByObjective> & ByObjective {
  const defaults = given.objective === "gspo" ? OF_SEQUENCES : OF_TOKENS;
  return {
    ...given,
    clipLow: given.clipLow ?? defaults.clipLow,
    clipHigh: given.clipHigh ?? defaults.clipHigh,
    aggregation: given.aggregation ?? defaults.aggregation,
  };
}

/** What is wrong with the options together: the key, and why and what to do. Each alone is taken to be in range. */
export function objectiveFaults(
  options: Pick<ObjectiveOptions, "objective" | "dualClip" | "aggregation" | "oldLogprobs" | "tisCap">,
): { key: keyof ObjectiveOptions; message: string }[] {
  const { objective, dualClip, aggregation, oldLogprobs, tisCap } = options;
  const faults: { key: keyof ObjectiveOptions; message: string }[] = [];
  if (dualClip !== 0 && !(dualClip > 1))
    faults.push({ key: "dualClip", message: `${dualClip} must be 0 (off) or above 1` });
  if (dualClip !== 0 && objective !== "ppo_clip")
    faults.push({ key: "dualClip", message: `bounds ppo_clip only; leave it out with ${objective}` });
  if (objective === "gspo" && aggregation !== "sample_mean")
    faults.push({
      key: "aggregation",
      message:
        "gspo has one ratio a sequence and is a mean over sequences; leave it out or write sample_mean",
    });
  if (tisCap !== 0 && !(tisCap >= 1))
    faults.push({ key: "tisCap", message: `${tisCap} must be 0 (off) or at least 1` });
  if (tisCap !== 0 && oldLogprobs !== "trainer")
    faults.push({
      key: "tisCap",
      message:
        "with oldLogprobs engine the ratio itself already corrects for the engine, and would do so twice; set " +
        "oldLogprobs to trainer or leave tisCap out",
    });
  return faults;
}

/** The part of the options that the policy's loss takes. */
export function policyLoss(options: ObjectiveOptions): PolicyLoss {
  const { objective, clipLow, clipHigh, dualClip, klCoef, entropyCoef, temperature } = options;
  return { objective, clipLow, clipHigh, dualClip, klCoef, entropyCoef, temperature };
}

/** What TRL's GRPOConfig and verl's actor and algorithm call these options, and the option here (docs/losses.md). */
export const PEER_NAMES: Readonly<Record<string, string>> = {
  loss_type: "objective",
  loss_mode: "objective",
  importance_sampling_level: "objective",
  epsilon_low: "clipLow",
  clip_ratio: "clipLow",
  clip_ratio_low: "clipLow",
  epsilon_high: "clipHigh",
  clip_ratio_high: "clipHigh",
  delta: "dualClip",
  clip_ratio_c: "dualClip",
  beta: "klCoef",
  kl_loss_coef: "klCoef",
  entropy_coef: "entropyCoef",
  entropy_coeff: "entropyCoef",
  loss_agg_mode: "aggregation",
  scale_rewards: "advantage",
  norm_adv_by_std_in_grpo: "advantage",
  bypass_mode: "oldLogprobs",
  vllm_importance_sampling_clip_max: "tisCap",
  rollout_is_threshold: "tisCap",
};
