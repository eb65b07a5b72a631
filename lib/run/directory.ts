// The run directory: everything a job leaves behind, and what it needs to go on after it was killed.
//
//   run.json              schema, version, seed, config
//   config.yaml           the config as its author wrote it
//   state.json            how far the job is, and how long the logs were then
//   metrics.jsonl         one event a line
//   trajectories/         index.jsonl and one safetensors shard per batch of trajectories
//   checkpoints/<name>/   whole or not there: one a stage, and the one that the job goes on from, which a newer one
//                         replaces; `latest` is a link to the newest stage's
//   tensorboard/          an event file that is made of metrics.jsonl, where the config asks for it
//   lock                  who writes
import { mkdir, readdir, readFile, rm, rmdir, writeFile } from "node:fs/promises";
import { arch, availableParallelism, cpus } from "node:os";
import path from "node:path";
import { z } from "zod";
import type { LoggedEvent, RunEvent } from "../learn/events.ts";
import { ROLLING, removeRolling, saveCheckpoint, tidyCheckpoints } from "./checkpoints.ts";
import { fault, guarded, isMissing, RESTORE, writeAtomic } from "./files.ts";
import { takeLock } from "./lock.ts";
import { AppendLog, readEvents } from "./metrics.ts";
import { TrajectoryStore } from "./trajectories.ts";

/** Grows when a reader of older directories would misread a newer one. */
export const SCHEMA = 1;

const manifestSchema = z.object({
  schema: z.literal(SCHEMA),
  /** Of tokenring. */
  version: z.string(),
  seed: z.number(),
  config: z.unknown().refine((config): boolean => config !== undefined && config !== null, "missing"),
  /** ISO 8601. */
  createdAt: z.iso.datetime(),
  /** Where it was begun; runs of earlier versions do not say. */
  machine: z.object({ node: z.string(), system: z.string(), cpu: z.string(), cores: z.number() }).optional(),
});

export type RunManifest = z.output<typeof manifestSchema>;

/** Grows when an older version would go on wrongly from a newer state. */
const STATE_SCHEMA = 2;

const stateSchema = z.object({
  /** 1 knew no checkpoint. */
  schema: z.union([z.literal(1), z.literal(STATE_SCHEMA)], {
    error: `this version reads schema ${STATE_SCHEMA}`,
  }),
  /** Name of the checkpoint that holds the policy of `progress`. */
  checkpoint: z.string().nullable().default(null),
  progress: z.unknown().refine((progress): boolean => progress !== undefined, "missing"),
  /** Bytes of the logs that belong to `progress`; what follows was written by work that must be done again. */
  metricsBytes: z.int().min(0),
  indexBytes: z.int().min(0),
});

type State = z.output<typeof stateSchema>;

async function readJson(file: string): Promise<unknown> {
  const text = await readFile(file, "utf8");
  try {
    return JSON.parse(text) as unknown;
  } catch (cause) {
    throw fault(`${file}: damaged: not JSON; ${RESTORE}`, { cause });
  }
}

/** `value` of `file` as `schema` has it. Throws ERR_TOKENRING_RUN_DIRECTORY that names the keys at fault. */
function checked<T>(schema: z.ZodType<T>, value: unknown, file: string): T {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const faults = result.error.issues.map(
    (issue) => `${issue.path.join(".") || "(whole file)"}: ${issue.message}`,
  );
  throw fault(`${file}: damaged: ${faults.join(", ")}; ${RESTORE}`, { cause: result.error });
}

/** Reads run.json without taking the lock. Throws ERR_TOKENRING_RUN_DIRECTORY when `directory` holds no run. */
export async function readManifest(directory: string): Promise<RunManifest> {
  const file = path.join(directory, "run.json");
  const manifest = await readJson(file).catch((error: unknown) => {
    if (!isMissing(error)) throw error;
    throw fault(`${directory}: no run.json, so this is no run directory; check the path`, { cause: error });
  });
  // Another version's manifest may hold other keys: that is said first.
  const { schema, version } = (manifest ?? {}) as Partial<Record<string, unknown>>;
  if (typeof schema === "number" && schema !== SCHEMA) {
    const cure = typeof version === "string" ? `tokenring ${version}` : "the version that wrote it";
    throw fault(`${file}: written with schema ${schema}, this version reads schema ${SCHEMA}; use ${cure}`, {
      details: { schema, expected: SCHEMA },
    });
  }
  return checked(manifestSchema, manifest, file);
}

async function readState(directory: string): Promise<State> {
  const file = path.join(directory, "state.json");
  const state = await readJson(file).catch((error: unknown) => {
    if (!isMissing(error)) throw error;
    throw fault(`${file}: missing, the run is damaged; ${RESTORE}`, { cause: error });
  });
  return checked(stateSchema, state, file);
}

/** Folder of a run with its event file. */
export const TENSORBOARD = "tensorboard";

