// vLLM servers as the engine: token ids go out and come back over HTTP, and before each iteration the servers read the
// policy's new weights from a folder that they share with this process. Protocol: vLLM's OpenAI-compatible server with
// its development endpoints (https://docs.vllm.ai), tried with 0.32.
import { randomUUID } from "node:crypto";
import { mkdir, readdir, rename, rm } from "node:fs/promises";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { TokenringError } from "../errors.ts";
import { contextLength } from "../policy/config.ts";
import type { CallOptions, Policy, SaveOptions } from "../policy/types.ts";
import { Random, streamKey } from "../random.ts";
import { type Engine, type SampledTurn, type SampleOptions, type Session, tokenIds } from "./types.ts";
import { Unavailable, VllmServer } from "./vllm-server.ts";

/** Of `vllmEngine`: which servers, whose weights, and how long they may take. */
export interface VllmOptions {
  /** `http://host:port` of each server; all serve the policy's model. */
  urls: readonly string[];
  /** Whose weights the servers are given; what it says of a few tokens must be what they say. */
  policy: Pick<Policy, "config" | "version" | "save" | "score">;
  /**
   * A folder of this engine alone that this process writes and every server reads under the same path; holds one copy of
   * the weights, which is removed at the end.
   */
  weights: string;
  /** Of the weights as they are written (default "bf16"). */
  dtype?: NonNullable<SaveOptions["dtype"]>;
  /** The name that the servers give the model; needed where they serve several. */
  model?: string;
  /** What the servers were given with --api-key. */
  apiKey?: string;
  /** Milliseconds that one turn may take, with waiting for its turn and for servers that are away (default 600,000). */
  turnMs?: number;
  /** Milliseconds that a server may take to read new weights (default 600,000). */
  updateMs?: number;
  /**
   * Sends a seed with every turn (default false). It costs a server time, and repeats a turn only where the server computes
   * the same bits in any batch (VLLM_BATCH_INVARIANT=1); without it draws are the server's own.
   */
  seeded?: boolean;
  /**
   * Largest median difference of logprobs, in nats, between a server and the policy after an update (default 0.1); none may
   * be above four times what it was after the first, which shows what rounding makes of it.
   */
  tolerance?: number;
  /** Told when a server goes away and when it is back. */
  onWarning?: (message: string) => void;
}

/** The engine of `vllmEngine`. Disposing of it breaks off its turns; the servers stay as they are. */
export interface VllmEngine extends Engine, AsyncDisposable {
  update(options?: CallOptions): Promise<void>;
}

const MINUTES_10 = 600_000;
/** Pauses before a request is made again. */
const FIRST_PAUSE_MS = 250;
const LONGEST_PAUSE_MS = 15_000;
/** A server that was not heard of for so long may have been started anew. */
const SILENCE_MS = 5_000;
const FACTS_MS = 30_000;
/** Far from 1, so that logprobs before temperature, and those of a truncated distribution, show. */
const PROBE_TEMPERATURE = 2;
const PROBE_TOKENS = 32;
/** What a median may grow to, of that after the first update; and what it is taken for at least, in nats. */
const GROWTH = 4;
const FLOAT32_ROUNDING = 1e-6;

/** One server, and what it is known to hold. */
interface Place {
  server: VllmServer;
  /** Version of the weights that it samples from; null where that is not known. */
  version: number | null;
  updating: Promise<void> | null;
  /** Sessions that sample here. */
  sessions: number;
  /** Turns under way, and who waits for their end. */
  turns: number;
  idle: (() => void)[];
  /** When it answered last. */
  heard: number;
  /** When it failed last, if it has not answered since. */
  away: number | null;
  /** How far it was from the policy after the first update, in nats. */
  rounding: number | null;
  /** Whether it keeps the name of its weights, which a restart forgets (0.32 does). */
  names: boolean;
}

/**
 * The engine of these servers, which must be up. Sessions are theirs by prefix caching: each turn sends all tokens, and a
 * session keeps to the server that has read them. No warper or filter applies but the temperature; a server
 * must be started with `--logprobs-mode processed_logprobs --generation-config vllm` and VLLM_SERVER_DEV_MODE=1. After
 * every change of the policy's weights each server reads them anew, forgets its caches, and has to agree with
 * `policy.score` on the logprobs of a few tokens. While a server is away others take its sessions,
 * and when it is back it gets the weights again; where all are, they are waited for until a turn's time is over.
 * @throws ERR_TOKENRING_ENGINE, with the cure, for a server that is not there, serves another model, or disagrees;
 * ERR_TOKENRING_INVALID_ARGUMENT.
 */
