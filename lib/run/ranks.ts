// The ranks that a job runs on.
import type { RankOptions } from "../policy/policy.ts";
import { RankGroup } from "../ranks/group.ts";
import { meshOf } from "../ranks/mesh-rank.ts";
import { launchedRanks } from "../ranks/place.ts";
import type { JobConfig } from "./config.ts";

type RanksConfig = Pick<
  JobConfig,
  | "ranks"
  | "contextParallel"
  | "contextSchedule"
  | "ranksPerNode"
  | "shard"
  | "shardSize"
  | "collectiveSeconds"
  | "silenceSeconds"
>;

/**
 * What a job on ring attention is allowed, in nats: rings, of nodes too, merge partial sums of float32 in another order than the
 * sampler's, which leaves a few units of 1e-6 at each layer; something that is wrong shows in the first digits.
 */
const RING_TOLERANCE = 1e-3;

/** The config's ranks, or as many as a launcher started. Null for one. */
export async function openRanks(config: RanksConfig, signal?: AbortSignal): Promise<RankGroup | null> {
  const size = config.ranks ?? launchedRanks();
  meshOf(size, config);
  if (size === 1 && launchedRanks() === 1) return null;
  return RankGroup.open({
    size,
    timeout: 1000 * config.collectiveSeconds,
    silence: 1000 * config.silenceSeconds,
    ...(signal ? { signal } : {}),
  });
}

/** How a policy of the job is spread over its group. */
export function rankOptions(config: RanksConfig, group: RankGroup | null): Partial<RankOptions> {
  if (group === null) return {};
  const { contextParallel, contextSchedule, ranksPerNode, shard, shardSize } = config;
  return { ranks: group, contextParallel, contextSchedule, ranksPerNode, shard, shardSize };
}

/**
 * How far the trainer may be from the sampler under the same weights (`DapoConfig.logprobTolerance`): from the embedded one
 * not at all on the CPU, where both compute the same bits, on ranks too. On CUDA, and from vLLM, it is measured and not
 * judged.
 */
export function logprobTolerance(config: RanksConfig & Pick<JobConfig, "device" | "engine">): number | null {
  if (config.device === "cuda" || config.engine.kind === "vllm") return null;
  return config.contextParallel > 1 && config.contextSchedule !== "all_gather" ? RING_TOLERANCE : 0;
}
