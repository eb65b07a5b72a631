// A native rank of this process, once it is there.
import { appendFile } from "node:fs/promises";
import { hostname } from "node:os";
import type { NativeJob, NativeLocalRank, NativeMesh, NativeRank, NativeRankOptions } from "./binding.ts";
import { withSignal } from "./jobs.ts";
import { loadBinding } from "./native.ts";

/** Ranks of a context group that gather among themselves, where they do so in two levels: native/parallel/mesh.cc. */
function contextNode({ contextSchedule, contextParallel, ranksPerNode = 0 }: NativeMesh): number | undefined {
  if (contextSchedule !== "two_level") return undefined;
  return ranksPerNode === 0 ? contextParallel : Math.min(ranksPerNode, contextParallel);
}

/** `rank.open()`; a trace then says how its ranks are grouped, and whose clock it tells, before anything has run. */
export function opening(rank: NativeLocalRank, options: NativeRankOptions): NativeJob<void> {
  const job = rank.open();
  const { trace, mesh } = options;
  if (trace === undefined) return job;
  const { rank: pid = 0, size: ranks = 1, contextParallel = 1, shard = 0, shardSize = ranks } = mesh ?? {};
  // Left out of the event where there is none.
  const node = mesh ? contextNode(mesh) : undefined;
  const args = { host: hostname(), ranks, contextParallel, contextNode: node, shard, shardSize };
  const event = JSON.stringify({ ph: "M", name: "tokenring", pid, tid: 0, args });
  return { ...job, promise: job.promise.then(() => appendFile(trace, `${event},\n`)) };
}

/**
 * A rank alone, or one's place in a mesh; waits for no other rank.
 * @throws ERR_TOKENRING_INVALID_ARGUMENT for options or a device that cannot be, ERR_TOKENRING_OUT_OF_MEMORY.
 */
export async function openRank(options: NativeRankOptions): Promise<NativeRank> {
  const rank = new (loadBinding().Rank)(options);
  try {
    await withSignal(() => opening(rank, options));
  } catch (error) {
    await rank.dispose();
    throw error;
  }
  return rank;
}
