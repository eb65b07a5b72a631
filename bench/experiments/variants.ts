// What is compared: each variant learns from one shared checkpoint, with the same budget of episodes.
import type { DapoOptions, JobConfig, ScoredGroup, StageConfig } from "tokenring";
import { Random } from "tokenring";

/** How a variant learns. Budgets are in episodes: those of `stage` as the recipe has it. */
export type Method =
  | { kind: "none" }
  /** Rejection fine-tuning on the same number of episodes, sampled in so many rounds. */
  | { kind: "rft"; rounds: "one" | "iterations" }
  | { kind: "dapo"; stage: StageConfig; assign?: DapoOptions["assign"] };

export interface Variant {
  name: string;
  about: string;
  /** The variant whose checkpoint it starts from; "rft" is the one that all share. */
  from: "rft" | "dapo";
  method: Method;
}

/** Advantages dealt out anew within each group: what is left is the noise of the steps. */
function shuffled(seed: number): NonNullable<DapoOptions["assign"]> {
  return (groups, iteration) =>
    groups.map((scored, i): ScoredGroup => {
      const advantages = Random.of(seed, "experiments/shuffled", iteration, i).shuffle(scored.advantages);
      return { ...scored, advantages };
    });
}

/**
 * The variants of a config with two stages: the first as the reference and varied one option at a time, the second
 * from the reference's checkpoint.
 */
export function variantsOf({ stages, seed }: Pick<JobConfig, "stages" | "seed">): Variant[] {
  const [first, second] = stages as [StageConfig, StageConfig];
  const dapo = (name: string, about: string, change: Partial<StageConfig> = {}): Variant => ({
    name,
    about,
    from: "rft",
    method: { kind: "dapo", stage: { ...first, ...change } },
  });
  const next = (name: string, about: string, change: Partial<StageConfig> = {}): Variant => ({
    name,
    about,
    from: "dapo",
    method: { kind: "dapo", stage: { ...second, ...change } },
  });
  return [
    { name: "rft", about: "the shared checkpoint as it is", from: "rft", method: { kind: "none" } },
    dapo("dapo", "the recipe's first stage"),
    {
      name: "shuffled",
      about: "control: advantages shuffled within each group",
      from: "rft",
      method: { kind: "dapo", stage: first, assign: shuffled(seed) },
    },
    {
      name: "more-rft",
      about: "control: the same episodes as rejection fine-tuning, at once",
      from: "rft",
      method: { kind: "rft", rounds: "one" },
    },
    {
      name: "iterated-rft",
      about: "control: the same, sampled anew by the latest weights every iteration",
      from: "rft",
      method: { kind: "rft", rounds: "iterations" },
    },
    dapo("symmetric-clip", "ablation: clipHigh = clipLow", { clipHigh: first.clipLow ?? 0.2 }),
    first.lengthPenalty
      ? dapo("no-length-penalty", "ablation: the outcome alone is the reward", { lengthPenalty: false })
      : dapo("length-penalty", "the paper's reward: with the length penalty in turns", {
          lengthPenalty: true,
        }),
    // Without the penalty all rewards of such a group are equal, and nothing is learnt from it either way.
    dapo("no-filter", "ablation: with the penalty, groups that are all solved or all failed are kept", {
      lengthPenalty: true,
      filter: "final_reward",
    }),
    dapo("sample-mean", "ablation: mean over trajectories instead of tokens", { aggregation: "sample_mean" }),
    dapo("step-credit", "option: advantages by the turn, from prefix rollouts", {
      stepCredit: { turns: 5, rollouts: 4 },
    }),
    dapo("shaping", "option: advantages by the turn, from the tests passed", {
      shaping: { weight: 0.5, turns: 8 },
    }),
    dapo("refill", "option: groups without a signal are replaced, at most as many as were drawn", {
      maxExtraGroups: first.instances,
    }),
    next("stage2", "the recipe's second stage, after the first"),
    next("stage2-turns", "control: the second stage with the first's limits", { limits: first.limits }),
  ];
}
