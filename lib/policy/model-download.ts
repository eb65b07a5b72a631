// Downloads a model into the cache that Hugging Face's tools share. A file is fetched into blobs/<hash>.incomplete, from
// where an earlier attempt stopped, and gets its name when its hash is right; a snapshot's links are made when all of
// its files are there, config.json last, so that what is half done is never taken for a model.
import { createHash } from "node:crypto";
import { constants, createReadStream } from "node:fs";
import { mkdir, open, readFile, rename, rm, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileDownloadInfo, HubApiError, listFiles, modelInfo } from "@huggingface/hub";
import { isTokenringError, TokenringError } from "../errors.ts";
import { CARRIED_FILES } from "./carried-files.ts";
import { parseConfig } from "./config.ts";
import { type CachedModel, CONFIG, isCommit, shardsOf, WEIGHTS, WEIGHTS_INDEX } from "./model-cache.ts";

export interface DownloadProgress {
  file: string;
  /** Bytes of all files, those that were there already included. */
  received: number;
  size: number;
}

export interface DownloadOptions {
  hubUrl: string;
  /** Access token of the hub; empty = none. */
  token: string;
  /** A request that brings nothing for so long is tried again (default 60 000). */
  idleMs?: number;
  /** Deadline of the whole download (default 24 hours). */
  timeoutMs?: number;
  /** Tries of each request that meets a broken connection or a busy server (default 5)... */
  attempts?: number;
  /** ... with this pause after the first, doubled after each (default 1000). */
  pauseMs?: number;
  signal?: AbortSignal;
  onProgress?: (progress: DownloadProgress) => void;
}

interface HubFile {
  path: string;
  size: number;
  /** SHA-256 of a large file, or git's SHA-1 of a small one; the blob's name. */
  hash: string;
}

/**
 * Downloads what the decoder and the tokenizer need of model `name` at `revision`; returns the snapshot's directory.
 * @throws ERR_TOKENRING_CHECKPOINT that says what the hub answered, or what of the model is not supported.
 */
export async function downloadModel(
  cached: CachedModel,
  name: string,
  revision: string,
  options: DownloadOptions,
): Promise<string> {
  const download = new Download(cached, name, options);
  try {
    return await download.run(revision);
  } catch (error) {
    // An abort comes out as whatever the network or the disk made of it.
    options.signal?.throwIfAborted();
    throw error;
  }
}

class Download {
  readonly #cached: CachedModel;
  readonly #name: string;
  readonly #options: DownloadOptions;
  readonly #stop: AbortSignal;
  #received = 0;
  #size = 0;

  constructor(cached: CachedModel, name: string, options: DownloadOptions) {
    this.#cached = cached;
    this.#name = name;
    this.#options = options;
    const deadline = AbortSignal.timeout(options.timeoutMs ?? 24 * 3_600_000);
    this.#stop = options.signal ? AbortSignal.any([options.signal, deadline]) : deadline;
    if (options.token !== "" && !options.token.startsWith("hf_")) {
      throw new TokenringError(
        "ERR_TOKENRING_CHECKPOINT",
        'the hub\'s access token does not begin with "hf_"; set HF_TOKEN to a valid one, or to nothing',
      );
    }
  }

