// Where a model comes from: a directory, the local Hugging Face cache, or the hub.
import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { TokenringError } from "../errors.ts";
import { CachedModel, defaultCache, hubHome, missingFiles } from "./model-cache.ts";
import type { DownloadOptions } from "./model-download.ts";

/** How `findModel` looks for a model: revision, cache, network. */
export interface ModelSourceOptions extends Partial<DownloadOptions> {
  /** Branch, tag or commit on the hub (default "main"). */
  revision?: string;
  /** The cache's folder (default as in Python: HF_HUB_CACHE, or hub/ in HF_HOME). */
  cache?: string;
  /** Nothing but directories and the cache (default: HF_HUB_OFFLINE is set). */
  offline?: boolean;
}

const NAME = /^[A-Za-z0-9][\w.-]*(\/[A-Za-z0-9][\w.-]*)?$/;
const REVISION = /^[\w][\w.-]*(\/[\w][\w.-]*)*$/;

/**
 * The directory of the model `name`: a directory of that path; else, for a name as on the hub ("Qwen/Qwen3-0.6B"), the
 * snapshot in the local cache; else a download into that cache, where Python's tools find it too. What the cache has
 * is not looked up again: name a commit, or delete the ref, to get another. Environment variables as in Python:
 * HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN.
 * @throws ERR_TOKENRING_CHECKPOINT that says what was looked for where; ERR_TOKENRING_TIMEOUT; the signal's reason.
 */
export async function findModel(name: string, options: ModelSourceOptions = {}): Promise<string> {
  const found = await stat(name).catch(() => null);
  if (found?.isDirectory()) return name;
  const { revision = "main", cache = defaultCache(), offline = isOffline() } = options;
  if (!NAME.test(name) || name.includes("..") || name.includes("--")) {
    throw fault(
      `${name} is no directory, and no name of a model on the hub; give a path or a name like Qwen/Qwen3-0.6B`,
      { name },
    );
  }
  if (!REVISION.test(revision) || revision.includes("..")) {
    throw fault(`revision ${JSON.stringify(revision)} is no branch, tag or commit`, { name, revision });
  }

  const cached = new CachedModel(cache, name);
  const commit = await cached.commit(revision);
  const directory = commit === null ? null : cached.snapshot(commit);
  const missing = directory === null ? null : await missingFiles(directory);
  if (directory !== null && missing?.length === 0) {
    // A tokenizer that Python did not need at the time may be missing; that is worth a look at the hub, if allowed.
    const complete = await stat(join(directory, "tokenizer.json")).catch(() => null);
    if (complete || offline) return directory;
  }
  if (offline) {
    const what = missing
      ? `the cache has ${directory} without ${missing.join(", ")}`
      : `not in the cache ${cache}`;
    throw fault(`${name} (${revision}) is no directory, ${what}, and HF_HUB_OFFLINE forbids to download it`, {
      name,
      revision,
      cache,
    });
  }
  const { downloadModel } = await import("./model-download.ts");
  return downloadModel(cached, name, revision, {
    ...options,
    hubUrl: options.hubUrl ?? (process.env.HF_ENDPOINT || "https://huggingface.co"),
    token: options.token ?? (await tokenOfEnvironment()),
  });
}

/** Whether the environment forbids to download models. */
export function isOffline(): boolean {
  const set = (value: string | undefined): boolean => /^(1|on|yes|true)$/i.test(value ?? "");
  return set(process.env.HF_HUB_OFFLINE) || set(process.env.TRANSFORMERS_OFFLINE);
}

/** HF_TOKEN, or what `hf auth login` left. */
async function tokenOfEnvironment(): Promise<string> {
  const given = process.env.HF_TOKEN || process.env.HUGGING_FACE_HUB_TOKEN;
  if (given) return given.trim();
  const file = process.env.HF_TOKEN_PATH || join(hubHome(), "token");
  return (await readFile(file, "utf8").catch(() => "")).trim();
}

function fault(message: string, details: Record<string, unknown>): TokenringError {
  return new TokenringError("ERR_TOKENRING_CHECKPOINT", message, { details });
}
