// `tokenring worker`: one of many ranks, for whoever launches them (docs/ranks.md).
import type { Command } from "commander";
import { launchedRank } from "../ranks/place.ts";
import { examples, wholeNumber } from "./options.ts";
import { commandSignal } from "./signals.ts";

/** Milliseconds that native calls of a rank whose group broke get to end. */
const LAST_MS = 2000;

/** Serves rank 0 until it ends. */
export async function work(options: { wait?: number } = {}): Promise<void> {
  const { runWorker } = await import("../ranks/worker.ts");
  try {
    await runWorker({
      signal: commandSignal(),
      ...(options.wait === undefined ? {} : { wait: 1000 * options.wait }),
    });
  } catch (error) {
    // A native call may be waiting for a rank that does not come: nothing of it may keep this process.
    setTimeout(() => process.kill(process.pid, "SIGKILL"), LAST_MS).unref();
    throw error;
  }
}

/** An action of a command that a launcher may start on every rank: what is not rank 0 is a worker by itself. */
export function onRankZero<A extends unknown[]>(
  action: (...args: A) => Promise<void>,
): (...args: A) => Promise<void> {
  return (...args) => (launchedRank() > 0 ? work() : action(...args));
}

export function register(program: Command): void {
  const command = program
    .command("worker")
    .summary("be one of the ranks that train together, until rank 0 ends")
    .description(
      "Joins rank 0 and does its part of the work, until that ends. RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and\n" +
        "MASTER_PORT say who and where it is, as torchrun sets them; TOKENRING_SECRET must be the same on all ranks.\n" +
        "`train`, `resume`, `rollout` and `evaluate` become workers by themselves where RANK is not 0.",
    )
    .option("--wait <seconds>", "how long to wait for rank 0 (default: 600)", wholeNumber)
    .action(work);
  examples(command, [
    [
      "torchrun --nproc-per-node 4 --no-python tokenring train job.yaml",
      "rank 0 trains, the others become workers",
    ],
    [
      "RANK=1 WORLD_SIZE=2 MASTER_ADDR=10.0.0.1 MASTER_PORT=29500 TOKENRING_SECRET=... tokenring worker",
      "by hand",
    ],
  ]);
}