  async run(revision: string): Promise<string> {
    const commit = await this.#commit(revision);
    const files = await this.#files(commit);
    const config = files.get(CONFIG);
    if (config === undefined) throw this.#fault(`has no ${CONFIG}, so it is no model of transformers`);
    // First, so that a model that cannot be computed is refused before its weights are fetched.
    await this.#fetch(commit, config);
    parseConfig(await this.#json(config), `${this.#name}/${CONFIG}`);
    const wanted = await this.#wanted(commit, files);
    this.#size = wanted.reduce((sum, file) => sum + file.size, 0);
    this.#received = 0;
    for (const file of wanted) await this.#fetch(commit, file);
    for (const file of wanted.reverse()) await this.#cached.link(commit, file.path, file.hash);
    await this.#cached.setCommit(revision, commit);
    return this.#cached.snapshot(commit);
  }

  /** config.json, weights and tokenizer, in this order. */
  async #wanted(commit: string, files: ReadonlyMap<string, HubFile>): Promise<HubFile[]> {
    const get = (path: string): HubFile => {
      const file = files.get(path);
      if (file === undefined) throw this.#fault(`lacks ${path}, which its index names`);
      return file;
    };
    const wanted = [get(CONFIG)];
    const index = files.get(WEIGHTS_INDEX);
    if (files.has(WEIGHTS)) {
      wanted.push(get(WEIGHTS));
    } else if (index !== undefined) {
      await this.#fetch(commit, index);
      const text = await readFile(this.#cached.blob(index.hash), "utf8");
      wanted.push(index, ...shardsOf(text, `${this.#name}/${WEIGHTS_INDEX}`).map(get));
    } else {
      throw this.#fault(`has neither ${WEIGHTS} nor ${WEIGHTS_INDEX}; only safetensors weights are read`);
    }
    return [...wanted, ...CARRIED_FILES.filter((path) => files.has(path)).map(get)];
  }

  async #json(file: HubFile): Promise<unknown> {
    try {
      return JSON.parse(await readFile(this.#cached.blob(file.hash), "utf8"));
    } catch (cause) {
      throw this.#fault(`has a ${file.path} that is not JSON`, cause);
    }
  }

  async #commit(revision: string): Promise<string> {
    if (isCommit(revision)) return revision;
    const info = await this.#persist(`its revision ${revision}`, (fetch) =>
      modelInfo({ name: this.#name, revision, additionalFields: ["sha"], ...this.#hub(fetch) }),
    );
    if (!isCommit(info.sha))
      throw this.#fault(`has no commit for ${revision}; is ${this.#options.hubUrl} a hub?`);
    return info.sha;
  }

  /** The files at the top of the repository. */
  async #files(commit: string): Promise<Map<string, HubFile>> {
    return this.#persist("its list of files", async (fetch) => {
      const files = new Map<string, HubFile>();
      const repo = { type: "model", name: this.#name } as const;
      for await (const entry of listFiles({ repo, revision: commit, ...this.#hub(fetch) })) {
        const hash = entry.lfs?.oid ?? entry.oid;
        if (entry.type !== "file" || !/^[\w.-]+$/.test(entry.path)) continue;
        if (hash === undefined || !/^([0-9a-f]{40}|[0-9a-f]{64})$/.test(hash)) continue;
        files.set(entry.path, { path: entry.path, size: entry.lfs?.size ?? entry.size, hash });
      }
      return files;
    });
  }

  #hub(fetch: Fetch): { hubUrl: string; fetch: Fetch; accessToken?: string } {
    const { hubUrl, token } = this.#options;
    return { hubUrl, fetch, ...(token === "" ? {} : { accessToken: token }) };
  }

  /** Makes the blob of `file`, unless it is there. */
  async #fetch(commit: string, file: HubFile): Promise<void> {
    const blob = this.#cached.blob(file.hash);
    const partial = `${blob}.incomplete`;
    const before = this.#received;
    const report = (bytes: number): void => {
      this.#received = before + bytes;
      this.#options.onProgress?.({ file: file.path, received: this.#received, size: this.#size });
    };
    if ((await sizeOf(blob)) === file.size) return report(file.size);
    await mkdir(dirname(blob), { recursive: true });
    for (let again = false; ; again = true) {
      await this.#persist(file.path, (fetch, alive) =>
        this.#append(commit, file, partial, report, fetch, alive),
      );
      if ((await sizeOf(blob)) === file.size) return; // another process was faster
      const hash = await hashOf(partial, file, this.#stop).catch((error: unknown) => {
        if (!this.#stop.aborted) throw error;
        throw this.#stopped(file.path);
      });
      if (hash === file.hash) break;
      await rm(partial, { force: true });
      // What an earlier attempt left may have been something else; a second fault is the hub's.
      if (again) throw this.#fault(`sent ${file.path} with other bytes than its hash says; try again later`);
    }
    await rename(partial, blob);
  }

  /** Fetches what `partial` lacks. */
  async #append(
    commit: string,
    file: HubFile,
    partial: string,
    report: (bytes: number) => void,
    fetch: Fetch,
    alive: () => void,
  ): Promise<void> {
    let at = (await sizeOf(partial)) ?? 0;
    if (at > file.size) {
      await rm(partial);
      at = 0;
    }
    // Written by place, not appended: two processes that fetch the same file write the same bytes to the same places.
    await using target = await open(partial, constants.O_WRONLY | constants.O_CREAT);
    report(at);
    if (at === file.size) return;
    const repo = { type: "model", name: this.#name } as const;
    const info = await fileDownloadInfo({ repo, path: file.path, revision: commit, ...this.#hub(fetch) });
    if (info === null) throw this.#fault(`has no ${file.path} at ${commit}`);
    const { token } = this.#options;
    const response = await fetch(info.url, {
      headers: {
        // Compressed, a range would be one of other bytes.
        "Accept-Encoding": "identity",
        ...(at > 0 ? { Range: `bytes=${at}-` } : {}),
        // Not to another server, to which the hub may have sent us.
        ...(token !== "" && new URL(info.url).origin === new URL(this.#options.hubUrl).origin
          ? { Authorization: `Bearer ${token}` }
          : {}),
      },
    });
    if (!response.ok || response.body === null) throw new HubApiError(response.url, response.status);
    if (response.status !== 206) at = 0;
    for await (const chunk of response.body as AsyncIterable<Uint8Array>) {
      alive();
      for (let done = 0; done < chunk.length; ) {
        const { bytesWritten } = await target.write(chunk, done, chunk.length - done, at);
        done += bytesWritten;
        at += bytesWritten;
      }
      report(at);
    }
    if (at < file.size) throw new Error(`the connection ended after ${at} of ${file.size} bytes`);
    await target.sync();
  }

  /** Does `work` again after a broken connection, a silent one or a busy server. Other answers are final. */
  async #persist<T>(what: string, work: (fetch: Fetch, alive: () => void) => Promise<T>): Promise<T> {
    const { attempts = 5, idleMs = 60_000, pauseMs = 1000 } = this.#options;
    for (let attempt = 1; ; attempt++) {
      const idle = new AbortController();
      const silence = (): void => idle.abort(new Error(`nothing came for ${idleMs / 1000} s`));
      const timer = setTimeout(silence, idleMs);
      const signal = AbortSignal.any([this.#stop, idle.signal]);
      try {
        return await work(
          (url, init) => fetch(url, { ...init, signal }),
          () => timer.refresh(),
        );
      } catch (cause) {
        if (this.#stop.aborted) throw this.#stopped(what);
        if (isTokenringError(cause) || isDisk(cause)) throw cause;
        const reason = idle.signal.aborted ? (idle.signal.reason as Error) : (cause as Error);
        if (attempt >= attempts || !isPassing(cause)) throw this.#explained(what, reason, attempt);
      } finally {
        clearTimeout(timer);
      }
      await sleep(pauseMs * 2 ** (attempt - 1), undefined, { signal: this.#stop }).catch(() => {
        throw this.#stopped(what);
      });
    }
  }

  #stopped(what: string): unknown {
    if (this.#options.signal?.aborted) return this.#options.signal.reason;
    return new TokenringError(
      "ERR_TOKENRING_TIMEOUT",
      `${this.#name}: the deadline passed while ${what} was fetched; what came is kept, start again to go on`,
    );
  }

  #explained(what: string, cause: Error, attempts: number): TokenringError {
    if (cause instanceof HubApiError && cause.statusCode < 500 && cause.statusCode !== 429) {
      return this.#fault(
        `is no directory here, and cannot be had: the hub answers ${cause.statusCode} for ${what}; check the name, and for a private or gated ` +
          "model set HF_TOKEN",
        cause,
      );
    }
    const why = cause.cause instanceof Error ? `${cause.message}: ${cause.cause.message}` : cause.message;
    return this.#fault(
      `is no directory here, and cannot be fetched from ${this.#options.hubUrl} (${what}: ${why}; ${attempts} attempts); what came is kept, ` +
        "start again to go on, or set HF_HUB_OFFLINE=1 to use the cache alone",
      cause,
    );
  }

  #fault(message: string, cause?: unknown): TokenringError {
    const details = { name: this.#name, hubUrl: this.#options.hubUrl };
    return new TokenringError("ERR_TOKENRING_CHECKPOINT", `${this.#name} ${message}`, { cause, details });
  }
}

type Fetch = typeof fetch;

/** Worth another try: anything but an answer that will stay the same. */
function isPassing(error: unknown): boolean {
  if (!(error instanceof HubApiError)) return true;
  return error.statusCode >= 500 || error.statusCode === 429 || error.statusCode === 408;
}

/** A fault of the file system, which another request will not mend. */
function isDisk(error: unknown): boolean {
  const { syscall } = error as NodeJS.ErrnoException;
  return (
    syscall !== undefined && ["open", "write", "fsync", "rename", "mkdir", "ftruncate"].includes(syscall)
  );
}

const sizeOf = (path: string): Promise<number | null> =>
  stat(path).then(
    (found) => found.size,
    () => null,
  );

/** The hash of a file in the form that names it: SHA-256 of large files, git's of small ones. */
async function hashOf(path: string, { hash, size }: HubFile, signal: AbortSignal): Promise<string> {
  const digest = createHash(hash.length === 64 ? "sha256" : "sha1");
  if (hash.length === 40) digest.update(`blob ${size}\0`);
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20, signal }))
    digest.update(chunk as Buffer);
  return digest.digest("hex");
}
