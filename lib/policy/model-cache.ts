// The cache that Hugging Face's tools share: models--org--name/{blobs, refs, snapshots} below one folder. Blobs are
// files by their hash; a snapshot is a folder of links to them, named by its commit; a ref is a file with a commit.
import { mkdir, readFile, rename, stat, symlink, writeFile } from "node:fs/promises";
import { homedir } from "node:os";
import { basename, dirname, join } from "node:path";
import { TokenringError } from "../errors.ts";

export const CONFIG = "config.json";
export const WEIGHTS = "model.safetensors";
export const WEIGHTS_INDEX = "model.safetensors.index.json";

/** The folder of Hugging Face's tools: cache and token lie in it. */
export function hubHome(env: NodeJS.ProcessEnv = process.env): string {
  if (env.HF_HOME) return expanded(env.HF_HOME);
  return join(expanded(env.XDG_CACHE_HOME || join(homedir(), ".cache")), "huggingface");
}

/** Where huggingface_hub keeps its cache, by the same environment variables. */
export function defaultCache(env: NodeJS.ProcessEnv = process.env): string {
  const given = env.HF_HUB_CACHE || env.HUGGINGFACE_HUB_CACHE;
  return given ? expanded(given) : join(hubHome(env), "hub");
}

function expanded(path: string): string {
  return path === "~" || path.startsWith("~/") ? join(homedir(), path.slice(1)) : path;
}

export const isCommit = (revision: string): boolean => /^[0-9a-f]{40}$/.test(revision);

/** One model's folder in a cache. */
export class CachedModel {
  readonly #folder: string;

  /** `name` is "org/name" or "name", checked by the caller. */
  constructor(cache: string, name: string) {
    this.#folder = join(cache, `models--${name.replace("/", "--")}`);
  }

  snapshot(commit: string): string {
    return join(this.#folder, "snapshots", commit);
  }

  blob(hash: string): string {
    return join(this.#folder, "blobs", hash);
  }

  /** The commit that `revision` (a branch, a tag or a commit) was when it was last looked up; null if it never was. */
  async commit(revision: string): Promise<string | null> {
    if (isCommit(revision)) return revision;
    const text = await readFile(this.#ref(revision), "utf8").catch(() => "");
    return isCommit(text.trim()) ? text.trim() : null;
  }

  async setCommit(revision: string, commit: string): Promise<void> {
    if (isCommit(revision)) return;
    const path = this.#ref(revision);
    const draft = join(dirname(path), `.${basename(path)}.${process.pid}`);
    await mkdir(dirname(path), { recursive: true });
    await writeFile(draft, commit);
    await rename(draft, path);
  }

  /** Puts blob `hash` into a snapshot as `file`, unless something is there. */
  async link(commit: string, file: string, hash: string): Promise<void> {
    await mkdir(this.snapshot(commit), { recursive: true });
    try {
      await symlink(join("..", "..", "blobs", hash), join(this.snapshot(commit), file));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    }
  }

  #ref(revision: string): string {
    return join(this.#folder, "refs", revision);
  }
}

/** The shards that an index names. @throws ERR_TOKENRING_CHECKPOINT when they are not files beside it. */
export function shardsOf(index: string, path: string): string[] {
  let map: unknown;
  try {
    map = (JSON.parse(index) as { weight_map?: unknown }).weight_map;
  } catch {}
  const shards = typeof map === "object" && map !== null ? [...new Set(Object.values(map))] : [];
  if (shards.length === 0 || !shards.every((name) => typeof name === "string" && /^[\w.-]+$/.test(name))) {
    throw new TokenringError(
      "ERR_TOKENRING_CHECKPOINT",
      `${path}: its weight_map names no shards beside it`,
      { details: { path } },
    );
  }
  return shards as string[];
}

/** What a model's folder lacks: config.json, the weights, or shards that their index names. Empty: it can be loaded. */
export async function missingFiles(directory: string): Promise<string[]> {
  const there = (file: string): Promise<boolean> =>
    stat(join(directory, file)).then(
      (found) => found.isFile(),
      () => false,
    );
  const needed = [CONFIG];
  // As the decoder reads them: one file goes before an index.
  if (!(await there(WEIGHTS)) && (await there(WEIGHTS_INDEX))) {
    const index = join(directory, WEIGHTS_INDEX);
    needed.push(...shardsOf(await readFile(index, "utf8"), index));
  } else {
    needed.push(WEIGHTS);
  }
  const found = await Promise.all(needed.map(there));
  return needed.filter((_, i) => !found[i]);
}
