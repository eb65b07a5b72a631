// Runs the same function as every rank of a new communicator, all in this thread.
import { Communicator } from "../../lib/ops/communicator.ts";

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
