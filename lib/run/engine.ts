// The engine that a job's config names.
import { mkdir, mkdtemp, readdir, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { embeddedEngine } from "../engine/embedded.ts";
import type { Engine } from "../engine/types.ts";
import { vllmEngine } from "../engine/vllm.ts";
import type { Policy } from "../policy/policy.ts";
import type { JobConfig } from "./config.ts";
import { fault } from "./files.ts";
import { isLocked, takeLock } from "./lock.ts";
import type { ProgressSink } from "./progress.ts";

/**
 * Opens it. Weights for vLLM go where the config says, which is locked meanwhile, or to a temporary folder of this machine.
 * @throws ERR_TOKENRING_ENGINE as `vllmEngine`; ERR_TOKENRING_RUN_DIRECTORY where another job has that folder.
 */
export async function openEngine(
  config: JobConfig["engine"],
  policy: Policy,
  { progress, signal }: { progress: ProgressSink; signal?: AbortSignal },
): Promise<{ engine: Engine; close(): Promise<void> }> {
  if (config.kind === "embedded") return { engine: embeddedEngine(policy), close: async () => {} };
  const { urls, model, weights, dtype, seeded, turnSeconds, updateSeconds, tolerance } = config;
  const key = process.env.VLLM_API_KEY;
  const folder = await openFolder(weights);
  try {
    const engine = await vllmEngine(
      {
        urls,
        policy,
        weights: folder.path,
        dtype,
        seeded,
        turnMs: 1000 * turnSeconds,
        updateMs: 1000 * updateSeconds,
        tolerance,
        onWarning: (message) => progress.log(`engine: ${message}`),
        ...(model === undefined ? {} : { model }),
        ...(key ? { apiKey: key } : {}),
      },
      signal ? { signal } : {},
    );
    const close = async (): Promise<void> => {
      await engine[Symbol.asyncDispose]();
      await folder.close();
    };
    return { engine, close };
  } catch (error) {
    await folder.close();
    throw error;
  }
}

const TEMPORARY = "tokenring-weights-";
/** A folder that is younger may not have got its lock yet. */
const UNLOCKED_MS = 60_000;

async function openFolder(wanted: string | undefined): Promise<{ path: string; close(): Promise<void> }> {
  if (wanted !== undefined) {
    await mkdir(wanted, { recursive: true }).catch((cause: unknown) => {
      throw fault(`engine.weights: ${wanted} cannot be made (${(cause as Error).message})`, { cause });
    });
    return { path: wanted, close: await takeLock(path.join(wanted, "lock")) };
  }
  await removeAbandoned();
  const made = await mkdtemp(path.join(tmpdir(), TEMPORARY));
  await takeLock(path.join(made, "lock"));
  return { path: made, close: () => rm(made, { recursive: true, force: true }) };
}

/** Removes what jobs that were killed have left: it is as large as the model. */
async function removeAbandoned(): Promise<void> {
  for (const name of await readdir(tmpdir())) {
    if (!name.startsWith(TEMPORARY)) continue;
    const folder = path.join(tmpdir(), name);
    const { mtimeMs } = await stat(folder).catch(() => ({ mtimeMs: Date.now() }));
    if (Date.now() - mtimeMs < UNLOCKED_MS || (await isLocked(path.join(folder, "lock")))) continue;
    // Another user's is another user's to remove.
    await rm(folder, { recursive: true, force: true }).catch(() => {});
  }
}