export async function vllmEngine(options: VllmOptions, { signal }: CallOptions = {}): Promise<VllmEngine> {
  const refuse = (message: string): never => {
    throw new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", `vllmEngine: ${message}`);
  };
  if (options.urls.length === 0) refuse("urls is empty; give at least one server");
  for (const url of options.urls)
    if (!/^https?:\/\//.test(url)) refuse(`urls: ${url} is no URL of http or https`);
  if (new Set(options.urls).size < options.urls.length) refuse("urls: a server is named twice");
  if (options.weights === "") refuse("weights is empty; give a folder that the servers can read");
  const servers = options.urls.map((url) => new VllmServer(url, options.apiKey));
  try {
    const facts = await Promise.all(servers.map((server) => factsOf(server, options.model, signal)));
    const names = new Set(facts.map(({ model }) => model));
    if (names.size > 1) {
      const models = [...names].join(", ");
      throw fault(`the servers serve different models (${models}); start them alike, or name one (model)`);
    }
    const most = Math.min(contextLength(options.policy.config), ...facts.map(({ context }) => context));
    return new Servers(options, servers, facts[0]?.model as string, most);
  } catch (error) {
    await Promise.all(servers.map((server) => server.close()));
    throw error;
  }
}

const fault = (message: string, options?: { cause?: unknown }): TokenringError =>
  new TokenringError("ERR_TOKENRING_ENGINE", message, options);

/** Model and context of a server. */
async function factsOf(
  server: VllmServer,
  wanted: string | undefined,
  signal: AbortSignal | undefined,
): Promise<{ model: string; context: number }> {
  const where = `${server.url}/v1/models`;
  let answer: unknown;
  try {
    answer = await server.get("/v1/models", { timeoutMs: FACTS_MS, signal });
  } catch (cause) {
    if (!(cause instanceof Unavailable)) throw cause;
    throw fault(`${cause.message}; is vLLM up there?`, { cause });
  }
  const { data } = answer as { data?: { id?: unknown; max_model_len?: unknown }[] };
  const models = (data ?? []).filter(({ id }) => typeof id === "string");
  const ids = models.map(({ id }) => id).join(", ");
  if (wanted === undefined && models.length !== 1)
    throw fault(`${where}: serves ${models.length} models (${ids}); say which (model)`);
  const found = models.find(({ id }) => wanted === undefined || id === wanted);
  if (!found) throw fault(`${where}: serves no model ${wanted}, but ${ids}`);
  const { id, max_model_len: context } = found;
  if (!Number.isSafeInteger(context))
    throw fault(`${where}: says no max_model_len; this is not vLLM, or one that is too old`);
  return { model: id as string, context: context as number };
}

class Servers implements VllmEngine {
  readonly name = "vllm";
  readonly vocabularySize: number;
  readonly contextLimit: number;
  readonly #options: VllmOptions;
  readonly #model: string;
  readonly #places: Place[];
  readonly #turnMs: number;
  readonly #updateMs: number;
  /** Names this engine's weights among those of others. */
  readonly #id = randomUUID().slice(0, 8);
  readonly #closing = new AbortController();
  #saved: { version: number; path: Promise<string> } | null = null;

  constructor(options: VllmOptions, servers: readonly VllmServer[], model: string, contextLimit: number) {
    this.#options = options;
    this.#model = model;
    this.vocabularySize = options.policy.config.vocab_size;
    this.contextLimit = contextLimit;
    this.#turnMs = options.turnMs ?? MINUTES_10;
    this.#updateMs = options.updateMs ?? MINUTES_10;
    this.#places = servers.map((server) => ({
      server,
      version: null,
      updating: null,
      sessions: 0,
      turns: 0,
      idle: [],
      heard: 0,
      away: null,
      rounding: null,
      names: true,
    }));
  }

  open(): Session {
    return new VllmSession(this, new Tokens(), null);
  }

  /** Done when all servers that are there have the weights, at least one. */
  async update({ signal }: { signal?: AbortSignal | undefined } = {}): Promise<void> {
    await this.#patiently(signal, async () => {
      const given = await Promise.allSettled(
        this.#places.map((place) => this.#at(place, () => this.#ready(place, signal))),
      );
      const failures = given.flatMap((one) => (one.status === "rejected" ? [one.reason] : []));
      const final = failures.find((reason) => !(reason instanceof Unavailable));
      if (final) throw final;
      if (failures.length === this.#places.length) throw failures[0];
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort(new TokenringError("ERR_TOKENRING_DISPOSED", "the vLLM engine was disposed"));
    await Promise.all(this.#places.map(({ server }) => server.close()));
    // Nobody reads them any more.
    const folder = await this.#saved?.path.catch(() => null);
    if (folder) await rm(folder, { recursive: true, force: true });
  }

  /** Where a session goes on: where it was; else at the server with the fewest sessions of those that are there. */
  #choose(session: VllmSession): Place {
    const { place } = session;
    if (place?.away === null) return place;
    const there = this.#places.filter(({ away }) => away === null);
    if (there.length > 0) return there.reduce((least, one) => (one.sessions < least.sessions ? one : least));
    // The one that was tried longest ago.
    return this.#places.reduce((first, one) => ((one.away as number) < (first.away as number) ? one : first));
  }

  /** One turn of a session that holds `tokens`. */
  async turn(session: VllmSession, tokens: Int32Array, options: SampleOptions): Promise<SampledTurn> {
    const { signal } = options;
    return this.#patiently(signal, (timeoutMs) => {
      const place = session.moveTo(this.#choose(session));
      return this.#at(place, async () => {
        await this.#ready(place, signal);
        const { version } = this.#options.policy;
        place.turns++;
        try {
          const turn = await this.#sample(place, tokens, options, timeoutMs);
          place.heard = performance.now();
          return { ...turn, version };
        } finally {
          place.turns--;
          if (place.turns === 0) for (const resolve of place.idle.splice(0)) resolve();
        }
      });
    });
  }

  /** Does `work` until a server answers, for as long as a turn may take. */
  async #patiently<T>(signal: AbortSignal | undefined, work: (timeoutMs: number) => Promise<T>): Promise<T> {
    const end = performance.now() + this.#turnMs;
    for (let pause = FIRST_PAUSE_MS; ; pause = Math.min(2 * pause, LONGEST_PAUSE_MS)) {
      this.#closing.signal.throwIfAborted();
      try {
        return await work(end - performance.now());
      } catch (error) {
        this.#closing.signal.throwIfAborted();
        if (!(error instanceof Unavailable)) throw error;
        if (performance.now() + pause > end) {
          const seconds = Math.round(this.#turnMs / 1000);
          throw fault(`${error.message}; given up after ${seconds} s: see to the server and resume`, {
            cause: error,
          });
        }
      }
      const stop = signal ? AbortSignal.any([signal, this.#closing.signal]) : this.#closing.signal;
      await sleep(pause, undefined, { signal: stop }).catch(() => stop.throwIfAborted());
    }
  }

  /** Does `work` at a server, and notes whether it is there. */
  async #at<T>(place: Place, work: () => Promise<T>): Promise<T> {
    try {
      const result = await work();
      if (place.away !== null) this.#options.onWarning?.(`${place.server.url}: is back`);
      place.away = null;
      return result;
    } catch (error) {
      if (error instanceof Unavailable && error.lost) {
        if (place.away === null && !this.#closing.signal.aborted)
          this.#options.onWarning?.(`${error.message}; until it is back, others take its sessions`);
        place.away = performance.now();
        // It may have been started anew: the next turn there finds out.
        if (place.names) place.heard = Number.NEGATIVE_INFINITY;
        else place.version = null;
      }
      throw error;
    }
  }

  async #sample(
    place: Place,
    tokens: Int32Array,
    options: SampleOptions,
    timeoutMs: number,
  ): Promise<Omit<SampledTurn, "version">> {
    const { maxTokens, temperature, seed, stop } = options;
    // Every knob is given: what is left out, a server takes from the model's generation_config.json.
    const answer = await place.server.post(
      "/v1/completions",
      {
        model: this.#model,
        prompt: Array.from(tokens),
        max_tokens: maxTokens,
        n: 1,
        temperature,
        top_p: 1,
        top_k: 0,
        min_p: 0,
        repetition_penalty: 1,
        presence_penalty: 0,
        frequency_penalty: 0,
        // A server begins each request's draws anew: turns of one session need seeds of their own.
        ...(this.#options.seeded && {
          seed: Number(streamKey(seed, "vllm", tokens.length) & BigInt(Number.MAX_SAFE_INTEGER)),
        }),
        ignore_eos: true,
        stop_token_ids: Array.from(tokenIds(stop)),
        logprobs: 0,
        // Ids in the place of text; `return_token_ids` would send all of the prompt back, too.
        return_tokens_as_token_ids: true,
        skip_special_tokens: false,
      },
      { timeoutMs, signal: options.signal },
    );
    return this.#turnOf(place, answer, options);
  }

  #turnOf(place: Place, answer: unknown, { maxTokens, stop }: SampleOptions): Omit<SampledTurn, "version"> {
    const where = `${place.server.url}/v1/completions`;
    const choice = (answer as { choices?: Choice[] }).choices?.[0];
    const ids = choice?.logprobs?.tokens ?? [];
    const given = choice?.logprobs?.token_logprobs ?? [];
    const tokens = Int32Array.from(ids, (id) => Number(/^token_id:(\d+)$/.exec(String(id))?.[1] ?? -1));
    const bad = tokens.findIndex((id) => id < 0 || id >= this.vocabularySize);
    if (ids.length === 0 || ids.length !== given.length || bad >= 0) {
      const what =
        bad >= 0 ? `token ${JSON.stringify(ids[bad])}` : `${ids.length} tokens, ${given.length} logprobs`;
      // As an overloaded or stopping server ends a turn.
      if (choice?.finish_reason === "abort" || choice?.finish_reason === "error")
        throw new Unavailable(`${where}: the turn was ended by the server (${choice.finish_reason})`);
      throw fault(`${where}: answered ${what}; it needs a vLLM that knows return_tokens_as_token_ids`);
    }
    const logprobs = Float32Array.from(given);
    const odd = logprobs.findIndex((logprob) => !(logprob <= 0 && logprob > Number.NEGATIVE_INFINITY));
    if (odd >= 0) throw fault(`${where}: the logprob of a token that it sampled is ${given[odd]}`);
    const last = tokens.at(-1) as number;
    const stopped = choice?.finish_reason === "stop" && stop.includes(last);
    if (!stopped && !(choice?.finish_reason === "length" && tokens.length === maxTokens)) {
      if (choice?.finish_reason === "abort" || choice?.finish_reason === "error")
        throw new Unavailable(`${where}: the turn was ended by the server (${choice.finish_reason})`);
      const message = `after ${tokens.length} of ${maxTokens} tokens, the last ${last}`;
      throw fault(
        `${where}: a turn ended by "${choice?.finish_reason}" ${message}; no such end was asked for`,
      );
    }
    return { tokens, logprobs, finish: stopped ? "stop" : "length" };
  }

  /** Resolves once the server samples from the policy's weights as they are now. */
  async #ready(place: Place, signal: AbortSignal | undefined): Promise<void> {
    const { version } = this.#options.policy;
    const silent = place.names && performance.now() - place.heard > SILENCE_MS;
    if (place.version === version && !silent && !place.updating) return;
    place.updating ??= this.#refresh(place, version).finally(() => {
      place.updating = null;
    });
    const updating = place.updating;
    if (!signal) return updating;
    let stop: (() => void) | undefined;
    const aborted = new Promise<never>((_, reject) => {
      stop = () => reject(signal.reason);
      signal.addEventListener("abort", stop, { once: true });
    });
    try {
      await Promise.race([updating, aborted]);
    } finally {
      if (stop) signal.removeEventListener("abort", stop);
    }
  }

  /** Gives a server the weights of `version`, unless it still has them. */
  async #refresh(place: Place, version: number): Promise<void> {
    if (place.version === version) await this.#confirm(place);
    if (place.version !== version) await this.#push(place, version);
  }

  /** Looks whether a server that was silent still has the weights that it was given. */
  async #confirm(place: Place): Promise<void> {
    const options = { timeoutMs: FACTS_MS };
    const { weight_version: name } = (await place.server.get("/weight_info", options)) as {
      weight_version?: unknown;
    };
    place.heard = performance.now();
    if (name !== this.#nameOf(place.version as number)) place.version = null;
  }

  #nameOf(version: number): string {
    return `tokenring-${this.#id}-${version}`;
  }

  async #push(place: Place, version: number): Promise<void> {
    const folder = await this.#save(version);
    if (place.turns > 0) await new Promise<void>((resolve) => place.idle.push(resolve));
    place.version = null;
    const options = { timeoutMs: this.#updateMs };
    const { server } = place;
    try {
      const kwargs = { weights_path: folder };
      await server.post("/collective_rpc", { method: "reload_weights", kwargs }, options);
    } catch (cause) {
      if (cause instanceof TokenringError && cause.details.status === 404)
        throw fault(`${cause.message}; start the server with VLLM_SERVER_DEV_MODE=1`, { cause });
      // Else the server itself has ended, and somebody may start it again.
      if (!(cause instanceof Unavailable && cause.message.includes("collective_rpc method failed")))
        throw cause;
      const message = "it must serve this model's shape, and see that folder under the same path";
      throw fault(`${cause.message}; the weights are in ${folder}: ${message}`, { cause });
    }
    const { success } = (await server.post("/reset_prefix_cache", {}, options)) as { success?: unknown };
    if (success === false)
      throw new Unavailable(
        `${server.url}: keeps its cache while it works for others; let it work for one job alone`,
      );
    await this.#verify(place);
    if (place.names) await this.#label(place, version);
    place.heard = performance.now();
    place.version = version;
  }

  async #label(place: Place, version: number): Promise<void> {
    const options = { timeoutMs: FACTS_MS };
    try {
      await place.server.post("/update_weight_version", { new_version: this.#nameOf(version) }, options);
    } catch (error) {
      if (!(error instanceof TokenringError) || error.details.status !== 404) throw error;
      place.names = false;
    }
  }

  /** Where the weights of `version` lie. */
  #save(version: number): Promise<string> {
    if (this.#saved?.version !== version) {
      const saving = { version, path: this.#write(version) };
      this.#saved = saving;
      // Who asks again, tries again.
      saving.path.catch(() => {
        if (this.#saved === saving) this.#saved = null;
      });
    }
    return (this.#saved as { path: Promise<string> }).path;
  }

  async #write(version: number): Promise<string> {
    const root = path.resolve(this.#options.weights);
    const folder = path.join(root, this.#nameOf(version));
    const unfinished = `${folder}.new`;
    try {
      await mkdir(unfinished, { recursive: true });
      // Their own of before, and what an earlier process left.
      for (const name of await readdir(root))
        if (/^tokenring-[0-9a-f]{8}-\d+(\.new)?$/.test(name) && path.join(root, name) !== unfinished)
          await rm(path.join(root, name), { recursive: true });
      await this.#options.policy.save(unfinished, { dtype: this.#options.dtype ?? "bf16" });
      await rename(unfinished, folder);
    } catch (cause) {
      await rm(unfinished, { recursive: true, force: true }).catch(() => {});
      if (cause instanceof TokenringError) throw cause;
      throw fault(`${root}: the weights for vLLM cannot be written (${(cause as Error).message})`, { cause });
    }
    return folder;
  }

  /** Holds what the server says of a few tokens against what the policy says. */
  async #verify(place: Place): Promise<void> {
    const { policy, tolerance = 0.1 } = this.#options;
    const random = Random.of(0, "vllm/probe");
    const length = Math.min(PROBE_TOKENS, Math.floor(this.contextLimit / 2));
    const prompt = Int32Array.from({ length }, () => random.below(this.vocabularySize));
    const turn = await this.#sample(
      place,
      prompt,
      { maxTokens: length, stop: [], temperature: PROBE_TEMPERATURE, seed: 1n },
      this.#updateMs,
    );
    const batch = { tokens: Int32Array.of(...prompt, ...turn.tokens), lengths: Int32Array.of(2 * length) };
    const apart = async (temperature: number): Promise<number> => {
      const { logprob } = await policy.score(batch, { temperature });
      const differences = [...turn.logprobs].map((one, i) => Math.abs(one - (logprob[length + i] as number)));
      return differences.sort((a, b) => a - b)[differences.length >> 1] as number;
    };
    const median = await apart(PROBE_TEMPERATURE);
    // An update that leaves a part of the weights as it was is no further off than one step of training.
    const limit = Math.min(tolerance, GROWTH * Math.max(place.rounding ?? tolerance, FLOAT32_ROUNDING));
    place.rounding ??= median;
    if (median <= limit) return;
    const why =
      median <= tolerance
        ? "that is more than after the first update: it reads only a part of the new weights, as vLLM on the CPU does where " +
          "the model's embeddings are tied"
        : (await apart(1)) <= tolerance
          ? "they are those before the temperature: start the server with --logprobs-mode processed_logprobs"
          : "its weights are others, or it filters or penalises tokens: start it for this very model, without such options";
    const far = `median ${median.toPrecision(2)} nats apart (at most ${limit.toPrecision(2)})`;
    throw fault(`${place.server.url}: its logprobs are not the policy's, ${far}; ${why}`);
  }
}

interface Choice {
  finish_reason?: unknown;
  logprobs?: { tokens?: unknown[]; token_logprobs?: number[] };
}

/** Ids that are appended to; what a fork shares is never written again. */
class Tokens {
  #ids: Int32Array;
  length: number;

  constructor(ids = new Int32Array(1024), length = 0) {
    this.#ids = ids;
    this.length = length;
  }

  append(more: Int32Array): void {
    const length = this.length + more.length;
    if (length > this.#ids.length) {
      const larger = new Int32Array(Math.max(length, 2 * this.#ids.length));
      larger.set(this.all());
      this.#ids = larger;
    }
    this.#ids.set(more, this.length);
    this.length = length;
  }

  all(): Int32Array {
    return this.#ids.subarray(0, this.length);
  }

  copy(): Tokens {
    return new Tokens(this.#ids.slice(0, this.length), this.length);
  }
}

class VllmSession implements Session {
  readonly #engine: Servers;
  readonly #tokens: Tokens;
  #place: Place | null;
  /** Fires when it is disposed of. */
  readonly #ended = new AbortController();

  constructor(engine: Servers, tokens: Tokens, place: Place | null) {
    this.#engine = engine;
    this.#tokens = tokens;
    this.#place = place;
    if (place) place.sessions++;
  }

  get length(): number {
    return this.#tokens.length;
  }

  get place(): Place | null {
    return this.#place;
  }

  moveTo(place: Place): Place {
    if (this.#place === place) return place;
    if (this.#place) this.#place.sessions--;
    this.#place = place;
    place.sessions++;
    return place;
  }

  extend(tokens: ArrayLike<number>): void {
    this.#live();
    const ids = tokenIds(tokens);
    const bad = ids.findIndex((id) => id < 0 || id >= this.#engine.vocabularySize);
    if (bad >= 0) {
      const message = `tokens[${bad}] is ${ids[bad]}; the vocabulary has ${this.#engine.vocabularySize}`;
      throw new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", message);
    }
    this.#fits(ids.length);
    this.#tokens.append(ids);
  }

  async sample(options: SampleOptions): Promise<SampledTurn> {
    this.#live();
    if (!(Number.isSafeInteger(options.maxTokens) && options.maxTokens > 0)) {
      const message = `maxTokens is ${options.maxTokens}; give a whole number of at least 1`;
      throw new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", message);
    }
    if (this.length === 0)
      throw new TokenringError(
        "ERR_TOKENRING_INVALID_ARGUMENT",
        "a session without tokens cannot be sampled",
      );
    // A server would cut the turn short and say nothing.
    this.#fits(options.maxTokens);
    const ended = this.#ended.signal;
    const signal = options.signal ? AbortSignal.any([options.signal, ended]) : ended;
    const turn = await this.#engine.turn(this, this.#tokens.all(), { ...options, signal });
    this.#tokens.append(turn.tokens);
    return turn;
  }

  /** Goes on at the same server, which has read the tokens, once this one has sampled. */
  fork(): Session {
    this.#live();
    return new VllmSession(this.#engine, this.#tokens.copy(), this.#place);
  }

  /** A turn being sampled ends with ERR_TOKENRING_ABORTED. */
  dispose(): void {
    if (this.#ended.signal.aborted) return;
    this.#ended.abort(new TokenringError("ERR_TOKENRING_ABORTED", "the session was disposed"));
    if (this.#place) this.#place.sessions--;
    this.#place = null;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #live(): void {
    if (this.#ended.signal.aborted)
      throw new TokenringError("ERR_TOKENRING_DISPOSED", "the session was disposed");
  }

  #fits(more: number): void {
    const { contextLimit } = this.#engine;
    if (this.length + more <= contextLimit) return;
    const message = `a session of ${this.length} tokens cannot take ${more} more: the context limit is ${contextLimit}`;
    throw new TokenringError("ERR_TOKENRING_ENGINE", message);
  }
}
