// The verdicts of a run, reached once more: its patches are judged again, each in a fresh sandbox, and nothing else of
// the run is believed.
import pLimit from "p-limit";
import { TokenringError } from "../errors.ts";
import { Random } from "../random.ts";
import type { Verdict } from "../verify/types.ts";
import { readIndex } from "./trajectories.ts";
import type { World } from "./world.ts";

/** A patch whose verdict is not what the run says. */
export interface Difference {
  /** The first trajectory of the patch, and its stage. */
  stage: string;
  id: string;
  instanceId: string;
  stored: Verdict;
  found: Verdict;
  /** Why, as verification says. */
  reason: string | null;
}

export interface Recheck {
  /** Trajectories of the run, their ends at smaller budgets included; those that infrastructure broke are left out. */
  trajectories: number;
  /** Different patches among them, and how many of these were judged. */
  patches: number;
  judged: number;
  /** Trajectories of judged patches whose verdict was reached again, in all and of those that count as resolved. */
  agreed: number;
  resolved: number;
  differences: Difference[];
  /** Patches for which no sandbox held: they say nothing. */
  broken: number;
}

interface Claim {
  instanceId: string;
  patch: string;
  stored: { stage: string; id: string; verdict: Verdict }[];
}

/**
 * Judges the patches of the run in `directory` again. `sample` takes that many of them, drawn by `seed`.
 * @throws ERR_TOKENRING_TASK when the run holds an instance that its config's tasks do not;
 * ERR_TOKENRING_RUN_DIRECTORY when it holds no trajectories; ERR_TOKENRING_ABORTED.
 */
export async function recheck(
  directory: string,
  world: Pick<World, "tasks" | "verify">,
  options: {
    sample?: number;
    seed?: number;
    concurrency?: number;
    signal?: AbortSignal;
    onPatch?: (judged: number, of: number) => void;
  } = {},
): Promise<Recheck> {
  const { train, heldOut, apart = {} } = world.tasks;
  const instances = new Map(
    [...train, ...heldOut, ...Object.values(apart).flat()].map((one) => [one.instance_id, one]),
  );
  const claims = new Map<string, Claim>();
  let trajectories = 0;
  for await (const { stage, id, instanceId, dropped, alsoAt = [], ...entry } of readIndex(directory)) {
    if (dropped) continue;
    for (const { patch, verdict, reason } of [entry, ...alsoAt]) {
      if (reason === "infra_failed") continue;
      trajectories++;
      const key = `${instanceId}\n${patch}`;
      const claim = claims.get(key) ?? { instanceId, patch, stored: [] };
      claim.stored.push({ stage, id, verdict });
      claims.set(key, claim);
    }
  }
  if (trajectories === 0) {
    throw new TokenringError(
      "ERR_TOKENRING_RUN_DIRECTORY",
      `${directory}: holds no trajectories yet, so there is no verdict to reach again; let the run go on first`,
    );
  }
  const all = [...claims.values()];
  const { sample = all.length, seed = 0, signal } = options;
  const chosen = sample < all.length ? Random.of(seed, "recheck").shuffle(all).slice(0, sample) : all;
  const result: Recheck = {
    trajectories,
    patches: all.length,
    judged: 0,
    agreed: 0,
    resolved: 0,
    differences: [],
    broken: 0,
  };
  const limit = pLimit(options.concurrency ?? 4);
  await Promise.all(
    chosen.map(({ instanceId, patch, stored }) =>
      limit(async () => {
        signal?.throwIfAborted();
        const instance = instances.get(instanceId);
        if (!instance) {
          throw new TokenringError(
            "ERR_TOKENRING_TASK",
            `${directory}: its tasks hold no ${instanceId}; was the run made by another version?`,
          );
        }
        const { verdict, reason } = await world.verify(instance, patch, signal ? { signal } : {});
        result.judged++;
        if (reason === "infra_failed") result.broken++;
        else {
          for (const { stage, id, verdict: claimed } of stored) {
            if (claimed === verdict) result.agreed++;
            else result.differences.push({ stage, id, instanceId, stored: claimed, found: verdict, reason });
            if (claimed === verdict && verdict === "resolved") result.resolved++;
          }
        }
        options.onPatch?.(result.judged, chosen.length);
      }),
    ),
  );
  // In the order of the names, whatever finished first.
  result.differences.sort((a, b) => (a.id < b.id ? -1 : a.id > b.id ? 1 : 0));
  return result;
}
