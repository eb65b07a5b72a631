// A stage of a job's config as the loop takes it.
import type { DapoConfig } from "../learn/dapo.ts";
import { withObjectiveDefaults } from "../learn/objective.ts";
import type { JobConfig, StageConfig } from "./config.ts";

/** The options of `dapo` that a stage of a job stands for; pool and reference are the caller's to find. */
export function dapoConfig(
  stage: StageConfig,
  job: Pick<JobConfig, "microBatchTokens">,
): Partial<DapoConfig> {
  const { name: _, limits, pool: __, reference: ___, ...rest } = stage;
  return {
    ...withObjectiveDefaults(rest),
    maxTurns: limits.maxTurns,
    microBatchTokens: job.microBatchTokens,
  };
}
