// A rank's schedule as data: what native/core/schedule.h queues, in its order.

/**
 * The streams of a rank: compute, those on which ranks exchange keys and values, or gradients and parameters, and that of
 * copies to the host's memory and back.
 */
export const TRACKS = ["compute", "context", "gradients", "host"] as const;
export type Track = (typeof TRACKS)[number];

export interface ScheduleEntry {
  /** Name in the table of ops, or of the communicator's call. */
  op: string;
  /** -1 outside the layers. */
  layer: number;
  track: Track;
  /** Starts after what these tracks have queued before it. */
  after: readonly Track[];
  /** Read and written; of a communicator's call, the size of what the call is about on this rank. */
  bytes: number;
  flops: number;
}

/** How ranks are grouped: native/parallel/mesh.h. */
export interface MeshShape {
  ranks: number;
  /** C: ranks that share documents. */
  contextParallel: number;
  /** Consecutive ranks of a context group that gather keys among themselves, where they do so in two levels. */
  contextNode?: number;
  /** ZeRO stage. */
  shard: 0 | 1 | 3;
  /** S: ranks that share optimiser state or parameters. */
  shardSize: number;
}

/** The communicator's calls, and what each moves: a rank's share of `bytes` over the slowest link, for n ranks. */
const MOVED: Record<string, (n: number) => number> = {
  all_reduce: (n) => (2 * (n - 1)) / n,
  // `bytes` is of the whole: what all ranks' parts make together.
  all_gather: (n) => (n - 1) / n,
  reduce_scatter: (n) => (n - 1) / n,
  broadcast: () => 1,
  // To the next rank of a ring, or of this one's place on the next node, and from the one before.
  exchange: () => 1,
};

export const isCommunication = (entry: ScheduleEntry): boolean => Object.hasOwn(MOVED, entry.op);

/** Neither a call between ranks nor a copy to the host or back. */
export const isComputation = (entry: ScheduleEntry): boolean =>
  !isCommunication(entry) && entry.track !== "host";

export function movedBytes({ op, bytes }: ScheduleEntry, ranks: number): number {
  return bytes * (MOVED[op]?.(ranks) ?? 0);
}

/** The ranks that take part in rank's call, in their order. */
export function membersOf(entry: ScheduleEntry, rank: number, mesh: MeshShape): number[] {
  const { ranks, contextParallel, shard, shardSize } = mesh;
  const run = (size: number): number[] => {
    const first = rank - (rank % size);
    return Array.from({ length: size }, (_, i) => first + i);
  };
  if (entry.track === "context") {
    const { contextNode } = mesh;
    if (contextNode === undefined || entry.op === "all_reduce") return run(contextParallel);
    if (entry.op !== "exchange") return run(contextNode);
    return run(contextParallel).filter((member) => member % contextNode === rank % contextNode);
  }
  if (shard === 0) return run(ranks);
  if (entry.op !== "all_reduce") return run(shardSize);
  // What shard groups have summed within themselves is summed between them.
  return Array.from({ length: ranks / shardSize }, (_, i) => (rank % shardSize) + i * shardSize);
}
