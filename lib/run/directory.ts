// The run directory: everything a job leaves behind, and what it needs to go on after it was killed.
//
//   run.json              schema, version, seed, config
//   config.yaml           the config as its author wrote it
//   state.json            how far the job is, and how long the logs were then
//   metrics.jsonl         one event a line
//   trajectories/         index.jsonl and one safetensors shard per batch of trajectories
//   checkpoints/<name>/   whole or not there; `latest` is a link to the newest
//   lock                  who writes
import {
  mkdir,
  open,
  readdir,
  readFile,
  readlink,
  rename,
  rm,
  rmdir,
  stat,
  symlink,
  writeFile,
} from "node:fs/promises";
import path from "node:path";
import { z } from "zod";
import { isTokenringError, TokenringError } from "../errors.ts";
import type { RunEvent } from "../learn/events.ts";
import { takeLock } from "./lock.ts";
import { AppendLog } from "./metrics.ts";
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
});

export type RunManifest = z.output<typeof manifestSchema>;

const stateSchema = z.object({
  schema: z.literal(SCHEMA),
  progress: z.unknown().refine((progress): boolean => progress !== undefined, "missing"),
  /** Bytes of the logs that belong to `progress`; what follows was written by work that must be done again. */
  metricsBytes: z.int().min(0),
  indexBytes: z.int().min(0),
});

type State = z.output<typeof stateSchema>;

function fault(
  message: string,
  options: { cause?: unknown; details?: Record<string, unknown> } = {},
): TokenringError {
  return new TokenringError("ERR_TOKENRING_RUN_DIRECTORY", message, options);
}

/** What the file system said, in words that help. Our own errors pass. */
function explain(error: unknown, where: string): unknown {
  if (isTokenringError(error)) return error;
  const code = (error as NodeJS.ErrnoException).code;
  const cures: Record<string, string> = {
    ENOSPC: "no space left on the device; free some and resume, nothing that was finished is lost",
    EDQUOT: "the disk quota is used up; free some space and resume, nothing that was finished is lost",
    EACCES: "no permission to write; give another directory or change its owner",
    EPERM: "no permission to write; give another directory or change its owner",
    EROFS: "the file system is read-only; give another directory",
    ENOTDIR: "a part of the path is a file; give another directory",
    EEXIST: "a file is in the way; give another directory",
  };
  const cure = code === undefined ? undefined : cures[code];
  return cure === undefined ? error : fault(`${where}: ${cure}`, { cause: error });
}

async function guarded<T>(where: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw explain(error, where);
  }
}

async function syncDirectory(directory: string): Promise<void> {
  await using handle = await open(directory, "r");
  await handle.sync();
}

/** Replaces `file` so that a reader, and a reader after a crash, sees the old or the new content whole. */
async function writeAtomic(file: string, text: string): Promise<void> {
  const temporary = `${file}.tmp`;
  {
    await using handle = await open(temporary, "w");
    await handle.writeFile(text);
    await handle.sync();
  }
  await rename(temporary, file);
  await syncDirectory(path.dirname(file));
}