/** What `create` puts into its directory. */
const MADE = [
  "run.json",
  "run.json.tmp",
  "state.json",
  "state.json.tmp",
  "config.yaml",
  "metrics.jsonl",
  "trajectories/index.jsonl",
];
const MADE_FOLDERS = ["trajectories", "checkpoints"];

/** Removes what `create` made in `directory`, but for the lock; what somebody else put there stays. */
async function removeMade(directory: string): Promise<void> {
  for (const name of MADE) await rm(path.join(directory, name), { force: true });
  for (const name of MADE_FOLDERS) await removeIfEmpty(path.join(directory, name));
}

/** What stands in `directory`, but for locks, and the folder of trackers, which others may watch before the run begins. */
async function contentOf(directory: string): Promise<string[]> {
  return (await readdir(directory)).filter((name) => !name.startsWith("lock") && name !== TENSORBOARD);
}

async function removeIfEmpty(directory: string): Promise<void> {
  await rmdir(directory).catch(() => {});
}

/** Bytes of the logs of a run that belong together. */
export interface LogMark {
  metricsBytes: number;
  indexBytes: number;
}

/** One job's directory, locked for writing until `close()`. */
export class RunDirectory implements AsyncDisposable {
  /** Absolute. */
  readonly path: string;
  /** run.json: schema, version, seed and config. */
  readonly manifest: RunManifest;
  /** Where the run's trajectories are written. */
  readonly trajectories: TrajectoryStore;
  readonly #metrics: AppendLog;
  readonly #unlock: () => Promise<void>;
  /** What this object made: nothing of a run that was there, all in a folder that was empty, or the folder too. */
  #made: "nothing" | "content" | "folder" = "nothing";
  #progress: unknown;
  #checkpoint: string | null;
  #follower: ((event: LoggedEvent) => Promise<void>) | null = null;
  #closed = false;

  private constructor(
    directory: string,
    manifest: RunManifest,
    state: State,
    logs: { metrics: AppendLog; trajectories: TrajectoryStore },
    unlock: () => Promise<void>,
  ) {
    this.path = directory;
    this.manifest = manifest;
    this.trajectories = logs.trajectories;
    this.#progress = state.progress;
    this.#checkpoint = state.checkpoint;
    this.#metrics = logs.metrics;
    this.#unlock = unlock;
  }

  /**
   * Makes a new run in `directory`, which must be empty or absent. `configText` is kept beside the config as its
   * author wrote it. Throws ERR_TOKENRING_RUN_DIRECTORY with a cure.
   */
  static async create(
    directory: string,
    options: { config: unknown; seed: number; version: string; configText?: string },
  ): Promise<RunDirectory> {
    const at = path.resolve(directory);
    return guarded(at, async () => {
      const isNew = (await mkdir(at, { recursive: true })) !== undefined;
      const unlock = await takeLock(path.join(at, "lock"));
      let begun = false;
      try {
        let there = await contentOf(at);
        if (!there.includes("run.json") && there.every((name) => [...MADE, ...MADE_FOLDERS].includes(name))) {
          // What a killed process had begun to make; folders with something in them stay, and stand in the way.
          await removeMade(at);
          there = await contentOf(at);
        }
        if (there.length > 0) {
          const cure = there.includes("run.json")
            ? `go on with that run (tokenring resume ${directory}), or give another directory`
            : "give an empty or a new directory";
          throw fault(`${at}: exists and is not empty (${there.slice(0, 3).join(", ")}); ${cure}`);
        }
        begun = true;
        await mkdir(path.join(at, "checkpoints"));
        await mkdir(path.join(at, "trajectories"));
        if (options.configText !== undefined)
          await writeFile(path.join(at, "config.yaml"), options.configText);
        const manifest: RunManifest = {
          schema: SCHEMA,
          version: options.version,
          seed: options.seed,
          config: options.config,
          createdAt: new Date().toISOString(),
          machine: {
            node: process.versions.node,
            system: `${process.platform} ${arch()}`,
            cpu: cpus()[0]?.model.trim() ?? "unknown",
            cores: availableParallelism(),
          },
        };
        const state: State = {
          schema: STATE_SCHEMA,
          checkpoint: null,
          progress: null,
          metricsBytes: 0,
          indexBytes: 0,
        };
        await writeAtomic(path.join(at, "state.json"), JSON.stringify(state));
        // Last, so that a directory with run.json is a whole run.
        await writeAtomic(path.join(at, "run.json"), `${JSON.stringify(manifest, null, 2)}\n`);
        const run = await RunDirectory.#start(at, manifest, state, unlock);
        run.#made = isNew ? "folder" : "content";
        return run;
      } catch (error) {
        if (begun) await removeMade(at);
        await unlock();
        if (isNew) await removeIfEmpty(at);
        throw error;
      }
    });
  }

