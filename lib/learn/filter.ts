// Scores groups and says which of them carry a signal.
import type { Trajectory } from "../agent/types.ts";
import { counts } from "../evaluate/episodes.ts";
import { type AdvantageOptions, groupAdvantages } from "./advantage.ts";
import { finalReward, type RewardOptions } from "./reward.ts";
import type { Group } from "./types.ts";

/**
 * "outcome": 0 < solved < G, the raw verdict before any shaping (DAPO eq. 11). "final_reward": the shaped rewards
 * differ; groups in which everyone failed then train the policy to fail faster, so it is not the default.
 */
export type GroupFilter = "outcome" | "final_reward";

/** live: carries a signal; solved / failed: everyone did; empty: no trajectory counts. */
export type GroupState = "live" | "solved" | "failed" | "empty";

/** A group with rewards and advantages, one for each trajectory that counts. */
export interface ScoredGroup {
  group: Group;
  /** The trajectories that count; those that infrastructure broke are left out. */
  trajectories: Trajectory[];
  solved: number;
  /** One per trajectory. */
  rewards: number[];
  advantages: number[];
  /** One per turn of each trajectory, where credit is given by the turn; they stand in for `advantages`. */
  turnAdvantages?: number[][];
  state: GroupState;
}

/** Shape of the paper's reward, or a reward of one's own. */
export type Reward = RewardOptions | ((trajectory: Trajectory) => number);

/** The final reward of one trajectory. */
export function rewardOf(trajectory: Trajectory, reward: Reward): number {
  if (typeof reward === "function") return reward(trajectory);
  return finalReward(trajectory.verdict === "resolved", trajectory.turns.length, reward);
}

/** Rewards, advantages and state of one group. Whole groups live or die; no row of a live group is filtered. */
export function scoreGroup(
  group: Group,
  options: {
    reward: Reward;
    advantage?: AdvantageOptions;
    filter?: GroupFilter;
  },
): ScoredGroup {
  const trajectories = group.trajectories.filter(counts);
  const solved = trajectories.filter((trajectory) => trajectory.verdict === "resolved").length;
  const rewards = trajectories.map((trajectory) => rewardOf(trajectory, options.reward));
  const live =
    options.filter === "final_reward"
      ? rewards.some((reward) => reward !== rewards[0])
      : solved > 0 && solved < trajectories.length;
  let state: GroupState = "live";
  if (trajectories.length === 0) state = "empty";
  else if (!live) state = solved > 0 ? "solved" : "failed";
  return {
    group,
    trajectories,
    solved,
    rewards,
    advantages: groupAdvantages(rewards, options.advantage),
    state,
  };
}