async function syncTree(directory: string): Promise<void> {
  for (const entry of await readdir(directory, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    await using handle = await open(path.join(entry.parentPath, entry.name), "r");
    await handle.sync();
  }
  await syncDirectory(directory);
}

/** Undoes a checkpoint that was being saved when the job was killed. */
async function tidyCheckpoints(root: string): Promise<void> {
  const names = await readdir(root).catch((error: unknown) => {
    if (!isMissing(error)) throw error;
    throw fault(`${root}: missing, the run is damaged; ${RESTORE}`, { cause: error });
  });
  for (const hidden of names.filter((name) => name.startsWith("."))) {
    const from = path.join(root, hidden);
    const replaced = hidden.startsWith(".old-") ? hidden.slice(".old-".length) : null;
    if (replaced !== null && !names.includes(replaced)) await rename(from, path.join(root, replaced));
    else await rm(from, { recursive: true });
  }
}

const RESTORE = "restore it from a copy or start a new run";

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

const isMissing = (error: unknown): boolean =>
  ["ENOENT", "ENOTDIR"].includes((error as NodeJS.ErrnoException).code ?? "");

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

async function removeIfEmpty(directory: string): Promise<void> {
  await rmdir(directory).catch(() => {});
}

/**
 * The checkpoint `name` of the run in `directory`, or its newest one. Takes no lock. Throws
 * ERR_TOKENRING_RUN_DIRECTORY that names the checkpoints there are.
 */
export async function findCheckpoint(
  directory: string,
  name?: string,
): Promise<{ name: string; path: string }> {
  const root = path.resolve(directory, "checkpoints");
  const entries = await readdir(root, { withFileTypes: true }).catch(() => []);
  const names = entries
    .filter((entry) => entry.isDirectory() && !entry.name.startsWith("."))
    .map((e) => e.name);
  const latest = await readlink(path.join(root, "latest")).catch(() => null);
  const wanted = name === undefined || name === "latest" ? latest : name;
  if (wanted !== null && names.includes(wanted)) return { name: wanted, path: path.join(root, wanted) };
  const there = names.sort().join(", ");
  const which = wanted === null ? "" : ` named ${wanted}`;
  const message =
    names.length === 0
      ? `no checkpoint${which}; it has none yet`
      : wanted === name
        ? `no checkpoint${which}; it has ${there}`
        : `its link "latest" leads nowhere; name one with --checkpoint: ${there}`;
  throw fault(`${directory}: ${message}`, { details: { checkpoints: names } });
}

/** One job's directory, locked for writing until `close()`. */
export class RunDirectory implements AsyncDisposable {
  readonly path: string;
  readonly manifest: RunManifest;
  readonly trajectories: TrajectoryStore;
  readonly #metrics: AppendLog;
  readonly #unlock: () => Promise<void>;
  /** What this object made: nothing of a run that was there, all in a folder that was empty, or the folder too. */
  #made: "nothing" | "content" | "folder" = "nothing";
  #progress: unknown;
  #closed = false;

  private constructor(
    directory: string,
    manifest: RunManifest,
    progress: unknown,
    logs: { metrics: AppendLog; trajectories: TrajectoryStore },
    unlock: () => Promise<void>,
  ) {
    this.path = directory;
    this.manifest = manifest;
    this.trajectories = logs.trajectories;
    this.#progress = progress;
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
        const there = (await readdir(at)).filter((name) => !name.startsWith("lock"));
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
        };
        const state: State = { schema: SCHEMA, progress: null, metricsBytes: 0, indexBytes: 0 };
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
        await tidyCheckpoints(path.join(at, "checkpoints"));
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
    return new RunDirectory(at, manifest, state.progress, { metrics, trajectories }, unlock);
  }

  /** What was last given to `saveProgress`; null in a new run. */
  get progress(): unknown {
    return this.#progress;
  }

  /** Appends one event to metrics.jsonl; it is in the file when the promise resolves. */
  async record(event: RunEvent): Promise<void> {
    await guarded(this.path, () => this.#metrics.append({ ...event, at: Date.now() }));
  }

  /**
   * Makes everything written so far durable and remembers `progress` (plain JSON) with it. Save the checkpoint that
   * `progress` speaks of first.
   */
  async saveProgress(progress: unknown): Promise<void> {
    await guarded(this.path, async () => {
      const state: State = {
        schema: SCHEMA,
        progress,
        metricsBytes: await this.#metrics.sync(),
        indexBytes: await this.trajectories.sync(),
      };
      await writeAtomic(path.join(this.path, "state.json"), JSON.stringify(state));
      this.#progress = progress;
    });
  }

  /**
   * Saves a checkpoint: `write` fills an empty directory, which then becomes checkpoints/<name> at once, and `latest`
   * points to it. A crash leaves the old checkpoint or the new one; give names that are not used again where the
   * saved progress must find exactly the weights it speaks of. Returns its path.
   */
  async saveCheckpoint(name: string, write: (directory: string) => Promise<void>): Promise<string> {
    if (!/^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(name) || name === "latest") {
      throw new TokenringError(
        "ERR_TOKENRING_INVALID_ARGUMENT",
        `checkpoint name ${JSON.stringify(name)}: use letters, digits, ".", "_" and "-", and not "latest"`,
      );
    }
    const root = path.join(this.path, "checkpoints");
    const target = path.join(root, name);
    const temporary = path.join(root, `.new-${name}`);
    const old = path.join(root, `.old-${name}`);
    return guarded(target, async () => {
      await rm(temporary, { recursive: true, force: true });
      await mkdir(temporary);
      try {
        await write(temporary);
        await syncTree(temporary);
      } catch (error) {
        await rm(temporary, { recursive: true, force: true });
        throw error;
      }
      const replaced = await stat(target).catch(() => null);
      if (replaced) await rename(target, old);
      await rename(temporary, target);
      if (replaced) await rm(old, { recursive: true });
      const link = path.join(root, ".latest");
      await rm(link, { force: true });
      await symlink(name, link);
      await rename(link, path.join(root, "latest"));
      await syncDirectory(root);
      return target;
    });
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
