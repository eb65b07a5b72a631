// The trackers that a job feeds while it runs. metrics.jsonl stays the truth: what a tracker lacks is made from it.
import { readFile } from "node:fs/promises";
import path from "node:path";
import type { LoggedEvent } from "../learn/events.ts";
import { TensorBoardLog } from "../track/tensorboard.ts";
import type { JobConfig } from "./config.ts";
import { type RunDirectory, type RunManifest, TENSORBOARD } from "./directory.ts";
import type { ProgressSink } from "./progress.ts";

/** The config of a run as its author wrote it; as JSON where no text was kept. */
export async function configText(directory: string, { config }: RunManifest): Promise<string> {
  try {
    return await readFile(path.join(directory, "config.yaml"), "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    return JSON.stringify(config, null, 2);
  }
}

/**
 * Follows `run` with the trackers of `tracking` until what it returns is disposed of; in a run that was opened again
 * they are first brought to where the run is. A tracker that fails is dropped with a word: it costs no training.
 */
export async function startTracking(
  tracking: JobConfig["tracking"],
  run: RunDirectory,
  progress: ProgressSink,
): Promise<AsyncDisposable> {
  let log: TensorBoardLog | null = null;
  const drop = async (error: unknown): Promise<void> => {
    run.follow(null);
    const why = error instanceof Error ? error.message : String(error);
    progress.log(`tensorboard: ${why}; goes on without it, and tokenring export makes the file later`);
    await log?.[Symbol.asyncDispose]().catch(() => {});
    log = null;
  };
  /** Opened with the first event, so that a job that never begins leaves nothing behind. */
  const open = async (events: readonly LoggedEvent[]): Promise<TensorBoardLog> => {
    const { manifest } = run;
    const about = { ...manifest, config: await configText(run.path, manifest) };
    return TensorBoardLog.open(path.join(run.path, TENSORBOARD), about, events);
  };
  if (tracking.tensorboard) {
    const before = await run.events();
    try {
      if (before.length > 0) log = await open(before);
      run.follow(async (event) => {
        try {
          log ??= await open([]);
          await log.append(event);
        } catch (error) {
          await drop(error);
        }
      });
    } catch (error) {
      await drop(error);
    }
  }
  return {
    async [Symbol.asyncDispose]() {
      run.follow(null);
      await log?.[Symbol.asyncDispose]();
    },
  };
}
