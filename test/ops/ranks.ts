// Runs the same function as every rank of a new communicator or mesh, all in this thread.
import type { NativeMesh, NativeRank, NativeRankOptions } from "../../lib/ops/binding.ts";
import { Communicator } from "../../lib/ops/communicator.ts";
import { loadBinding } from "../../lib/ops/native.ts";
import { openRank } from "../../lib/ops/rank.ts";

const ids = (size: number): number[] => Array.from({ length: size }, (_, rank) => rank);

/** What each rank's call gave. */
export async function settledRanks<T>(
  size: number,
  body: (communicator: Communicator) => Promise<T>,
  timeout = 20_000,
): Promise<PromiseSettledResult<T>[]> {
  const id = Communicator.uniqueId();
  return Promise.allSettled(
    ids(size).map(async (rank) => {
      await using communicator = await Communicator.create({ id, rank, size, timeout });
      return await body(communicator);
    }),
  );
}

/** The same where all must succeed. */
export async function ranks<T>(size: number, body: (communicator: Communicator) => Promise<T>): Promise<T[]> {
  const outcomes = await settledRanks(size, body);
  return outcomes.map((outcome) => {
    if (outcome.status === "rejected") throw outcome.reason;
    return outcome.value;
  });
}

/** The same of ranks that stand in nodes of `local`, with the communicator of the rank's node. */
export async function ranksOfNodes<T>(
  size: number,
  local: number,
  body: (communicator: Communicator, node: Communicator) => Promise<T>,
): Promise<T[]> {
  const nodes = ids(size / local).map(() => Communicator.uniqueId());
  return ranks(size, async (communicator) => {
    const { rank } = communicator;
    const id = nodes[Math.floor(rank / local)] as Uint8Array;
    await using node = await Communicator.create({ id, rank: rank % local, size: local, timeout: 20_000 });
    return await body(communicator, node);
  });
}

/** What each rank of a new mesh gave; all are made before any is waited for. */
export async function settledMesh<T>(
  options: NativeRankOptions,
  mesh: Partial<NativeMesh> & { size: number },
  body: (rank: NativeRank, index: number) => Promise<T>,
): Promise<PromiseSettledResult<T>[]> {
  const { uniqueId } = loadBinding();
  const shape = { contextParallel: 1, contextSchedule: "ring", shard: 0, shardSize: mesh.size } as const;
  const id = uniqueId();
  const all = await Promise.all(
    ids(mesh.size).map((rank) =>
      openRank({ ...options, mesh: { id, rank, timeout: 20_000, ...shape, ...mesh } }),
    ),
  );
  const outcomes = Promise.allSettled(all.map((rank, index) => body(rank, index)));
  await outcomes;
  await Promise.all(all.map((rank) => rank.dispose()));
  return outcomes;
}
