// The groups of one iteration: those that the schedule names, and more where too few of them carry a signal.
import type { Trajectory } from "../agent/types.ts";
import { Random } from "../random.ts";
import type { Instance } from "../tasks/types.ts";
import type { ScoredGroup } from "./filter.ts";
import type { Group, RolloutSource } from "./types.ts";

export interface CollectOptions {
  rollouts: RolloutSource;
  /** The iteration's own. */
  instances: readonly Instance[];
  /** Where more are drawn from. */
  pool: readonly Instance[];
  /** Groups to draw beyond the iteration's own, at most; 0 = none. */
  maxExtraGroups: number;
  /** G, and rollouts beyond it that a group may do without. */
  group: number;
  spare: number;
  /** Of a group of rollouts, from the first that samples; null = none. */
  groupSeconds: number | null;
  score: (group: Group) => ScoredGroup;
  purpose: string;
  iteration: number;
  seed: number | bigint;
  temperature: number;
  signal?: AbortSignal | undefined;
  onTrajectory?: ((trajectory: Trajectory) => void) | undefined;
}

/**
 * Samples and scores the iteration's groups. Dynamic sampling (DAPO, arXiv 2503.14476, section 3.2) draws until as many
 * groups carry a signal as there are instances; here it stops after `maxExtraGroups`, since a pool without a signal
 * would never end it. What is drawn depends on seed and iteration alone, so that the schedule, and a run that is
 * resumed, stay as they are.
 */
export async function collectGroups(
  options: CollectOptions,
): Promise<{ groups: ScoredGroup[]; extra: number }> {
  const { instances, pool, maxExtraGroups, purpose, iteration, seed, signal, onTrajectory } = options;
  const collect = async (chosen: readonly Instance[], name: string): Promise<ScoredGroup[]> => {
    const groups = await options.rollouts.collect({
      instances: chosen,
      rollouts: options.group,
      purpose: name,
      iteration,
      temperature: options.temperature,
      ...(options.spare > 0 ? { spare: options.spare } : {}),
      ...(options.groupSeconds === null ? {} : { groupMs: 1000 * options.groupSeconds }),
      ...(signal ? { signal } : {}),
      ...(onTrajectory ? { onTrajectory } : {}),
    });
    return groups.map(options.score);
  };
  const groups = await collect(instances, purpose);
  const own = new Set(instances);
  const spare =
    maxExtraGroups === 0
      ? []
      : Random.of(seed, `${purpose}/refill`, iteration)
          .shuffle(pool.filter((one) => !own.has(one)))
          .slice(0, maxExtraGroups);
  for (let round = 1; spare.length > 0; round++) {
    const missing = instances.length - groups.filter((scored) => scored.state === "live").length;
    if (missing <= 0) break;
    groups.push(...(await collect(spare.splice(0, missing), `${purpose}/refill${round}`)));
  }
  return { groups, extra: groups.length - instances.length };
}