  /**
   * Opens a run to go on with it. The logs are cut to where they were when `progress` was last saved, and half-written
   * checkpoints are removed, so that work that must be done again leaves no double lines.
   */
  static async open(directory: string): Promise<RunDirectory> {
    const at = path.resolve(directory);
    return guarded(at, async () => {
      const manifest = await readManifest(at);
      const unlock = await takeLock(path.join(at, "lock"));
      try {
        const state = await readState(at);
        await tidyCheckpoints(path.join(at, "checkpoints"), state.checkpoint);
        return await RunDirectory.#start(at, manifest, state, unlock);
      } catch (error) {
        await unlock();
        throw error;
      }
    });
  }

  static async #start(
    at: string,
    manifest: RunManifest,
    state: State,
    unlock: () => Promise<void>,
  ): Promise<RunDirectory> {
    const metrics = await AppendLog.open(path.join(at, "metrics.jsonl"), state.metricsBytes);
    const trajectories = await TrajectoryStore.open(path.join(at, "trajectories"), state.indexBytes);
    return new RunDirectory(at, manifest, state, { metrics, trajectories }, unlock);
  }

  /** What was last given to `saveProgress`; null in a new run. */
  get progress(): unknown {
    return this.#progress;
  }

  /** Name of the checkpoint that `progress` speaks of; null where it speaks of none. */
  get checkpoint(): string | null {
    return this.#checkpoint;
  }

  /** Appends one event to metrics.jsonl; it is in the file, and whoever follows has it, when the promise resolves. */
  async record(event: RunEvent): Promise<void> {
    const logged: LoggedEvent = { ...event, at: Date.now() };
    await guarded(this.path, () => this.#metrics.append(logged));
    await this.#follower?.(logged);
  }

  /** Gives every event to `follower` when it is in metrics.jsonl, in the place of whoever followed before; null: to nobody. */
  follow(follower: ((event: LoggedEvent) => Promise<void>) | null): void {
    this.#follower = follower;
  }

  /** The events of metrics.jsonl so far. */
  events(): Promise<LoggedEvent[]> {
    return readEvents(this.#metrics.path);
  }

  /** Makes everything written so far durable, and says how long the logs are: where a resume would cut them. */
  async mark(): Promise<LogMark> {
    return guarded(this.path, async () => ({
      metricsBytes: await this.#metrics.sync(),
      indexBytes: await this.trajectories.sync(),
    }));
  }

  /**
   * Remembers `progress` (plain JSON), the logs that belong to it (default: all that was written so far), and the name of
   * the checkpoint that it speaks of, which is saved before. Rolling checkpoints of other names are removed.
   */
  async saveProgress(progress: unknown, checkpoint: string | null = null, logs?: LogMark): Promise<void> {
    const { metricsBytes, indexBytes } = logs ?? (await this.mark());
    await guarded(this.path, async () => {
      const state: State = { schema: STATE_SCHEMA, checkpoint, progress, metricsBytes, indexBytes };
      await writeAtomic(path.join(this.path, "state.json"), JSON.stringify(state));
      this.#progress = progress;
      this.#checkpoint = checkpoint;
      await removeRolling(path.join(this.path, "checkpoints"), checkpoint);
    });
  }

  /**
   * Saves a checkpoint: `write` fills an empty directory, which then becomes checkpoints/<name> at once, and `latest`
   * points to it, but not to a rolling one. A crash leaves the old checkpoint or the new one; give names that are not used again where the
   * saved progress must find exactly the weights it speaks of. Returns its path.
   */
  async saveCheckpoint(name: string, write: (directory: string) => Promise<void>): Promise<string> {
    return saveCheckpoint(path.join(this.path, "checkpoints"), name, write, true);
  }

  /**
   * Saves a checkpoint for `saveProgress` to speak of until the next one: checkpoints/<stage>.at-<at>. Returns its
   * name.
   */
  async saveRolling(stage: string, at: string, write: (directory: string) => Promise<void>): Promise<string> {
    const name = `${stage}${ROLLING}${at}`;
    await saveCheckpoint(path.join(this.path, "checkpoints"), name, write, false);
    return name;
  }

  /**
   * Closes and removes a run that `create` made and in which nothing was recorded, so that nobody is told to go on
   * with a config that never worked; every other run stays as it is. Returns whether it was removed.
   */
  async discardUnused(): Promise<boolean> {
    if (this.#closed || this.#made === "nothing") return false;
    const recorded = (await this.#metrics.sync()) + (await this.trajectories.sync());
    const checkpoints = await readdir(path.join(this.path, "checkpoints"));
    if (recorded > 0 || this.#progress !== null || checkpoints.length > 0) return false;
    await removeMade(this.path);
    await this.close();
    if (this.#made === "folder") await removeIfEmpty(this.path);
    return true;
  }

  /** Closes the files and gives the lock back. Idempotent. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    try {
      await this.#metrics.close();
      await this.trajectories.close();
    } finally {
      await this.#unlock();
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
